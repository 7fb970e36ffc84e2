"""Accepting connections; where they begin with a PROXY header, it is read off the bare socket before anything else is.

An own loop instead of asyncio's server: behind the header, in the same segment, a TLS handshake may begin,
and whoever has read too much cannot give it back to the TLS layer.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any

from smtpd.model import IPAddress
from smtpd.proxy import HeaderReader, Origin, ProxyError
from smtpd.sockets import BACKLOG, InheritedSocket, ears, listen
from smtpd.wire import Connection, Gate, address_of

HEADER_SECONDS = 5.0  # for a whole header; haproxy's doc/proxy-protocol.txt §2: at least 3, for a retransmission
MAX_WAITING = 1000  # connections of one listening socket whose header has not come yet
MAX_WAITING_PER_PEER = 500  # those of one balancer
PAUSE = 0.5  # seconds without accepting when the system is out of descriptors or memory


class Acceptor:
    """Accepts on one listening socket for one gate, from `start` to `close`."""

    def __init__(self, gate: Gate, listening: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._gate = gate
        self._listening = listening
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._waiting_for: Counter[IPAddress] = Counter()
        self._is_failing = False

    def start(self, backlog: int) -> None:
        """Begin to listen."""
        self._listening.listen(backlog)
        self._accepting = self._spawn(self._accept())

    def close(self) -> None:
        """Take no more connections, and hang up on those whose header has not come."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._waiting:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until `close` has done its work."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self) -> None:
        try:
            while True:
                await self._accept_one()
        finally:
            self._listening.close()

    async def _accept_one(self) -> None:
        try:
            accepted, name = await self._loop.sock_accept(self._listening)
        except OSError as error:
            if error.errno != errno.ECONNABORTED:
                await self._pause(error)
            return
        self._is_failing = False
        self._take(accepted, name)
        await asyncio.sleep(0)  # a full backlog must not keep the other connections waiting

    async def _pause(self, error: OSError) -> None:
        """Trying again at once would only burn time: descriptors and memory come back when clients leave."""
        if not self._is_failing:
            self._is_failing = True
            service = self._gate.service
            service.log.error("accept-failed", listener=service.listener, problem=error.strerror or str(error))
        await asyncio.sleep(PAUSE)

    def _take(self, accepted: socket.socket, name: object) -> None:
        ip, text, _ = address_of(name)
        if not self._gate.expects_header(ip):
            self._spawn(self._hand_over(accepted, None))
            return
        if len(self._waiting) >= MAX_WAITING or self._waiting_for[ip] >= MAX_WAITING_PER_PEER:
            accepted.close()
            self._gate.dropped("proxy-too-many", text)
            return
        self._spawn(self._introduce(accepted, ip, text))

    async def _introduce(self, accepted: socket.socket, ip: IPAddress, text: str) -> None:
        task, origin = asyncio.current_task(), None
        assert task is not None
        self._waiting.add(task)
        self._waiting_for[ip] += 1
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                origin = await self._read_header(accepted)
        except TimeoutError:
            self._gate.dropped("proxy-timeout", text)
        except ProxyError as error:
            self._gate.dropped("proxy-malformed", text, str(error))
        except OSError:
            self._gate.service.meters.proxy_header("none")
        finally:
            self._waiting.discard(task)
            self._waiting_for[ip] -= 1
            if not self._waiting_for[ip]:
                del self._waiting_for[ip]
            if origin is None:
                accepted.close()
        if origin is not None:
            self._gate.service.meters.proxy_header(origin.kind)
            await self._hand_over(accepted, origin)

    async def _read_header(self, accepted: socket.socket) -> Origin:
        """ConnectionError when the peer only connects and hangs up, as simple health checks do."""
        reader, has_begun = HeaderReader(), False
        while reader.origin is None:
            octets = await self._loop.sock_recv(accepted, reader.wanted)
            if not octets and has_begun:
                raise ProxyError("the header is cut off")
            if not octets:
                raise ConnectionResetError
            reader.feed(octets)
            has_begun = True
        return reader.origin

    async def _hand_over(self, accepted: socket.socket, origin: Origin | None) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._gate, self._loop, origin), accepted)
        except OSError:  # the peer is gone already
            accepted.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Eagerly, so that one which is cancelled at once has begun, and closes its socket.
        task = asyncio.Task(work, loop=self._loop, eager_start=True)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._gate.service.log.error("our-fault", exception=error)


async def accept(
    gate: Gate, opened: socket.socket, loop: asyncio.AbstractEventLoop, *, reads_headers: bool
) -> list[asyncio.Server | Acceptor]:
    """Listen on a bound socket, and serve whoever comes; AddressUnavailable when that cannot be done.

    `reads_headers`: those that begin with a PROXY header, too.
    """
    listen(opened)  # uvloop would say "Bad file descriptor" where the address is taken
    if not reads_headers:
        return [await _serve(gate, ear, loop) for ear in ears(opened, loop)]
    acceptor = Acceptor(gate, opened, loop)
    acceptor.start(BACKLOG)
    return [acceptor]


async def _serve(gate: Gate, opened: socket.socket, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
    kind = loop.create_unix_server if opened.family == socket.AF_UNIX else loop.create_server
    if isinstance(opened, InheritedSocket) and opened.family == socket.AF_UNIX and sys.version_info >= (3, 13):
        kind = partial(loop.create_unix_server, cleanup_socket=False)
    return await kind(lambda: Connection(gate, loop), sock=opened, backlog=BACKLOG)
