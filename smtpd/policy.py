"""Where verdicts become one reply. Filters judge, the operator decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import FilterOptions
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.services import Services


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter thinks: no reply is a pass, 4xx defers, 5xx refuses.

    `labels` mark without refusing; `headers` are complete (name, value) pairs for the top of the
    message; `recipients` limits the verdict to some, None means all.
    """

    reply: Reply | None = None
    score: float = 0.0
    labels: frozenset[str] = frozenset()
    headers: Sequence[tuple[str, str]] = ()
    recipients: frozenset[Recipient] | None = None


PASS = Verdict()


@dataclass(frozen=True, slots=True)
class Held:
    """A refusal that was decided and waits for its `act_at`."""

    filter: str
    reply: Reply
    recipients: frozenset[Recipient] | None = None


class Filter:
    """One check. Override at most three of the hooks; all are no-ops here."""

    name: ClassVar[str] = ""
    Options: ClassVar[type[FilterOptions]] = FilterOptions
    needs: ClassVar[tuple[type, ...]] = ()
    """Facts that must be there before it is asked."""
    gives: ClassVar[tuple[type, ...]] = ()
    """Facts that it leaves."""
    labels: ClassVar[frozenset[str]] = frozenset()
    """Every label it can ever give."""
    changes: ClassVar[bool] = False
    """It alters the message: it runs last, in file order."""
    early: ClassVar[bool] = False
    """Its `on_rcpt` runs before held refusals are spoken and before the agent is asked (access lists)."""

    def __init__(self, name: str, options: FilterOptions, services: Services) -> None:
        self.table = name
        self.options = options
        self.services = services

    async def start(self) -> None:
        """Get ready before the first connection; an exception keeps the server from starting."""

    async def stop(self) -> None:
        """Give everything back."""

    async def health(self) -> str | None:
        """None when the filter can work, else one sentence saying why not."""
        return None

    async def on_connect(self, session: Session) -> Verdict:
        """A client is there; the banner may already be out."""
        return PASS

    async def on_helo(self, session: Session) -> Verdict:
        """EHLO or HELO was said."""
        return PASS

    async def on_mail(self, mail: Transaction) -> Verdict:
        """MAIL was said."""
        return PASS

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        """RCPT was said; the recipient has an agent."""
        return PASS

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """The whole message is here, nothing is delivered yet."""
        return PASS

    async def on_end(self, mail: Transaction, outcome: Reply | None) -> None:
        """The transaction is over; `outcome` is the reply to its data, None when there was none."""

    async def on_close(self, session: Session) -> None:
        """The connection is over."""
