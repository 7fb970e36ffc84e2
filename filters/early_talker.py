"""Refuse clients that speak before it is their turn."""

from __future__ import annotations

from smtpd import replies
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, Seconds, Strings
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services


class EarlyTalkerOptions(FilterOptions):
    """Options of `early_talker`."""

    greet_delay: Seconds = 2.0
    """How long the banner waits, so that a client can show that it does not."""
    unless: Strings = ("authenticated",)
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""


class EarlyTalker(Filter):
    """Judges what the conversation observed."""

    name = "early_talker"
    Options = EarlyTalkerOptions
    labels = frozenset(("early_talker",))

    def __init__(self, name: str, options: EarlyTalkerOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.greet_delay = options.greet_delay

    async def on_mail(self, mail: Transaction) -> Verdict:
        """Look whether the client spoke early so far."""
        if not mail.session.early:
            return PASS
        return Verdict(replies.SPOKE_EARLY, labels=self.labels)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Look again: DATA ends a group, too."""
        return await self.on_mail(mail)
