"""Refuse clients that speak before it is their turn; mail software waits, much of what spammers write does not.

A client speaks early when octets of it are there

- before our banner, which is held back for `greet_delay` (with implicit TLS: after the handshake);
- behind EHLO, HELO, DATA, AUTH, VRFY, EXPN, TURN or NOOP before we have answered: commands may be sent in groups, but
  these end a group (RFC 2920 §3.1);
- behind any command, when nobody told it that commands may be sent in groups: it said HELO, or PIPELINING is off.

The verdict is a refusal at RCPT (550 5.7.1), or at the end of data for who spoke early only behind DATA, and the
label `early_talker`. The session goes on, and nobody has to come back from somewhere else to be believed.

The delay holds up everybody, so switch the filter on where strangers connect: `listeners = ["smtp", "alt"]`. On the
other listeners users wait in front of their mail program, and once they have logged in nothing is refused anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from smtpd import replies
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, Seconds, Strings
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services


class EarlyTalkerOptions(FilterOptions):
    """Options of `early_talker`."""

    # Postfix postscreen_greet_wait 6 s, Exim has none; clients wait 5 minutes (RFC 5321 §4.5.3.2.1).
    greet_delay: Annotated[Seconds, Field(le=60)] = 2.0
    """How long the banner is held back, at most 60 s; 0: only what follows the banner is judged."""
    unless: Strings = ("authenticated",)
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""


@dataclass(frozen=True, slots=True)
class SpokeEarly:
    """The client had spoken early when it said MAIL."""


class EarlyTalker(Filter):
    """Judges what the conversation observed."""

    name = "early_talker"
    Options = EarlyTalkerOptions
    gives = (SpokeEarly,)
    labels: ClassVar[frozenset[str]] = frozenset(("early_talker",))

    def __init__(self, name: str, options: EarlyTalkerOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.greet_delay = options.greet_delay

    async def on_mail(self, mail: Transaction) -> Verdict:
        """All before the message's recipients."""
        if not mail.session.early:
            return PASS
        mail.facts.add(SpokeEarly())
        return Verdict(replies.SPOKE_EARLY, labels=self.labels)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """What came since: DATA ends a group, too. Nobody is judged twice for the same."""
        if not mail.session.early or mail.facts.get(SpokeEarly) is not None:
            return PASS
        return Verdict(replies.SPOKE_EARLY, labels=self.labels)
