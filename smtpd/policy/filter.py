"""What a filter is and what it can say. Filters judge, the operator decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import FilterOptions, StageName
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.services import Services


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter thinks: no reply is a pass, 4xx defers, 5xx refuses.

    `labels` mark without refusing. `headers` are (name, value) pairs for the top of the message; the
    value may be folded, any other line break in it becomes a space. `recipients` limits the verdict to
    some, None means all; a verdict of `on_rcpt` is about the recipient asked for, unless it says
    otherwise. Headers of a limited verdict are added only if it holds for all recipients of the
    message: nobody may read there who else received it. `marks` are labels for the whole message,
    when `recipients` limits the rest.
    """

    reply: Reply | None = None
    score: float = 0.0
    labels: frozenset[str] = frozenset()
    headers: Sequence[tuple[str, str]] = ()
    recipients: frozenset[Recipient] | None = None
    marks: frozenset[str] = frozenset()


PASS = Verdict()

_LOOKUP_SHARE = 2 / 3


class Filter:
    """One check. Override at most three of the hooks; all are no-ops here.

    An exception or an answer that comes too late never refuses: it is logged, and the operator's
    `on_error` says whether the mail goes on or hears 451.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type[FilterOptions]] = FilterOptions
    needs: ClassVar[tuple[type, ...]] = ()
    """Facts that must be there before it is asked."""
    uses: ClassVar[tuple[type, ...]] = ()
    """Facts that it looks at when there are any; it is asked after filters that give them."""
    gives: ClassVar[tuple[type, ...]] = ()
    """Facts that it leaves."""
    labels: ClassVar[frozenset[str]] = frozenset()
    """Every label it can ever give."""
    labels_at: ClassVar[Mapping[str, StageName]] = {}
    """Where it gives a label, for those that it does not give where it is asked first."""
    labels_at_will: ClassVar[frozenset[str]] = frozenset()
    """Those that whoever sends can have if he wants; `smtpd check` warns of them in an `unless`."""
    changes: ClassVar[bool] = False
    """It alters the message: it runs last, in file order."""
    early: ClassVar[bool] = False
    """Its `on_rcpt` runs before held refusals are spoken and before the agent is asked (access lists)."""

    greet_delay: float = 0.0
    """Seconds the banner waits, so that the filter can see who speaks before it (`session.early`)."""

    def __init__(self, name: str, options: FilterOptions, services: Services) -> None:
        self.table = name
        self.options = options
        self.services = services

    @property
    def lookup_time(self) -> float | None:
        """Seconds after which it should go on without what it waits for: two thirds of `timeout`. None: no limit.

        A filter that says "not known now" by then leaves facts. One that `timeout` stops leaves none, and whoever
        makes it wait on purpose must not get round the filters that need them.
        """
        return self.options.timeout * _LOOKUP_SHARE or None

    def can_refuse(self) -> bool:
        """Whether its options let it refuse at all; one that only marks is not waited for before the data."""
        return True

    def excuses(self, session: Session) -> bool:
        """Whether `unless` silences whatever it would say about this client, so that it need not even look."""
        unless = self.options.unless
        return (session.authenticated and "authenticated" in unless) or (session.trusted and "trusted" in unless)

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
