"""From the end of data to its outcome: the filters, what earlier attempts settled, the agents, what to remember.

Until the agents are handed the message nothing is delivered, whatever happens. From then on it is carried
through: a client that vanishes, or that we can let wait no longer, will hear how it ended when it tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from smtpd import replies, trace
from smtpd.channel import Overrun
from smtpd.content import MAX_HEAD
from smtpd.delivery import combine
from smtpd.findings import results_field
from smtpd.forgeries import without_forged_fields
from smtpd.journal import Journal, message_key
from smtpd.model import Message, Recipient
from smtpd.replies import Refused, Reply
from smtpd.store import StoreError

if TYPE_CHECKING:
    from smtpd.answering import Answering, InFlight
    from smtpd.policy import Judgement

Answers = dict[Recipient, Reply]

SMALL = 1 << 16  # octets of content that are kept until the client has read our reply; of more, the digest is


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a message fared: one reply for the whole, and each recipient's when it was not refused as a whole."""

    reply: Reply
    each: Mapping[Recipient, Reply] | None = None


class Unread:
    """A message that was taken by a client that has not shown yet that it knows: nothing came since our reply."""

    __slots__ = ("_handover", "_taken", "flushes")

    def __init__(self, handover: Handover, taken: Answers, flushes: int) -> None:
        self._handover = handover
        self._taken = taken
        self.flushes = flushes
        """`Channel.flushes` when the reply was said."""

    def read(self) -> None:
        """The client went on: it knows."""
        self._handover.done()

    async def remember(self) -> None:
        """The client was lost, and will try again."""
        await self._handover.remember(self._taken)


