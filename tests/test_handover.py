"""The end of data: time limits, deliveries that are late, filters that speak for some, two agents."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from journal_bench import Failing
from letters import (
    ANN,
    AT_MOST_ONCE,
    BOB,
    EARLIER,
    EVE,
    LATER,
    LMTP,
    NOBODY,
    SPAM,
    TIMED_OUT,
    Mailboxes,
    chunk,
    envelope,
    greeted,
    impatient,
    letter,
    send,
)
from manual_clock import ManualClock
from stage import Stage, codes

from smtpd import replies
from smtpd.delivery import DeliveryAgent
from smtpd.journal import Guarantee, Journal
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

GUARANTEES: list[Guarantee] = ["at-least-once", "at-most-once"]
both_guarantees = pytest.mark.parametrize("guarantee", GUARANTEES)
both_listeners = pytest.mark.parametrize("listener", [None, LMTP], ids=["smtp", "lmtp"])


def guaranteed(guarantee: Guarantee) -> Mapping[str, Any]:
    return {"delivery": {"guarantee": guarantee}, "timeouts": {"delivery": 5.0}}


# Time


async def test_filters_that_take_too_long_put_the_message_off_and_nothing_is_delivered() -> None:
    class Slow(Filter):
        was_cancelled = False

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                Slow.was_cancelled = True
                raise
            return PASS

    async with Stage(filters={"slow": Slow}, tables={"timeouts": {"filters": 0.02}}) as stage:
        said = await send(stage.talk(), letter())
        assert said.startswith(b"451 4.3.0 The message could not be checked in time, please try again later [")
        assert not stage.kept
        assert Slow.was_cancelled
        (line,) = stage.events("message")
        assert line["reason"] == "filters-late"
        assert line["decisions"] == ["slow message unanswered 0ms"]


@both_listeners
@both_guarantees
async def test_retry_after_a_late_delivery_hears_how_it_ended(guarantee: Guarantee, listener: Any) -> None:
    store = Mailboxes({BOB: [NOBODY] * 2}, holds=True)
    async with Stage(answer=store.answer, listener=listener, tables=guaranteed(guarantee)) as stage:
        said = await send(stage.talk(config=impatient(stage, delivery=0.02)), letter(), ANN, BOB)
        assert said.startswith(TIMED_OUT)
        waiting = asyncio.create_task(send(stage.talk(), letter(), ANN, BOB))
        await asyncio.sleep(0)
        assert not waiting.done()
        store.go_on.set()
        said = await waiting
        assert store.copies == {ANN: 1, BOB: 0}
        (late,) = stage.events("delivered-late")
        assert late["reason"] == "some-deferred"
        if listener is None:
            assert codes(said) == ["451"], "bob is asked for again: RCPT came before it was known"
            talk = await greeted(stage.talk())
            assert codes(await talk.say(envelope(ANN, BOB))) == ["250", "250", "550"]
            assert (await talk.say(chunk(letter()))).startswith(EARLIER)
        else:
            assert codes(said) == ["250", "550"]
        assert store.copies == {ANN: 1, BOB: 0}


async def test_late_delivery_to_one_with_prdr_keeps_what_the_others_heard() -> None:
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer) as stage:
        said = await send(stage.talk(config=impatient(stage, delivery=0.02)), letter(), ANN, BOB, prdr=True)
        assert codes(said) == ["353", "451", "451", "451"]
        store.go_on.set()
        assert codes(await send(stage.talk(), letter(), ANN, BOB, prdr=True)) == ["353", "250", "250", "250"]
        assert store.copies == {ANN: 1, BOB: 1}


async def test_retry_that_waits_in_vain_does_not_touch_the_notes_of_the_first() -> None:
    """A process that dies afterwards must find that the message may have been delivered."""
    store, notes = Mailboxes(holds=True), Failing(ManualClock())
    async with Stage(answer=store.answer, tables=AT_MOST_ONCE) as stage:
        parts: dict[str, Any] = {"config": impatient(stage, delivery=0.02)}
        journal = Journal(notes, log=stage.server.log, guarantee="at-most-once")
        assert (await send(stage.talk(journal=journal, **parts), letter())).startswith(TIMED_OUT)
        assert (await send(stage.talk(journal=journal, **parts), letter())).startswith(TIMED_OUT)
        after_death = Journal(notes, log=stage.server.log, guarantee="at-most-once")
        assert (await send(stage.talk(journal=after_death), letter())).startswith(b"554 5.4.2 ")
        store.go_on.set()


async def test_lmtp_client_that_waits_in_vain_is_not_taken_for_one_that_knows() -> None:
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, listener=LMTP) as stage:
        talk = stage.talk()
        assert codes(await send(talk, letter(), ANN, BOB)) == ["250", "452"]
        await talk.hang_up()
        store.go_on.clear()
        parts: dict[str, Any] = {"config": impatient(stage, delivery=0.02)}
        for expected in (["250", "451"], ["451", "451"]):
            talk = stage.talk(**parts)
            assert codes(await send(talk, letter(), ANN, BOB)) == expected
            await talk.hang_up()
        store.go_on.set()
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["250", "250"]
        assert store.copies == {ANN: 1, BOB: 1}


@both_guarantees
async def test_client_that_vanishes_during_the_hand_over_and_comes_back_at_once(guarantee: Guarantee) -> None:
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer, tables=guaranteed(guarantee)) as stage:
        talk = stage.talk()
        first = asyncio.create_task(send(talk, letter()))
        await store.begun.wait()
        gone = asyncio.create_task(talk.hang_up())
        retry = asyncio.create_task(send(stage.talk(), letter()))
        await asyncio.sleep(0)
        store.go_on.set()
        assert (await retry).startswith(EARLIER)
        await gone
        await first
        assert store.copies == {ANN: 1}
        assert not stage.events("not-handed-over")


@both_guarantees
async def test_mixed_outcome_that_nobody_heard_is_as_any_other(guarantee: Guarantee) -> None:
    store = Mailboxes({BOB: [LATER], EVE: [NOBODY]}, holds=True)
    async with Stage(answer=store.answer, tables=guaranteed(guarantee)) as stage:
        talk = stage.talk()
        first = asyncio.create_task(send(talk, letter(), ANN, BOB, EVE))
        await store.begun.wait()
        gone = asyncio.create_task(talk.hang_up())
        await asyncio.sleep(0)
        store.go_on.set()
        await gone
        await first
        talk = await greeted(stage.talk())
        assert codes(await talk.say(envelope(ANN, BOB, EVE))) == ["250", "250", "250", "550"]
        assert codes(await talk.say(chunk(letter()))) == ["250"]
        assert store.copies == {ANN: 1, BOB: 1, EVE: 0}


async def test_attempts_that_wait_for_one_that_failed_go_on_one_after_another() -> None:
    store = Mailboxes({ANN: [LATER]}, holds=True)
    async with Stage(answer=store.answer, tables=AT_MOST_ONCE) as stage:
        first = asyncio.create_task(send(stage.talk(), letter()))
        await store.begun.wait()
        others = [asyncio.create_task(send(stage.talk(), letter())) for _ in range(2)]
        await asyncio.sleep(0)
        store.go_on.set()
        assert (await first).startswith(b"452 4.2.2 ")
        said = [await task for task in others]
        assert all(one.startswith(b"250 2.0.0 Ok, delivered") for one in said)
        assert {one.startswith(EARLIER) for one in said} == {True, False}
        assert store.copies == {ANN: 1}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_attempt_that_waited_hears_of_the_first_though_its_client_goes_on_at_once(
    kind: str, tmp_path: Path
) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'state.db'}"
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer, tables={**AT_MOST_ONCE, "state": {"url": url}}) as stage:
        talk = stage.talk()

        async def send_and_go_on() -> bytes:
            said = await send(talk, letter())
            await talk.say(b"QUIT\r\n")
            return said

        first = asyncio.create_task(send_and_go_on())
        await store.begun.wait()
        second = asyncio.create_task(send(stage.talk(), letter()))
        await asyncio.sleep(0)
        store.go_on.set()
        assert codes(await first) == ["250"]
        assert (await second).startswith(EARLIER)
        assert store.copies == {ANN: 1}


async def test_server_that_stops_finishes_what_is_late(tmp_path: Path) -> None:
    tables = {"state": {"url": f"sqlite:{tmp_path / 'state.db'}"}}
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer, tables=tables) as stage:
        said = await send(stage.talk(config=impatient(stage, delivery=0.02)), letter())
        assert said.startswith(TIMED_OUT)
        stopping = asyncio.create_task(stage.server.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        store.go_on.set()
        await stopping
        assert store.copies == {ANN: 1}
    async with Stage(answer=store.answer, tables=tables) as stage:
        assert (await send(stage.talk(), letter())).startswith(EARLIER)
    assert store.copies == {ANN: 1}


# Filters


def refusing(*verdicts: Mapping[str, Reply] | Reply | None) -> type[Filter]:
    """A filter that says one thing at each message, for everybody or by recipient; then nothing."""
    script = list(verdicts)

    class Refusing(Filter):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            verdict = script.pop(0) if script else None
            if verdict is None or isinstance(verdict, Reply):
                return Verdict(verdict)
            concerned = [recipient for recipient in mail.recipients if recipient.address.text in verdict]
            reply = next(iter(verdict.values()))
            return Verdict(reply, recipients=frozenset(concerned)) if concerned else PASS

    return Refusing


@pytest.mark.parametrize(
    ("listener", "prdr", "expected"),
    [
        (None, False, ["550"]),
        (None, True, ["353", "550", "250", "550", "250"]),
        (LMTP, False, ["550", "250", "550"]),
    ],
    ids=["smtp", "prdr", "lmtp"],
)
async def test_filter_refuses_for_some_and_recipients_are_named_twice(
    listener: Any, prdr: bool, expected: list[str]
) -> None:
    async with Stage(filters={"some": refusing({ANN: SPAM})}, listener=listener) as stage:
        said = await send(stage.talk(), letter(), ANN, BOB, ANN, prdr=prdr)
        assert codes(said) == expected
        if expected == ["550"]:
            assert said.startswith(b"550 5.0.0 Delivered, but not to ann@example.test: ")
        assert [kept.recipients for kept in stage.kept] == [(BOB,)]


@pytest.mark.parametrize(
    ("listener", "prdr", "expected"),
    [(None, True, ["353", "250", "452", "250", "250"]), (LMTP, False, ["250", "452", "250"])],
    ids=["prdr", "lmtp"],
)
async def test_recipient_that_is_named_twice_gets_one_copy_and_hears_two_replies(
    listener: Any, prdr: bool, expected: list[str]
) -> None:
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, listener=listener) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB, ANN, prdr=prdr)) == expected
        assert store.copies == {ANN: 1, BOB: 0}


async def test_refusal_of_a_filter_for_an_unknown_recipient_is_heard_at_rcpt_on_the_retry() -> None:
    async with Stage(filters={"some": refusing({ANN: NOBODY})}) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["451"]
        talk = await greeted(stage.talk())
        assert codes(await talk.say(envelope(ANN, BOB))) == ["250", "550", "250"]
        assert (await talk.say(chunk(letter()))).startswith(EARLIER)
        assert [kept.recipients for kept in stage.kept] == [(BOB,)]


@pytest.mark.parametrize(
    ("verdict", "expected", "for_bob"),
    [
        (SPAM, b"550 5.0.0 Delivered, but not to bob@example.test: No [", 0),
        ({ANN: SPAM}, b"250 2.0.0 Ok, delivered", 1),
    ],
    ids=["for-everybody", "for-who-has-it"],
)
@both_guarantees
async def test_what_was_delivered_cannot_be_refused_by_a_filter_any_more(
    guarantee: Guarantee, verdict: Any, expected: bytes, for_bob: int
) -> None:
    store = Mailboxes({BOB: [LATER]})
    filters = {"some": refusing(None, verdict)}
    async with Stage(answer=store.answer, filters=filters, tables=guaranteed(guarantee)) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["451"]
        assert (await send(stage.talk(), letter(), ANN, BOB)).startswith(expected)
        assert store.copies == {ANN: 1, BOB: for_bob}


async def test_what_was_delivered_stays_so_when_filters_put_the_retry_off() -> None:
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, filters={"some": refusing(None, LATER)}) as stage:
        for expected in ("451", "451", "250"):
            assert codes(await send(stage.talk(), letter(), ANN, BOB)) == [expected]
        assert store.copies == {ANN: 1, BOB: 1}


async def test_filter_that_changes_the_message_does_not_make_it_another_one() -> None:
    versions = iter(range(10))

    class Stamping(Filter):
        changes = True

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            content = stage.service.content()
            content.write(b"".join(message.content.chunks()) + b"version %d\r\n" % next(versions))
            message.replace_content(content)
            return PASS

    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, filters={"stamping": Stamping}) as stage:
        for expected in ("451", "250"):
            talk = stage.talk()
            assert codes(await send(talk, letter(), ANN, BOB)) == [expected]
            await talk.hang_up()
        assert store.copies == {ANN: 1, BOB: 1}
        assert not stage.service.budget.used  # type: ignore[attr-defined]


# Two agents


class Second(DeliveryAgent):
    """Breaks at the first message."""

    breaks = True

    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        self.breaks, breaks = False, self.breaks
        if breaks:
            raise RuntimeError("agent bug")
        self.services.log.info("second", recipients=[recipient.address.text for recipient in mail.recipients])
        return replies.ACCEPTED


class First(DeliveryAgent):
    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        self.services.log.info("first", recipients=[recipient.address.text for recipient in mail.recipients])
        return replies.ACCEPTED


DOMAINS = {"example.test": "first", "other.test": "second"}


def told(server: MemoryServer, agent: str) -> list[object]:
    return [line["recipients"] for line in server.log if line["event"] == agent]


async def test_error_in_one_agent_of_two_costs_only_its_recipients_another_attempt() -> None:
    async with MemoryServer(agents={"first": First, "second": Second}, tables={"domains": DOMAINS}) as server:
        for expected in (b"451 4.3.0 Not delivered to everybody", b"250 2.0.0 Ok, delivered"):
            talk = await server.connect()
            await talk.say(envelope(ANN, "bob@other.test"))
            assert (await talk.say(chunk(letter()))).startswith(expected)
        assert (told(server, "first"), told(server, "second")) == ([[ANN]], [["bob@other.test"]])
        server.forget("delivery-failed")


async def test_recipients_of_a_second_agent_come_in_a_transaction_of_their_own() -> None:
    tables = {"domains": DOMAINS, "delivery": {"mixed": "split"}}
    async with MemoryServer(agents={"first": First, "second": Second}, tables=tables) as server:
        Second.breaks = False
        try:
            talk = await server.connect()
            said = await talk.say(envelope(ANN, "bob@other.test", EVE))
            assert codes(said) == ["250", "250", "452", "250"]
            assert b"452 4.5.3 bob@other.test needs a transaction of its own, send it separately [" in said
            assert codes(await talk.say(chunk(letter()))) == ["250"]
            assert codes(await talk.say(envelope("bob@other.test"))) == ["250", "250"]
            assert codes(await talk.say(chunk(letter()))) == ["250"]
        finally:
            Second.breaks = True
        assert (told(server, "first"), told(server, "second")) == ([[ANN, EVE]], [["bob@other.test"]])
        refusals = [line["reason"] for line in server.log if line["event"] == "refused"]
        assert refusals == ["another-store"]
