"""Refuse messages that do not have exactly one From field."""

from __future__ import annotations

from smtpd import replies
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions
from smtpd.policy import PASS, Filter, Verdict


class HeadersOptions(FilterOptions):
    """Options of `headers`."""


class Headers(Filter):
    """Looks at the header section of every message."""

    name = "headers"
    Options = HeadersOptions

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Count the authors' fields."""
        count = len(message.field_values("from"))
        if count == 1:
            return PASS
        return Verdict(replies.BAD_HEADER(problem="A message has exactly one From field" if count else "No From"))
