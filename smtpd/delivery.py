"""Delivery agents: what they are, which one a recipient goes to, and how their answers become one reply.

Nothing is queued: the client hears 250 after an agent has made the message safe, never before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.services import Services

Outcome = Reply | Mapping[Recipient, Reply]


class DeliveryAgent:
    """Somewhere mail can go. Most agents override `verify` and `deliver`, and nothing else.

    An exception that escapes is logged and becomes 451: mail is never refused because an agent broke.
    """

    Options: ClassVar[type[AgentOptions]] = AgentOptions
    carries_utf8: bool = True
    """Whether addresses and header fields beyond ASCII may be handed over (RFC 6531)."""

    def __init__(self, name: str, options: AgentOptions, services: Services) -> None:
        self.name = name
        self.options = options
        self.services = services

    async def start(self) -> None:
        """Get ready before the first connection; an exception keeps the server from starting."""

    async def stop(self) -> None:
        """Finish what has begun and give everything back."""

    async def health(self) -> str | None:
        """None when mail can be delivered, else one sentence saying why not."""
        return None

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        """Say at RCPT whether the mailbox takes mail: None for yes, else the refusal. Must be cheap."""
        return None

    async def deliver(self, mail: Transaction, message: Message) -> Outcome:
        """Store the message durably for `mail.recipients` (only this agent's): one reply, or one each."""
        raise NotImplementedError(type(self).__name__)

    def open(self, mail: Transaction) -> Delivery:
        """Begin a delivery at the first recipient; override to talk to a server while the conversation goes on."""
        return Delivery(self, mail)


class Delivery:
    """One agent's share of one transaction; this default is built from `verify` and `deliver`."""

    def __init__(self, agent: DeliveryAgent, mail: Transaction) -> None:
        self.agent = agent
        self.mail = mail

    async def recipient(self, recipient: Recipient) -> Reply | None:
        """Ask for one recipient at RCPT: None when it is taken, else the refusal."""
        return await self.agent.verify(recipient, self.mail)

    async def deliver(self, message: Message) -> Outcome:
        """Hand the message over for the recipients of `mail`."""
        return await self.agent.deliver(self.mail, message)

    async def abandon(self) -> None:
        """The transaction ended without delivery."""
