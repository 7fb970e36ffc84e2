"""Who may send as whom: the addresses of a login, and those that the operator gives it, in a table or a file. Pure.

A file has a line for each login, `login: address address ...`; addresses are written as in `SenderPattern`, lines of
one login add up, and "#" starts a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from smtpd.addresses import Address, AddressError, normalise_domain, parse_address
from smtpd.auth import prepare_name
from smtpd.options import as_tuple
from smtpd.patterns import AddressSet, HostSet, check_address

ANYBODY = "*"
"""As a pattern: every address. As a login: every login."""
_MOST_TOLD = 5  # lines of a file that are named as wrong

_BOM = b"\xef\xbb\xbf"
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|\S)++')  # a quoted local part may hold blanks


def check_sender(pattern: str) -> str:
    """Let a good `SenderPattern` pass; ValueError."""
    return pattern if pattern == ANYBODY else check_address(pattern)


def check_login(login: str) -> str:
    """Let a login pass that somebody can have, and "*"; ValueError."""
    if prepare_name(login) is None:
        raise ValueError("a login has at least one character, no spaces and no control characters")
    return login


SenderPattern = Annotated[str, AfterValidator(check_sender)]
"""A mail address, "@domain", "@*.domain" for all domains below `domain`, or "*" for every address."""
SenderPatterns = Annotated[tuple[SenderPattern, ...], BeforeValidator(as_tuple)]
LoginName = Annotated[str, AfterValidator(check_login)]


class User:
    """A login as it is compared: an address when it is one, else a name that stands for it in our domains."""

    __slots__ = ("domain", "key", "local_key")

    def __init__(self, login: str) -> None:
        address = _as_address(prepare_name(login) or login)
        self.local_key = address.local_key
        self.domain = address.domain
        """"" when the login has none."""
        self.key = address.key


class Rights:
    """Who has been given which addresses."""

    def __init__(self, table: Mapping[str, Iterable[str]] | None = None) -> None:
        patterns: dict[str, list[str]] = {}
        for login, given in (table or {}).items():
            patterns.setdefault(login if login == ANYBODY else User(login).key, []).extend(given)
        self._everything = frozenset(login for login, given in patterns.items() if ANYBODY in given)
        self._addresses = {
            login: AddressSet(pattern for pattern in given if pattern != ANYBODY)
            for login, given in patterns.items()
        }

    def __len__(self) -> int:
        return len(self._addresses)

    def allow(self, user: User, address: Address) -> bool:
        """Whether the user was given the address."""
        if self.allow_all(user):
            return True
        return any(address in self._addresses.get(login, _NONE) for login in (user.key, ANYBODY))

    def allow_all(self, user: User) -> bool:
        """Whether the user was given every address there is."""
        return user.key in self._everything or ANYBODY in self._everything


_NONE = AddressSet(())


class OwnAddresses:
    """What a login may use without being told: its own address, or its name in our domains."""

    def __init__(self, domains: Iterable[str]) -> None:
        """`domains` are keys of `[smtpd.domains]`; "*" there is everybody's, and does not count."""
        self._domains = HostSet(domains)  # no domain is called "*"

    def hold(self, user: User, address: Address) -> bool:
        """Whether the address is the user's own."""
        if address.local_key != user.local_key:
            return False
        return address.domain == user.domain if user.domain else address.domain in self._domains


def parse_rights(content: bytes, path: str) -> Rights:
    """Read a file; ValueError names its wrong lines."""
    table: dict[str, list[str]] = {}
    problems: list[str] = []
    for number, line in enumerate(content.removeprefix(_BOM).splitlines(), 1):
        try:
            login, patterns = _parse_line(line)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if login:
            table.setdefault(login, []).extend(patterns)
    if problems:
        more = len(problems) - _MOST_TOLD
        raise ValueError("; ".join(problems[:_MOST_TOLD]) + (f"; and {more} more lines" if more > 0 else ""))
    return Rights(table)


def _parse_line(line: bytes) -> tuple[str, list[str]]:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not text or text.startswith("#"):
        return "", []
    login, colon, rest = text.partition(":")
    if not colon:
        raise ValueError('it is not of the form "login: address address ..."')
    return check_login(login.strip()), list(map(check_sender, _words(rest)))


def _words(text: str) -> Iterator[str]:
    for match in _WORD.finditer(text):
        if match[0].startswith("#"):
            return
        yield match[0]


def _as_address(login: str) -> Address:
    local, at, domain = login.rpartition("@")
    if not at:
        return Address(login, "", login)
    with suppress(AddressError):
        return parse_address(login)
    with suppress(AddressError):  # it may be one that needs quotes, such as joe..x@a.example
        return Address(local, normalise_domain(domain), login)
    return Address(login, "", login)
