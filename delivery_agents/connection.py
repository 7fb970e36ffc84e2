"""One connection to a mail server behind us: commands out, answers in, and always knowing whether both are in step.

An asyncio.Protocol of its own; the caller awaits answers one by one, a future exists only while nothing is there.
Every answer must have been asked for. One that comes unasked, or before the last octet of a message has left, makes
the connection useless: whatever was said on it since is not trusted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeGuard

from delivery_agents.answers import CLOSING, EACH, Answer, AnswerReader
from delivery_agents.failures import Failure, Lost, Nonsense, TimedOut

_LOOK = 5.0  # seconds after which a timer looks at the deadline, so that it need not be moved for every answer
_GLANCE = 0.05  # seconds, at least, between the deadline and the end
_LAST_WORDS = 2.0  # seconds for QUIT to leave, and for TLS to say good-bye
_RESET = b"RSET\r\n"
_QUIT = b"QUIT\r\n"


class Connection(asyncio.Protocol):
    """One connection. All waiting ends at the deadline that `wait_until` has set."""

    __slots__ = (
        "_answers", "_deadline", "_failure", "_is_closing", "_is_last", "_is_overdue", "_is_paused", "_loop", "_more",
        "_owed", "_reader", "_resets", "_timer", "_timer_at", "_transport", "_waiter", "extensions", "is_dirty",
        "is_used", "on_lost",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._answers: deque[Answer] = deque()
        self._owed = 1  # the greeting
        self._more = 0  # answers behind a 353
        self._resets = 0  # of the owed answers, the first ones
        self._is_last = False
        self._is_paused = False
        self._is_closing = False
        self._failure: Failure | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._is_overdue = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.on_lost: Callable[[Connection], None] | None = None
        self.extensions: Mapping[str, str] = {}
        """What the server offers: keyword to parameters."""
        self.is_dirty = False
        """Whether the server may have a transaction open."""
        self.is_used = False
        """Whether it has served or waited before: then the server may have hung up meanwhile without being broken."""

    @property
    def is_alive(self) -> bool:
        """Whether anything can still be said and heard."""
        return self._failure is None and not self._is_closing

    @property
    def is_in_step(self) -> bool:
        """Whether every answer was heard, so that somebody else can go on."""
        return self.is_alive and self._owed == self._resets and not self._answers and self._reader.is_empty

    def wait_until(self, deadline: float) -> None:
        """Set the time, by the clock of the event loop, at which waiting ends in TimedOut."""
        self._deadline = deadline
        self._is_overdue = False

    def send(self, data: bytes, answers: int = 0, *, more: int = 0, last: bool = False) -> None:
        """Send octets that so many answers belong to; `last`: of a message, none of them may come earlier.

        `more`: how many may stand behind a 353 besides.
        """
        if self._failure is not None:
            raise self._failure
        assert self._transport is not None
        self._owed += answers
        self._more = more
        self._is_last = last
        self._transport.write(data)

    async def exchange(self, commands: Sequence[bytes], *, anew: bool = False) -> list[Answer]:
        """Say commands, in one write if the server can take that (RFC 2920), and hear the answers.

        `anew`: they begin a transaction, so what is left of an earlier one is reset first.
        """
        opening = self._reset() if anew and self.is_dirty else b""
        self.is_dirty = True
        if "PIPELINING" in self.extensions:
            self.send(opening + b"".join(commands), len(commands))
            answers = [await self.answer() for _ in commands]
        else:
            answers = await self._exchange_one_by_one(opening, commands)
        self.is_used = True
        return answers

    async def answer(self) -> Answer:
        """The next answer; Failure when none will come."""
        while not self._answers:
            await self._wait()
        return self._answers.popleft()

    async def drained(self) -> None:
        """Wait until the server has read enough of what was sent."""
        while self._is_paused:
            await self._wait()

    def reset(self) -> None:
        """Give up the server's transaction, if there is one, without waiting; the connection must be in step."""
        if self.is_dirty:
            self.send(self._reset())

    def close(self) -> None:
        """Take leave."""
        if self._failure is not None or self._transport is None:
            return
        if not self._owed:
            self._transport.write(_QUIT)
        self._failure = Lost("closed by us")
        self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LAST_WORDS, self._transport.abort)

    def abort(self, failure: Failure | None = None) -> None:
        """Hang up at once; whoever waits for an answer hears why."""
        if self._failure is None:
            self._failure = failure or Lost("closed by us")
        if self._transport is not None:
            self._transport.abort()
        self._wake()
        if self.on_lost is not None:
            self.on_lost(self)

    async def start_tls(self, upgrade: Callable[[asyncio.Transport], Awaitable[asyncio.Transport | None]]) -> None:
        """Put another transport under the conversation; nothing may have come behind the answer to STARTTLS."""
        if not self.is_in_step or self._transport is None:
            raise Nonsense("something stands behind the answer to STARTTLS")
        transport = await upgrade(self._transport)
        if transport is None:
            raise Lost("closed by the server during the handshake")
        self._transport = transport

    async def _exchange_one_by_one(self, opening: bytes, commands: Sequence[bytes]) -> list[Answer]:
        if opening:
            self.send(opening)
        answers = []
        for command in commands:
            while self._resets:
                await self._wait()
            self.send(command, 1)
            answers.append(await self.answer())
        return answers

    def _reset(self) -> bytes:
        self.is_dirty = False
        self._owed += 1
        self._resets += 1
        return _RESET

    # The event loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert _is_transport(transport)
        self._transport = transport
        if self._failure is not None:  # given up before it was there
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Octets came."""
        if self._failure is not None:
            return
        try:
            self._take(self._reader.feed(data))
        except Nonsense as nonsense:
            self._answers.clear()
            self.abort(nonsense)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self._failure is None:
            self._failure = Lost(f"closed by the server{f' ({exc})' if exc else ''}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        if self.on_lost is not None:
            self.on_lost(self)

    def pause_writing(self) -> None:
        """The server does not read."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """The server reads again."""
        self._is_paused = False
        self._wake()

    def _take(self, answers: list[Answer]) -> None:
        if self._is_last and self._transport is not None and self._transport.get_write_buffer_size():
            raise Nonsense("an answer before the end of the message")
        for answer in answers:
            if answer.code == CLOSING and (self._resets or not self._owed):
                # RFC 5321 §3.8: may come any time, and takes nothing back.
                self.abort(Lost(f"closed by the server: {answer}"))
                return
            if not self._owed:
                raise Nonsense(f"an answer that nobody asked for: {answer}")
            self._owed -= 1
            if answer.code == EACH and not self._resets:
                self._owed += self._more
                self._more = 0
            self._is_closing |= answer.code == CLOSING
            if not self._resets:
                self._answers.append(answer)
                continue
            self._resets -= 1
            if not 250 <= answer.code < 260:  # Exim has enough of RSET at the tenth (smtp_accept_max_nonmail)
                self.abort(Lost(f"RSET was answered with {answer}"))
                return
        if not self._owed and not self._reader.is_empty:
            raise Nonsense("an answer that nobody asked for")

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        self._arm()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        if self._timer is not None:
            if self._timer_at <= self._deadline:
                return
            self._timer.cancel()
        self._timer_at = min(self._deadline, self._loop.time() + _LOOK)
        self._timer = self._loop.call_at(self._timer_at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        now = self._loop.time()
        if now + 0.002 < self._deadline:
            self._arm()
        elif not self._is_overdue:
            # A process that was stopped hears of its timers before it hears what came meanwhile; nor could a server
            # answer that was stopped with it, as on a machine that is moved.
            self._is_overdue = True
            self._deadline = now + max(_GLANCE, min(now - self._timer_at, _LOOK))
            self._arm()
        else:
            self.abort(TimedOut("no answer in time"))


def _is_transport(transport: asyncio.BaseTransport) -> TypeGuard[asyncio.Transport]:
    return hasattr(transport, "write")  # uvloop's classes do not derive from asyncio's
