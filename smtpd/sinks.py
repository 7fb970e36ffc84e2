"""Where log lines go: a stream, a file or syslog, written in batches, and never in the server's way.

Lines leave in one write with those of the next `FLUSH_AFTER` seconds, so a killed process (SIGKILL,
power) loses that much at most; errors are written at once. A reader that stalls or is gone makes lines wait,
up to `MAX_BACKLOG`; later ones are dropped, counted, and reported when there is room again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import stat
import threading
import time
from asyncio import get_running_loop
from collections.abc import Callable
from typing import Protocol

MAX_BACKLOG = 1 << 20  # bytes
FLUSH_AFTER = 0.01  # seconds; a write for every line costs as much as making it
MAX_LINES = 512  # of one batch; more are written at once
MAX_DATAGRAM = 8192  # bytes; what rsyslog keeps of a message by default
RETRY_SECONDS = 0.1
LOOK_SECONDS = 1.0
COMPLAIN_SECONDS = 60.0
PIPE_ROOM = 4096  # bytes that a pipe reported as writable takes without blocking (PIPE_BUF on Linux)


class Complaints:
    """Tells standard error that the log itself is in trouble, once a minute at most."""

    def __init__(self, descriptor: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._silent_until = -math.inf

    def __call__(self, error: OSError) -> None:
        """Say why the log could not be written."""
        if self._clock() < self._silent_until:
            return
        self._silent_until = self._clock() + COMPLAIN_SECONDS
        where = f"{error.filename!a}: " if error.filename is not None else ""
        text = f"smtpd: the log cannot be written: {where}{error.strerror}\n"
        with contextlib.suppress(OSError):  # nobody is left to tell
            StreamSink(self._descriptor).write(text.encode("ascii", "backslashreplace"))


class Sink(Protocol):
    """A place for complete lines."""

    def write(self, data: bytes) -> int:
        """Take octets from the front of `data` and say how many; fewer when it would block. OSError: broken."""

    def reopen(self) -> None:
        """Start over after the file was moved away; OSError keeps the old one."""

    def close(self) -> None:
        """Give the descriptor back."""


class Output:
    """Collects lines and hands them to a sink; the only part of the log that other threads may meet."""

    def __init__(self, sink: Sink, complain: Complaints, lost_line: Callable[[int], str]) -> None:
        self._sink = sink
        self._complain = complain
        self._lost_line = lost_line
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._lost = 0
        self._stalled: asyncio.AbstractEventLoop | None = None

    def add(self, line: str) -> None:
        """Write an ASCII line with its line end: `FLUSH_AFTER` seconds later with others, at once without a loop."""
        lines = self._lines
        lines.append(line)
        try:
            loop = get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(FLUSH_AFTER, self.flush)
        elif len(lines) >= MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        with self._lock:
            self._loop = None
            count = len(self._lines)
            data = "".join(self._lines[:count]).encode("ascii", "backslashreplace")
            del self._lines[:count]
            if not self._backlog:
                self._keep(data, self._push(data))
            elif len(self._backlog) + len(data) <= MAX_BACKLOG:
                self._backlog += data
            else:
                self._lost += count
            if self._backlog:
                self._drain()

    def reopen(self) -> None:
        """Write what is there to the old file, then go on with a new one; a failure goes to stderr only."""
        self.flush()
        try:
            self._sink.reopen()
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        """Write what is there and give the sink back."""
        self.flush()
        self._sink.close()

    def _push(self, data: bytes) -> int:
        try:
            return self._sink.write(data) if data else 0
        except OSError as error:
            self._complain(error)
            return 0

    def _keep(self, data: bytes, taken: int) -> None:
        if taken < len(data):
            self._backlog += data[taken:]

    def _drain(self) -> None:
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not None and self._stalled is loop:
            return
        del self._backlog[: self._push(bytes(self._backlog))]
        if self._backlog and loop is not None:
            self._stalled = loop
            loop.call_later(RETRY_SECONDS, self._retry)
        elif not self._backlog and self._lost:
            data = self._lost_line(self._lost).encode("ascii", "backslashreplace")
            self._lost = 0
            self._keep(data, self._push(data))

    def _retry(self) -> None:
        self._stalled = None
        self.flush()


class StreamSink:
    """Standard output or error; never waits for its reader, whatever it is connected to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "it is closed", "stdout" if descriptor == 1 else "stderr")
        mode = os.fstat(descriptor).st_mode
        self._is_file = stat.S_ISREG(mode)
        # The flags of the descriptor are shared with other processes, so O_NONBLOCK is not ours to set.
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(mode) else None
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes) -> int:
        """Take what fits now."""
        if self._is_file:
            return _write_all(lambda rest: os.write(self._descriptor, rest), data)
        if self._socket is not None:
            connected = self._socket
            return _write_all(lambda rest: connected.send(rest, socket.MSG_DONTWAIT), data)
        return _write_all(self._write_if_ready, data)

    def reopen(self) -> None:
        """A stream stays what it is."""

    def close(self) -> None:
        """The stream itself belongs to the process and stays open."""
        if self._socket is not None:
            self._socket.close()

    def _write_if_ready(self, rest: memoryview) -> int:
        if not self._poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self._descriptor, rest[:PIPE_ROOM])


