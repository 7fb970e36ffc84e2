"""What an ARC-Authentication-Results field says about DMARC. Pure; it takes time in proportion to the field.

It is read by somebody who has decided to trust who wrote it, but parts of it are what strangers said: so comments and
quoted strings are what the grammar says they are (RFC 8601 §2.2), and what does not fit it says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from smtpd.addresses import AddressError, normalise_domain

MAX_FIELD = 16_384  # octets; those of large providers have 2000

_WORD = re.compile(rb"[^\s\0-\x1f\x7f()\";=]+")
_QUOTED = re.compile(rb"\"((?:[^\"\\]|\\.)*+)\"", re.DOTALL)
_BLANKS = re.compile(rb"[ \t\r\n]+")
_PARENTHESIS = re.compile(rb"[()]|\\.", re.DOTALL)

Pair = tuple[str, str]


class _Unreadable(Exception):  # noqa: N818 - as in `dkim_keys`: a finding
    """The field does not follow the grammar."""


def dmarc_passes(value: bytes) -> frozenset[str]:
    """Domains of authors for whom DMARC passed, A-labels; `value` is what stands behind the colon of the field.

    Empty when the field cannot be read beyond doubt. A domain that is also said not to have passed is not among them.
    """
    if len(value) > MAX_FIELD:
        return frozenset()
    passed: set[str] = set()
    others: set[str] = set()
    try:
        for statement in list(_statements(value))[2:]:  # behind i= and the name of the host
            _read_statement(statement, passed, others)
    except _Unreadable:
        return frozenset()
    return frozenset(passed - others)


def _read_statement(words: list[bytes], passed: set[str], others: set[str]) -> None:
    """`method[/version]=result ptype.property=value ...`, as words, with each "=" a word of its own."""
    if not words or words[0].lower().partition(b"/")[0] != b"dmarc":
        return  # others may be as odd as they like: an address with "=" is often not quoted
    pairs = list(_pairs(words))
    authors = [_domain(value) for name, value in pairs[1:] if name == "header.from"]
    if len(authors) == 1:
        (passed if pairs[0][1].lower() == "pass" else others).add(authors[0])


def _pairs(words: list[bytes]) -> Iterator[Pair]:
    for start in range(0, len(words), 3):
        match words[start : start + 3]:
            case [name, b"=", value]:
                yield name.decode("utf-8", "replace").lower(), value.decode("utf-8", "replace")
            case _:
                raise _Unreadable


def _domain(value: str) -> str:
    try:
        return normalise_domain(value.rpartition("@")[2])
    except AddressError:
        raise _Unreadable from None


def _statements(value: bytes) -> Iterator[list[bytes]]:
    """The words between semicolons, comments and blanks left out, quotes taken off."""
    words: list[bytes] = []
    place = 0
    while place < len(value):
        octet = value[place : place + 1]
        if match := _WORD.match(value, place) or _BLANKS.match(value, place):
            place = match.end()
            if not match[0].isspace():
                words.append(match[0])
        elif octet == b"(":
            place = _comment_end(value, place)
        elif octet == b"=":
            words.append(b"=")
            place += 1
        elif octet == b";":
            yield words
            words = []
            place += 1
        elif match := _QUOTED.match(value, place):
            words.append(match[1] or b'""')
            place = match.end()
        else:
            raise _Unreadable
    yield words


def _comment_end(value: bytes, start: int) -> int:
    depth = 0
    for match in _PARENTHESIS.finditer(value, start):
        depth += {b"(": 1, b")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    raise _Unreadable
