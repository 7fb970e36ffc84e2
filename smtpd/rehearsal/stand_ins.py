"""Stands in for what lies behind us: agents that keep nothing, logins that are believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from smtpd import plugins, replies
from smtpd.auth import CredentialProvider
from smtpd.delivery import AgentAnswer, Delivery, DeliveryAgent
from smtpd.generation import AgentMaker
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply
from smtpd.services import Services


@dataclass(frozen=True, slots=True)
class Collected:
    """What an agent would have been given."""

    trace: str
    agent: str
    mailboxes: tuple[str, ...]
    folders: tuple[str, ...]
    """The folder of each mailbox, "" is the inbox."""
    added: tuple[bytes, ...]
    """Our own header fields, topmost first."""
    labels: frozenset[str]
    size: int


Collect = Callable[[Collected], None]


class Collector(DeliveryAgent):
    """Takes everything, and keeps nothing but a note of it."""

    def __init__(self, name: str, options: AgentOptions, services: Services, *, collect: Collect, utf8: bool) -> None:
        super().__init__(name, options, services)
        self.carries_utf8 = utf8
        self._collect = collect

    async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
        """Note who would have got what."""
        self._collect(_collected(self.name, mail, message))
        return replies.ACCEPTED


class Asking(DeliveryAgent):
    """Asks the real agent at RCPT, and gives it no message."""

    def __init__(self, name: str, options: AgentOptions, services: Services, *, collect: Collect) -> None:
        super().__init__(name, options, services)
        agent = plugins.find(plugins.AGENTS, options.type)(name, options, services)
        assert isinstance(agent, DeliveryAgent)
        self._agent = agent
        self._collect = collect
        self.asks = agent.asks

    async def start(self) -> None:
        """Start the real one."""
        await self._agent.start()
        self.carries_utf8 = self._agent.carries_utf8

    async def stop(self) -> None:
        """Stop the real one."""
        await self._agent.stop()

    def open(self, mail: Transaction) -> Delivery:
        """Begin as the real one would."""
        opened = self._agent.open(mail)
        self.carries_utf8 = self._agent.carries_utf8
        return _Asked(self, mail, opened, self._collect)


class _Asked(Delivery):
    def __init__(self, agent: DeliveryAgent, mail: Transaction, inner: Delivery, collect: Collect) -> None:
        super().__init__(agent, mail)
        self._inner = inner
        self._collect = collect

    async def recipient(self, recipient: Recipient) -> Reply | None:
        return await self._inner.recipient(recipient)

    async def deliver(self, message: Message) -> AgentAnswer:
        await self._inner.abandon()
        self._collect(_collected(self.agent.name, self.mail, message))
        return replies.ACCEPTED

    async def abandon(self) -> None:
        await self._inner.abandon()


class Believer(CredentialProvider):
    """Takes whoever says AUTH for who they say they are: no password is looked at, no server asked."""

    async def check_password(self, user: str, password: str) -> str | None:
        """Yes."""
        return user


def agent_maker(kind: str, collect: Collect, *, ask: bool) -> AgentMaker:
    """What makes the stand-in for agents of this entry-point name; `ask`: they are asked at RCPT."""
    if ask:
        return partial(Asking, collect=collect)
    real = plugins.find(plugins.AGENTS, kind)
    return partial(Collector, collect=collect, utf8=getattr(real, "carries_utf8", True))


def _collected(agent: str, mail: Transaction, message: Message) -> Collected:
    return Collected(
        mail.id,
        agent,
        tuple(recipient.destination.text for recipient in mail.recipients),
        tuple(recipient.folder for recipient in mail.recipients),
        tuple(message.added),
        mail.all_labels.union(*(recipient.labels for recipient in mail.recipients)),
        message.size,
    )
