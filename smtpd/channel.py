"""The conversation's end of the wire: octets in, octets out, no sockets.

A conversation is one coroutine. It is not an asyncio task: it is advanced by hand whenever octets arrive, so a command
costs no task, no future and no turn of the event loop. What awaits asyncio things has its own task: `Channel.run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import coroutine
from typing import Any

from smtpd.carrier import Transport
from smtpd.commands import limit_for, too_long
from smtpd.content import Receiver
from smtpd.endings import Disconnected, Draining, Ended, Overrun, TimedOut
from smtpd.limits import DataRate
from smtpd.model import TlsInfo
from smtpd.replies import Refused, Reply
from smtpd.turn import Turn
from smtpd.waiting import cancel, wait_for

HIGH_WATER = 1 << 16  # unread octets at which the transport is told to pause
_LOOK = 60.0  # seconds after which a timer looks at its deadline: below common timeouts, so it is not moved for them
_HOLD = 1.0  # seconds that replies of a burst may wait for each other
_LARGE = 1 << 14  # octets that are handled at once: the turns of many such clients together must not fill our memory
_BURST = 1 << 12  # octets of replies that wait for each other: who reads nothing must not fill our memory

_INPUT = object()


class Channel:
    """Carries one conversation. `feed`, `feed_eof`, `lost` and `blocked` are the carrier's side.

    What is said leaves when the conversation waits for input again: at once, or where there is a `turn` at its end.
    """

    __slots__ = (
        "_blocked", "_coroutine", "_data", "_deadline", "_draining", "_finishing", "_flushes_read", "_idle", "_is_due",
        "_loop", "_lost", "_out", "_paused", "_position", "_task", "_timer", "_timer_at", "_transport", "_turn",
        "_waiting", "burst", "ended", "flushes", "on_finished", "on_vanished",
    )  # fmt: skip

    def __init__(self, transport: Transport, loop: asyncio.AbstractEventLoop, turn: Turn | None = None) -> None:
        self._transport = transport
        self._turn = turn
        self._loop = loop
        self._data = b""
        self._position = 0
        self._out = b""
        self._coroutine: Coroutine[object, None, None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = 0.0
        self._waiting = self._idle = self._is_due = self._finishing = self._paused = self._blocked = False
        self.ended = False
        """Whether the client can say nothing more, nor that it has read what we say."""
        self._lost = self._draining = False
        self._flushes_read = 0
        self.burst = _BURST
        """Octets of replies from which on others have their turn; 0: once right behind the next one, with no flush."""
        self.flushes = 0
        """How often something was sent."""
        self.on_finished: Callable[[], None] | None = None
        self.on_vanished: Callable[[], None] | None = None
        """Called when the client has `ended` while something runs that is carried through."""

    # The conversation's side

    @property
    def pending(self) -> bool:
        """Whether the client has sent octets that nobody has read yet."""
        return self._position < len(self._data)

    @property
    def pending_octets(self) -> bytes:
        """The unread octets."""
        return self._data[self._position :]

    def write(self, data: bytes) -> None:
        """Say something; replies of one burst leave in one write."""
        self._out += data

    def flush(self) -> None:
        """Send what was said so far."""
        if self._out and not self._lost:
            data, self._out = self._out, b""
            self.flushes += 1
            self._transport.write(data)

    def was_read(self, flushes: int) -> bool:
        """Whether octets came after what was said when `flushes` stood there had been sent."""
        return self._flushes_read > flushes

    @coroutine
    def line(self, timeout: float, idle: bool = False, limit: int = 0) -> Generator[object, None, bytes]:
        """The next line without its CRLF, the only line end (RFC 5321 §2.3.8).

        A line over `limit` octets (0: as its verb may have) is read to its end, without being kept, and
        Refused. `idle`: the wait may end in Draining. Else Disconnected, or TimedOut after `timeout` seconds.
        """
        if self._draining and idle:
            raise Draining
        if len(self._out) > self.burst:
            if self.burst:
                self.flush()
            self.burst = _BURST
            yield from self.run(asyncio.sleep(0)).__await__()  # others have their turn
        end = self._data.find(b"\r\n", self._position)
        if end < 0 or self._blocked:
            self._idle = idle
            self._deadline = self._loop.time() + timeout if timeout else 0.0
            while end < 0 or self._blocked:
                if self.ended:
                    self._must_be_open()
                yield _INPUT
                end = self._data.find(b"\r\n", self._position)
                if end < 0 and self._is_overlong(limit):
                    yield from self._skip_line(too_long(self._data[self._position :]))
        line = self._data[self._position : end]
        self._position = end + 2
        if len(line) > 510 and len(line) + 2 > (limit or limit_for(line)):
            raise too_long(line)
        return line

    def _is_overlong(self, limit: int) -> bool:
        unread = len(self._data) - self._position
        return unread > 512 and unread > (limit or limit_for(self._data[self._position :]))

    def _skip_line(self, refusal: Refused) -> Generator[object, None, None]:
        while (end := self._data.find(b"\r\n", self._position)) < 0:
            self._data, self._position = self._data[-1:], 0  # its CR may belong to the line end
            self._must_be_open()
            yield _INPUT
        self._position = end + 2
        raise refusal

    @coroutine
    def receive(self, receiver: Receiver, timeout: float, rate: float) -> Generator[object, None, None]:
        """Feed content until it is complete, found to hold a lone CR or LF, or hopelessly big.

        `timeout` seconds may pass without an octet, and `rate` octets per second must come on average over
        a minute (0 switches either off).
        """
        has_begun = self._position < len(self._data)
        if has_begun and (self._feed(receiver) or receiver.found_bare_line_end or receiver.hopeless):
            return
        began = now = self._loop.time()
        watch, seen = None, 0
        while True:
            if self.ended:
                self._must_be_open()
            self._deadline = now + timeout if timeout else 0.0
            self._idle = False
            yield _INPUT
            if self._feed(receiver) or receiver.found_bare_line_end or receiver.hopeless:
                return
            now = self._loop.time()
            watch = watch or DataRate(rate, began)
            if rate and watch.too_slow(now, receiver.octets - seen):
                raise TimedOut(too_slow=True)
            seen = receiver.octets

    async def drain(self, receiver: Receiver, seconds: float) -> None:
        """Say what there is to say now, then throw content away until its end, or time or size is up."""
        self.flush()
        self._deadline = self._loop.time() + seconds
        with suppress(TimedOut, Disconnected):
            while not receiver.complete and not self._feed(receiver) and not receiver.hopeless:
                await self._input()

    def _feed(self, receiver: Receiver) -> bool:
        data, position = self._data, self._position
        if position >= len(data):
            return False
        self._data, self._position = b"", 0
        end = receiver.feed(data, position)
        if 0 <= end < len(data):
            self._data, self._position = data, end
        return end >= 0

    async def listen(self, seconds: float) -> bool:
        """Wait in silence; True at once when the client speaks."""
        if not self.pending:
            self._deadline = self._loop.time() + seconds
            try:
                await self._input()
            except TimedOut:
                return False
        return True

    async def run[T](self, work: Coroutine[Any, Any, T], *, finish: bool = False, seconds: float = 0.0) -> T:
        """Run anything that awaits asyncio things; Disconnected when the client is lost before it is done.

        `finish`: once begun it is carried through, whatever becomes of the client. `seconds`: after so long
        it is Overrun, and goes on by itself; 0 for no limit.
        """
        if self.vanished:
            work.close()
            raise Disconnected
        task = asyncio.Task(work, loop=self._loop, eager_start=True)
        if not task.done():
            if self._out:
                self._loop.call_later(_HOLD, self.flush)
            self._task, self._finishing = task, finish
            self._deadline = self._loop.time() + seconds if seconds else 0.0
            self._arm()
            try:
                await wait_for(task)
            except TimedOut:
                task.remove_done_callback(self._task_done)
                raise Overrun(task) from None
            finally:
                self._task = None
        if task.cancelled():
            raise Draining if self._draining and not self.vanished else Disconnected
        try:
            return task.result()
        finally:
            del task  # its exception and our frame would hold each other

    async def start_tls(self) -> TlsInfo:
        """Upgrade; the 220 must be written already. Disconnected when the handshake fails."""
        self._transport.pause_reading()
        self.flush()
        negotiated = await self.run(self._transport.start_tls())
        if self._paused:  # by what came with the handshake
            self._transport.pause_reading()
        return negotiated

    def readdress(self, ip: str) -> Reply | None:
        """The client turns out to be another one; a Reply when that one has too many connections already."""
        return self._transport.readdress(ip)

    @property
    def vanished(self) -> bool:
        """Whether the client is gone; one that closed its sending side behind a QUIT still listens."""
        return self._lost or (self.ended and b"QUIT\r\n" not in self.pending_octets.upper())

    @coroutine
    def _input(self) -> Generator[object, None, None]:
        self._must_be_open()
        self._idle = False
        yield _INPUT

    def _must_be_open(self) -> None:
        if self._lost or (self.ended and not (self._blocked and self.pending)):
            raise Disconnected

    # The carrier's side

    def start(self, conversation: Coroutine[object, None, None]) -> None:
        """Begin the conversation."""
        self._coroutine = conversation
        self._advance()

    def feed(self, data: bytes) -> None:
        """Octets came."""
        self._flushes_read = self.flushes
        self._data = self._data[self._position :] + data if self._position < len(self._data) else data
        self._position = 0
        if self._waiting and not self._blocked:
            if self._turn is None or len(data) > _LARGE:
                self._advance()
            else:
                self._is_due = True
                self._turn.hears(self, self._loop)
        elif len(self._data) > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Handle what came in this turn of the event loop."""
        if self._is_due and not self._blocked:
            self._advance()
        self._is_due = False

    def feed_eof(self) -> None:
        """The client will send nothing more."""
        self.ended = True
        if self._waiting and not self._is_due and not (self._blocked and self.pending):
            self._advance(Disconnected)
        elif self.vanished or self._finishing:
            self._vanish()

    def lost(self) -> None:
        """The connection is gone."""
        self._lost = self.ended = True
        self._out = b""
        if self._waiting:
            self._advance(Disconnected)
        else:
            self._vanish()

    def _vanish(self) -> None:
        if self._task is not None and not self._finishing:
            cancel(self._task, self._loop, otherwise=self._leave)
        elif self._task is not None and self.on_vanished is not None:
            self.on_vanished()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        if self._task is task:
            task.remove_done_callback(self._task_done)
            self._advance(Disconnected)

    def blocked(self, is_blocked: bool) -> None:
        """The client does not read what we say (True), or reads again: no input is taken meanwhile."""
        self._blocked = is_blocked
        if is_blocked or not self._waiting:
            return
        if self.pending or self.ended:
            self._advance(None if self.pending else Disconnected)
        else:
            self._resume()

    def interrupt(self, *, now: bool = False) -> None:
        """The server wants to stop: between two messages, or `now`."""
        self._draining = True
        if self._waiting and (now or self._idle):
            self._advance(Draining)
        elif now and self._task is not None and not self._finishing:
            self._task.cancel()

    @property
    def is_listening(self) -> bool:
        """Whether the conversation waits for the client."""
        return self._waiting

    def close(self) -> None:
        """Send the last words and hang up."""
        if not self._lost:
            self.flush()
            self._resume()  # an encrypted connection that is paused would not notice its end
            self._transport.close()

    def _advance(self, error: type[Ended] | None = None) -> None:  # an instance and our frame would hold each other
        if self._coroutine is None:
            return
        self._waiting = self._is_due = False
        try:
            wanted = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
        except StopIteration:
            self._end()
            return
        except BaseException:  # the conversation itself broke; the event loop's handler reports it
            self._end()
            self._transport.abort()
            raise
        if wanted is _INPUT:
            self._waiting = True
            if self._out and self._turn is not None:
                self._turn.speaks(self, self._loop)
            else:
                self.flush()
            if self._timer is None or self._deadline < self._timer_at:
                self._arm()
            if self._paused and not self._blocked:
                self._resume()
        else:
            assert isinstance(wanted, asyncio.Task)
            wanted.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        del task  # as in `run`
        self._advance()

    def _resume(self) -> None:
        if self._paused and not self._lost:
            self._paused = False
            self._transport.resume_reading()

    def _arm(self) -> None:
        """One timer per connection: moved only to an earlier time, it looks at the deadline when it fires."""
        if not self._deadline or (self._timer is not None and self._timer_at <= self._deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = min(self._deadline, self._loop.time() + _LOOK)
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        is_running = self._task is not None and not self._task.done()
        if not self._deadline or not (self._waiting or is_running):
            return
        if self._is_due or self._loop.time() + 0.002 < self._deadline:
            self._arm()
        else:
            self._advance(TimedOut)

    def _end(self) -> None:
        self._coroutine, self._data = None, b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.on_finished is not None:
            self.on_finished()
