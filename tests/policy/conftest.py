"""A small world around the runner: real services, a session, and policies made of (filter class, options)."""

import asyncio
from collections.abc import Coroutine, Mapping
from ipaddress import IPv4Address
from typing import Any

import pytest
from log_lines import Lines

from smtpd.addresses import parse_address
from smtpd.config.models import LogOptions
from smtpd.content import Content
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.policy import Filter, Policy, Rule
from smtpd.services import Services


class Plenty:
    def take(self, octets: int) -> bool:
        return True

    def give(self, octets: int) -> None:
        return None


class World:
    def __init__(self) -> None:
        self.lines = Lines()
        self.log = Log(LogOptions(level="debug"), sink=self.lines)
        self.metrics = Metrics()
        self.services = Services(hostname="mx.test", log=self.log, metrics=self.metrics)
        self.session = self.new_session()

    def policy(self, *entries: type[Filter] | tuple[type[Filter], Mapping[str, Any]], on: str = "smtp") -> Policy:
        made = []
        for entry in entries:
            kind, given = entry if isinstance(entry, tuple) else (entry, {})
            options = kind.Options(**given)
            name = kind.name or kind.__name__.lower()
            made.append((kind(name, options, self.services), Rule.from_options(name, options)))
        return Policy(made, services=self.services, listener=on)

    def new_session(self) -> Session:
        return Session(id="SESSION", listener="smtp", ip=IPv4Address("192.0.2.1"))

    def mail(self) -> Transaction:
        return Transaction(id="MAIL", session=self.session, sender=parse_address("joe@client.test"))

    def recipient(self, text: str = "ann@mx.test", *, exempt: bool = False) -> Recipient:
        return Recipient(parse_address(text), agent="store", exempt=exempt)

    def message(self, text: bytes = b"From: joe@client.test\r\n\r\nHi\r\n") -> Message:
        return Message(self.content(text))

    def content(self, text: bytes) -> Content:
        content = Content(Plenty(), in_memory=1 << 20)
        content.write(text)
        return content

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """What the conversation does with a stage."""
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)

    def logged(self) -> list[dict[str, Any]]:
        self.log.flush()
        return list(self.lines.entries)

    def count(self, name: str, **labels: str) -> float:
        """What a scrape shows; 0 when the series is not there."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def mail(world: World) -> Transaction:
    """To ann and bob."""
    mail = world.mail()
    mail.recipients = [world.recipient("ann@mx.test"), world.recipient("bob@mx.test")]
    return mail
