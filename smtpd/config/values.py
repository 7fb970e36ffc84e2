"""Checks of single values that the tables share; each returns the value to keep or raises ValueError."""

import re
from string import Formatter

from smtpd.addresses import AddressError, normalise_domain, parse_address
from smtpd.recipient_map import compile_expression, is_expression

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_HOSTNAME = 253  # RFC 1035 §2.3.4, without the root's dot
_MAX_REPLY = 1000


def check_hostname(value: str) -> str:
    """A host name in ASCII, at least one label."""
    labels = value.split(".")
    if len(value) > _MAX_HOSTNAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError('must be a host name such as "mail.example.com"')
    return value


def normal_domain(value: str) -> str:
    """A domain as it is compared: lower case, A-labels."""
    try:
        return normalise_domain(value)
    except AddressError as error:
        raise ValueError(f"is no domain: {error.problem}") from None


def check_domain_key(value: str) -> str:
    """A key of `[smtpd.domains]`: a domain, "*.domain" or "*"."""
    if value == "*":
        return value
    if value.startswith("*."):
        return "*." + normal_domain(value[2:])
    return normal_domain(value)


def check_recipient_key(value: str) -> str:
    """A key of `[smtpd.recipients]`: an address, "@domain", a pattern or a regular expression between slashes.

    The domain comes back normalised.
    """
    if is_expression(value):
        compile_expression(value)
        return value
    local, at, domain = value.rpartition("@")
    if not at:
        raise ValueError('must be "user@domain", "@domain" or a pattern such as "old-*@domain" or "/expression/"')
    if local and not any(sign in local for sign in "*?["):
        try:
            parse_address(f"{local}@example.com")
        except AddressError as error:
            raise ValueError(f"is no address: {error.problem}") from None
    return f"{local}@{check_domain_key(domain)}"


def check_log_target(value: str) -> str:
    """One of the places a log can go to."""
    if value in ("stdout", "stderr", "syslog") or (value.startswith("file:") and len(value) > len("file:")):
        return value
    raise ValueError('must be "stdout", "stderr", "syslog" or "file:PATH"')


def check_reply_text(value: str) -> str:
    """A changed text of a reply: printable ASCII, braces only around the name of a placeholder."""
    if not 0 < len(value) <= _MAX_REPLY:
        raise ValueError(f"must have 1 to {_MAX_REPLY} characters")
    if not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII on one line")
    if not all(name.isidentifier() for name in placeholders(value)):
        raise ValueError("may hold braces only around a name, such as {address}")
    return value


def placeholders(text: str) -> frozenset[str]:
    """Names in braces; ValueError for a brace that is not closed."""
    try:
        return frozenset(name for _, name, _, _ in Formatter().parse(text) if name is not None)
    except ValueError:
        raise ValueError("has a brace that is not closed") from None
