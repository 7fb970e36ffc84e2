"""The real server without sockets: one listener, one agent that throws mail away, and the filters under test."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from smtpd.config.load import from_tables
from smtpd.generation import Generation
from smtpd.memory import Talk
from smtpd.server import Server

Filters = Mapping[str, Mapping[str, object]]


class House:
    def __init__(self, server: Server, generation: Generation) -> None:
        self._server = server
        self._service = generation.services["smtp"]
        self.talk: Talk
        self._talks: list[Talk] = []

    async def call(self, *, ip: str = "192.0.2.1", login: str | None = None, hello: bytes = b"EHLO c.test\r\n") -> str:
        """Connect and say hello; the answer to the hello, "" without one. `login`: as if AUTH had succeeded."""
        self.talk = Talk(self._service, ip=ip)
        self._talks.append(self.talk)
        self.banner = (await self.talk.hear()).decode()
        self.talk.session.login = login
        return await self.say(hello) if hello else ""

    async def say(self, octets: bytes | str) -> str:
        """The answer."""
        return (await self.talk.say(octets if isinstance(octets, bytes) else octets.encode())).decode()

    async def mail(self, sender: str = "joe@c.test", *recipients: str) -> list[str]:
        """The answers to MAIL and each RCPT, a command at a time."""
        answers = [await self.say(f"MAIL FROM:<{sender}>\r\n")]
        for recipient in recipients or ("ann@mx.test",):
            answers.append(await self.say(f"RCPT TO:<{recipient}>\r\n"))
        return answers

    async def send(self, message: bytes) -> str:
        """The answer to a message from Joe to Ann; everything goes by BDAT, so no octet is touched on the way."""
        await self.mail()
        return await self.say(b"BDAT %d LAST\r\n%s" % (len(message), message))

    async def close(self) -> None:
        """Hang up on everybody and stop."""
        for talk in self._talks:
            await talk.hang_up()
        await self._server.stop()

    def count(self, name: str, **labels: str) -> float:
        """What a scrape shows; 0 when the series is not there."""
        return self._server.metrics.registry.get_sample_value(name, labels) or 0.0


Build = Callable[..., Awaitable[House]]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """A function of tables of filters (and other tables of `[smtpd]`) that gives a House."""
    houses = []

    async def make(filters: Filters, **tables: Any) -> House:
        config = from_tables({
            "hostname": "mx.test",
            "postmaster": "postmaster@mx.test",
            "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
            "domains": {"mx.test": "store"},
            "agents": {"store": {"type": "discard", "allow_discard": True}},
            "filters": {name: dict(table) for name, table in filters.items()},
            **tables,
        })  # fmt: skip
        server = Server(config)
        house = House(server, await server.start_quietly())
        houses.append(house)
        return house

    yield make
    for house in houses:
        await house.close()
