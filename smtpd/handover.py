"""From the end of data to its outcome: the filters, what earlier attempts settled, the agents, what to remember.

Until the agents are handed the message nothing is delivered, whatever happens. From then on it is carried
through: a client that vanishes, or that we can let wait no longer, will hear how it ended when it tries again.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from smtpd import replies, trace, waiting
from smtpd.content import MAX_HEAD
from smtpd.delivery import combine
from smtpd.endings import Overrun
from smtpd.findings import results_field
from smtpd.forgeries import without_forged_fields
from smtpd.journal import Journal
from smtpd.message_key import HINT, message_hint, message_key
from smtpd.model import Message, Recipient
from smtpd.outcome import Answers, Outcome
from smtpd.policy import Judgement
from smtpd.replies import Refused, Reply
from smtpd.store import StoreError
from smtpd.unread import Unread

if TYPE_CHECKING:
    from smtpd.answering import Answering, InFlight

_NO_OBJECTION = Judgement()
_BLANK_FIRST = (b"\n ", b"\n\t")  # with a line end put before the header section
BIG = 1 << 18  # octets of content; the digest of a megabyte takes 2 ms
SMALL = 1 << 16  # octets of content that are kept until the client has read our reply; of more, the digest is


class Handover:
    """One message on its way to the agents."""

    __slots__ = (
        "_begins_with_blank", "_conversation", "_hint", "_in_flight", "_is_awaited", "_is_key_known", "_is_noted",
        "_key", "_message", "_under_way",
    )  # fmt: skip

    def __init__(self, conversation: Answering, in_flight: InFlight, message: Message) -> None:
        self._conversation = conversation
        self._in_flight = in_flight
        self._message = message
        self._hint: str | None = None
        self._key: str | None = None
        self._is_key_known = False
        """Whether `_key` is what it will be: None then stands for a message without a key, that none remembers."""
        self._is_noted = False
        """Whether the journal has the outcome already."""
        self._is_awaited = False
        """Whether another attempt waited for this one when its outcome was noted."""
        self._begins_with_blank = False
        self._under_way: ExitStack | None = None

    async def run(self) -> Outcome:
        """RFC 5321 §6.1: the outcome is positive after an agent has made the message safe."""
        service, mail = self._conversation.service, self._in_flight.mail
        journal, everybody = service.journal, mail.recipients
        try:
            self._look_at_head()
            if self._conversation.session.early and not self._is_key_known:
                await self._hear_of_losses()
            if service.policy.message.idle and (journal.idle or self._is_news()):
                mail.recipients = everybody.copy()  # agents may do with theirs what they like
                reply, answers = await self._deliver(_NO_OBJECTION)
                if [*answers] != everybody:  # in another order, or not all of them
                    answers = {recipient: answers[recipient] for recipient in everybody}
            else:
                answers = await self._judge_and_deliver(everybody)
                reply = combine(answers, prdr=False)
            if reply.code < 400 and self._in_flight.reminded:
                await self._forget_refusals()
            if reply.code < 400 and (journal.idle or self._is_news()) and not self._conversation.channel.vanished:
                return Outcome(reply, answers)  # everybody has it, and nobody will ask for it again
            return await self._remembered(answers)
        except Refused as refused:
            return Outcome(refused.reply)
        except StoreError as error:
            self._conversation.account.journal_failed(error, mail)
            return Outcome(replies.OUR_FAULT)
        except BaseException:
            if self._in_flight.receiver is not None:
                self.close()
            raise
        finally:
            if self._in_flight.receiver is not None:  # else the agents are still at it
                mail.recipients = everybody

    async def _judge_and_deliver(self, everybody: list[Recipient]) -> Answers:
        """Ask the filters and the journal who is to have it."""
        service, mail = self._conversation.service, self._in_flight.mail
        if service.policy.message.changes:
            await self._look_for_key()  # of what was received: a filter may make something else of it each time
        judged = _NO_OBJECTION if service.policy.message.idle else await self._judge()
        answers = dict(judged.refused)
        if not (service.journal.idle or self._is_news()):
            answers |= await self._settled()  # what has been delivered cannot be refused any more
        if judged.reply is not None:
            if not answers:
                raise Refused(judged.reply)
            answers = dict.fromkeys(everybody, judged.reply) | answers
        mail.recipients = [recipient for recipient in everybody if recipient not in answers]
        if mail.recipients:
            if service.is_cautious:
                await self._begin()
            _, delivered = await self._deliver(judged)
            answers |= delivered
        return {recipient: answers[recipient] for recipient in everybody}

    def _stamp(self, judged: Judgement) -> None:
        """Put our own header fields on top."""
        conversation, mail, added = self._conversation, self._in_flight.mail, self._message.added
        service, session = conversation.service, conversation.session
        if service.policy.gives_evidence:
            added.append(results_field(service.authserv_id, mail))
        for name, value in judged.headers:
            added.append(trace.field(name, value))
        # What the first recipient does not have, the others do not share with it.
        if (mail.labels or session.labels or mail.recipients[0].labels) and (labels := mail.shared_labels):
            added.append(trace.labels(labels))
        added.append(trace.received(session, mail, service.config.hostname, service.now()))
        if self._begins_with_blank:
            added.append(b"\r\n")  # or the first line would go on with our Received field

    def _look_at_head(self) -> None:
        """Refuse mail that loops (RFC 5321 §6.3), and take fields away that pretend to be ours (RFC 8601 §5)."""
        message, service = self._message, self._conversation.service
        head = b"\n" + message.content.head().lower()
        # `find`, because `in` takes four times as long for octets: it tries to read the left side as a number first.
        self._is_key_known = head.find(b"\nmessage-id") < 0  # there is no key then, and nothing to remember
        if head.count(b"\nreceived:") > service.config.max_received:
            raise Refused(replies.MAIL_LOOP)
        if (
            head.find(b"\nauthentication-results") >= 0 or head.find(b"\nx-smtpd-") >= 0
            or head.startswith(_BLANK_FIRST) or len(head) > MAX_HEAD
        ):  # fmt: skip
            self._begins_with_blank = head.startswith(_BLANK_FIRST)
            message.content = without_forged_fields(message.content, service.authserv_id)

    async def _hear_of_losses(self) -> None:
        """Let the loop tell who is lost: a client that waits for no reply may have hung up elsewhere a moment ago."""
        await self._conversation.channel.run(asyncio.sleep(0))

    async def _judge(self) -> Judgement:
        """What the filters think; 451 when they took too long."""
        conversation, mail = self._conversation, self._in_flight.mail
        limit = conversation.service.config.timeouts.filters

        async def judge() -> Judgement:
            try:
                async with asyncio.timeout(limit or None):
                    return await conversation.service.policy.message(mail, self._message)
            except TimeoutError:
                return Judgement(reply=replies.FILTERS_LATE)

        try:
            return await conversation.channel.run(judge(), seconds=limit + waiting.DEAF_SECONDS if limit else 0.0)
        except Overrun as deaf:
            waiting.complain(deaf.task)
            return Judgement(reply=replies.FILTERS_LATE)

    async def _settled(self) -> Answers:
        """What earlier attempts came to; raises Refused when one is still under way after a long wait."""
        channel, key = self._conversation.channel, await self._look_for_key()
        if key is None:
            return {}
        for unread in self._conversation.unread:
            unread.give_way(key)
        answers = await channel.run(self._look_up(key))
        if answers is None:
            raise Refused(replies.BACKEND_TIMEOUT)
        return answers

    async def _look_up(self, key: str) -> Answers | None:
        """Wait until no other attempt is under way, and see what came of those; None when that takes too long."""
        service, recipients = self._conversation.service, self._in_flight.mail.recipients
        try:
            async with asyncio.timeout(service.config.timeouts.delivery or None):
                while True:
                    while other := self._journal.under_way(key, recipients):
                        await other
                    if service.is_cautious:
                        self.claim()
                    answers = await self._journal.settled(key, recipients)
                    # Meanwhile the client of an attempt that had ended may have been lost: that is noted now.
                    if service.is_cautious or not self._journal.is_under_way(key, recipients):
                        return answers
        except TimeoutError:
            return None

    async def _begin(self) -> None:
        """At-most-once: note who may have the message from now on; half-way nobody would know what to take back."""
        channel, recipients = self._conversation.channel, self._in_flight.mail.recipients
        await channel.run(self._journal.begin(self._find_key(), recipients), finish=True)
        if channel.vanished:  # meanwhile: nobody will get the message
            self._note_for_retry(dict.fromkeys(recipients, replies.OUR_FAULT))

    async def _deliver(self, judged: Judgement) -> tuple[Reply, Answers]:
        """Hand it to the agents of `mail.recipients`: what they say as a whole, and of each of them."""
        conversation, in_flight = self._conversation, self._in_flight
        channel = conversation.channel
        self._stamp(judged)
        began = perf_counter()
        channel.on_vanished = self._claim_all
        if channel.ended:
            self._claim_all()
        try:
            answers = await channel.run(
                in_flight.deliveries.deliver(self._message),
                finish=True,
                seconds=conversation.service.config.timeouts.delivery,
            )
        except Overrun as late:
            answers = self._leave_behind(late.task)
        finally:
            channel.on_vanished = None
        reply = combine(answers, prdr=False)
        conversation.account.delivered(reply, perf_counter() - began)
        return reply, answers

    def _leave_behind(self, task: asyncio.Task[Answers]) -> Answers:
        """The client has waited long enough: let the agents finish without it."""
        self.claim()
        self._in_flight.receiver = None  # `_finish` closes its content
        self._conversation.service.spawn(self._finish(task))
        return dict.fromkeys(self._in_flight.mail.recipients, replies.BACKEND_TIMEOUT)

    async def _finish(self, task: asyncio.Task[Answers]) -> None:
        try:
            answers = await task
            self._conversation.account.late(self._in_flight.mail, combine(answers, prdr=False))
            await self._record(answers, told=replies.BACKEND_TIMEOUT)
        finally:
            self.close()

    async def _remembered(self, answers: Answers) -> Outcome:
        """Make the outcome, and note what a retry will have to know before anybody hears it."""
        conversation, individually = self._conversation, self._in_flight.answers_each
        reply = combine(answers, prdr=individually)
        is_partial = not reply.is_positive and any(map(_is_worth_noting, answers.values()))
        if self._in_flight.receiver is None:
            pass  # it is noted when it is known
        elif conversation.channel.vanished:
            self._note_for_retry(answers)
        elif is_partial or not self._is_news():
            self._is_noted = not individually and not reply.is_positive
            # Killed before the client reads our 250, we would deliver once more: at-most-once forgets it only then.
            # One that has closed will never have read it, and another retry of its own may be waiting already.
            heard = not (conversation.service.is_cautious or conversation.channel.ended)
            record = self._record(answers, told=None if individually else reply, heard=heard)
            await conversation.channel.run(record, finish=True)
            if not heard:
                self._is_awaited = self._journal.is_awaited(self._find_key(), answers)
                self._release()  # all that others need to know is written
        return Outcome(reply, answers)

    async def _forget_refusals(self) -> None:
        """The client has heard at RCPT who was refused, and the others have it now: the next message is judged anew."""
        session, mail = self._conversation.session, self._in_flight.mail
        if not self._conversation.channel.vanished:
            forget = self._journal.forget_refusals(session, mail.sender.text, self._in_flight.reminded)
            await self._conversation.channel.run(forget, finish=True)

    def _note_for_retry(self, answers: Answers) -> None:
        """The client is gone and hears nothing: it will try again, but not before this is noted."""
        self.claim()
        under_way, self._under_way = self._under_way or ExitStack(), None
        self._is_noted = True

        async def note() -> None:
            with under_way:
                await self._record(answers, told=replies.BACKEND_TIMEOUT)

        self._conversation.service.spawn(note())

    async def _record(self, answers: Answers, *, told: Reply | None, heard: bool = True) -> None:
        session, sender, journal = self._conversation.session, self._in_flight.mail.sender.text, self._journal
        await journal.record(self._find_key(), session, sender, answers, told=told, heard=heard)

    @property
    def _journal(self) -> Journal:
        return self._conversation.service.journal

    def unread(self, outcome: Outcome) -> Unread | None:
        """Call when the outcome was said: what to remember should the client turn out not to have read it."""
        receiver, channel = self._in_flight.receiver, self._conversation.channel
        if receiver is None:  # the agents are still at it
            return None
        nobody_has_it = outcome.reply.code >= 400 and not outcome.taken()
        if nobody_has_it or self._is_noted or (self._is_key_known and self._key is None):
            self.close()
            return None
        unread = Unread(self, outcome, channel.flushes)
        if self._is_key_known:
            self.shrink()
        elif receiver.content.size > SMALL and not receiver.content.spilled:
            channel.flush()
            self.shrink()
        self._in_flight.receiver = None  # what is left of the content lives on in here
        return unread

    def confirm(self, outcome: Outcome) -> None:
        """The client knows who has the message."""
        if not self._conversation.service.is_cautious or self._is_awaited:
            self.close()  # whoever waited for this attempt has to find what came of it
            return
        self.shrink()
        self.claim()
        self._conversation.service.spawn(self._forget(outcome))

    async def _forget(self, outcome: Outcome) -> None:
        try:
            await self._record(outcome.taken(), told=None)
        finally:
            self.close()

    async def remember(self, outcome: Outcome) -> None:
        """The client was lost: whoever has the message must not get it again."""
        try:
            await self._journal.unconfirmed(self._find_key(), outcome.taken())
        finally:
            self.close()

    def claim(self) -> None:
        """From now on another attempt of the same message waits until this one is over."""
        key, recipients = self._find_key(), self._in_flight.mail.recipients
        if key is not None and self._under_way is None:
            under_way = ExitStack()
            with suppress(RuntimeError):  # another one has it
                under_way.enter_context(self._journal.claim(key, recipients))
                self._under_way = under_way

    def _claim_all(self) -> None:
        """The client has read of none of its messages, and may send all of them again at once."""
        self.claim()
        for unread in self._conversation.unread:
            unread.claim()

    def give_way(self, key: str) -> None:
        """Let others with this key go on."""
        if self._key == key:
            self._release()

    def shrink(self) -> None:
        """Give the content back; its key is all that is needed now."""
        self._find_key()
        self._message.content.close()

    def close(self) -> None:
        """Nothing of this message is needed any longer, and other attempts need not wait for this one."""
        self._message.content.close()
        self._release()

    async def _look_for_key(self) -> str | None:
        """Like `_find_key`, but what is big is read by a thread: others would wait for it."""
        content = self._message.content
        if content.size <= BIG or self._is_key_known:
            return self._find_key()
        sender = self._in_flight.mail.sender.text
        self._key = await self._conversation.channel.run(asyncio.to_thread(message_key, sender, content))
        self._is_key_known = True
        return self._key

    def _is_news(self) -> bool:
        """Certainly no attempt has left anything about this message, or is at it; never with at-most-once."""
        if not self._is_key_known and self._hint is None:
            head = self._message.content.head()
            if len(head) > SMALL:
                return False  # to look through it would take long, and `_look_for_key` has a thread for that
            self._hint = message_hint(self._in_flight.mail.sender.text, head)
            self._is_key_known = self._hint is None  # there is no key then
        return not self._journal.may_know(self._key[:HINT] if self._key else self._hint)

    def _find_key(self) -> str | None:
        if not self._is_key_known:
            self._key = message_key(self._in_flight.mail.sender.text, self._message.content)
            self._is_key_known = True
        return self._key

    def _release(self) -> None:
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None


def _is_worth_noting(reply: Reply) -> bool:
    return reply.is_positive or reply.key == replies.OUTCOME_UNKNOWN.key
