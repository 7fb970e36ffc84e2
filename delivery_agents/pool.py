"""The connections to one mail server behind us: how many there may be, who has which, and which are free.

A connection is busy, parked or idle. Parked means that a transaction is open on it whose client takes its
time: it can be taken away when there is no other, so that slow clients do not keep all connections. Whose
connection was taken says MAIL and RCPT once more on another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from delivery_agents.backend import Backend
from delivery_agents.breaker import Breaker
from delivery_agents.connection import Connection
from delivery_agents.failures import Crowded, Failure, Lost, TimedOut, Unreachable
from smtpd.series import GaugeChild

CROWDED_SECONDS = 5.0  # until a server that took no further connection is asked for one again


class Pool:
    """At most `limit` connections, and no more than the server takes; an idle one is closed after `idle_seconds`.

    `greeted` hears of every new connection, when it is known what the server offers.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        limit: int,
        idle_seconds: float,
        breaker: Breaker,
        greeted: Callable[[Connection], None],
        gauge: GaugeChild,
    ) -> None:
        self._backend = backend
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._breaker = breaker
        self._greeted = greeted
        self._gauge = gauge
        self._open = 0  # those that are being opened included
        self._room = limit  # how many the server takes, as far as it has said so lately
        self._room_until = 0.0
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # to when it became idle, oldest first
        self._parked: dict[Connection, object] = {}  # to whose it is, oldest first
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_unreachable = False  # the last attempt to connect failed
        self.last_problem = ""
        """What failed last, for the log."""

    async def acquire(self, deadline: float, *, fresh: bool = False) -> Connection:
        """A connection in step; `fresh`: one that nobody has used. Failure when there is none before the deadline."""
        if not self._breaker.admits():
            raise Unreachable(self.last_problem)
        while not self._is_closed:
            if self._idle and not fresh:
                connection, _ = self._idle.popitem()
                return connection
            if self._idle and not self._has_room():
                self.discard(next(iter(self._idle)))
            if self._has_room():
                try:
                    return await self._connect()
                except Crowded:
                    if not self._open:
                        raise
                    fresh = False  # those that are there have to do
                    continue
            if self._parked:
                connection = next(iter(self._parked))
                del self._parked[connection]
                if not fresh:
                    return connection
                self.discard(connection)
                continue
            await self._turn(deadline)
        raise Unreachable(f"{self._backend.address}: the agent has been stopped")

    def release(self, connection: Connection) -> None:
        """Give a connection back; it is kept when it is in step, and what is open on it is reset."""
        if not connection.is_in_step or self._is_closed:
            self.discard(connection)
            return
        connection.reset()
        connection.is_used = True
        self._idle[connection] = asyncio.get_running_loop().time()
        if self._sweeper is None:
            self._sweep()
        self._call_next()

    def discard(self, connection: Connection) -> None:
        """Close a connection that nobody may use again."""
        if connection in self._connections:
            self._forget(connection)
            if connection.is_in_step:
                connection.close()
            else:
                connection.abort()

    def park(self, connection: Connection, owner: object) -> None:
        """The client has the next word: until then the connection may be taken away."""
        if connection.is_in_step:
            self._parked[connection] = owner
            self._call_next()
        else:
            self.discard(connection)

    def resume(self, connection: Connection, owner: object) -> bool:
        """Take a parked connection back; False when it was taken away, or lost."""
        if self._parked.get(connection) is not owner:
            return False
        del self._parked[connection]
        return True

    def answered(self) -> None:
        """The server does what it should."""
        self._breaker.succeeded()

    def failed(self, failure: Failure) -> None:
        """The server did not."""
        self.last_problem = str(failure)
        self._breaker.failed()

    async def problem(self) -> str | None:
        """Why nothing can be delivered now, None when it can; asks the server only when nobody is talking to it."""
        if self._connections and not self._breaker.is_open:
            return None
        loop = asyncio.get_running_loop()
        try:
            connection = await self.acquire(loop.time() + self._backend.timeout)
        except Failure as failure:
            return str(failure)
        self.release(connection)
        return None

    async def close(self, seconds: float) -> None:
        """Take leave of idle connections at once, and of busy ones when they are free, or time is up."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._idle, *self._parked]:
            self.discard(connection)
        try:
            async with asyncio.timeout(seconds):
                while self._open:
                    await self._queue()
        except TimeoutError:
            for connection in list(self._connections):
                self.discard(connection)

    def _has_room(self) -> bool:
        is_crowded = self._room < self._limit and asyncio.get_running_loop().time() < self._room_until
        return self._open < (self._room if is_crowded else self._limit)

    async def _connect(self) -> Connection:
        self._open += 1
        try:
            connection = await self._backend.connect()
            if not connection.is_alive:
                raise Lost(f"{self._backend.address}: closed behind the greeting")
        except BaseException as error:
            self._open -= 1
            self._call_next()
            if isinstance(error, Crowded) and self._open:  # it works, for fewer than we would like
                self._room = max(1, len(self._connections))
                self._room_until = asyncio.get_running_loop().time() + CROWDED_SECONDS
            elif isinstance(error, Failure):
                self._is_unreachable = True
                self.failed(error)
            raise
        if self._is_unreachable:
            self._is_unreachable = False
            self._breaker.succeeded()
        connection.on_lost = self._forget
        self._connections.add(connection)
        self._room = max(self._room, len(self._connections))
        self._gauge.inc()
        self._greeted(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._parked.pop(connection, None)
        self._open -= 1
        self._gauge.inc(-1)
        self._call_next()

    async def _turn(self, deadline: float) -> None:
        seconds = deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(seconds):
                await self._queue()
        except TimeoutError as error:
            raise TimedOut(f"{self._backend.address}: all {self._open} connections are busy") from error

    async def _queue(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._call_next()  # it was our turn, and we are gone
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def _call_next(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            rest = since + self._idle_seconds - loop.time()
            if rest > 0:
                self._sweeper = loop.call_later(rest, self._sweep)
                return
            self.discard(connection)
