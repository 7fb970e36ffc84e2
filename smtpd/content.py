"""Message content: DATA and BDAT framing, dot transparency, lone CR and LF, size, spilling to disk.

Pure and incremental: octets go in as they come, however they are cut, and the result is the same.
Buffers are scanned in bulk (`find`, `replace`, `translate`), never line by line.
"""

from __future__ import annotations

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import IncrementalNewlineDecoder
from typing import IO, Literal, Protocol

from smtpd import replies
from smtpd.replies import Reply

MAX_HEAD = 1 << 20  # octets of header section that `Content.head` looks at
MAX_DRAIN = 4  # a message beyond this many times the size limit has not much time left
_SMALL = 1 << 12  # octets; smaller pieces are put together
_PIECE = 1 << 18  # octets per read of spilled content

_END = b"\r\n.\r\n"  # RFC 5321 §4.1.1.4: only this ends the data
_GOOD_LINE_ENDS = (None, "\r\n")
_DOT_LINE = b"\r\n."
_FEW_DOTS = 64
_DOTS_APART = 192  # octets; with more dots it is faster to look for the whole of _DOT_LINE
_ANY_LINE_END = re.compile(rb"\r\n|\r|\n")
_DOUBLE_DOT = re.compile(rb"(?<!\r)\n\.(?=\.)")
_PERHAPS_DOUBLE_DOT = re.compile(rb"(?<!\r)\n\.?\Z")

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

    __slots__ = ("_budget", "_file", "_in_memory", "_is_gone", "_parts", "_spool", "size")

    def __init__(self, budget: Budget, in_memory: int, spool: str | None = None) -> None:
        self.size = 0
        self._budget = budget
        self._in_memory = in_memory
        self._spool = spool
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._is_gone = False

    def write(self, data: bytes) -> None:
        """Append octets; OSError, which names the directory, when the spool cannot take them."""
        octets = len(data)
        size = self.size + octets
        if self._file is None and size <= self._in_memory and self._budget.take(octets):
            parts = self._parts
            if parts and octets < _SMALL and len(parts[-1]) < _SMALL:
                parts[-1] += data  # or a message that comes octet by octet would need 40 times its size
            else:
                parts.append(data)
            self.size = size
            return
        try:
            if self._file is None:
                self._spill()
            self._append(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._spool or tempfile.tempdir or "spool") from error
        self.size = size

    @property
    def spilled(self) -> bool:
        """Whether the content is in a file."""
        return self._file is not None

    def chunks(self) -> Iterator[bytes]:
        """The octets in order; may be called from another thread, and more than once. OSError once it is closed."""
        if self._is_gone:
            raise OSError("the message was given up, or the filter or agent has answered: its content is gone")
        if self._file is None:
            yield from self._parts
            return
        descriptor, offset = self._file.fileno(), 0
        while piece := os.pread(descriptor, _PIECE, offset):
            offset += len(piece)
            yield piece

    def head(self) -> bytes:
        """The header section with the empty line that ends it; at most 1 MiB, all of it when there is no body."""
        if self._parts:
            part = self._parts[0]
            end = part.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end >= 0 and not part.startswith(b"\r\n"):
                return part[: end + 4]
        head = bytearray()
        for piece in self.chunks():
            start = max(0, len(head) - 3)
            head += piece
            if head.startswith(b"\r\n"):
                return b"\r\n"
            end = head.find(b"\r\n\r\n", start, MAX_HEAD)
            if end >= 0:
                return bytes(head[: end + 4])
            if len(head) >= MAX_HEAD:
                return bytes(head[:MAX_HEAD])
        return bytes(head)

    def close(self) -> None:
        """Give memory and file back; may be called twice."""
        self._is_gone = True
        if self._parts:
            self._budget.give(self.size)
            self._parts = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0, dir=self._spool, prefix="smtpd-")  # noqa: SIM115 - lives as long as we do
        parts, self._parts = self._parts, []
        self._budget.give(self.size)
        for part in parts:
            self._append(part)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


