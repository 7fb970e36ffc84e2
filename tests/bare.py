"""Connections without asyncio's streams, to say exactly which octets go in which segment."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable

from proxy_headers import GOOD
from stage import Stage

PATIENCE = 10.0
DROPPED = "smtpd_dropped_total"
HEADERS = "smtpd_proxy_headers_total"
BALANCED = {"proxy_protocol": ["127.0.0.0/8"]}
V1, V2 = GOOD["v1 tcp4"][0], GOOD["v2 inet"][0]
LOCAL = GOOD["v2 local"][0]
INNER = "203.0.113.7"
"""The client in V1 and V2."""


class Client:
    """One end of a bare connection to the server, in the server's event loop."""

    def __init__(self, bare: socket.socket) -> None:
        self.bare = bare
        self._loop = asyncio.get_running_loop()
        self._heard = b""

    async def say(self, octets: bytes) -> None:
        await self._loop.sock_sendall(self.bare, octets)

    async def octets(self) -> bytes:
        """What comes next, b"" at the end; a reset is an end like any other."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self._loop.sock_recv(self.bare, 65536)
            except ConnectionResetError:
                return b""

    async def hear(self) -> bytes:
        """One reply."""
        while not re.search(rb"^\d{3} .*\r\n", self._heard, re.MULTILINE):
            more = await self.octets()
            assert more, f"the connection ended behind {self._heard!r}"
            self._heard += more
        reply, self._heard = self._heard, b""
        return reply

    async def ask(self, line: bytes) -> bytes:
        await self.say(line + b"\r\n")
        return await self.hear()

    async def rest(self) -> bytes:
        rest = b""
        while more := await self.octets():
            rest += more
        return rest


@contextlib.asynccontextmanager
async def client(server: Stage, *said: bytes) -> AsyncIterator[Client]:
    """A connection on which something was said already, each item in a segment of its own."""
    with socket.socket() as bare:
        bare.setblocking(False)
        await asyncio.get_running_loop().sock_connect(bare, ("127.0.0.1", server.port))
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        talking = Client(bare)
        for octets in said:
            await talking.say(octets)
            await turns()
        yield talking


async def turns() -> None:
    """Let the server see what was sent: it sits in the same event loop."""
    for _ in range(4):
        await asyncio.sleep(0)


async def until(met: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not met():  # noqa: ASYNC110 - the kernel tells it
            await asyncio.sleep(0.002)


async def settled(server: Stage) -> None:
    """Wait until the server has noticed that everybody is gone."""
    await until(lambda: not server.count("smtpd_connections_active", listener="smtp"))


def listener(**keys: object) -> dict[str, object]:
    return {**BALANCED, **keys}
