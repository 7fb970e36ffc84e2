"""Everybody whom the From fields of a message may name, however a mail program reads them. Pure.

The grammar (RFC 5322 §3.4) says who is meant, and many programs are not that careful: some show what stands in front
of the angle brackets, some do not know that comments nest or what a backslash is for, some look for the first "<"
wherever it stands, some decode encoded words before they read the field (RFC 2047 §6.1 says: after that). So what looks
like an address counts, too, unless it is part of a name: in quotes, in front of the angle brackets, without any itself.
"""

from __future__ import annotations

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp
from collections.abc import Iterator, Sequence
from itertools import islice

from smtpd.address_list import MAX_OCTETS, parse_address_list
from smtpd.addresses import Address, AddressError, parse_address
from smtpd.content import MAX_HEAD
from smtpd.header_fields import values_of
from smtpd.model import Message

MAX_FIELDS = 10  # From fields that are read; there must be one
MAX_NAMED = 200  # addresses of a message, however they are read; our own choice

_ENCODED_WORD = re.compile(r"=\?[^?\s]++\?[bqBQ]\?[^?\s]*+\?=")
# Many decode one with blanks in it, too; blanks between two of them go (RFC 2047 §6.2).
_DECODED_WORD = re.compile(r"=\?([^?\s]++)\?([bqBQ])\?([^?]*+)\?=(?:[ \t\r\n]++(?==\?))?")
_SHIFTED = re.compile(rb"\x1b\$[^\x1b]*+")  # two octets a character, any of which may look like an "@" (RFC 1468)
_PIECE = re.compile(
    r"""
      (?P<quoted>"(?:[^"\\]++|\\.)*+")
    | (?P<unclosed>".*+)
    | (?P<word>[^\x00-\x20\x7f()<>@,;:\\"\[\]]++)
    | (?P<literal>\[[^\[\]\s]*+\])
    | (?P<at>[ \t\r\n]*+@[ \t\r\n]*+)
    | [ \t\r\n]++ | .
    """,
    re.VERBOSE | re.DOTALL,
)
# What cannot be printed, and a mark of the order of bytes, some programs skip; a blank in front continues a field.
_SIMILAR = re.compile(rb"\r\n(?![ \t])[^\r\n!-~]*+from[^\r\n!-~]*+:", re.IGNORECASE)
_AROUND_DOTS = re.compile(r"(?<![ \t\r\n])[ \t\r\n]++(?=\.)|(?<=\.)[ \t\r\n]++")  # RFC 5322 §4.4 lets them be there
_ANGLE = re.compile(r"<([^<>]*+)>")


def find_authors(message: Message) -> tuple[Address, ...]:
    """Whom the From fields name, each once, those first whom the grammar says; AddressError when it is not clear."""
    head = message.content.head()
    if len(head) >= MAX_HEAD:  # another From could stand where nobody looks
        raise AddressError("the header section is too big")
    if b"\0" in head:  # some programs drop it, and some end there
        raise AddressError("the header section holds an octet 0")
    values = list(islice(values_of(head, "from"), MAX_FIELDS + 1))
    if len(_SIMILAR.findall(b"\r\n" + head)) > len(values):
        raise AddressError("there is another field that looks like it")
    if not values:
        raise AddressError("it is missing")  # programs then show somebody else, such as Sender
    if len(values) > MAX_FIELDS or sum(map(len, values)) > MAX_OCTETS:
        raise AddressError("there is too much of it")
    found: dict[str, Address] = {}
    for value in values:
        found |= {address.key: address for address in _listed(value)}
    for value in values:
        found |= {address.key: address for address in _mentioned(value)}
    if len(found) > MAX_NAMED:
        raise AddressError(f"it names more than {MAX_NAMED} addresses")
    return tuple(found.values())


def _listed(value: bytes) -> tuple[Address, ...]:
    authors = parse_address_list(value)
    if not authors.addresses:
        raise AddressError("it has no address that can be read")
    if len(authors.domains) > len({address.domain for address in authors.addresses}):
        raise AddressError("it has something that is almost an address")
    if any("=?" in address.local for address in authors.addresses):
        # Some programs decode it, although it is no encoded word there, and show what comes out.
        raise AddressError("an address holds an encoded word")
    return authors.addresses


def _mentioned(value: bytes) -> Iterator[Address]:
    text = value.decode("utf-8", "surrogateescape")
    readings = [_ENCODED_WORD.sub(" ", text), _DECODED_WORD.sub(_decoded, text)]
    readings += [reading.replace("\\", "") for reading in readings]  # not every program knows the backslash
    for reading in dict.fromkeys(readings):
        for part in (reading, *_ANGLE.findall(reading)):
            yield from _addresses_in(part)


def _decoded(word: re.Match[str]) -> str:
    """An encoded word as text; only what is ASCII has to be right."""
    charset, encoding, encoded = word.groups()
    if "utf-7" in charset.lower():
        raise AddressError("it is in UTF-7, which hides what it says")
    octets = encoded.encode("utf-8", "surrogateescape")
    try:
        octets = a2b_qp(octets, header=True) if encoding in "qQ" else a2b_base64(octets + b"===")
    except BinasciiError:
        return " "
    return _SHIFTED.sub(b" ", octets).replace(b"\0", b"").decode("utf-8", "replace")  # UTF-16: without its zeros


def _addresses_in(text: str) -> Iterator[Address]:
    """What has an "@" with something on both sides, and what is in quotes where no name belongs."""
    if "@" not in text:
        return
    pieces = [(match.lastgroup, match[0]) for match in _PIECE.finditer(_AROUND_DOTS.sub("", text))]
    for (before, local), (kind, _), (behind, domain) in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if kind != "at" or before not in ("word", "quoted") or behind not in ("word", "literal"):
            continue
        if behind == "word" and "." not in domain.strip("."):
            continue  # "Backup @ web1" is nobody; where it is an address, the grammar has found it
        try:
            # 'joe@a.example' in such quotes is how Outlook shows whom it has no name for.
            yield parse_address(f"{local.lstrip("'")}@{domain.rstrip("'.")}")
        except AddressError:
            raise AddressError("it has something that is almost an address") from None
    yield from _quoted_addresses(pieces)


def _quoted_addresses(pieces: Sequence[tuple[str | None, str]]) -> Iterator[Address]:
    """What stands in quotes that are not the name in front of a "<": programs may show it alone, as an author."""
    is_name = False
    for kind, text in reversed(pieces):
        if kind == "unclosed" or (kind == "quoted" and not is_name):
            yield from _addresses_in(text.replace('"', " ").replace("\\", ""))
        elif kind not in ("quoted", "word") and not text.isspace():
            is_name = text == "<"