class Handover:
    """One message on its way to the agents."""

    __slots__ = ("_begins_with_blank", "_conversation", "_has_id", "_in_flight", "_key", "_message", "_under_way")

    def __init__(self, conversation: Answering, in_flight: InFlight, message: Message) -> None:
        self._conversation = conversation
        self._in_flight = in_flight
        self._message = message
        self._key: str | None = None
        self._has_id = False
        self._begins_with_blank = False
        self._under_way: ExitStack | None = None

    async def run(self) -> Outcome:
        """RFC 5321 §6.1: the outcome is positive after an agent has made the message safe."""
        mail = self._in_flight.mail
        everybody = mail.recipients
        try:
            self._look_at_head()
            return await self._judge_and_deliver()
        except Refused as refused:
            return Outcome(refused.reply)
        except StoreError as error:
            self._conversation.account.journal_failed(error, mail)
            self._release()
            return Outcome(replies.OUR_FAULT)
        except BaseException:
            self._release()
            raise
        finally:
            if not self._is_left_behind:  # else the agents are still at it
                mail.recipients = everybody

    async def _judge_and_deliver(self) -> Outcome:
        conversation, message, mail = self._conversation, self._message, self._in_flight.mail
        service = conversation.service
        answers: Answers = {}
        if not conversation.service.policy.message.idle:
            judged = await self._judge()
            if judged is None or judged.reply is not None:
                return Outcome(replies.FILTERS_LATE if judged is None else judged.reply or replies.OUR_FAULT)
            answers.update(judged.refused)
            mail.recipients = [recipient for recipient in mail.recipients if recipient not in answers]
            if service.policy.gives_evidence:
                message.added.append(results_field(service.authserv_id, mail))
            message.added.extend(trace.field(name, value) for name, value in judged.headers)
            if labels := mail.all_labels:
                message.added.append(trace.labels(labels))
        message.added.append(trace.received(conversation.session, mail, service.config.hostname))
        if self._begins_with_blank:
            message.added.append(b"\r\n")  # or the first line would go on with our Received field
        journal = service.journal
        if mail.recipients and not journal.idle:
            answers.update(await self._settled())
            mail.recipients = [recipient for recipient in mail.recipients if recipient not in answers]
        if mail.recipients:
            if service.is_cautious:
                await conversation.channel.run(journal.begin(self._find_key(), mail.recipients))
            answers.update(await self._deliver())
        return await self._remembered(answers)

    def _look_at_head(self) -> None:
        """Refuse mail that loops (RFC 5321 §6.3), and take fields away that pretend to be ours (RFC 8601 §5)."""
        message, service = self._message, self._conversation.service
        head = b"\n" + message.content.head().lower()
        self._has_id = b"\nmessage-id" in head  # else there is no key, and nothing to remember
        self._begins_with_blank = head.startswith((b"\n ", b"\n\t"))
        if head.count(b"\nreceived:") > service.config.max_received:
            raise Refused(replies.MAIL_LOOP)
        is_suspicious = b"\nauthentication-results" in head or b"\nx-smtpd-" in head
        if is_suspicious or self._begins_with_blank or len(head) > MAX_HEAD:
            message.content = without_forged_fields(message.content, service.authserv_id)

    async def _judge(self) -> Judgement | None:
        """What the filters think; None when they took too long."""
        conversation, mail = self._conversation, self._in_flight.mail
        seconds = conversation.service.config.timeouts.filters

        async def judge() -> Judgement | None:
            try:
                async with asyncio.timeout(seconds or None):
                    return await conversation.service.policy.message(mail, self._message)
            except TimeoutError:
                return None

        return await conversation.channel.run(judge())

    async def _settled(self) -> Answers:
        """What earlier attempts came to; one that is under way is waited for."""
        conversation, journal = self._conversation, self._conversation.service.journal
        key = self._find_key()
        if key is None:
            return {}
        seconds = conversation.service.config.timeouts.delivery or None
        if not await conversation.channel.run(_others_done(journal, key, seconds)):
            return dict.fromkeys(self._in_flight.mail.recipients, replies.BACKEND_TIMEOUT)
        if conversation.service.is_cautious:
            self._mark()
        return await conversation.channel.run(journal.settled(key, self._in_flight.mail.recipients))

    async def _deliver(self) -> Answers:
        conversation, in_flight = self._conversation, self._in_flight
        channel, began = conversation.channel, perf_counter()
        channel.on_vanished = self._mark
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
        conversation.account.delivered(combine(answers, prdr=False), perf_counter() - began)
        return answers

    def _mark(self) -> None:
        """Let another attempt wait for this one."""
        journal, key = self._conversation.service.journal, self._find_key()
        if key is not None and self._under_way is None and journal.under_way(key) is None:
            self._under_way = ExitStack()
            self._under_way.enter_context(journal.hand_over(key))

    def _leave_behind(self, task: asyncio.Task[Answers]) -> Answers:
        """The client has waited long enough: let the agents finish without it."""
        self._mark()
        receiver, self._in_flight.receiver = self._in_flight.receiver, None  # `_finish` closes its content
        assert receiver is not None
        recipients = list(self._in_flight.mail.recipients)
        self._conversation.service.spawn(self._finish(task, recipients))
        return dict.fromkeys(recipients, replies.BACKEND_TIMEOUT)

    async def _finish(self, task: asyncio.Task[Answers], recipients: list[Recipient]) -> None:
        conversation, mail = self._conversation, self._in_flight.mail
        try:
            answers = await task
            conversation.account.late(mail, combine(answers, prdr=False))
            await conversation.service.journal.record(
                self._key, conversation.session, mail.sender.text, answers, told=replies.BACKEND_TIMEOUT
            )
        finally:
            self.done()

    async def _remembered(self, answers: Answers) -> Outcome:
        """Make the outcome, and note what a retry will have to know before anybody hears it."""
        conversation, mail, journal = self._conversation, self._in_flight.mail, self._conversation.service.journal
        individually = self._in_flight.answers_each
        reply = combine(answers, prdr=individually)
        is_partial = not reply.is_positive and any(map(_is_worth_noting, answers.values()))
        if (is_partial or conversation.service.is_cautious or not journal.idle) and not self._is_left_behind:
            told = None if individually else reply
            work = journal.record(self._find_key(), conversation.session, mail.sender.text, answers, told=told)
            if conversation.channel.vanished:
                conversation.service.spawn(work)
            else:
                await conversation.channel.run(work, finish=True)
        return Outcome(reply, answers)

    @property
    def _is_left_behind(self) -> bool:
        return self._in_flight.receiver is None

    def unread(self, outcome: Outcome) -> Unread | None:
        """Call when the outcome was said: what to remember should the client turn out not to have read it."""
        receiver = self._in_flight.receiver
        taken = {recipient: reply for recipient, reply in (outcome.each or {}).items() if reply.is_positive}
        if receiver is None:
            return None
        if not taken or not self._has_id:
            self._release()
            return None
        content = receiver.content
        if content.size <= SMALL or content.spilled:
            self._in_flight.receiver = None  # the content lives on in here
        else:
            self._conversation.channel.flush()
            self._find_key()
        return Unread(self, taken, self._conversation.channel.flushes)

    async def remember(self, taken: Answers) -> None:
        """The client was lost: whoever has the message must not get it again."""
        try:
            await self._conversation.service.journal.unconfirmed(self._find_key(), taken)
        finally:
            self.done()

    def _find_key(self) -> str | None:
        if self._key is None and self._has_id:
            self._key = message_key(self._in_flight.mail.sender.text, self._message.content)
        return self._key

    def done(self) -> None:
        """Nothing of this message is needed any longer, and other attempts need not wait for this one."""
        self._message.content.close()
        self._release()

    def _release(self) -> None:
        if self._under_way is not None:
            self._under_way.close()
            self._under_way = None


async def _others_done(journal: Journal, key: str, seconds: float | None) -> bool:
    """Wait until no other attempt is under way; False when that takes too long."""
    try:
        async with asyncio.timeout(seconds):
            while other := journal.under_way(key):
                await other
    except TimeoutError:
        return False
    return True


def _is_worth_noting(reply: Reply) -> bool:
    return reply.is_positive or reply.key == replies.OUTCOME_UNKNOWN.key
