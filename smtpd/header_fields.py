"""Fields of a header section, counted and found by name without splitting it.

`Message.fields` takes a microsecond for each of them, and a stranger can send 200,000. A section is what
`ContentSource.head` gives; both count and find what `Message.fields` has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

_END = re.compile(rb"\r\n(?![ \t])")  # RFC 5322 §2.2.3


def count_fields(head: bytes) -> int:
    """How many fields there are, lines that are none included."""
    if not head or head.startswith(b"\r\n"):
        return 0
    ends = head.count(b"\r\n") - head.count(b"\r\n ") - head.count(b"\r\n\t")
    return ends - head.endswith(b"\r\n\r\n") + (not head.endswith(b"\r\n"))


def count_named(head: bytes, name: str) -> int:
    """How many fields have this name, in lower case."""
    return len(_pattern(name).findall(_searchable(head)))


def values_of(head: bytes, name: str) -> Iterator[bytes]:
    """Their raw values with the folding, without the last CRLF, top to bottom."""
    for match in _pattern(name).finditer(_searchable(head)):
        start = match.end() - 2
        end = _END.search(head, start)
        yield head[start : end.start() if end is not None else len(head)]


def _searchable(head: bytes) -> bytes:
    return b"\r\n" + head.lower()


@cache
def _pattern(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"\r\n%b[ \t]*+:" % re.escape(name.encode("ascii")))  # blanks before the colon: RFC 5322 §4.5
