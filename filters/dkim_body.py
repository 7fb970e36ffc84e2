"""Body hashes of DKIM and ARC (RFC 6376 §3.4.3, §3.4.4), in one pass per canonicalisation and in small pieces.

Time and memory do not depend on what the body looks like. The pattern that dkimpy takes for blanks at line ends
needs time in proportion to the square of a run of blanks, and the whole body in one string.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256

from filters.dkim_header import Canonicalisation, squeezed
from filters.dkim_turns import finish_at_once

PIECE = 1 << 16  # octets that are canonicalised at a time
SLICE = 1 << 19  # octets of one turn; of blanks alone they take 5 ms

Part = tuple[Canonicalisation, int | None]
"""What is hashed: how, and how many octets at most (l=), None for all."""


@dataclass(frozen=True, slots=True)
class BodyDigest:
    """SHA-256 of a part. `beyond` are the octets behind it that no hash covers, negative when there are too few."""

    digest: bytes
    beyond: int


def digest_body(pieces: Iterable[bytes], wanted: Collection[Part]) -> dict[Part, BodyDigest]:
    """Hash the body in all wanted ways; `pieces` are its octets in order, in any cut."""
    return finish_at_once(digest_steps(pieces, wanted))


def digest_steps(pieces: Iterable[bytes], wanted: Collection[Part]) -> Generator[None, None, dict[Part, BodyDigest]]:
    """The same, for `Turns`: it yields after each `SLICE`."""
    ways: dict[Canonicalisation, _Way] = {}
    for how, length in wanted:
        ways.setdefault(how, _Way(how)).lengths.add(length)
    read = 0
    for piece in pieces:
        for start in range(0, len(piece), PIECE):
            part = piece[start : start + PIECE]
            for way in ways.values():
                way.feed(part)
            read += len(part)
            if read >= SLICE:
                read = 0
                yield
    return {part: digest for way in ways.values() for part, digest in way.finish()}


def body_pieces(chunks: Iterable[bytes], head: int) -> Iterator[bytes]:
    """The octets behind a header section of that many octets, its empty line included."""
    for chunk in chunks:
        if head >= len(chunk):
            head -= len(chunk)
        else:
            yield chunk[head:] if head else chunk
            head = 0


class _Way:
    """One canonicalisation of one body, and the hashes of its beginnings."""

    def __init__(self, how: Canonicalisation) -> None:
        self.lengths: set[int | None] = set()
        self._how = how
        self._hash = sha256()
        self._octets = 0
        self._stops: list[int] | None = None
        self._stopped: dict[int, bytes] = {}
        self._cut = b""
        """Ends the last piece, and may go on in the next: a blank, a CR."""
        self._line_ends = 0
        """That came behind the last text; they count once something follows."""

    def feed(self, piece: bytes) -> None:
        text = self._cut + piece if self._cut else piece
        if self._how == "relaxed":
            text = squeezed(text).replace(b" \r\n", b"\r\n")
        end = len(text)
        end -= text.endswith(b"\r", 0, end)
        end -= self._how == "relaxed" and text.endswith(b" ", 0, end)
        text, self._cut = text[:end], text[end:]
        line_ends = _last_line_ends(text)
        if 2 * line_ends < len(text):
            self._write_line_ends()
            self._write(text[: len(text) - 2 * line_ends])
        self._line_ends += line_ends

    def finish(self) -> Iterator[tuple[Part, BodyDigest]]:
        """The digests."""
        if self._cut not in (b"", b" "):  # the body has no last CRLF; a blank would be at the end of a line
            self._write_line_ends()
            self._write(self._cut)
        if self._octets or self._how == "simple":  # RFC 6376 §3.4.3; §3.4.4: an empty body stays empty
            self._write(b"\r\n")
        self._write(b"")
        for length in self.lengths:
            digest = self._hash.digest() if length is None else self._stopped.get(length, self._hash.digest())
            yield (self._how, length), BodyDigest(digest, 0 if length is None else self._octets - length)

    def _write_line_ends(self) -> None:
        while self._line_ends:
            number = min(self._line_ends, PIECE)
            self._write(b"\r\n" * number)
            self._line_ends -= number

    def _write(self, data: bytes) -> None:
        if self._stops is None:
            self._stops = sorted((length for length in self.lengths if length is not None), reverse=True)
        while self._stops and self._stops[-1] <= self._octets + len(data):
            stop = self._stops.pop()
            self._hash.update(data[: stop - self._octets])
            data, self._octets = data[stop - self._octets :], stop
            self._stopped[stop] = self._hash.digest()
        self._hash.update(data)
        self._octets += len(data)


def _last_line_ends(text: bytes) -> int:
    """How many CRLF the text ends in."""
    end = len(text)
    start = len(text.rstrip(b"\r\n"))
    if text.count(b"\r\n", start) * 2 == end - start:
        return (end - start) // 2
    while end - start >= 2 and text.endswith(b"\r\n", start, end):  # a lone CR or LF is text
        end -= 2
    return (len(text) - end) // 2
