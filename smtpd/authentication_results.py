"""Authentication-Results (RFC 8601): our own field, and which received ones claim to be ours. Pure text.

The writer lets nothing of a stranger out unescaped. The reader looks at the authserv-id alone and decides in
doubt that a field is forged: whoever reads the message later may be less careful than the grammar.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from smtpd import trace
from smtpd.addresses import MAX_DOMAIN, AddressError, normalise_domain

SpfResult = Literal["pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"]  # RFC 7208 §2.6

_WIDTH = 76  # octets; RFC 5322 §2.1.1: 78, less the blank before a line and the semicolon behind it
MAX_VALUE = 400  # octets; longer than any address, and short enough that one word, all escaped, fits in a line of 998
_MAX_CLAIM = 4096  # octets of a received field in which its authserv-id must end

_KEYWORD = re.compile(r"(?=.{1,63}\Z)[A-Za-z0-9-]*[A-Za-z0-9]")  # RFC 5321 §4.1.2; the limit is ours
_TOKEN = re.compile(r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+")  # RFC 2045 §5.1
_DOT_ATOM_TEXT = r"[\w!#$%&'*+\-/=?^`{|}~\x80-\U0010ffff]+(?:\.[\w!#$%&'*+\-/=?^`{|}~\x80-\U0010ffff]+)*"
_DOT_ATOM = re.compile(_DOT_ATOM_TEXT)
_LABEL = r"[A-Za-z0-9\x80-\U0010ffff]+(?:-+[A-Za-z0-9\x80-\U0010ffff]+)*"
# [ [ local-part ] "@" ] domain-name of RFC 8601 §2.2; a domain-name has two labels or more (RFC 6376 §3.5).
_MAILBOX = re.compile(rf'(?:(?:{_DOT_ATOM_TEXT}|"(?:[^"\\]|\\["\\])+")?@)?{_LABEL}(?:\.{_LABEL})+')
_WORD = re.compile(r" *[^ ]+")
_BRACKETS = str.maketrans("()", "[]")

_PLAIN_CLAIM = re.compile(rb"[ \t\r\n]*+([A-Za-z0-9._\-]++)[ \t\r\n]*+(?:1[ \t\r\n]*+)?(?:;|\Z)")
_IDENTIFIER = re.compile(rb"\"(?:[^\"\\]|\\.)*+\"|[!#$%&'*+\-.0-9A-Z^_`a-z{|}~\x80-\xff]++", re.DOTALL)
_VERSION = re.compile(rb"[0-9]++")
_ODD = re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_FIRST_WORD = re.compile(r"\A[^\s;/:,()<>@=?\"\\\[\]]+")


@dataclass(frozen=True, slots=True)
class MethodResult:
    """What one method found (RFC 8601 §2.7): `("dkim", "pass", properties=(("header", "d", "example.org"),))`.

    `properties` are (ptype, property, value). A value is an address as it stands in an SMTP command, a domain, or
    any text; it is escaped when it is written. Text beyond 400 octets is cut, and "..." says so.

    Raises ValueError when a method, result, ptype or property is no keyword of at most 63 characters.
    """

    method: str
    result: str
    reason: str = ""
    comment: str = ""
    properties: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        for keyword in (self.method, self.result, *(word for found in self.properties for word in found[:2])):
            if _KEYWORD.fullmatch(keyword) is None:
                raise ValueError(f"{keyword!r} is no keyword")


def authentication_results(authserv_id: str, results: Iterable[MethodResult], *, utf8: bool = False) -> bytes:
    """One complete Authentication-Results field of ours; it says "none" without results (RFC 8601 §2.2).

    `utf8` is for messages that came with SMTPUTF8. In others domains become A-labels, and what else is not
    ASCII becomes "?".
    """
    statements = [_statement(result, utf8) for result in results] or ["none"]
    return _field(f"Authentication-Results: {_value(authserv_id, utf8)}", *statements)


def received_spf(
    result: SpfResult,
    *,
    receiver: str,
    identity: Literal["mailfrom", "helo"],
    client_ip: str,
    envelope_from: str = "",
    helo: str = "",
    mechanism: str = "",
    problem: str = "",
    comment: str = "",
    utf8: bool = False,
) -> bytes:
    """One complete Received-SPF field (RFC 7208 §9.1, erratum 5436); keys without a value are left out.

    It belongs above the Received field of this hop. Raises ValueError when SPF has no such result.
    """
    if result not in get_args(SpfResult):
        raise ValueError(f"{result!r} is no result of SPF")
    keys = {
        "receiver": receiver, "identity": identity, "client-ip": client_ip, "envelope-from": envelope_from,
        "helo": helo, "mechanism": mechanism, "problem": problem,
    }  # fmt: skip
    pairs = "; ".join(f"{key}={_dot_atom(value, utf8)}" for key, value in keys.items() if value)
    return _field(f"Received-SPF: {result}{_comment(comment)} {pairs}")


def claims(value: bytes, authserv_id: str) -> bool:
    """Whether a received Authentication-Results field must go, because it could be taken for ours (RFC 8601 §5).

    `value` is what stands behind the colon, with its folding. True when its authserv-id is `authserv_id` (case,
    quoting, A-labels and U-labels make no difference), is missing, or cannot be read beyond doubt, and when the field
    has another version than 1. Linear in the size of the value at worst; of most values only the first words are read.
    """
    plain = _PLAIN_CLAIM.match(value)
    if plain is not None:
        return _is_same(plain[1].decode("ascii"), authserv_id)
    found = _read_identifier(value[:_MAX_CLAIM])
    return found is None or any(_is_same(reading, authserv_id) for reading in _readings(*found))


def _statement(found: MethodResult, utf8: bool) -> str:
    reason = f" reason={_value(found.reason, utf8)}" if found.reason else ""
    properties = [f" {ptype}.{name}={_property_value(value, utf8)}" for ptype, name, value in found.properties]
    return f"{found.method}={found.result}{_comment(found.comment)}{reason}{''.join(properties)}"


def _value(text: str, utf8: bool) -> str:
    text = _clean(text, utf8)
    return text if _TOKEN.fullmatch(text) else _quoted(text)


def _property_value(text: str, utf8: bool) -> str:
    text = _clean(text, utf8)
    return text if _TOKEN.fullmatch(text) or _MAILBOX.fullmatch(text) else _quoted(text)


def _dot_atom(text: str, utf8: bool) -> str:
    text = _clean(text, utf8)
    return text if _DOT_ATOM.fullmatch(text) else _quoted(text)


def _comment(text: str) -> str:
    return f" ({trace.comment(_cut(text).translate(_BRACKETS))})" if text else ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _clean(text: str, utf8: bool) -> str:
    """Text without anything that cannot be seen: no control, no separator of lines, no half of a surrogate pair."""
    text = _cut(text)
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "?" for character in text)
    return text if utf8 or text.isascii() else _to_ascii(text)


def _cut(text: str) -> str:
    octets = text.encode("utf-8", "replace")
    return text if len(octets) <= MAX_VALUE else octets[:MAX_VALUE].decode("utf-8", "ignore") + "..."


def _to_ascii(text: str) -> str:
    local, at, domain = text.rpartition("@")
    try:
        name = domain if domain.isascii() or "." not in domain else normalise_domain(domain)
    except AddressError:
        name = domain  # it is just text
    return f"{local}{at}{name}".encode("ascii", "replace").decode("ascii")


def _field(*lines: str) -> bytes:
    return (";\r\n\t".join(map(_fold, lines)) + "\r\n").encode("utf-8")


def _fold(text: str) -> str:
    """Break lines before blanks; inside quotes and comments, too, where a fold is as good as the blank alone."""
    lines = [""]
    for word in _WORD.findall(text):
        if lines[-1] and len(lines[-1].encode()) + len(word.encode()) > _WIDTH:
            lines.append("")
        lines[-1] += word
    return "\r\n".join(lines)


def _read_identifier(value: bytes) -> tuple[str, str] | None:
    """The authserv-id and everything up to its end, or None when there is any doubt about it."""
    start = _behind_cfws(value, 0)
    found = _IDENTIFIER.match(value, start)
    if found is None:
        return None
    end = _behind_cfws(value, found.end())
    version = _VERSION.match(value, end)
    if version is not None:
        if end == found.end() or version[0].lstrip(b"0") != b"1":  # RFC 8601 §5: a version we do not support must go
            return None
        end = _behind_cfws(value, version.end())
    if value[end : end + 1] not in (b"", b";") or end >= _MAX_CLAIM or _ODD.search(value, 0, end):
        return None
    try:
        return found[0].decode("utf-8"), value[: found.end()].decode("utf-8")
    except UnicodeDecodeError:
        return None


def _behind_cfws(value: bytes, position: int) -> int:
    """The index behind blanks and nested comments; a comment without end takes it beyond the value."""
    depth = 0
    while position < len(value):
        octet = value[position]
        if octet == 0x28:
            depth += 1
        elif depth and octet == 0x29:
            depth -= 1
        elif depth and octet == 0x5C:
            position += 1
        elif not depth and octet not in b" \t\r\n":
            return position
        position += 1
    return _MAX_CLAIM if depth else position


def _readings(identifier: str, before: str) -> Iterable[str]:
    """What a reader might take for the authserv-id: the grammar's, then those of people in a hurry."""
    if identifier.startswith('"'):
        identifier = _QUOTED_PAIR.sub(r"\1", identifier[1:-1])
    yield identifier
    yield "".join(identifier.split())
    yield from _first_word(identifier)
    if "(" in before:  # to whom a comment ends at the first closing parenthesis
        outside, *comments = before.split("(")
        yield from _first_word(" ".join([outside, *(comment.partition(")")[2] for comment in comments)]))


def _first_word(text: str) -> list[str]:
    return _FIRST_WORD.findall(text.lstrip(' \t\r\n"'))[:1]


def _is_same(found: str, ours: str) -> bool:
    name = _in_unicode(found)
    return not name or name == (_in_unicode(ours) or ours)


def _in_unicode(text: str) -> str | None:
    """A name as RFC 8601 §5 compares it: lower case, U-labels; None when it is not a possible name.

    A-labels are decoded as leniently as anybody does: `xn--mx-` is no A-label, but gives "mx" to those who do not look.
    """
    name = text.strip().rstrip(".").lower()
    if not name.isascii():
        try:
            name = normalise_domain(name)
        except AddressError:
            return None
    if "xn--" not in name or len(name) > MAX_DOMAIN:
        return name
    try:
        labels = [
            label[4:].encode("ascii").decode("punycode") if label.startswith("xn--") else label
            for label in name.split(".")
        ]
    except ValueError:
        return None
    return unicodedata.normalize("NFKC", ".".join(labels)).lower()
