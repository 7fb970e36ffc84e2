"""A mail server that is a child of ours: LMTP over its standard input and output, which are one socket.

To `Pool` it is a backend like any other; connecting means starting the program, and a program whose connection
has ended is made to end, too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from delivery_agents.answers import Answer
from delivery_agents.backend import Backend
from delivery_agents.breaker import Breaker
from delivery_agents.child import GRACE, Child
from delivery_agents.connection import Connection
from delivery_agents.failures import Failure
from delivery_agents.lmtp_delivery import LmtpDelivery, Stage, Terms
from delivery_agents.pool import Pool
from smtpd.delivery import DeliveryAgent
from smtpd.model import Transaction
from smtpd.series import GaugeChild

type Start = Callable[[int], Child]
"""Starts the program with a socket as its standard input and output; OSError when that is impossible."""
type Ended = Callable[[Child], None]
"""Hears of every program that has ended."""
type Count = Callable[[str], None]
"""Counts "delivered", "deferred", "refused" or "failed"."""

FAILURES = 5  # in a row, until nobody waits any more
PAUSE = 5.0  # seconds between attempts then
ASKING = 25.0  # seconds for the answer about a recipient: below the limit that the server sets itself

_RESULTS = {2: "delivered", 4: "deferred", 5: "refused"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LmtpProgram(Backend):
    """How to get a conversation with the program."""

    start: Start
    ended: Ended

    async def _open(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            child = self.start(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        leash = _Leash(connection, child, self.ended)
        try:
            await loop.create_unix_connection(lambda: leash, sock=ours)
        except BaseException:
            ours.close()
            leash.let_go()
            raise


class LmtpPrograms:
    """The programs of one agent: how many there may be, and what is counted and logged of them."""

    def __init__(
        self,
        agent: DeliveryAgent,
        backend: LmtpProgram,
        *,
        limit: int,
        timeout: float,
        count: Count,
        gauge: GaugeChild,
    ) -> None:
        self._agent = agent
        self._count = count
        self._terms = Terms(
            reply_timeout=min(timeout, ASKING),
            delivery_timeout=timeout,
            longest=timeout,
            chunking=True,
            path=lambda mail, recipient: recipient.destination.text,
            header=lambda mail: b"",
        )
        clock = asyncio.get_running_loop().time
        breaker = Breaker(limit=FAILURES, seconds=PAUSE, clock=clock, changed=self._circuit_changed)
        self.pool = Pool(backend, limit=limit, idle_seconds=0.0, breaker=breaker, greeted=self._greeted, gauge=gauge)

    def open(self, mail: Transaction) -> LmtpDelivery:
        """Begin a transaction; the program is started at the first recipient."""
        return LmtpDelivery(self._agent, mail, self.pool, self._terms, self)

    def answered(self, at: Stage, answer: Answer) -> None:
        """Count what was said after the content."""
        if at == "content":
            self._count(_RESULTS[answer.code // 100])

    def failed(self, at: Stage, failure: Failure, mail: Transaction) -> None:
        """Count and log that nothing of use was said."""
        self._count("failed")
        log, name = self._agent.services.log, self._agent.name
        log.warning("backend-failed", agent=name, trace=mail.id, problem=str(failure))

    def _greeted(self, connection: Connection) -> None:
        self._agent.carries_utf8 = "SMTPUTF8" in connection.extensions

    def _circuit_changed(self, is_open: bool) -> None:
        log, name = self._agent.services.log, self._agent.name
        if is_open:
            log.warning("backend-down", agent=name, problem=self.pool.last_problem)
        else:
            log.info("backend-up", agent=name)


class _Leash(asyncio.Protocol):
    """Passes everything on to the connection, and sees to it that the program does not outlive it."""

    def __init__(self, connection: Connection, child: Child, ended: Ended) -> None:
        self._connection = connection
        self._child = child
        self._ended = ended
        self._end: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._connection.data_received(data)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        self.let_go()

    def let_go(self) -> None:
        """The program has seen the end of its input; what does not end by itself is ended."""
        self._end = asyncio.ensure_future(self._wait_and_end())

    async def _wait_and_end(self) -> None:
        await asyncio.wait({self._child.exited}, timeout=GRACE)
        if not self._child.exited.done():
            await self._child.end()
        self._child.close()
        self._ended(self._child)
