"""What the conversation asks at each command: the filters of a stage, merged into one reply.

Of several refusals the first (in the order of the configuration) of the heaviest class speaks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence

from smtpd.model import ContentSource, Message, Recipient, Session, Transaction
from smtpd.options import StageName
from smtpd.policy.case import Case, Lookup, answered, answered_or_cancelled
from smtpd.policy.checks import Check, Hook
from smtpd.policy.decision import STAGES, Decision, Held, Judgement, Result
from smtpd.policy.rule import NEVER_REJECT, WOULD_REJECT
from smtpd.replies import Reply

_LOOSE_LINE_BREAK = re.compile(r"\r\n(?![ \t])|\r(?!\n)|(?<!\r)\n|\0")


class Stage:
    """One place where filters are asked.

    A stage is awaited inside one task of the conversation. Cancelling that task means that the client is
    gone: it cancels what the stage waits for.
    """

    __slots__ = ("_checks", "_hooks", "_place", "idle", "name")

    def __init__(self, name: StageName, hooks: Sequence[Hook], checks: Mapping[str, Check], *, idle: bool) -> None:
        self.name = name
        self.idle = idle
        """Nothing can ever happen here: there is no need to call it."""
        self._hooks = tuple(hooks)
        self._checks = checks
        self._place = STAGES.index(name)

    async def _ask(self, case: Case, hooks: Sequence[Hook]) -> None:
        """Ask all filters of the stage, and wait for those that are answered here."""
        if len(hooks) == 1 and not hooks[0].is_deferred:
            await hooks[0].decide(case)
            return
        waiting: list[Lookup] = []
        try:
            for hook in hooks:
                lookup = hook.start(case)
                if lookup is not None and not hook.is_deferred:
                    waiting.append(lookup)
        finally:
            await answered_or_cancelled(waiting)

    async def _due(self, case: Case) -> list[Held]:
        """Wait for what was asked before and is due here; all refusals that can be spoken now."""
        place = self._place
        waiting = [lookup for lookup in case.pending() if lookup.hook.due is not None and lookup.hook.due <= place]
        await answered_or_cancelled(waiting)
        return [held for held in case.held() if held.reply is not None and STAGES.index(held.act_at) <= place]

    async def _speak(self, held: Sequence[Held], case: Case) -> Reply | None:
        """The one that speaks, with the name of its filter; None when there is none or all are silenced."""
        if not held:
            return None
        await self._labels_of(held, case)
        heaviest = self._heaviest(held, case)
        return None if heaviest is None else _signed(heaviest)

    async def _labels_of(self, held: Iterable[Held], case: Case) -> None:
        """Wait for the labels that could silence one of them."""
        checks = self._checks
        givers = {giver for one in held for giver in checks[one.filter].label_givers}
        await answered(case.pending_of(givers))

    def _heaviest(self, held: Iterable[Held], case: Case) -> Held | None:
        best: Held | None = None
        recipient = case.recipient
        exempt = recipient is not None and recipient.exempt
        for one in held:
            if one.reply is None or not one.concerns(recipient):
                continue
            check = self._checks[one.filter]
            silenced, labels = exempt or check.is_silenced(case), one.labels
            if not silenced and self._is_spared(one.reply, case):
                silenced, labels = True, labels | {WOULD_REJECT}
                case.mark(frozenset((WOULD_REJECT,)), None if recipient is None else frozenset((recipient,)))
            result: Result = "silenced" if silenced else "refused"
            case.note_once(Decision(one.filter, self.name, result, one.reply.key, one.seconds, labels))
            if not silenced and (best is None or self._weight(one) < self._weight(best)):
                best = one
        return best

    def _is_spared(self, reply: Reply, case: Case) -> bool:
        """Whether a refusal would bounce to somebody who cannot help it: see NEVER_REJECT."""
        return self.name == "message" and reply.is_permanent and NEVER_REJECT in case.labels

    def _weight(self, held: Held) -> tuple[bool, int]:
        return held.reply is None or not held.reply.is_permanent, self._checks[held.filter].index


class SessionStage(Stage):
    """A client connected, or said EHLO."""

    __slots__ = ()

    async def __call__(self, session: Session) -> Reply | None:
        """The refusal to speak now, None to go on."""
        case = Case(session, arguments=(session,))
        await self._ask(case, self._hooks)
        return await self._speak(await self._due(case), case)


class MailStage(Stage):
    """A client said MAIL."""

    __slots__ = ()

    async def __call__(self, mail: Transaction) -> Reply | None:
        """The refusal to speak now, None to go on."""
        self._ask_again(mail.session)
        case = Case(mail.session, mail, arguments=(mail,))
        await self._ask(case, self._hooks)
        due = await self._due(case)
        return await self._speak([*case.decided, *due], case)

    def _ask_again(self, session: Session) -> None:
        """An error counts for one transaction only: what broke at connect or HELO gets another chance."""
        failed = [held for held in session.held or () if held.failed]
        for held in failed:
            assert session.held is not None
            session.held.remove(held)
            for hook in self._checks[held.filter].hooks:
                if hook.stage == held.stage:
                    hook.start(Case(session, arguments=(session,)))


class RecipientStage(Stage):
    """A client said RCPT for a recipient that has a route, but was not taken yet: access lists, then what is held."""

    __slots__ = ()

    async def __call__(self, mail: Transaction, recipient: Recipient) -> Reply | None:
        """The refusal to speak now, None to go on."""
        case = Case(mail.session, mail, recipient, (mail, recipient))
        await self._ask(case, self._hooks)
        reply = await self._speak(case.decided, case)
        if reply is not None or recipient.exempt:
            return reply
        return await self._speak(await self._due(case), case)


class KnownRecipientStage(Stage):
    """The recipient exists, says its agent: the other filters."""

    __slots__ = ()

    async def __call__(self, mail: Transaction, recipient: Recipient) -> Reply | None:
        """The refusal to speak now, None to take the recipient."""
        case = Case(mail.session, mail, recipient, (mail, recipient))
        await self._ask(case, self._hooks)
        return await self._speak(case.decided, case)


class MessageStage(Stage):
    """The whole message is here: those that read it, then those that change it, one after another."""

    __slots__ = ("_changers", "_readers", "changes")

    def __init__(self, name: StageName, hooks: Sequence[Hook], checks: Mapping[str, Check], *, idle: bool) -> None:
        super().__init__(name, hooks, checks, idle=idle)
        self._readers = tuple(hook for hook in hooks if not hook.check.filter.changes)
        changers = (hook for hook in hooks if hook.check.filter.changes)
        self._changers = tuple(sorted(changers, key=lambda hook: hook.check.index))
        self.changes = bool(self._changers)
        """Whether the message may be another one afterwards."""

    async def __call__(self, mail: Transaction, message: Message) -> Judgement:
        """What to answer; filters may have changed the message."""
        case = Case(mail.session, mail, arguments=(mail, message))
        try:
            return await self._judge(case, mail, message)
        except asyncio.CancelledError:
            # Time is up, and whoever reads the log wants to know for whom; their tasks have not noticed yet.
            for lookup in case.pending():
                if lookup.hook.due is not None:
                    case.note_unanswered(lookup.hook.check.name, lookup.hook.stage)
            raise

    async def _judge(self, case: Case, mail: Transaction, message: Message) -> Judgement:
        await self._ask(case, self._readers)
        due = [held for held in await self._due(case) if held.act_at == self.name]
        refused = await self._refused(due, case)
        for hook in self._changers:
            if _nobody_is_left(mail, refused):
                break
            await (_look_only(hook, mail, message) if hook.check.observes else hook.decide(case))
            refused = await self._refused(due, case)
        self._leave_to_session(mail)
        headers = self._headers(case)
        if refused and _nobody_is_left(mail, refused) and _is_one(refused.values()):
            return Judgement(reply=_signed(next(iter(refused.values()))), headers=headers)
        replies = {recipient: _signed(held) for recipient, held in refused.items() if recipient is not None}
        return Judgement(refused=replies, headers=headers)

    async def _refused(self, due: Sequence[Held], case: Case) -> dict[Recipient | None, Held]:
        """Who is refused by what; None stands for a message without recipients."""
        held = [*due, *(one for one in case.decided if one.reply is not None)]
        refused: dict[Recipient | None, Held] = {}
        if not held or case.mail is None:
            return refused
        await self._labels_of(held, case)
        recipients: Sequence[Recipient | None] = case.mail.recipients or (None,)
        for recipient in recipients:
            heaviest = self._heaviest(held, case if recipient is None else case.of(recipient))
            if heaviest is not None:
                refused[recipient] = heaviest
        return refused

    def _headers(self, case: Case) -> tuple[tuple[str, str], ...]:
        mail = case.mail
        everybody = frozenset(mail.recipients if mail is not None else ())
        kept = [
            held for held in (*case.held(), *case.decided)
            if held.headers and (held.recipients is None or held.recipients >= everybody)
        ]  # fmt: skip
        kept.sort(key=lambda held: self._checks[held.filter].index)
        return tuple((name, _LOOSE_LINE_BREAK.sub(" ", value)) for held in kept for name, value in held.headers)

    def _leave_to_session(self, mail: Transaction) -> None:
        """What nobody waits for may still finish, as long as the client is there."""
        for lookup in mail.pending or ():
            lookup.keep(mail.session)
        mail.pending = None


class _Borrowed:
    """Content that cannot be taken away."""

    def __init__(self, content: ContentSource) -> None:
        self.size = content.size
        self.chunks = content.chunks
        self.head = content.head

    def close(self) -> None:
        """Leave it to its owner."""


async def _look_only(hook: Hook, mail: Transaction, message: Message) -> None:
    """Show a copy to a filter that would change the message, were it not in observe mode."""
    copy = Message(_Borrowed(message.content))
    copy.added = list(message.added)
    try:
        await hook.decide(Case(mail.session, mail, arguments=(mail, copy)))
    finally:
        copy.content.close()


def _signed(held: Held) -> Reply:
    assert held.reply is not None
    return held.reply(filter=held.filter)


def _nobody_is_left(mail: Transaction, refused: Mapping[Recipient | None, Held]) -> bool:
    return len(refused) >= max(1, len(mail.recipients))


def _is_one(refusals: Iterable[Held]) -> bool:
    return len({id(held) for held in refusals}) == 1
