"""One question to the filters of a stage, and what still runs for it.

Whatever outlives the stage sits on the session or on the transaction, and dies with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from smtpd.model import Recipient, Session, Transaction
from smtpd.options import StageName
from smtpd.policy.decision import Decision, Held

if TYPE_CHECKING:
    from smtpd.policy.checks import Check, Hook

MAX_TRACE = 500  # decisions on one session or transaction: a stranger can repeat commands; our own choice


class Lookup:
    """A question that is not answered yet."""

    __slots__ = ("case", "hook", "owner", "task")

    def __init__(self, hook: Hook, case: Case, task: asyncio.Task[None]) -> None:
        self.hook = hook
        self.case = case
        self.task = task
        self.owner: Session | Transaction = case.owner

    def keep(self, owner: Session | Transaction) -> None:
        """Let it belong to `owner` from now on."""
        self.owner = owner
        if owner.pending is None:
            owner.pending = []
        owner.pending.append(self)

    def leave(self, task: asyncio.Task[None]) -> None:
        """It is answered: take no memory any longer."""
        pending = self.owner.pending
        if pending is not None and self in pending:
            pending.remove(self)
            if not pending:
                self.owner.pending = None


class Case:
    """What is judged: a session, a transaction, one recipient of it, or its message."""

    __slots__ = ("arguments", "decided", "mail", "over_tls", "recipient", "session")

    def __init__(
        self,
        session: Session,
        mail: Transaction | None = None,
        recipient: Recipient | None = None,
        arguments: tuple[object, ...] = (),
    ) -> None:
        self.session = session
        self.mail = mail
        self.recipient = recipient
        self.arguments = arguments
        self.over_tls = session.tls is not None
        self.decided: list[Held] = []
        """Verdicts of this stage that no later one has to know."""

    @property
    def owner(self) -> Session | Transaction:
        """Where everything decided here belongs."""
        return self.session if self.mail is None else self.mail

    @property
    def labels(self) -> frozenset[str]:
        """All labels that hold here."""
        if self.mail is None:
            return self.session.labels
        return self.mail.all_labels if self.recipient is None else self.mail.labels_for(self.recipient)

    def of(self, recipient: Recipient) -> Case:
        """The same, seen for one recipient."""
        return Case(self.session, self.mail, recipient)

    def mark(self, labels: frozenset[str], recipients: frozenset[Recipient] | None) -> None:
        """Give labels to some recipients, or to the whole."""
        if recipients is None:
            self.owner.labels |= labels
        else:
            for recipient in recipients:
                recipient.labels |= labels

    def keep(self, held: Held) -> None:
        """Hold a verdict for later stages."""
        owner = self.owner
        if owner.held is None:
            owner.held = []
        owner.held.append(held)

    def held(self) -> list[Held]:
        """All verdicts that wait, the session's first."""
        held = list(self.session.held or ())
        return held if self.mail is None else held + (self.mail.held or [])

    def note(self, decision: Decision) -> None:
        """Add one line to the trace."""
        owner = self.owner
        if owner.trace is None:
            owner.trace = []
        if len(owner.trace) < MAX_TRACE:
            owner.trace.append(decision)

    def note_once(self, decision: Decision) -> None:
        """Add one line to the trace unless it is there: a held refusal is spoken at every RCPT."""
        if decision not in (self.owner.trace or ()):
            self.note(decision)

    def note_unanswered(self, filter: str, stage: StageName) -> None:
        """Add to the trace that a filter has no answer yet, once."""
        if not any(one.filter == filter and one.result == "unanswered" for one in self.owner.trace or ()):
            self.note(Decision(filter, stage, "unanswered"))

    def pending(self) -> list[Lookup]:
        """Everything not answered yet, the session's first."""
        pending = list(self.session.pending or ())
        return pending if self.mail is None else pending + (self.mail.pending or [])

    def pending_of(self, checks: Collection[Check]) -> list[Lookup]:
        """What these filters have not answered yet."""
        return [lookup for lookup in self.pending() if lookup.hook.check in checks]


def begin[Answer](work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
    """Run it at once as far as it goes without waiting."""
    return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)


async def answered(lookups: Iterable[Lookup]) -> None:
    """Wait for others' lookups, and leave them alone when we are cancelled."""
    tasks = [lookup.task for lookup in lookups if not lookup.task.done()]
    if tasks:
        await asyncio.wait(tasks)


async def answered_or_cancelled(lookups: Collection[Lookup]) -> None:
    """Wait for lookups and cancel them when we are cancelled; a bug in the runner itself comes out here."""
    try:
        await answered(lookups)
    except asyncio.CancelledError:
        for lookup in lookups:
            lookup.task.cancel()
        raise
    for lookup in lookups:
        if not lookup.task.cancelled():
            lookup.task.result()


def cancel_pending(owner: Session | Transaction) -> None:
    """Stop everything that still runs for it."""
    pending = owner.pending
    if pending is None:
        return
    owner.pending = None
    for lookup in pending:
        lookup.task.cancel()
