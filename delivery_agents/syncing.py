"""Makes a set of open files durable at once.

Each fsync ends with the disk emptying its cache, which costs the same for one file and for many. Handed
over together, those flushes become one; done one after the other, each is waited for. Linux takes them
together by its asynchronous I/O (io_submit(2) with IOCB_CMD_FSYNC). Where that is missing, or says no, or
stays silent, files are synced one by one, as everywhere else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

SLOTS = 256  # files handed over at once
PATIENCE = 300.0  # seconds for one set; a client waits 600 for the reply (RFC 5321 section 4.5.3.2.6)
_PROBE_PATIENCE = 5.0  # seconds

_FSYNC = 2  # IOCB_CMD_FSYNC

SystemCall = Callable[..., int]
"""Takes the number of a system call and its arguments; raises OSError."""


class _Numbers(NamedTuple):
    setup: int
    destroy: int
    submit: int
    getevents: int


# 64 bit and little-endian only: elsewhere the structures below look different.
_NUMBERS = {"x86_64": _Numbers(206, 207, 209, 208), "aarch64": _Numbers(0, 1, 2, 4)}


class Syncer:
    """Syncs files together where the system can, for one thread; `directory` is on the filesystem that counts."""

    def __init__(self, directory: str, *, system_call: SystemCall | None = None) -> None:
        self._directory = directory
        self._system_call = system_call
        self._together: _Together | None = None

    @property
    def is_together(self) -> bool:
        """Whether files are handed over together at present."""
        return self._together is not None

    def open(self) -> None:
        """Find out, with a file that is not kept, whether syncing together works; until then it is one by one."""
        together = _Together.made(self._system_call)
        if together is None:
            return
        try:
            works = self._works(together)
        except OSError:  # nowhere to try it
            works = False
        if works:
            self._together = together
        else:
            together.close()

    def close(self) -> None:
        """Give back what the kernel holds; from then on it is one by one again."""
        if self._together is not None:
            self._together.close()
            self._together = None

    def sync(self, descriptors: Sequence[int]) -> list[OSError | None]:
        """Return when all are durable, or why one is not: a result for each, in the same order.

        As fsync reports a failed write only once, what was lost on the way back is a failure, too.
        """
        results: list[OSError | None] = []
        while len(results) < len(descriptors):
            part = descriptors[len(results) : len(results) + SLOTS]
            if self._together is None or len(part) == 1:
                results += map(_sync, part)
                continue
            results += self._together.sync(part, PATIENCE)
            if self._together.is_lost:
                self.close()
        return results

    def _works(self, together: _Together) -> bool:
        # The root of mailboxes that somebody else makes may be missing, or not be ours to write to.
        directory = self._directory if os.access(self._directory, os.W_OK | os.X_OK) else None
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b"probe")
            return together.sync([file.fileno()] * 2, _PROBE_PATIENCE) == [None, None]


class _Order(ctypes.Structure):
    """struct iocb of linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("flags_of_write", ctypes.c_uint32),
        ("operation", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    """struct io_event of linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("order", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


class _Time(ctypes.Structure):
    """struct timespec."""

    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Together:
    """The kernel's queue of syncs. An order is copied when it is handed over; the arrays live as long as this."""

    def __init__(self, system_call: SystemCall, numbers: _Numbers) -> None:
        self._system_call = system_call
        self._numbers = numbers
        self._context = ctypes.c_ulong(0)
        self._orders = (_Order * SLOTS)()
        self._events = (_Event * SLOTS)()
        self._serial = 0
        size, start = ctypes.sizeof(_Order), ctypes.addressof(self._orders)
        self._addresses = (ctypes.c_void_p * SLOTS)(*range(start, start + SLOTS * size, size))
        for order in self._orders:
            order.operation = _FSYNC
        self.is_lost = False
        """Whether orders went out that were never answered; then it must not be used again."""
        system_call(numbers.setup, ctypes.c_long(SLOTS), ctypes.byref(self._context))

    @classmethod
    def made(cls, system_call: SystemCall | None) -> _Together | None:
        """A queue, None where there cannot be one; `system_call` as of the C library unless it is given."""
        numbers = _NUMBERS.get(platform.machine())
        if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 1 << 32 or numbers is None:
            return None
        try:
            return cls(system_call or _library_call(), numbers)
        except OSError:  # forbidden, not compiled in, or all queues of the system are taken
            return None

    def close(self) -> None:
        """Give the queue back; not when it is lost, because the kernel would wait for what is in it."""
        if self.is_lost:
            return
        try:
            self._system_call(self._numbers.destroy, self._context)
        except OSError:  # then it goes when the process goes
            return

    def sync(self, descriptors: Sequence[int], patience: float) -> list[OSError | None]:
        """As `Syncer.sync`, for at most SLOTS; `patience` in seconds."""
        first = self._serial
        self._serial += len(descriptors)
        for number, descriptor in enumerate(descriptors):
            order = self._orders[number]
            order.data = first + number
            order.descriptor = descriptor
        refused = self._submit(len(descriptors))
        # The kernel has not begun with these, so nothing can have been reported to anyone else.
        results = {number: _sync(descriptors[number]) for number in refused}
        try:
            self._collect(results, first, len(descriptors), time.monotonic() + patience)
        except OSError as error:
            self.is_lost = True
            return [results.get(number, error) for number in range(len(descriptors))]
        return [results[number] for number in range(len(descriptors))]

    def _submit(self, count: int) -> list[int]:
        """Hand over the first `count` orders; the numbers of those that the kernel does not take."""
        refused: list[int] = []
        position = 0
        while position < count:
            rest = ctypes.byref(self._addresses, position * ctypes.sizeof(ctypes.c_void_p))
            try:
                position += self._system_call(
                    self._numbers.submit, self._context, ctypes.c_long(count - position), rest
                )
            except OSError:  # it is about the first of them
                refused.append(position)
                position += 1
        return refused

    def _collect(self, results: dict[int, OSError | None], first: int, count: int, deadline: float) -> None:
        """Wait until there are `count` results; OSError when an answer is missing."""
        while len(results) < count:
            for event in self._events[: self._wait(count - len(results), deadline)]:
                number = event.data - first
                # An older number belongs to a set whose waiter was interrupted.
                if 0 <= number < count and number not in results:
                    results[number] = _failure(event.result)

    def _wait(self, count: int, deadline: float) -> int:
        """Wait for `count` events; how many there are, which may be fewer or none after a signal."""
        left, wanted = deadline - time.monotonic(), ctypes.c_long(count)
        if left > 0:
            limit = _Time(int(left), int(left % 1 * 1e9))
            try:
                found = self._system_call(
                    self._numbers.getevents, self._context, wanted, wanted, self._events, ctypes.byref(limit)
                )
            except InterruptedError:
                found = -1
            if found:
                return max(found, 0)
        raise TimeoutError(errno.ETIMEDOUT, "the kernel does not say whether a file was synced")


def _failure(result: int) -> OSError | None:
    if result == 0:
        return None
    return OSError(-result, os.strerror(-result)) if result < 0 else OSError(errno.EIO, f"fsync says {result}")


def _sync(descriptor: int) -> OSError | None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        return error
    return None


def _library_call() -> SystemCall:
    library = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result: int = library.syscall(ctypes.c_long(number), *arguments)
        if result == -1:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    return call
