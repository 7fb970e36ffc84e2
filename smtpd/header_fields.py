"""Fields of a header section, counted and found by name without splitting it.

`Message.fields` takes a microsecond for each of them, and a stranger can send 200,000. A section is what
`ContentSource.head` gives; both count and find what `Message.fields` has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

_FIELD = rb"\r\n(?i:%b)[ \t]*+:([^\r]*+(?:\r(?!\n(?![ \t]))[^\r]*+)*+)"


def count_fields(head: bytes) -> int:
    """How many fields there are, lines that are none included."""
    if not head or head.startswith(b"\r\n"):
        return 0
    ends = head.count(b"\r\n") - head.count(b"\r\n ") - head.count(b"\r\n\t")
    return ends - head.endswith(b"\r\n\r\n") + (not head.endswith(b"\r\n"))


def count_named(head: bytes, name: str) -> int:
    """How many fields have this name, in lower case."""
    return len(all_values_of(head, name))


def values_of(head: bytes, name: str) -> Iterator[bytes]:
    """Their raw values with the folding, without the last CRLF, top to bottom; for who wants the first of them."""
    for match in _pattern(name).finditer(b"\r\n" + head):
        yield match[1]


def all_values_of(head: bytes, name: str) -> list[bytes]:
    """The same, all of them: a third of the time where they are many."""
    found: list[bytes] = _pattern(name).findall(b"\r\n" + head)
    return found


@cache
def _pattern(name: str) -> re.Pattern[bytes]:
    # Blanks before the colon: RFC 5322 §4.5; the value ends where no folded line follows: §2.2.3.
    return re.compile(_FIELD % re.escape(name.encode("ascii")))