class FileSink:
    """A file, appended to, and opened again when its name leads somewhere else."""

    def __init__(self, path: str, complain: Complaints, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._complain = complain
        self._clock = clock
        self._descriptor = self._open()
        self._next_look = clock() + LOOK_SECONDS

    def write(self, data: bytes) -> int:
        """Take all of it, unless the disk is full."""
        if self._clock() >= self._next_look:
            self._follow()
        return _write_all(lambda rest: os.write(self._descriptor, rest), data)

    def reopen(self) -> None:
        """Open the name anew; OSError when that fails, and the old file stays in use."""
        descriptor = self._open()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
        self._descriptor = -1  # the number may soon mean another file

    def _open(self) -> int:
        # O_NONBLOCK: opening a named pipe nobody reads must fail, not wait.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self.path, flags, 0o640)

    def _follow(self) -> None:
        self._next_look = self._clock() + LOOK_SECONDS
        with contextlib.suppress(FileNotFoundError):  # then it is to be made anew
            if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                return
        try:
            self.reopen()
        except OSError as error:
            self._complain(error)


class SyslogSink:
    """The system's log, one datagram per line, connected again after the daemon was restarted."""

    def __init__(self, path: str = "/dev/log") -> None:
        self.path = path
        self._socket: socket.socket | None = None

    def write(self, data: bytes) -> int:
        """Take whole lines."""
        taken = 0
        for line in bytes(data).splitlines(keepends=True):
            try:
                self._send(line.rstrip(b"\n"))
            except OSError as error:
                if taken or isinstance(error, BlockingIOError):
                    return taken
                raise
            taken += len(line)
        return taken

    def reopen(self) -> None:
        """Connect anew at the next line."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, line: bytes) -> None:
        try:
            self._connected().send(line[:MAX_DATAGRAM])
        except BlockingIOError:
            raise
        except OSError:
            self.close()
            self._connected().send(line[:MAX_DATAGRAM])

    def _connected(self) -> socket.socket:
        if self._socket is None:
            fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            fresh.setblocking(False)
            try:
                fresh.connect(self.path)
            except OSError as error:
                fresh.close()
                error.filename = self.path  # connect(2) does not say whom it did not find
                raise
            self._socket = fresh
        return self._socket


def open_sink(to: str, complain: Complaints) -> Sink:
    """The sink for "stdout", "stderr", "syslog" or "file:PATH"; OSError when the file cannot be opened."""
    if to == "stdout":
        return StreamSink(1)
    if to == "stderr":
        return StreamSink(2)
    if to == "syslog":
        return SyslogSink()
    if to.startswith("file:"):
        return FileSink(to.removeprefix("file:"), complain)
    raise ValueError(f"no such place for a log: {to!r}")


def _write_all(write: Callable[[memoryview], int], data: bytes) -> int:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[write(rest) :]
        except OSError as error:
            if len(rest) == len(data) and not isinstance(error, BlockingIOError):
                raise
            break  # what is left is tried again later, and then the error comes first
    return len(data) - len(rest)
