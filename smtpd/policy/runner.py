"""All filters of one listener, ready to be asked.

A filter in observe mode does everything but act: its refusals are only counted, its labels and headers
show in the trace and go nowhere else, and nobody waits for it before the end of data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING

from smtpd.model import Session, Transaction
from smtpd.options import StageName
from smtpd.policy.case import begin, cancel_pending
from smtpd.policy.checks import Check, Hook
from smtpd.policy.decision import STAGES, Held
from smtpd.policy.filter import Filter
from smtpd.policy.rule import Rule
from smtpd.policy.stages import KnownRecipientStage, MailStage, MessageStage, RecipientStage, SessionStage
from smtpd.policy.startup import find_order
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.services import Services


class Policy:
    """The filters of one listener in one generation of the configuration.

    `entries` are all configured filters in file order; those that are off or belong to other listeners are
    left out. PolicyError when they do not fit together.
    """

    def __init__(self, entries: Sequence[tuple[Filter, Rule]], *, services: Services, listener: str) -> None:
        present = [
            Check(filter, rule, index, services)
            for index, (filter, rule) in enumerate(entries) if rule.holds_on(listener)
        ]  # fmt: skip
        ordered = find_order(entries, present, listener)
        self._ordered = ordered
        checks = {check.name: check for check in ordered}
        hooks = {stage: [hook for check in ordered for hook in check.hooks if hook.stage == stage] for stage in STAGES}
        everything = [hook for check in ordered for hook in check.hooks]
        early = [hook for hook in hooks["rcpt"] if hook.check.filter.early]
        known = [hook for hook in hooks["rcpt"] if not hook.check.filter.early]
        held = _spoken_by(everything, "rcpt")
        again = [hook for hook in _asked_before(everything, "mail") if hook.check.rule.on_error == "defer"]

        self.connect = SessionStage("connect", hooks["connect"], checks, idle=not hooks["connect"])
        helo_idle = not hooks["helo"] and not _spoken_by(everything, "helo")
        self.helo = SessionStage("helo", hooks["helo"], checks, idle=helo_idle)
        mail_idle = not hooks["mail"] and not again and not _spoken_by(everything, "mail")
        self.mail = MailStage("mail", hooks["mail"], checks, idle=mail_idle)
        self.recipient = RecipientStage("rcpt", early, checks, idle=not early and not held)
        self.known_recipient = KnownRecipientStage("rcpt", known, checks, idle=not known)
        # Earlier verdicts may have headers for the message, so any filter at all has something to say here.
        self.message = MessageStage("message", hooks["message"], checks, idle=not everything)

        self._at_end = [check for check in ordered if check.watches_end]
        self._at_close = [check for check in ordered if check.watches_close]
        self.watches_end = bool(self._at_end)
        """Whether `end` has anything to do."""
        self.gives_evidence = any(hasattr(fact, "results") for check in ordered for fact in check.filter.gives)
        """Whether a filter's findings belong into Authentication-Results (`findings.Evidence`)."""
        self.watches_close = bool(self._at_close) or any(hook.is_deferred for hook in everything)
        """Whether `close` can have anything to do."""

    def forget_helo(self, session: Session) -> None:
        """Call before every `helo`: what was decided about an EHLO before, even a refused one, goes.

        What was decided before STARTTLS stays, or STARTTLS would be a way round every list.
        """
        over_tls = session.tls is not None
        for lookup in list(session.pending or ()):
            if lookup.hook.stage == "helo" and lookup.case.over_tls == over_tls and lookup.case.mail is None:
                lookup.leave(lookup.task)
                lookup.task.cancel()
        for check in self._ordered:
            if check.hooks and check.hooks[0].stage == "helo":
                for fact in check.filter.gives:
                    session.facts.discard(fact)
        stale: list[Held] = []
        kept: list[Held] = []
        for one in session.held or ():
            (stale if one.stage == "helo" and one.over_tls == over_tls else kept).append(one)
        if stale:
            lost = frozenset[str]().union(*(one.labels for one in stale))
            session.labels = (session.labels - lost).union(*(one.labels for one in kept))
            session.held = kept or None

    def abort(self, mail: Transaction) -> None:
        """The transaction ended without a judgement (RSET, the client is gone): stop what runs for it."""
        cancel_pending(mail)

    async def end(self, mail: Transaction, outcome: Reply | None) -> None:
        """Tell the filters that the transaction is over; `outcome` as in `Filter.on_end`."""
        await _tell(self._at_end, lambda check: check.ended(mail, outcome))

    async def close(self, session: Session) -> None:
        """Stop what runs for the session, and tell the filters that it is over."""
        cancel_pending(session)
        await _tell(self._at_close, lambda check: check.closed(session))


async def _tell(checks: Sequence[Check], tell: Callable[[Check], Coroutine[None, None, None]]) -> None:
    if len(checks) == 1:
        await tell(checks[0])
        return
    tasks = [begin(tell(check)) for check in checks]
    waiting = [task for task in tasks if not task.done()]
    try:
        if waiting:
            await asyncio.wait(waiting)
    finally:
        for task in waiting:
            task.cancel()


def _asked_before(hooks: Sequence[Hook], stage: StageName) -> list[Hook]:
    return [hook for hook in hooks if STAGES.index(hook.stage) < STAGES.index(stage)]


def _spoken_by(hooks: Sequence[Hook], stage: StageName) -> list[Hook]:
    """Those asked before `stage` whose refusals are spoken there at the latest."""
    place = STAGES.index(stage)
    return [hook for hook in _asked_before(hooks, stage) if hook.due is not None and hook.due <= place]
