"""What becomes of a recipient that the map names: another agent, another mailbox for the store, a folder.

Whoever sends writes the address, so parts of it that get into a mailbox or a folder are looked at first. A folder
that would be anything but a plain name is left out, and the mail goes to the inbox; a mailbox that could be a path
or a route is none, and the recipient is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from smtpd.addresses import Address, AddressError, normalise_domain, parse_address
from smtpd.options import Options

DENY = "deny"
"""The word for a recipient that there is not."""
PARTS = frozenset(("user", "detail", "domain", "local"))
"""What can stand in braces in a mailbox or folder, besides the named groups of a regular expression."""

_LEVEL = r"[A-Za-z0-9_+=-](?:[A-Za-z0-9 _+=-]*[A-Za-z0-9_+=-])?"
_FOLDER = re.compile(rf"{_LEVEL}(?:/{_LEVEL})*")
_NAME = re.compile(_LEVEL)
_LONGEST_FOLDER = 120  # as a file name with levels in front it has to stay below 255 octets
_INBOX = "inbox"  # IMAP's name for what is no folder, in any case of letters: RFC 9051 §5.1
_PART = re.compile(r"\{([A-Za-z_]\w*)\}")
# Paths, routes (see routing.py) and controls; nothing behind us has to find out what it makes of them.
_UNFIT = re.compile(r"\.\.|[/%!@\x00-\x1f\x7f-\x9f]")
_TO_ESCAPE = re.compile(r'(["\\])')


def parts_of(template: str) -> frozenset[str]:
    """Names in braces; ValueError for a brace that stands for something else."""
    if re.search(r"[{}]", _PART.sub("", template)):
        raise ValueError("may hold braces only around a name, such as {user}")
    return frozenset(_PART.findall(template))


def _check_mailbox(template: str) -> str:
    if not template:
        return template
    names = parts_of(template)
    local, at, domain = template.rpartition("@")
    # What the sender wrote never picks the domain, or a recipient could be written that is relayed.
    if not at or parts_of(domain) - {"domain"}:
        raise ValueError('must be an address such as "{user}@mail.example.com"; its domain can hold {domain} only')
    if names and '"' in local:
        raise ValueError("needs no quotes, they are put where an address wants them")
    try:
        parse_address(f"{_PART.sub('x', local)}@{_PART.sub('example.com', domain)}")
    except AddressError as error:
        raise ValueError(f"is no address: {error.problem}") from None
    return template


def _check_folder(template: str | None) -> str | None:
    if template:
        parts_of(template)
        if _FOLDER.fullmatch(_PART.sub("x", template)) is None or len(template) > _LONGEST_FOLDER:
            raise ValueError('is made of letters, digits, spaces and "_+=-", with "/" between levels')
    return template


class Target(Options):
    """What `[smtpd.recipients]` says about an address; all keys are optional, but one has to be there."""

    agent: str = ""
    """Name of the agent; empty: the one of the mailbox, if that is set, or of the recipient's domain."""
    mailbox: Annotated[str, AfterValidator(_check_mailbox)] = ""
    """Address the agent is asked to deliver to; {user}, {detail}, {local} and {domain} are parts of the recipient
    (user+detail@domain), and named groups of a regular expression can stand in braces as well."""
    folder: Annotated[str | None, AfterValidator(_check_folder)] = None
    """Folder in that mailbox, with "/" between levels and the same names in braces; "" is the inbox. What would be
    no plain name is left out."""
    deny: bool = False
    """Whether the recipient is refused as unknown; then no other key makes sense."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        others = bool(self.agent or self.mailbox or self.folder is not None)
        if self.deny and others:
            raise ValueError("deny = true stands alone")
        if not self.deny and not others:
            raise ValueError("must have an agent, a mailbox, a folder or deny = true")
        return self

    @classmethod
    def read(cls, value: Target | str) -> Target:
        """Make a target of the short form: the name of an agent, "deny", or an address of ours."""
        return value if isinstance(value, Target) else cls.model_validate(_long_form(value))

    @property
    def parts(self) -> frozenset[str]:
        """Names in braces."""
        return parts_of(self.mailbox) | parts_of(self.folder or "")


def _long_form(value: object) -> object:
    if isinstance(value, str):
        if not value:
            raise ValueError('must be the name of an agent, "deny", an address or a table')
        return {"deny": True} if value == DENY else {"mailbox" if "@" in value else "agent": value}
    if not isinstance(value, Target | Mapping):
        raise ValueError('must be the name of an agent, "deny", an address or a table')
    return value


_SHORT_OR_LONG: Any = str | Target
WrittenTarget = Annotated[Target, BeforeValidator(_long_form, json_schema_input_type=_SHORT_OR_LONG)]
"""A target as it stands in the configuration: text or a table."""


class Rewriting:
    """A target, made ready to be applied."""

    __slots__ = ("_fixed", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self._fixed = parse_address(target.mailbox) if target.mailbox and not parts_of(target.mailbox) else None

    def mailbox(self, values: Mapping[str, str]) -> Address | None:
        """The mailbox for one recipient's parts, None when they make none that is safe to ask for."""
        if self._fixed is not None:
            return self._fixed
        local, _, domain = self.target.mailbox.rpartition("@")
        return make_mailbox(_filled(local, values), _filled(domain, values))

    def folder(self, values: Mapping[str, str]) -> str | None:
        """The folder for one recipient's parts, "" for the inbox, None when nothing is said about it."""
        template = self.target.folder
        if not template:
            return template
        if not all(_NAME.fullmatch(values[name]) for name in parts_of(template)):
            return ""
        return _short(_filled(template, values))


def make_mailbox(local: str, domain: str) -> Address | None:
    """An address put together from what a sender wrote; None for one that could be taken for something else."""
    if _UNFIT.search(local) is not None:
        return None
    try:
        return parse_address(f"{local}@{normalise_domain(domain)}")
    except AddressError:
        quoted = _TO_ESCAPE.sub(r"\\\1", local)
    try:
        return parse_address(f'"{quoted}"@{normalise_domain(domain)}')
    except AddressError:
        return None


def plain_folder(text: str) -> str:
    """What a sender wrote, if it is a name of one level that every store takes as a folder; else "", the inbox."""
    return _short(text) if _NAME.fullmatch(text) is not None else ""


def _short(folder: str) -> str:
    return folder if len(folder) <= _LONGEST_FOLDER and folder.lower() != _INBOX else ""


def _filled(template: str, values: Mapping[str, str]) -> str:
    return _PART.sub(lambda part: values[part[1]], template)
