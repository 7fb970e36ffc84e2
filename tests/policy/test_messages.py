"""The judgement of a whole message."""

import asyncio
from contextlib import suppress

import pytest

from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.policy import PASS, Filter, Judgement, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No")
LATER = Reply("test-later", 451, "4.7.1", "Later")


def at_message(name: str, *verdicts: Verdict, **members: object) -> type[Filter]:
    answers = list(verdicts)

    async def on_message(self: Filter, mail: Transaction, message: Message) -> Verdict:
        return answers.pop(0)

    return type(name, (Filter,), {"name": name, "on_message": on_message, **members})


async def judged(world, mail, *entries) -> Judgement:
    return await world.policy(*entries).message(mail, world.message())


async def test_message_that_nobody_minds_passes(world, mail):
    assert await judged(world, mail, at_message("a", PASS)) == Judgement()


async def test_heaviest_refusal_speaks_for_all(world, mail):
    judgement = await judged(world, mail, at_message("a", Verdict(LATER)), at_message("b", Verdict(NO)))
    assert judgement.reply == NO
    assert judgement.reply.values["filter"] == "b"
    assert not judgement.refused


async def test_refusal_for_some_leaves_the_others(world, mail):
    bob = mail.recipients[1]
    judgement = await judged(world, mail, at_message("a", Verdict(NO, recipients=frozenset({bob}))))
    assert judgement.reply is None
    assert judgement.refused == {bob: NO}
    assert judgement.refused[bob].values["filter"] == "a"


async def test_different_refusals_stay_apart(world, mail):
    ann, bob = mail.recipients
    judgement = await judged(
        world, mail,
        at_message("a", Verdict(NO, recipients=frozenset({ann}))),
        at_message("b", Verdict(LATER, recipients=frozenset({bob}))),
    )  # fmt: skip
    assert judgement.reply is None
    assert judgement.refused == {ann: NO, bob: LATER}


async def test_postmaster_gets_the_message_that_others_do_not(world, mail):
    mail.recipients[0].exempt = True
    judgement = await judged(world, mail, at_message("a", Verdict(NO)))
    assert judgement.reply is None
    assert judgement.refused == {mail.recipients[1]: NO}


async def test_message_to_postmaster_alone_is_not_refused(world, mail):
    del mail.recipients[1]
    mail.recipients[0].exempt = True
    assert await judged(world, mail, at_message("a", Verdict(NO))) == Judgement()
    assert [one.result for one in mail.trace] == ["silenced"]


async def test_label_of_one_recipient_lets_the_message_through_to_this_one(world, mail):
    ann, bob = mail.recipients
    ann.labels = frozenset({"wants-spam"})
    lists = type("Lists", (Filter,), {"labels": frozenset({"wants-spam"})})
    # The filter gives no verdict here, its label was given at RCPT.
    asked = at_message("a", Verdict(NO))

    async def on_rcpt(self: Filter, mail: Transaction, recipient: Recipient) -> Verdict:
        return PASS

    lists.on_rcpt = on_rcpt
    judgement = await judged(world, mail, lists, (asked, {"unless": ["wants-spam"]}))
    assert judgement.refused == {bob: NO}


async def test_verdict_at_rcpt_held_to_the_message_is_about_its_recipient(world, mail):
    class Picky(Filter):
        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            return Verdict(NO) if recipient.address.local == "bob" else PASS

    policy = world.policy((Picky, {"act_at": "message"}))
    for recipient in mail.recipients:
        assert await policy.known_recipient(mail, recipient) is None
    assert (await policy.message(mail, world.message())).refused == {mail.recipients[1]: NO}


async def test_headers_of_a_refusal_that_is_silenced_stand_once(world, mail):
    headers = (("X-Score", "9"),)
    world.session.trusted = True
    judgement = await judged(world, mail, (at_message("a", Verdict(NO, headers=headers)), {"unless": ["trusted"]}))
    assert judgement == Judgement(headers=headers)


