"""A conversation without a socket: the same core over lists of octets. For tests, and for `smtpd session`.

    generation = Generation(config, ...)            # or Server(config) after start()
    talk = Talk(generation.services["smtp"], ip="192.0.2.1")
    await talk.hear()                               # b"220 mx.example.com ESMTP\\r\\n"
    await talk.say(b"EHLO client.example\\r\\n")     # b"250-mx.example.com\\r\\n250-..."
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from smtpd.channel import Channel, Disconnected
from smtpd.conversation import Conversation
from smtpd.model import Session, TlsInfo, new_id
from smtpd.service import Service


class MemoryTransport:
    """Collects what is said; every write is an item of `writes`."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False
        self.is_paused = False

    def write(self, data: bytes) -> None:
        """Keep octets."""
        if not self.is_closed:
            self.writes.append(data)

    def pause_reading(self) -> None:
        """Remember that no input is wanted now."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Remember that input is wanted again."""
        self.is_paused = False

    def close(self) -> None:
        """End the connection."""
        self.is_closed = True

    def abort(self) -> None:
        """End the connection."""
        self.is_closed = True

    async def start_tls(self) -> TlsInfo:
        """There is nothing to encrypt here."""
        raise Disconnected


class Talk:
    """One client in memory. `ip` is the address it seems to come from; `tls` makes it look encrypted."""

    def __init__(self, service: Service, *, ip: str = "192.0.2.1", tls: TlsInfo | None = None) -> None:
        self.transport = MemoryTransport()
        self._channel = Channel(self.transport, asyncio.get_running_loop())
        self._over = asyncio.Event()
        self._channel.on_finished = self._over.set
        address = ip_address(ip)
        self.session = Session(
            id=new_id(), listener=service.listener, ip=address, tls=tls, trusted=service.trusts(address)
        )
        self._channel.start(Conversation(self._channel, self.session, service).run())

    @property
    def is_over(self) -> bool:
        """Whether the server has hung up."""
        return self._over.is_set()

    async def hear(self) -> bytes:
        """Everything said since the last call, as soon as the server waits for the client again."""
        while not self._channel.is_listening and not self.is_over:  # noqa: ASYNC110 - a turn of the loop, no more
            await asyncio.sleep(0)
        said = b"".join(self.transport.writes)
        self.transport.writes.clear()
        return said

    async def say(self, octets: bytes, *, piece: int = 0) -> bytes:
        """Send octets, in pieces of that many if `piece` is given, and hear the answer."""
        step = piece or max(len(octets), 1)
        for start in range(0, len(octets), step):
            if self.is_over:
                break
            self._channel.feed(octets[start : start + step])
        return await self.hear()

    async def hang_up(self, *, politely: bool = False) -> bytes:
        """Vanish, or close only the sending side; what the server still says, after all is over."""
        if politely:
            self._channel.feed_eof()
        else:
            self._channel.lost()
        await self._over.wait()
        return await self.hear()
