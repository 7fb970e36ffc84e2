"""Accept mail and throw it away: for load tests and for systems that only want to see what would arrive.

Whoever sends hears 250 and will believe the mail arrived, so this agent starts only with
`allow_discard = true`. What it threw away is counted in `smtpd_discarded_messages_total`.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from smtpd import replies
from smtpd.delivery import DeliveryAgent
from smtpd.metrics import Counter
from smtpd.model import Message, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply
from smtpd.services import Services

DISCARDED = Counter("smtpd_discarded_messages_total", "Messages accepted and thrown away.", ("agent",))

_WARNING = "discard accepts mail and loses it; say allow_discard = true if that is what you want"


class DiscardOptions(AgentOptions):
    """Options of `discard`."""

    allow_discard: bool = False
    """Must be true: mail given to this agent is lost, and its sender is told it arrived."""

    @model_validator(mode="after")
    def _is_meant(self) -> Self:
        if not self.allow_discard:
            raise ValueError(_WARNING)
        return self


class Discard(DeliveryAgent):
    """Counts and forgets."""

    Options = DiscardOptions

    def __init__(self, name: str, options: AgentOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._discarded = services.metrics.counter(DISCARDED).labels(name)

    async def start(self) -> None:
        """Refuse to work by accident: ValueError unless the options allow it, however they were made."""
        if not isinstance(self.options, DiscardOptions) or not self.options.allow_discard:
            raise ValueError(f"agent {self.name}: {_WARNING}")

    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        """Count the message."""
        self._discarded.inc()
        return replies.ACCEPTED
