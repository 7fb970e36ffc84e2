"""A Maildir agent in a directory of its own, and the envelopes and messages to give it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from delivery_agents.maildir import Maildir, MaildirOptions
from smtpd.addresses import Address, parse_address
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.metrics import Metrics
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.replies import Reply
from smtpd.services import Services

TEXT = b"Subject: hello\r\n\r\nbody\r\n"


class Events:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, event: str, /, **fields: object) -> None:
        self.lines.append(f"{event} {fields}")


Start = Callable[..., Awaitable[Maildir]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    running: list[Maildir] = []

    async def begin(**options: Any) -> Maildir:
        options = {"type": "maildir", "path": str(tmp_path / "mail"), "recipients": "any"} | options
        services = Services(hostname="mx/1.test", log=Events(), metrics=Metrics())  # type: ignore[arg-type]
        agent = Maildir("store", MaildirOptions(**options), services)
        await agent.start()
        running.append(agent)
        return agent

    yield begin
    for agent in running:
        await agent.stop()


def message(text: bytes = TEXT, *, in_memory: int = 1 << 20) -> Message:
    content = Content(ContentBudget(0), in_memory=in_memory)
    content.write(text)
    made = Message(content)
    made.added.append(b"Received: by mx.test\r\n")
    return made


def recipient(text: str = "bob@example.com", *labels: str) -> Recipient:
    return Recipient(parse_address(text), "store", labels=frozenset(labels))


def transaction(*recipients: Recipient | str, sender: str = "eve@sender.test", size: int | None = None) -> Transaction:
    found = [recipient(each) if isinstance(each, str) else each for each in recipients]
    address = parse_address(sender) if sender else Address.null
    return Transaction("01T", Session("s", "smtp", ip_address("192.0.2.1")), address, size=size, recipients=found)


async def deliver(agent: Maildir, *recipients: Recipient | str, text: bytes = TEXT, **options: Any) -> Any:
    return await agent.deliver(transaction(*recipients, **options), message(text))


def events(agent: Maildir) -> list[str]:
    log = agent.services.log
    assert isinstance(log, Events)
    return log.lines


def stored(root: Path, folder: str = "new") -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.parent.name == folder and path.is_file())


async def ask(agent: Maildir, text: str, size: int | None = None) -> Reply | None:
    return await agent.verify(recipient(text), transaction(size=size))
