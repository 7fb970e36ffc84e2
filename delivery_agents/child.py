"""One run of another program: a process group of its own, nothing inherited, octets in, the end of its output kept.

Its descriptors are watched by the event loop, so no thread waits and nothing is lost when a grandchild keeps them open:
what counts is the exit of the program itself.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

GRACE = 2.0  # seconds between SIGTERM and SIGKILL

_READ = 1 << 16
_LAST_READS = 64  # of what is still in the pipe when the program has ended; a grandchild may go on writing


class Child:
    """A program that runs. `close` must be called in the end; OSError from the constructor when it cannot be started.

    `keep` octets of its output are kept, the last ones. `socket`: a descriptor that becomes its standard input and
    output, for a dialogue; only standard error is kept then. `environment` is all that it finds there.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: str | None,
        keep: int,
        socket: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keep = keep
        self._tail = bytearray()
        self._input = -1
        self._output = -1
        theirs: list[int] = []
        try:
            self._output, their_output = os.pipe()
            theirs.append(their_output)
            their_input = socket
            if their_input is None:
                their_input, self._input = os.pipe()
                theirs.append(their_input)
            self._process = subprocess.Popen(  # noqa: S603 - no shell, and the operator's own words
                [os.fsencode(argument) for argument in arguments],
                stdin=their_input,
                stdout=their_output if socket is None else socket,
                stderr=their_output,
                env={name.encode(): value.encode() for name, value in environment.items()},
                cwd=directory,
                start_new_session=True,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._watch()

    def _watch(self) -> None:
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Set to the exit code, negative for the signal that ended it. Wait for it with asyncio.wait."""
        self.was_fed = False
        """Whether all of the input has gone into the pipe."""
        try:
            self._exit = os.pidfd_open(self._process.pid)
        except OSError:  # no descriptor is free, or the kernel is too old: nobody would hear of its end
            self.signal(signal.SIGKILL)
            self._close_pipes()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
            raise
        os.set_blocking(self._output, False)
        if self._input >= 0:
            os.set_blocking(self._input, False)
        self._loop.add_reader(self._output, self._read)
        self._loop.add_reader(self._exit, self._look)

    @property
    def output(self) -> str:
        """The end of what it has written so far; bytes that are no UTF-8 as escapes."""
        return self._tail.decode("utf-8", "backslashreplace")

    async def feed(self, pieces: Iterable[bytes]) -> None:
        """Write its input; ends early, and without an error, when it has ended or does not want more."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if self.exited.done():
                    return
                try:
                    view = view[os.write(self._input, view) :]
                except BlockingIOError:
                    await self._room()
                except BrokenPipeError:
                    return
        self.was_fed = True
        self._close_input()

    async def wait(self) -> int:
        """Its exit code."""
        await asyncio.wait({self.exited})
        return self.exited.result()

    async def end(self) -> None:
        """Have the whole group end: SIGTERM, then SIGKILL for all that is left."""
        self.signal(signal.SIGTERM)
        await asyncio.wait({self.exited}, timeout=GRACE)
        self.signal(signal.SIGKILL)
        await asyncio.wait({self.exited}, timeout=GRACE)  # one that runs as somebody else cannot be killed

    def has_ended(self) -> bool:
        """Whether it has ended by now, also when the event loop has not heard of it yet."""
        if not self.exited.done():
            self._look()
        return self.exited.done()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Give the pipes back; its exit is still waited for, so that no zombie stays. May be called twice."""
        self._close_pipes()

    async def _room(self) -> None:
        room: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_writer(self._input, _settle, room)
        try:
            await asyncio.wait({room, self.exited}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_writer(self._input)

    def _look(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        self._loop.remove_reader(self._exit)
        os.close(self._exit)
        for _ in range(_LAST_READS):
            if self._output < 0 or not self._read():
                break
        self.exited.set_result(code)

    def _read(self) -> bool:
        """Take what is in the pipe; False when there was nothing."""
        try:
            data = os.read(self._output, _READ)
        except BlockingIOError:
            return False
        if not data:
            self._close_output()
            return False
        self._tail += data
        del self._tail[: -self._keep]
        return True

    def _close_pipes(self) -> None:
        self._close_input()
        self._close_output()

    def _close_input(self) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1

    def _close_output(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1


def _settle(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_result(0)
