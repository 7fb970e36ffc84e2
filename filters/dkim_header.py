"""The header section as DKIM and ARC sign it: fields split in one pass, chosen bottom-up, canonicalised once each.

It takes time in proportion to the section. In dkimpy splitting copies a folded field once per line, choosing reads
all fields for each name in h=, and taking b= out is a pattern that runs away on long blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from filters.dkim_keys import Unusable

Canonicalisation = Literal["simple", "relaxed"]

_UNFOLDED_LINE_END = re.compile(rb"\r\n(?![ \t])")  # RFC 5322 §2.2.3
_FIELD = re.compile(rb"([!-9;-~]++)([ \t]*+):")  # RFC 5322 §3.6.8; blanks before the colon: §4.5


class HeaderSection:
    """The fields of one message, top to bottom.

    Raises Unusable when there are too many octets or fields, or a line that is no field: nobody could say then
    what a signature is about.
    """

    def __init__(self, head: bytes, *, max_octets: int = 1 << 18, max_fields: int = 1000) -> None:
        if len(head) > max_octets:
            raise Unusable("policy", f"the header section is bigger than {max_octets} octets")
        if head.count(b"\n") - head.count(b"\n ") - head.count(b"\n\t") > max_fields + 1:
            raise Unusable("policy", f"the header section has more than {max_fields} fields")
        self.octets = len(head)
        self._fields: list[tuple[bytes, bytes]] = []
        self._places: dict[bytes, list[int]] = {}
        self._canonical: dict[tuple[Canonicalisation, int], bytes] = {}
        for line in _UNFOLDED_LINE_END.split(head):
            if not line:
                break
            match = _FIELD.match(line)
            if match is None:
                raise Unusable("neutral", f"line {self._lines() + 1} of the header is no field")
            self._places.setdefault(match[1].lower(), []).append(len(self._fields))
            self._fields.append((match[1] + match[2], line[match.end() :] + b"\r\n"))

    def places(self, name: bytes) -> list[int]:
        """Where the fields of this (lower-case) name are, topmost first."""
        return self._places.get(name, [])

    def value(self, place: int) -> bytes:
        """The raw value of a field with its last CRLF."""
        return self._fields[place][1]

    def chosen(self, names: Iterable[bytes]) -> list[int]:
        """The fields that h= means: for each time a name is there the next field upwards (RFC 6376 §5.4.2)."""
        left: dict[bytes, int] = {}
        found = []
        for name in names:
            places = self._places.get(name, [])
            left[name] = left.get(name, len(places)) - 1
            if left[name] >= 0:
                found.append(places[left[name]])
        return found

    def canonical(self, place: int, how: Canonicalisation) -> bytes:
        """One field in canonical form, CRLF included."""
        found = self._canonical.get((how, place))
        if found is None:
            found = self._canonical[how, place] = _canonical(*self._fields[place], how)
        return found

    def signed_octets(self, names: Iterable[bytes], how: Canonicalisation, signature: int) -> bytes:
        """What a signature in the field at `signature` is over (RFC 6376 §3.7): the named fields, then itself."""
        own_name, own_value = self._fields[signature]
        own = _canonical(own_name, without_signature(own_value), how).removesuffix(b"\r\n")
        return b"".join([*(self.canonical(place, how) for place in self.chosen(names)), own])

    def _lines(self) -> int:
        return sum(value.count(b"\n") for _, value in self._fields)


def without_signature(value: bytes) -> bytes:
    """A signature field without the value of b= and the blanks around it (RFC 6376 §3.7); it keeps its last CRLF."""
    tags = value.removesuffix(b"\r\n").split(b";")
    for number, tag in enumerate(tags):
        name, equals, _ = tag.partition(b"=")
        if equals and name.strip() == b"b":
            tags[number] = name + equals
    return b";".join(tags) + b"\r\n"


def squeezed(text: bytes) -> bytes:
    """Runs of blanks and tabs as one blank. Each round halves them: 17 rounds for 64 KiB of blanks."""
    if b"\t" in text:
        text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return text


def _canonical(name: bytes, value: bytes, how: Canonicalisation) -> bytes:
    """RFC 6376 §3.4.1, §3.4.2."""
    if how == "simple":
        return name + b":" + value
    return name.strip().lower() + b":" + squeezed(value.replace(b"\r\n", b"")).strip(b" ") + b"\r\n"