async def test_what_was_silenced_at_rcpt_is_not_raised_again(world, mail):
    class Refuses(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return Verdict(NO)

    policy = world.policy((Refuses, {"unless": ["trusted"]}), at_message("a", PASS))
    world.session.trusted = True
    await policy.mail(mail)
    assert await policy.recipient(mail, mail.recipients[0]) is None
    world.session.trusted = False
    assert (await policy.message(mail, world.message())).reply is None


async def test_labels_reach_the_message_or_some_recipients(world, mail):
    ann, bob = mail.recipients
    junk, virus = Verdict(labels=frozenset({"junk"}), recipients=frozenset({bob})), Verdict(labels=frozenset({"big"}))
    await judged(world, mail, at_message("a", junk), at_message("b", virus))
    assert mail.labels_for(ann) == {"big"}
    assert mail.labels_for(bob) == {"big", "junk"}


async def test_headers_of_all_stages_come_in_file_order(world, mail):
    class First(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return Verdict(headers=[("X-First", "1"), ("X-First", "2")])

    class Second(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            return Verdict(headers=[("X-Second", "1")])

    zero = at_message("zero", Verdict(headers=[("X-Zero", "1")]))
    policy = world.policy(zero, First, Second)
    await policy.connect(world.session)
    await policy.mail(mail)
    headers = (await policy.message(mail, world.message())).headers
    assert headers == (("X-Zero", "1"), ("X-First", "1"), ("X-First", "2"), ("X-Second", "1"))


async def test_header_values_cannot_make_lines(world, mail):
    value = "folded\r\n well\r\nBcc: x\ny\rz\0"
    judgement = await judged(world, mail, at_message("a", Verdict(headers=[("X-A", value)])))
    assert judgement.headers == (("X-A", "folded\r\n well Bcc: x y z "),)


async def test_header_about_one_recipient_does_not_tell_the_others(world, mail):
    class Marks(Filter):
        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            return Verdict(headers=[("X-For", str(recipient.address))])

    policy = world.policy(Marks)
    for recipient in mail.recipients:
        await policy.known_recipient(mail, recipient)
    assert (await policy.message(mail, world.message())).headers == ()
    del mail.recipients[1]
    assert (await policy.message(mail, world.message())).headers == (("X-For", "ann@mx.test"),)


class Rewrites(Filter):
    changes = True

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        text = bytes(message) + self.table.encode() + b"\r\n"
        message.replace_content(self.options.content(text))
        return PASS


@pytest.fixture
def rewriting(world):
    """Two filters that add a line each."""

    class Options(Filter.Options):
        def content(self, text: bytes):
            return world.content(text)

    return [type(name, (Rewrites,), {"name": name, "Options": Options}) for name in ("one", "two")]


async def test_filters_that_change_run_last_in_file_order(world, mail, rewriting):
    class Reads(Filter):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            seen.append(bytes(message))
            return PASS

    seen: list[bytes] = []
    message = world.message(b"\r\n")
    await world.policy(*rewriting, Reads).message(mail, message)
    assert seen == [b"\r\n"]
    assert bytes(message) == b"\r\none\r\ntwo\r\n"


async def test_refused_message_is_not_changed(world, mail, rewriting):
    message = world.message(b"\r\n")
    assert (await world.policy(*rewriting, at_message("a", Verdict(NO))).message(mail, message)).reply == NO
    assert bytes(message) == b"\r\n"


async def test_observed_filter_does_not_change_the_message(world, mail, rewriting):
    message = world.message(b"\r\n")
    one, two = rewriting
    await world.policy((one, {"mode": "observe"}), two).message(mail, message)
    assert bytes(message) == b"\r\ntwo\r\n"


async def test_what_an_observed_filter_made_of_the_message_is_given_back(world, mail):
    class Kept(Rewrites):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            message.replace_content(made)
            return PASS

    made, message = world.content(b"\r\nmade\r\n"), world.message(b"\r\n")
    await world.policy((Kept, {"mode": "observe"})).message(mail, message)
    with pytest.raises(OSError, match="content is gone"):
        list(made.chunks())
    assert bytes(message) == b"\r\n"


async def test_filter_that_changes_can_refuse_and_ends_the_chain(world, mail, rewriting):
    class Guard(Filter):
        changes = True

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            return Verdict(LATER)

    message = world.message(b"\r\n")
    assert (await world.policy(rewriting[0], Guard, rewriting[1]).message(mail, message)).reply == LATER
    assert bytes(message) == b"\r\none\r\n"


async def test_message_without_recipients_is_judged_too(world):
    assert (await judged(world, world.mail(), at_message("a", Verdict(NO)))).reply == NO


class Stuck(Filter):
    """It never answers."""

    name = "stuck"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        await asyncio.Event().wait()
        return PASS


class StuckToo(Stuck):
    name = "too"


class StuckEarly(Filter):
    name = "early"

    async def on_mail(self, mail: Transaction) -> Verdict:
        await asyncio.Event().wait()
        return PASS


class AnsweredBefore(Stuck):
    name = "before"

    async def on_mail(self, mail: Transaction) -> Verdict:
        return PASS


class StuckChanger(Stuck):
    name = "changer"
    changes = True


QUICK = at_message("quick", PASS)


async def test_trace_names_also_who_had_an_answer_before(world, mail):
    policy = world.policy(AnsweredBefore)
    await policy.mail(mail)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await policy.message(mail, world.message())
    policy.abort(mail)
    assert [(one.stage, one.result) for one in mail.trace] == [("mail", "pass"), ("message", "unanswered")]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ((Stuck,), {"stuck message unanswered 0ms"}),
        ((QUICK, Stuck), {"stuck message unanswered 0ms"}),
        ((StuckEarly, QUICK), {"early mail unanswered 0ms"}),
        ((QUICK, StuckChanger), {"changer message unanswered 0ms"}),
        ((Stuck, StuckToo), {"stuck message unanswered 0ms", "too message unanswered 0ms"}),
        (((StuckEarly, {"mode": "observe"}), Stuck), {"stuck message unanswered 0ms"}),
    ],
)  # fmt: skip
async def test_trace_names_those_that_have_no_answer_when_time_is_up(world, mail, entries, told):
    policy = world.policy(*entries)
    await policy.mail(mail)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await policy.message(mail, world.message())
    assert {line for line in map(str, mail.trace) if "quick" not in line} == told
    policy.abort(mail)
    await asyncio.sleep(0)
    assert len([one for one in mail.trace if one.result == "unanswered"]) == len(told)
