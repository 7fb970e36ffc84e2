"""Agents that do what a test tells them to, and a transaction to hand to them."""

import asyncio
from ipaddress import ip_address
from typing import Any

from smtpd import replies
from smtpd.addresses import Address, parse_address
from smtpd.delivery import AgentAnswer, Deliveries, Delivery, DeliveryAgent
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply


class Events:
    """Takes the place of the log: keeps what was written."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


class Storing(DeliveryAgent):
    """Answers what it is told to; never asks at RCPT."""

    def __init__(self, name: str = "store", answer: object = replies.ACCEPTED) -> None:
        super().__init__(name, AgentOptions(type="test"), None)  # type: ignore[arg-type]
        self.answer = answer
        self.seen: list[Transaction] = []

    async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
        self.seen.append(mail)
        answer: Any = self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer(mail) if callable(answer) and not isinstance(answer, Reply) else answer


class Asking(Storing):
    """Also has something to say at RCPT."""

    def __init__(self, name: str = "asking", verdict: object = None, **options: float) -> None:
        super().__init__(name)
        DeliveryAgent.__init__(self, name, AgentOptions(type="test", **options), None)  # type: ignore[arg-type]
        self.verdict: Any = verdict
        self.asked = 0

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        self.asked += 1
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        return self.verdict


class Silent(Asking):
    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        await asyncio.Event().wait()
        return None

    async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
        await asyncio.Event().wait()
        return replies.ACCEPTED


class Tracked(Delivery):
    abandoned = 0

    async def abandon(self) -> None:
        Tracked.abandoned += 1
        raise OSError("broken")


class Opening(Asking):
    opened = 0

    def open(self, mail: Transaction) -> Delivery:
        self.opened += 1
        return Tracked(self, mail)


def transaction(*recipients: Recipient) -> Transaction:
    session = Session("s", "smtp", ip_address("192.0.2.1"))
    return Transaction("01TRACE", session, Address.null, recipients=list(recipients))


def recipient(agent: str = "store", local: str = "bob") -> Recipient:
    return Recipient(parse_address(f"{local}@example.com"), agent)


def deliveries(mail: Transaction, *agents: DeliveryAgent) -> tuple[Deliveries, Events]:
    events = Events()
    return Deliveries({agent.name: agent for agent in agents}, mail, events), events  # type: ignore[arg-type]
