"""One filter under its rule: asked in time, counted, logged, and kept from doing harm.

Whatever a filter does, what comes out is a verdict. A crash or a timeout is a pass or 451, never 5xx.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from smtpd import replies
from smtpd.metrics import Counter, Histogram
from smtpd.model import Session, Transaction
from smtpd.options import StageName
from smtpd.policy.case import Case, Lookup, answered, begin
from smtpd.policy.decision import STAGES, Decision, Held, Result
from smtpd.policy.filter import PASS, Filter, Verdict
from smtpd.policy.rule import CONDITIONS, Rule
from smtpd.replies import Reply

if TYPE_CHECKING:
    from smtpd.services import Services

VERDICTS = Counter(
    "smtpd_filter_verdicts_total",
    "What filters said. verdict is pass, defer (4xx) or reject (5xx); a refusal that `unless` silences is counted "
    "as what it is, one in observe mode is not.",
    ("filter", "verdict"),
)
WOULD_REJECT = Counter(
    "smtpd_filter_would_reject_total", "Refusals, 4xx included, of filters in observe mode.", ("filter",)
)
SECONDS = Histogram("smtpd_filter_seconds", "Time one question to a filter took.", ("filter",))
ERRORS = Counter(
    "smtpd_filter_errors_total", "Filters that broke. kind is exception or timeout.", ("filter", "kind")
)

Failure = Literal["error", "timeout"]

_HOOKS: dict[StageName, str] = {
    "connect": "on_connect", "helo": "on_helo", "mail": "on_mail", "rcpt": "on_rcpt", "message": "on_message",
}  # fmt: skip
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")  # RFC 5322 §3.6.8


class Check:
    """A filter and its rule on one listener; everything that never changes is worked out here."""

    def __init__(self, filter: Filter, rule: Rule, index: int, services: Services) -> None:
        self.filter = filter
        self.rule = rule
        self.name = rule.filter
        self.index = index
        """Place in the configuration: of equal refusals the first one speaks."""
        self.observes = rule.mode == "observe"
        self.unless_labels = rule.unless - CONDITIONS
        self.fact_givers: tuple[Check, ...] = ()
        self.label_givers: tuple[Check, ...] = ()
        self.watches_end = _overrides(filter, "on_end")
        self.watches_close = _overrides(filter, "on_close")
        self._log = services.log
        metrics = services.metrics
        verdicts = metrics.counter(VERDICTS)
        self.passed = verdicts.labels(self.name, "pass")
        self.deferred = verdicts.labels(self.name, "defer")
        self.rejected = verdicts.labels(self.name, "reject")
        self.would_reject = metrics.counter(WOULD_REJECT).labels(self.name)
        self.seconds = metrics.histogram(SECONDS).labels(self.name)
        errors = metrics.counter(ERRORS)
        self.crashes = errors.labels(self.name, "exception")
        self.timeouts = errors.labels(self.name, "timeout")
        self.hooks = [Hook(self, stage) for stage in STAGES if _overrides(filter, _HOOKS[stage])]

    def is_silenced(self, case: Case) -> bool:
        """Whether `unless` keeps a refusal from being spoken now."""
        unless = self.rule.unless
        if not unless:
            return False
        session = case.session
        return (
            ("authenticated" in unless and session.authenticated)
            or ("trusted" in unless and session.trusted)
            or ("tls" in unless and session.tls is not None)
            or not self.unless_labels.isdisjoint(case.labels)
        )

    async def ended(self, mail: Transaction, outcome: Reply | None) -> None:
        """Tell the filter that a transaction is over."""
        await self.guard(lambda: self.filter.on_end(mail, outcome), "on_end", mail.id)

    async def closed(self, session: Session) -> None:
        """Tell the filter that a connection is over."""
        await self.guard(lambda: self.filter.on_close(session), "on_close", session.id)

    async def guard[Answer](self, ask: Callable[[], Awaitable[Answer]], hook: str, trace: str) -> Answer | Failure:
        """Ask within the time limit; a crash or a timeout is logged and counted, and comes back as a word."""
        scope = asyncio.timeout(self.rule.timeout or None)
        try:
            async with scope:
                return await ask()
        except asyncio.CancelledError as problem:
            if _is_being_cancelled():
                raise
            return self._crashed(problem, hook, trace)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as problem:  # sys.exit() and a panic inside a library written in Rust, too
            if isinstance(problem, TimeoutError) and scope.expired():
                self.timeouts.inc()
                self._log.warning("filter-timed-out", filter=self.name, hook=hook, trace=trace)
                return "timeout"
            return self._crashed(problem, hook, trace)

    def _crashed(self, problem: BaseException, hook: str, trace: str) -> Failure:
        self.crashes.inc()
        self._log.error("filter-failed", filter=self.name, hook=hook, exception=problem, trace=trace)
        return "error"


class Hook:
    """One question of one filter."""

    __slots__ = ("act_at", "ask", "check", "due", "is_deferred", "name", "stage")

    def __init__(self, check: Check, stage: StageName) -> None:
        self.check = check
        self.stage = stage
        self.name = _HOOKS[stage]
        self.ask: Callable[..., Awaitable[Verdict]] = getattr(check.filter, self.name)
        own = STAGES.index(stage)
        act = max(own, STAGES.index(check.rule.act_at or ("rcpt" if own < STAGES.index("rcpt") else stage)))
        self.act_at = STAGES[act]
        self.due: int | None = act
        """Stage that has to wait for the answer; None: nobody has to."""
        if stage != "message":  # its content is gone afterwards, so it is always waited for
            if check.observes:
                self.due = None
            elif not check.filter.can_refuse() and check.rule.on_error == "pass":
                self.due = STAGES.index("message")
        self.is_deferred = self.due != own

    def start(self, case: Case) -> Lookup | None:
        """Ask without waiting; None when the answer is there at once."""
        task = begin(self.decide(case))
        if task.done():
            task.result()
            return None
        lookup = Lookup(self, case, task)
        lookup.keep(case.owner)
        task.add_done_callback(lookup.leave)
        return lookup

    async def decide(self, case: Case) -> None:
        """Ask, and leave the verdict where it belongs."""
        check = self.check
        if check.fact_givers:
            await answered(case.pending_of(check.fact_givers))
        started = perf_counter()
        try:
            answer = await check.guard(lambda: self._question(case), self.name, case.owner.id)
        except asyncio.CancelledError:
            if self.due is not None:
                case.note_unanswered(check.name, self.stage)
            raise
        seconds = perf_counter() - started
        check.seconds.observe(seconds)
        if isinstance(answer, Verdict):
            self._record(case, answer, None, seconds)
        elif check.rule.on_error == "defer" and not check.observes:
            self._record(case, Verdict(replies.FILTER_FAILED), answer, seconds)
        else:
            case.note(Decision(check.name, self.stage, answer, seconds=seconds))

    async def _question(self, case: Case) -> Verdict:
        verdict = await self.ask(*case.arguments)
        if verdict is not PASS:
            _look_over(verdict, self.name)
        return verdict

    def _record(self, case: Case, verdict: Verdict, failure: Failure | None, seconds: float) -> None:
        check = self.check
        refusal = verdict.reply if verdict.reply is not None and not verdict.reply.is_positive else None
        self._count(refusal)
        if failure is not None or refusal is None or check.observes or self.act_at != self.stage:
            key = "" if refusal is None else refusal.key
            result = failure or self._result(refusal)
            labels = verdict.labels | verdict.marks
            case.note(Decision(check.name, self.stage, result, key, seconds, labels, verdict.score))
        if check.observes:
            return
        scope = verdict.recipients
        if scope is None and case.recipient is not None:
            scope = frozenset((case.recipient,))
        if verdict.labels:
            case.mark(verdict.labels, scope)
        if verdict.marks:
            case.mark(verdict.marks, None)
        headers = tuple(verdict.headers)
        if refusal is not None or headers or (verdict.labels and case.mail is None):
            self._keep(case, Held(
                check.name, refusal, scope, self.stage, self.act_at, verdict.labels, headers, seconds, case.over_tls,
                failure is not None,
            ))  # fmt: skip

    def _count(self, refusal: Reply | None) -> None:
        check = self.check
        if refusal is None:
            check.passed.inc()
        elif check.observes:
            check.would_reject.inc()
        elif refusal.is_permanent:
            check.rejected.inc()
        else:
            check.deferred.inc()

    def _result(self, refusal: Reply | None) -> Result:
        if refusal is None:
            return "pass"
        return "observed" if self.check.observes else "held"

    def _keep(self, case: Case, held: Held) -> None:
        # What was refused at connect or HELO is kept even when it is spoken at once: a client may go on regardless.
        if case.mail is None or self.act_at != self.stage:
            case.keep(held)
        elif self.stage == "message":
            case.decided.append(held)
        else:
            if held.reply is not None:
                case.decided.append(held)
            if held.headers:
                case.keep(replace(held, reply=None))


def _look_over(verdict: object, hook: str) -> None:
    """TypeError or ValueError for what is no sound Verdict: nothing else looks at the types of somebody's filter."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"{hook} returned {type(verdict).__name__}, not a Verdict")
    if not isinstance(verdict.reply, Reply | None):
        raise TypeError(f"{hook} returned {type(verdict.reply).__name__} as reply")
    for labels in (verdict.labels, verdict.marks):
        if not isinstance(labels, Set) or not all(isinstance(label, str) for label in labels):
            raise TypeError(f"{hook} returned labels that are no set of strings")
    if not isinstance(verdict.recipients, Set | None):
        raise TypeError(f"{hook} returned recipients that are no set")
    for name, value in verdict.headers:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"{hook} returned {name!r} as the name of a header field")
        if not isinstance(value, str):
            raise TypeError(f"{hook} returned {type(value).__name__} as the value of a header field")


def _overrides(filter: Filter, hook: str) -> bool:
    return getattr(type(filter), hook) is not getattr(Filter, hook)


def _is_being_cancelled() -> bool:
    # A filter can end in CancelledError because something of its own was cancelled: that is a crash.
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0

