"""A filter can break in every way, and never refuses by it."""

import asyncio
from typing import Any

import pytest

from smtpd import replies
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.policy import PASS, Filter, Rule, Verdict
from smtpd.replies import Reply

NO = Reply("test-no", 550, "5.7.1", "No, {ip}")
LATER = Reply("test-later", 451, "4.7.1", "Later")


class Broken(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        raise KeyError("surprise")


class Hanging(Filter):
    name = "hanging"

    async def on_mail(self, mail: Transaction) -> Verdict:
        await asyncio.Event().wait()
        return Verdict(NO)


class Careless(Filter):
    """Returns nothing, as a beginner does."""

    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        nothing: Any = None
        return nothing


class CancelsItself(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        raise asyncio.CancelledError


class ForgesFields(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(NO, headers=[("X: a\r\nBcc", "b")])


class TimesOutInside(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        raise TimeoutError


class Panics(Filter):
    """What extension modules written in Rust raise is no Exception; nor is what sys.exit() raises."""

    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        class Panic(BaseException): ...

        raise Panic


class Exits(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        raise SystemExit(1)


def returns(**parts: Any) -> type[Filter]:
    """A filter whose author has no type checker."""

    class Unsound(Filter):
        name = "broken"

        async def on_mail(self, mail: Transaction) -> Verdict:
            return Verdict(**parts)

    return Unsound


CRASHES = [
    Broken, Careless, CancelsItself, ForgesFields, TimesOutInside, Panics, Exits,
    returns(reply="550 5.7.1 No"), returns(labels=["junk"]), returns(labels={1}), returns(headers=[("X-Score", 5)]),
    returns(headers=["X-Score: 5"]), returns(recipients=["joe"]), returns(headers=[("X:Bcc", "b")]),
    returns(headers=[("X" * 77, "b")]),
]  # fmt: skip


class Slow(Filter):
    name = "slow"

    async def on_mail(self, mail: Transaction) -> Verdict:
        for _ in range(10):
            await asyncio.sleep(0)
        return Verdict(NO)


class Interrupted(Filter):
    name = "broken"

    async def on_mail(self, mail: Transaction) -> Verdict:
        raise KeyboardInterrupt


async def ask_for_recipient(world, policy) -> Reply | None:
    mail = world.mail()
    return await policy.mail(mail) or await policy.recipient(mail, world.recipient())


async def test_filter_without_a_time_limit_is_waited_for(world):
    assert await ask_for_recipient(world, world.policy((Slow, {"timeout": 0}))) == NO


async def test_interrupt_by_the_operator_is_no_crash_of_a_filter(world):
    question = world.policy(Interrupted).mail(world.mail())
    with pytest.raises(KeyboardInterrupt):
        question.send(None)
    assert world.count("smtpd_filter_errors_total", filter="broken", kind="exception") == 0


@pytest.mark.parametrize("kind", CRASHES)
async def test_broken_filter_never_rejects(world, kind):
    assert await ask_for_recipient(world, world.policy(kind)) is None
    assert await ask_for_recipient(world, world.policy((kind, {"on_error": "defer"}))) == replies.FILTER_FAILED


@pytest.mark.parametrize("kind", CRASHES)
async def test_crash_leaves_one_traceback_and_one_count(world, kind):
    await ask_for_recipient(world, world.policy((kind, {"on_error": "defer"})))
    [line] = world.logged()
    assert (line["event"], line["filter"], line["trace"]) == ("filter-failed", "broken", "MAIL")
    assert line["exception"].count("Traceback") == 1
    assert world.count("smtpd_filter_errors_total", filter="broken", kind="exception") == 1
    assert world.count("smtpd_filter_verdicts_total", filter="broken", verdict="defer") == 1


async def test_filter_that_hangs_is_not_waited_for(world):
    assert await ask_for_recipient(world, world.policy((Hanging, {"timeout": "1ms"}))) is None
    deferring = world.policy((Hanging, {"timeout": "1ms", "on_error": "defer"}))
    assert await ask_for_recipient(world, deferring) == replies.FILTER_FAILED
    assert world.count("smtpd_filter_errors_total", filter="hanging", kind="timeout") == 2
    assert world.count("smtpd_filter_errors_total", filter="hanging", kind="exception") == 0
    assert [line["event"] for line in world.logged()] == ["filter-timed-out"] * 2


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        (Broken, {}, ("broken", "error", "")),
        (Broken, {"on_error": "defer"}, ("broken", "error", "filter-failed")),
        (Hanging, {"timeout": "1ms"}, ("hanging", "timeout", "")),
        (Hanging, {"timeout": "1ms", "on_error": "defer"}, ("hanging", "timeout", "filter-failed")),
    ],
)
async def test_error_is_in_the_trace(world, kind, options, line):
    mail = world.mail()
    policy = world.policy((kind, options))
    await policy.mail(mail)
    await policy.recipient(mail, world.recipient())
    first = mail.trace[0]
    assert (first.filter, first.result, first.reply) == line
    assert first.stage == "mail"
    assert 0 <= first.seconds < 60


async def test_observed_filter_may_break_without_consequence(world):
    observed = world.policy((Broken, {"mode": "observe", "on_error": "defer"}))
    assert await ask_for_recipient(world, observed) is None
    assert world.count("smtpd_filter_would_reject_total", filter="broken") == 0


async def test_error_counts_for_one_transaction_only(world):
    class Shaky(Filter):
        name = "shaky"
        works = False

        async def on_connect(self, session: Session) -> Verdict:
            if not Shaky.works:
                raise ConnectionError
            return PASS

    policy = world.policy((Shaky, {"on_error": "defer"}))
    assert await policy.connect(world.session) is None
    assert await ask_for_recipient(world, policy) == replies.FILTER_FAILED
    Shaky.works = True
    assert await ask_for_recipient(world, policy) is None
    assert not world.session.held


async def test_only_the_question_that_broke_is_asked_again(world):
    asked = []

    class Twofold(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            asked.append(session)
            raise ConnectionError

        async def on_mail(self, mail: Transaction) -> Verdict:
            asked.append(mail)
            return PASS

    policy = world.policy((Twofold, {"on_error": "defer"}))
    await policy.connect(world.session)
    mail = world.mail()
    await policy.mail(mail)
    assert asked == [world.session, world.session, mail]


async def test_check_that_keeps_failing_does_not_pile_up(world):
    class Down(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            raise ConnectionError

    policy = world.policy((Down, {"on_error": "defer"}))
    await policy.connect(world.session)
    for _ in range(3):
        assert await ask_for_recipient(world, policy) == replies.FILTER_FAILED
    assert len(world.session.held) == 1


@pytest.mark.parametrize(("reply", "verdict"), [(None, "pass"), (LATER, "defer"), (NO, "reject"), (replies.OK, "pass")])
async def test_verdicts_and_seconds_are_counted_by_filter(world, reply, verdict):
    class Counted(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return Verdict(reply)

    await world.policy(Counted).mail(world.mail())
    assert world.count("smtpd_filter_verdicts_total", filter="counted", verdict=verdict) == 1
    assert world.count("smtpd_filter_seconds_count", filter="counted") == 1


class Observed(Filter):
    name = "observed"
    labels = frozenset({"junk"})

    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(NO, labels=frozenset({"junk"}), headers=[("X-Junk", "yes")])

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        return Verdict(LATER)


async def test_observed_filter_counts_what_it_would_have_refused(world):
    policy = world.policy((Observed, {"mode": "observe"}))
    mail = world.mail()
    assert await policy.mail(mail) is None
    mail.recipients = [world.recipient()]
    assert await policy.recipient(mail, mail.recipients[0]) is None
    assert (await policy.message(mail, world.message())).reply is None
    assert world.count("smtpd_filter_would_reject_total", filter="observed") == 2
    assert world.count("smtpd_filter_verdicts_total", filter="observed", verdict="reject") == 0


async def test_labels_and_headers_of_an_observed_filter_stay_in_the_trace(world):
    policy = world.policy((Observed, {"mode": "observe"}))
    mail = world.mail()
    await policy.mail(mail)
    assert (await policy.message(mail, world.message())).headers == ()
    assert mail.all_labels == frozenset()
    assert mail.trace[0].labels == {"junk"}
    assert str(mail.trace[0]).startswith("observed mail observed test-no ")


async def test_nobody_waits_for_an_observed_lookup(world):
    class Slow(Filter):
        async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
            await answer.wait()
            return Verdict(NO)

    answer = asyncio.Event()
    policy = world.policy((Slow, {"mode": "observe"}))
    mail = world.mail()
    mail.recipients = [world.recipient()]
    assert await policy.known_recipient(mail, mail.recipients[0]) is None
    assert (await policy.message(mail, world.message())).reply is None
    [lookup] = world.session.pending  # the message is through; the lookup goes on while the client is there
    policy.abort(mail)
    answer.set()
    await lookup.task
    assert world.count("smtpd_filter_would_reject_total", filter="slow") == 1


def test_rule_is_read_from_the_options():
    options = Filter.Options(mode="observe", on_error="defer", timeout="2s", act_at="message", listeners=("smtp",))
    rule = Rule.from_options("spam", options)
    assert rule == Rule("spam", "observe", "defer", 2.0, "message", frozenset(), frozenset({"smtp"}), True)
    assert not Rule.from_options("spam", Filter.Options(unless=("tls",))).unless_is_default
