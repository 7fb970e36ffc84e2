"""Content on its way to a mail server: dot transparency for DATA, a size for BDAT, pieces of a good size.

Pure and incremental: the result is the same however the content is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MIN_BLOCK = 1 << 16  # octets; smaller pieces are sent together

_LINE_END = b"\r\n"
_DOT_LINE = b"\r\n."
_STUFFED = b"\r\n.."


def dot_stuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Content for DATA, its end included (RFC 5321 §4.5.2, §4.1.1.4); a missing last line end is added."""
    tail = _LINE_END  # the first line begins behind the one of DATA
    for piece in pieces:
        joined = tail + piece
        yield joined.replace(_DOT_LINE, _STUFFED)[len(tail) :] if _DOT_LINE in joined else piece
        tail = joined[-2:]
    yield b".\r\n" if tail == _LINE_END else b"\r\n.\r\n"


def in_one_chunk(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """BDAT and its only chunk (RFC 3030 §2); ValueError before the end when the pieces are not of that size."""
    yield b"BDAT %d LAST\r\n" % size
    for piece in pieces:
        size -= len(piece)
        if size < 0:
            break
        yield piece
    if size:
        raise ValueError("the message has another size than it said")


def in_blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same octets with small pieces joined."""
    collected: list[bytes] = []
    octets = 0
    for piece in pieces:
        collected.append(piece)
        octets += len(piece)
        if octets >= MIN_BLOCK:
            yield collected[0] if len(collected) == 1 else b"".join(collected)
            collected, octets = [], 0
    if collected:
        yield b"".join(collected)
