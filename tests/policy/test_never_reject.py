"""Who has the label `never-reject` hears no refusal of a message, and what would have been one is told."""

from __future__ import annotations

from typing import ClassVar

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.policy import NEVER_REJECT, PASS, WOULD_REJECT, Filter, Judgement, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No")
LATER = Reply("test-later", 451, "4.7.1", "Later")
ALL = frozenset((NEVER_REJECT,))


class Spare(Filter):
    """Gives the label to Ann."""

    name = "spare"
    labels = ALL
    early = True

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return Verdict(labels=ALL) if recipient.address.local == "ann" else PASS


class Refuse(Filter):
    """Refuses the message."""

    name = "refuse"
    labels = frozenset(("bad",))
    reply: ClassVar[Reply] = NO

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        return Verdict(self.reply, labels=frozenset(("bad",)))


class Defer(Refuse):
    name = "defer"
    reply = LATER


class RefuseClient(Filter):
    name = "client"

    async def on_connect(self, session: Session) -> Verdict:
        return Verdict(NO)


class RefuseRecipient(Filter):
    name = "recipient"

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return Verdict(NO)


async def judged(world, mail, *entries) -> Judgement:
    policy = world.policy(*entries)
    await policy.connect(world.session)
    for recipient in mail.recipients:
        assert await policy.recipient(mail, recipient) is None
    return await policy.message(mail, world.message())


async def test_recipient_with_the_label_takes_what_the_others_refuse(world, mail):
    ann, bob = mail.recipients
    judgement = await judged(world, mail, Spare, Refuse)
    assert judgement.reply is None
    assert judgement.refused == {bob: NO}
    assert mail.labels_for(ann) == {NEVER_REJECT, WOULD_REJECT, "bad"}
    assert mail.labels_for(bob) == {"bad"}


async def test_deferral_is_spoken(world, mail):
    judgement = await judged(world, mail, Spare, Defer)
    assert judgement.reply == LATER
    assert WOULD_REJECT not in mail.recipients[0].labels


async def test_deferral_is_spoken_when_the_refusal_beside_it_is_not(world, mail):
    ann, bob = mail.recipients
    assert (await judged(world, mail, Spare, Refuse, Defer)).refused == {ann: LATER, bob: NO}


async def test_refusal_decided_before_and_spoken_at_the_end_is_silenced(world, mail):
    judgement = await judged(world, mail, Spare, (RefuseClient, {"act_at": "message"}))
    assert list(judgement.refused) == mail.recipients[1:]


async def test_refusal_at_rcpt_is_spoken(world, mail):
    ann, _ = mail.recipients
    policy = world.policy(Spare, RefuseClient, RefuseRecipient)
    await policy.connect(world.session)
    assert await policy.recipient(mail, ann) == NO
    assert NEVER_REJECT in ann.labels
    assert await policy.known_recipient(mail, ann) == NO


async def test_label_of_a_filter_in_observe_mode_spares_nobody(world, mail):
    assert (await judged(world, mail, (Spare, {"mode": "observe"}), Refuse)).reply == NO


async def test_trace_says_that_a_refusal_was_silenced(world, mail):
    await judged(world, mail, Spare, Refuse)
    lines = [(one.result, one.labels) for one in mail.trace if one.filter == "refuse"]
    assert lines == [("silenced", {"bad", WOULD_REJECT}), ("refused", {"bad"})]


async def test_refusal_that_unless_silences_is_no_would_be_refusal(world, mail):
    judgement = await judged(world, mail, Spare, (Refuse, {"unless": [NEVER_REJECT]}))
    assert list(judgement.refused) == mail.recipients[1:]
    assert WOULD_REJECT not in mail.recipients[0].labels
