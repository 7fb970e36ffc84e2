"""What a lookup gives: records of one type for one name, or the reason why there are none. Pure.

Names are text in ASCII, labels separated by dots, in any case, with or without the last dot; "." is the
root. There are no escapes: a backslash is a character of the name. Internationalised names are A-labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

Type = Literal["A", "AAAA", "MX", "TXT", "PTR", "CNAME", "NS", "SOA", "TLSA"]
Status = Literal["ok", "nodata", "nxdomain", "tempfail"]

TYPES: tuple[Type, ...] = ("A", "AAAA", "MX", "TXT", "PTR", "CNAME", "NS", "SOA", "TLSA")
STATUSES: tuple[Status, ...] = ("ok", "nodata", "nxdomain", "tempfail")
MAX_NAME = 253  # characters without the last dot (RFC 1035 §2.3.4: 255 octets with all lengths)

# RFC 1035 §2.3.4: a label has 63 octets. SPF can make names with blanks (RFC 7208 §7.1), and they are in the DNS.
_NAME = re.compile(r"[ -\-/-~]{1,63}(?:\.[ -\-/-~]{1,63})*")
_OBJECT = 56  # octets that Python needs for a text or a tuple, besides what is in it
_STRING = 255  # octets in one string of a TXT record: its length is one octet


class Mx(NamedTuple):
    """Where mail for a name goes; the lowest preference first. Host "" means that the name takes no mail."""

    preference: int
    host: str


class Txt(NamedTuple):
    """One TXT record as the strings it is made of. aiodns does not keep them apart: then it is one string."""

    parts: tuple[bytes, ...]

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


class Soa(NamedTuple):
    """The head of a zone; times in seconds."""

    primary: str
    contact: str
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int


class Tlsa(NamedTuple):
    """What a certificate has to match."""

    usage: int
    selector: int
    matching: int
    data: bytes


Record = str | Mx | Txt | Soa | Tlsa
"""A and AAAA: the address as text; PTR, CNAME and NS: a name without its last dot; the others as their class."""


@dataclass(frozen=True)
class Answer:
    """The outcome of one lookup.

    "ok" has records; "nodata": the name exists, but not with this type; "nxdomain": there is no such name;
    "tempfail": nobody knows now, `reason` says why ("timeout", "servfail", "refused", "limit" ...).
    `ttl`: seconds this may be kept, counted from when the nameserver was asked. `authentic`: the nameserver
    says that it has checked DNSSEC, which only the dnspython backend can know.
    """

    status: Status
    records: tuple[Record, ...] = ()
    ttl: float = 0.0
    reason: str = ""
    authentic: bool = False
    stale: bool = False
    """Whether it is kept beyond its time because no nameserver answers."""

    @property
    def found(self) -> bool:
        """Whether there are records."""
        return self.status == "ok"

    @property
    def failed(self) -> bool:
        """Whether nobody knows now."""
        return self.status == "tempfail"

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Addresses of A and AAAA, names of PTR, CNAME and NS."""
        return tuple(record for record in self.records if isinstance(record, str))

    @cached_property
    def mx(self) -> tuple[Mx, ...]:
        """Records of MX, the lowest preference first."""
        return tuple(sorted(record for record in self.records if isinstance(record, Mx)))

    @cached_property
    def txt(self) -> tuple[bytes, ...]:
        """Records of TXT, each with its strings joined."""
        return tuple(bytes(record) for record in self.records if isinstance(record, Txt))


NXDOMAIN = Answer("nxdomain")
NODATA = Answer("nodata")
INVALID = Answer("nxdomain", reason="not a name")
"""What there is for a name that cannot exist: a label is empty or too long, or it is not printable ASCII."""


def tempfail(reason: str) -> Answer:
    """An answer that says that nobody knows now."""
    return Answer("tempfail", reason=reason)


def normal_name(name: str) -> str | None:
    """A name as it is compared: lower case, no last dot; None when there cannot be such a name."""
    if name == ".":
        return name
    bare = name.removesuffix(".").lower()
    return bare if len(bare) <= MAX_NAME and _NAME.fullmatch(bare) else None


def size_of(answer: Answer) -> int:
    """Octets of memory that the records take up, roughly: an answer may have four thousand that are empty."""
    return sum(_size(record) for record in answer.records)


def _size(record: Record) -> int:
    if isinstance(record, str):
        return _OBJECT + len(record)
    return _OBJECT + sum(_OBJECT + len(field) if isinstance(field, str | bytes) else 8 for field in _fields(record))


def _fields(record: Mx | Txt | Soa | Tlsa) -> tuple[object, ...]:
    return record.parts if isinstance(record, Txt) else tuple(record)


def parse_record(kind: Type, text: str) -> Record:
    """A record as a zone file writes it; TXT is its text, in UTF-8. ValueError when it is none."""
    words = text.split()
    match kind:
        case "A":
            return str(IPv4Address(text))
        case "AAAA":
            return str(IPv6Address(text))
        case "PTR" | "CNAME" | "NS":
            return _host(text)
        case "MX" if len(words) == 2:
            return Mx(_number(words[0], 0xFFFF), _host(words[1]))
        case "TXT":
            return text_record(text.encode())
        case "SOA" if len(words) == 7:
            return Soa(_host(words[0]), _host(words[1]), *(_number(word, 0xFFFFFFFF) for word in words[2:]))
        case "TLSA" if len(words) >= 4:
            usage, selector, matching = (_number(word, 0xFF) for word in words[:3])
            return Tlsa(usage, selector, matching, bytes.fromhex("".join(words[3:])))
    raise ValueError(f"is no {kind} record")


def format_record(record: Record) -> str:
    """The opposite of `parse_record`; of TXT the joined text. UnicodeDecodeError when that is not UTF-8."""
    match record:
        case str():
            return record
        case Txt():
            return bytes(record).decode()
        case Tlsa():
            return f"{record.usage} {record.selector} {record.matching} {record.data.hex()}"
        case _:
            return " ".join(str(field) or "." for field in record)


def text_record(text: bytes) -> Txt:
    """TXT of any length, cut into strings of the longest kind."""
    return Txt(tuple(text[start : start + _STRING] for start in range(0, len(text), _STRING)) or (b"",))


def _host(text: str) -> str:
    if text == ".":
        return ""
    host = normal_name(text)
    if host is None or " " in host:
        raise ValueError("is no name")
    return host


def _number(word: str, most: int) -> int:
    if not (word.isascii() and word.isdigit() and int(word[:11]) <= most):
        raise ValueError(f"must have numbers up to {most}")
    return int(word)