class Receiver(ABC):
    """Stores decoded octets and judges them; `problem` is the first thing that was wrong with them.

    After a problem nothing more is stored, but the framing goes on, so the conversation stays in step.
    """

    __slots__ = (
        "_bare", "_held", "_line", "_max_line", "_max_size", "_size",
        "complete", "content", "found_bare_line_end", "hopeless", "octets", "problem",
    )  # fmt: skip

    def __init__(self, content: Content, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        self.content = content
        self.problem: Reply | None = None
        self.octets = 0
        """Octets seen so far, stored or not."""
        self.complete = False
        """Whether the end was found."""
        self.found_bare_line_end = False
        """A lone CR or LF on a listener that rejects them (RFC 5321 §2.3.8)."""
        self.hopeless = False
        """So far beyond the size limit that it may never end."""
        self._max_size = max_size  # 0: no limit
        self._max_line = max_line
        self._bare = bare
        self._held = b""
        self._line = 0
        self._size = 0

    @abstractmethod
    def feed(self, data: bytes, start: int = 0) -> int:
        """Take octets from `start` on; the index behind the end of content, or -1 when there is more to come."""

    def finish(self) -> Reply | None:
        """Close the content: None when all is well, else the reply. A CR held back to the end is a lone one."""
        if self._held:
            held, self._held = self._held, b""
            self._keep(held)
        return self.problem

    def to_its_end(self) -> Receiver:
        """Let what is refused anyway have any size: none of it is kept."""
        self.hopeless, self._max_size = False, 0
        return self

    def _store(self, data: bytes) -> None:
        self.octets += len(data)
        if self._held:
            data, self._held = self._held + data, b""
        if data.endswith(b"\r"):  # its LF may be in the next piece
            data, self._held = data[:-1], b"\r"
        if data:
            self._keep(data)
        if self.problem is not None and self._max_size:  # what is too big has one
            self.hopeless = self.octets > self._max_size * MAX_DRAIN + (1 << 20)

    def _keep(self, data: bytes) -> None:
        """Judge and store; the heaviest problem wins, so the result does not depend on how octets are cut."""
        line_ends = IncrementalNewlineDecoder(None, False)  # the fastest eye for kinds of line ends
        line_ends.decode(data.decode("latin-1"), True)
        if line_ends.newlines not in _GOOD_LINE_ENDS:
            if self._bare == "reject":
                self._fail(replies.BARE_LINE_END)
            else:
                data = self._make_whole(data)
        octets = len(data)
        self._size += octets
        if self._size > self._max_size and self._max_size:
            self._fail(replies.TOO_BIG(limit=self._max_size))
        line = self._line + octets
        if line >= self._max_line and _has_long_line(data, self._line, self._max_line):
            self._fail(replies.TEXT_LINE_TOO_LONG(limit=self._max_line))
        last = data.rfind(b"\n")
        self._line = octets - last - 1 if last >= 0 else line
        if self.problem is None:
            try:
                self.content.write(data)
            except OSError as error:  # the client is not told where
                self._fail(replies.NO_SPACE(spool=f"{error.filename}: {error.strerror}"))

    def _make_whole(self, data: bytes) -> bytes:
        """Each lone CR and LF becomes CRLF."""
        return _ANY_LINE_END.sub(b"\r\n", data)

    def _fail(self, reply: Reply) -> None:
        if self.problem is None:
            self.content.close()
        if self.problem is None or _WEIGHT[reply.key] > _WEIGHT[self.problem.key]:
            self.problem = reply
            self.found_bare_line_end = reply is replies.BARE_LINE_END


def _has_long_line(data: bytes, begun: int, limit: int) -> bool:
    """Whether a line is longer than `limit` octets, the LF that it has or needs included; the first has `begun`."""
    position, last = data.find(b"\n"), data.rfind(b"\n")
    if position < 0:
        return begun + len(data) >= limit
    if begun + position >= limit:
        return True
    while last - position > limit:
        position = data.rfind(b"\n", position + 1, position + limit + 1)
        if position < 0:
            return True
    return len(data) - last > limit


class DataReceiver(Receiver):
    """Octets behind DATA: ends at CRLF.CRLF and at nothing else, one leading dot goes (RFC 5321 §4.5.2)."""

    __slots__ = ("_is_virtual", "_tail")

    def __init__(self, content: Content, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        super().__init__(content, max_size, max_line, bare)
        self._tail: bytes | None = None
        """What may be the beginning of the end; None: nothing came yet."""
        self._is_virtual = False
        """The tail begins with the CRLF of the DATA line: a message may begin with the final dot."""

    def feed(self, data: bytes, start: int = 0) -> int:
        """See Receiver."""
        tail = self._tail
        if tail is None:
            self._is_virtual = data.startswith(b".", start)  # only a dot has to know what stands before it
            tail = b"\r\n" if self._is_virtual else b""
        if tail or start:
            data = tail + data[start:]
        decoded, end = _unstuff(data)
        if end < 0:
            keep = _partial_end(data)
            self._tail = data[len(data) - keep :]
            if keep:
                decoded = decoded[: len(decoded) - keep + (keep >= 3)]  # from three octets on the dot has gone already
        if self._is_virtual and decoded:
            self._is_virtual = False
            decoded = decoded[2:]
        self._store(decoded)
        if end < 0:
            return -1
        self.complete = True
        return start - len(tail) + end

    def _make_whole(self, data: bytes) -> bytes:
        """Of two dots behind a lone LF one goes as well: who ends lines like that doubles dots there, or does not.

        Postfix (smtpd_forbid_bare_newline = normalize) and Exim take a single one, too, which curl never doubled.
        """
        if tail := _PERHAPS_DOUBLE_DOT.search(data):  # the end of data is CRLF . CRLF, so more is to come
            data, self._held = data[: tail.start()], tail[0] + self._held
        return super()._make_whole(_DOUBLE_DOT.sub(b"\n", data))


def _unstuff(data: bytes) -> tuple[bytes, int]:
    """Content without the first dot of its lines, and the index behind the end of data or -1."""
    found = _dot_lines(data)
    if found is None:
        end = data.find(_END)
        kept = data if end < 0 else data[: end + 2]
        return kept.replace(_DOT_LINE, b"\r\n"), -1 if end < 0 else end + len(_END)
    if not found:
        return data, -1
    if data.startswith(_END, found[0]):
        return data[: found[0] + 2], found[0] + len(_END)
    parts, start = [], 0
    for position in found:
        parts.append(data[start : position + 2])
        start = position + 3
        if data.startswith(b"\r\n", start):
            return b"".join(parts), start + 2
    parts.append(data[start:])
    return b"".join(parts), -1


def _dot_lines(data: bytes) -> list[int] | None:
    """Where lines begin with a dot, as indexes of the CRLF before; None when they are many."""
    found: list[int] = []
    dot = 1
    for _ in range(len(data) // _DOTS_APART + 1):  # hardly any dots, as in an encoded attachment
        dot = data.find(b".", dot + 1)
        if dot < 0:
            return found
        if data.startswith(_DOT_LINE, dot - 2):
            found.append(dot - 2)
    found.clear()
    position = len(data)  # backwards it takes half the time
    while (position := data.rfind(_DOT_LINE, 0, position)) >= 0:
        if len(found) == _FEW_DOTS:
            return None
        found.append(position)
    found.reverse()
    return found


class ChunkReceiver(Receiver):
    """Octets behind BDAT: exactly as many as announced, no dot handling (RFC 3030 §2)."""

    __slots__ = ("_due",)

    def __init__(self, content: Content, max_size: int, max_line: int, bare: BareLineEnds) -> None:
        super().__init__(content, max_size, max_line, bare)
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
            self._store(piece)
        self.complete = not self._due
        return -1 if self._due else end


class SkippedChunk(ChunkReceiver):
    """Octets of a chunk that was refused: counted, so that the conversation stays in step, and forgotten."""

    __slots__ = ()

    def _keep(self, data: bytes) -> None:
        return


def _partial_end(data: bytes) -> int:
    if data[-1:] not in b"\r\n.":
        return 0
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0
