"""Message content: DATA and BDAT framing, dot transparency, lone CR and LF, size, spilling to disk.

Pure and incremental: octets go in as they come, however they are cut, and the result is the same.
Buffers are scanned in bulk (`find`, `replace`, `translate`), never line by line.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from io import IncrementalNewlineDecoder
from typing import IO, Literal, Protocol

from smtpd import replies
from smtpd.replies import Reply

MAX_HEAD = 1 << 20  # octets of header section that `Content.head` looks at
MAX_DRAIN = 4  # a message beyond this many times the size limit is not read to its end
_SMALL = 1 << 12  # octets; smaller pieces are put together
_PIECE = 1 << 18  # octets per read of spilled content

_END = b"\r\n.\r\n"  # RFC 5321 §4.1.1.4: only this ends the data
_GOOD_LINE_ENDS = (None, "\r\n")
_DOT_LINE = b"\r\n."
_FEW_DOTS = 64
_DOTS_APART = 512  # octets; with more dots it is faster to look for the whole of _DOT_LINE
_ANY_LINE_END = re.compile(rb"\r\n|\r|\n")

_WEIGHT = {
    reply.key: weight
    for weight, reply in enumerate(
        (replies.NO_SPACE, replies.TEXT_LINE_TOO_LONG, replies.TOO_BIG, replies.BARE_LINE_END)
    )
}

BareLineEnds = Literal["reject", "normalise"]


class Budget(Protocol):
    """The memory that all sessions together may use for content (`limits.ContentBudget`)."""

    def take(self, octets: int) -> bool:
        """Reserve; False when there is not enough left."""

    def give(self, octets: int) -> None:
        """Give back."""


class Content:
    """The octets of one message, in memory until they are too many, then in an unlinked temporary file."""

    __slots__ = ("_budget", "_file", "_in_memory", "_parts", "_spool", "_taken", "size")

    def __init__(self, budget: Budget, *, in_memory: int, spool: str | None = None) -> None:
        self.size = 0
        self._budget = budget
        self._in_memory = in_memory
        self._spool = spool
        self._parts: list[bytes] = []
        self._taken = 0
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Append octets; OSError when the spool cannot take them."""
        self.size += len(data)
        if self._file is None:
            if self.size <= self._in_memory and self._budget.take(len(data)):
                self._taken += len(data)
                if len(data) < _SMALL and self._parts and len(self._parts[-1]) < _SMALL:
                    self._parts[-1] += data  # or a message that comes octet by octet would need 40 times its size
                else:
                    self._parts.append(data)
                return
            self._spill()
        self._append(data)

    @property
    def spilled(self) -> bool:
        """Whether the content is in a file."""
        return self._file is not None

    def chunks(self) -> Iterator[bytes]:
        """The octets in order; may be called from another thread, and more than once."""
        if self._file is None:
            yield from self._parts
            return
        descriptor, offset = self._file.fileno(), 0
        while piece := os.pread(descriptor, _PIECE, offset):
            offset += len(piece)
            yield piece

    def head(self) -> bytes:
        """The header section with the empty line that ends it; at most 1 MiB, all of it when there is no body."""
        if len(self._parts) == 1:
            end = self._parts[0].find(b"\r\n\r\n")
            if 0 <= end < MAX_HEAD and not self._parts[0].startswith(b"\r\n"):
                return self._parts[0][: end + 4]
        head = bytearray()
        for piece in self.chunks():
            start = max(0, len(head) - 3)
            head += piece
            if head.startswith(b"\r\n"):
                return b"\r\n"
            end = head.find(b"\r\n\r\n", start)
            if end >= 0:
                return bytes(head[: end + 4])
            if len(head) >= MAX_HEAD:
                return bytes(head[:MAX_HEAD])
        return bytes(head)

    def close(self) -> None:
        """Give memory and file back; may be called twice."""
        self._budget.give(self._taken)
        self._taken = 0
        self._parts = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0, dir=self._spool, prefix="smtpd-")  # noqa: SIM115 - lives as long as we do
        parts, self._parts = self._parts, []
        self._budget.give(self._taken)
        self._taken = 0
        for part in parts:
            self._append(part)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class Receiver:
    """Stores decoded octets and judges them; `problem` is the first thing that was wrong with them.

    After a problem nothing more is stored, but the framing goes on, so the conversation stays in step.
    """

    __slots__ = (
        "_bare", "_held", "_line", "_line_ends", "_max_line", "_max_size", "_size",
        "complete", "content", "octets", "problem",
    )  # fmt: skip

    def __init__(self, content: Content, *, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        self.content = content
        self.problem: Reply | None = None
        self.octets = 0
        """Octets seen so far, stored or not."""
        self.complete = False
        """Whether the end was found."""
        self._max_size = max_size  # 0: no limit
        self._max_line = max_line
        self._bare = bare
        self._held = b""
        self._line = 0
        self._line_ends = IncrementalNewlineDecoder(None, translate=False)  # the fastest eye for kinds of line ends
        self._size = 0

    @property
    def found_bare_line_end(self) -> bool:
        """A lone CR or LF on a listener that rejects them (RFC 5321 §2.3.8)."""
        return self.problem is replies.BARE_LINE_END

    @property
    def hopeless(self) -> bool:
        """So far beyond the size limit that reading on makes no sense."""
        return bool(self._max_size) and self.octets > self._max_size * MAX_DRAIN + (1 << 20)

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take octets from `start` on; the index behind the end of content, or -1 when there is more to come."""
        raise NotImplementedError

    def finish(self) -> Reply | None:
        """Close the content: None when all is well, else the reply. A CR held back to the end is a lone one."""
        if self._held:
            held, self._held = self._held, b""
            self._keep(held)
        return self.problem

    def _store(self, data: bytes) -> None:
        self.octets += len(data)
        if data and data[-1] == 13:  # its LF may be in the next piece
            data, self._held = data[:-1], b"\r"
        if data:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Judge and store; the heaviest problem wins, so the result does not depend on how octets are cut."""
        self._line_ends.decode(data.decode("latin-1"), True)
        if self._line_ends.newlines not in _GOOD_LINE_ENDS:
            if self._bare == "reject":
                self._fail(replies.BARE_LINE_END)
            else:
                data = _ANY_LINE_END.sub(b"\r\n", data)
        self._size += len(data)
        if self._max_size and self._size > self._max_size:
            self._fail(replies.TOO_BIG(limit=self._max_size))
        if self._has_long_line(data):
            self._fail(replies.TEXT_LINE_TOO_LONG(limit=self._max_line))
        if self.problem is None:
            try:
                self.content.write(data)
            except OSError:
                self._fail(replies.NO_SPACE)

    def _fail(self, reply: Reply) -> None:
        if self.problem is None:
            self.content.close()
        if self.problem is None or _WEIGHT[reply.key] > _WEIGHT[self.problem.key]:
            self.problem = reply

    def _has_long_line(self, data: bytes) -> bool:
        limit = self._max_line - 1  # the LF belongs to the line, too
        position = data.find(b"\n")
        if position < 0:
            self._line += len(data)
            return self._line > limit
        if self._line + position > limit:
            return True
        last = data.rfind(b"\n")
        while last - position > limit + 1:
            position = data.rfind(b"\n", position + 1, position + limit + 2)
            if position < 0:
                return True
        self._line = len(data) - last - 1
        return self._line > limit


class DataReceiver(Receiver):
    """Octets behind DATA: ends at CRLF.CRLF and at nothing else, one leading dot goes (RFC 5321 §4.5.2)."""

    __slots__ = ("_first", "_tail")

    def __init__(self, content: Content, *, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        super().__init__(content, max_size=max_size, max_line=max_line, bare=bare)
        self._tail = b"\r\n"  # the CRLF of the DATA line: a message may begin with the final dot
        self._first = True

    def feed(self, data: bytes, start: int = 0) -> int:
        """See Receiver."""
        if self._tail == b"\r\n" and self._first and not data.startswith(b".", start):
            self._first, self._tail = False, b""  # only a dot has to know what stands before it
        tail = self._tail
        shift = start - len(tail)
        data = tail + (data[start:] if start else data)
        decoded, end = _unstuff(data)
        if end >= 0:
            self._take(decoded)
            self.complete = True
            return end + shift
        keep = _partial_end(data)
        self._tail = data[len(data) - keep :] if keep else b""
        if keep:
            decoded = decoded[: len(decoded) - keep + (keep >= 3)]  # from three octets on the dot has gone already
        self._take(decoded)
        return -1

    def _take(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        if self._first and data:
            self._first = False
            data = data[2:]
        self._store(data)


def _unstuff(data: bytes) -> tuple[bytes, int]:
    """Content without the first dot of its lines, and the index behind the end of data or -1.

    One search for both; `replace` takes over where lines with dots are many.
    """
    parts: list[bytes] = []
    start = 0
    find = _find_among_few if data.count(b".") * _DOTS_APART < len(data) else _find
    while (position := find(data, start)) >= 0:
        parts.append(data[start : position + 2])
        start = position + 3
        if data.startswith(b"\r\n", start):
            return b"".join(parts), start + 2
        if len(parts) == _FEW_DOTS:
            end = data.find(_END, start)
            parts.append(data[start : end + 2 if end >= 0 else None].replace(_DOT_LINE, b"\r\n"))
            return b"".join(parts), end + len(_END) if end >= 0 else -1
    if not parts:
        return data, -1
    parts.append(data[start:])
    return b"".join(parts), -1


def _find(data: bytes, start: int) -> int:
    """The next line that begins with a dot: the index of the CRLF before it."""
    return data.find(_DOT_LINE, start)


def _find_among_few(data: bytes, start: int) -> int:
    """The same, a dot at a time: where there are hardly any, as in an encoded attachment, this is ten times as fast."""
    start += 2
    while (dot := data.find(b".", start)) >= 0:
        if data.startswith(b"\r\n", dot - 2):
            return dot - 2
        start = dot + 1
    return -1


class ChunkReceiver(Receiver):
    """Octets behind BDAT: exactly as many as announced, no dot handling (RFC 3030 §2)."""

    __slots__ = ("_due",)

    def __init__(self, content: Content, *, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        super().__init__(content, max_size=max_size, max_line=max_line, bare=bare)
        self._due = 0

    def expect(self, octets: int) -> None:
        """A chunk of this many octets follows; one that cannot fit is consumed but not stored."""
        self._due = octets
        self.complete = not octets
        if self._max_size and self._size + octets > self._max_size:
            self._fail(replies.TOO_BIG(limit=self._max_size))

    def feed(self, data: bytes, start: int = 0) -> int:
        """See Receiver."""
        end = min(len(data), start + self._due)
        self._due -= end - start
        piece = data if not start and end == len(data) else data[start:end]
        if piece:
            held, self._held = self._held, b""
            self._store(held + piece if held else piece)
        self.complete = not self._due
        return -1 if self._due else end


class SkippedChunk(ChunkReceiver):
    """Octets of a chunk that was refused: counted, so that the conversation stays in step, and forgotten."""

    __slots__ = ()

    def _keep(self, data: bytes) -> None:
        return


def _partial_end(data: bytes) -> int:
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0
