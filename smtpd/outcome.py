"""How one message fared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smtpd.model import Recipient
from smtpd.replies import Reply

Answers = dict[Recipient, Reply]


@dataclass(slots=True)  # not frozen: that takes a message twice as long to make
class Outcome:
    """How a message fared: one reply for the whole, and each recipient's when it was not refused as a whole."""

    reply: Reply
    each: Mapping[Recipient, Reply] | None = None

    def taken(self) -> Answers:
        """The replies of those who have the message."""
        return {recipient: reply for recipient, reply in (self.each or {}).items() if reply.is_positive}
