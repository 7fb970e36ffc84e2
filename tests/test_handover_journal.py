"""The end of data over a journal whose store fails, or that goes on under another guarantee after a reload."""

import asyncio
from typing import Any

import pytest
from journal_bench import Failing
from letters import ANN, AT_MOST_ONCE, BOB, EARLIER, EVE, LATER, LMTP, TIMED_OUT, Mailboxes, impatient, letter, send
from manual_clock import ManualClock
from stage import Stage, codes

from smtpd import replies
from smtpd.journal import Guarantee, Journal
from smtpd.memory import Talk
from smtpd.model import Message, Transaction
from smtpd.replies import OUTCOME_UNKNOWN, Reply
from smtpd.store import StoreError
from smtpd.tls import TlsError

FULL = replies.MAILBOX_FULL_PERMANENTLY(address=BOB)
GUARANTEES: list[Guarantee] = ["at-least-once", "at-most-once"]


@pytest.mark.parametrize("broken", [{"get"}, {"put"}, {"get", "put", "delete"}, {"is_empty", "get", "put", "delete"}])
async def test_store_that_fails_loses_no_mail_and_refuses_none(broken: set[str]) -> None:
    store, notes = Mailboxes({BOB: [LATER]}), Failing(ManualClock())
    notes.broken = broken
    async with Stage(answer=store.answer) as stage:
        journal = Journal(notes, log=stage.server.log, guarantee="at-least-once")
        for expected in ("451", "250"):
            assert codes(await send(stage.talk(journal=journal), letter(), ANN, BOB)) == [expected]
        assert store.copies[BOB] == 1
        assert store.copies[ANN] >= 1
        assert not stage.events("our-fault")


@pytest.mark.parametrize("broken", [{"get"}, {"put"}, {"get", "put", "delete"}])
@pytest.mark.parametrize("listener", [None, LMTP], ids=["smtp", "lmtp"])
async def test_with_at_most_once_nothing_is_handed_over_that_cannot_be_noted(listener: Any, broken: set[str]) -> None:
    store, notes = Mailboxes(), Failing(ManualClock())
    async with Stage(answer=store.answer, listener=listener, tables=AT_MOST_ONCE) as stage:
        journal = Journal(notes, log=stage.server.log, guarantee="at-most-once")
        notes.broken = broken | {"is_empty"}
        said = await send(stage.talk(journal=journal), letter())
        assert said.startswith(b"451 4.3.0 Something went wrong here, please try again later [")
        assert not store.copies
        (line,) = stage.events("not-handed-over")
        assert (line["level"], line["problem"]) == ("error", "the disk is full")
        notes.broken = set()
        assert codes(await send(stage.talk(journal=journal), letter())) == ["250"]
        assert store.copies == {ANN: 1}


async def test_client_that_is_lost_before_anybody_got_its_message_is_not_told_that_somebody_may_have_it() -> None:
    class Cutting(Failing):
        victim: Talk | None = None

        async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
            await super().put(space, key, value, seconds)
            victim, self.victim = self.victim, None
            if victim is not None:
                victim._channel.lost()

    store, notes = Mailboxes(), Cutting(ManualClock())
    async with Stage(answer=store.answer, tables=AT_MOST_ONCE) as stage:
        journal = Journal(notes, log=stage.server.log, guarantee="at-most-once")
        notes.victim = stage.talk(journal=journal)
        await send(notes.victim, letter())
        assert not store.copies
        assert codes(await send(stage.talk(journal=journal), letter())) == ["250"]
        assert store.copies == {ANN: 1}


async def test_client_that_is_lost_while_its_message_is_noted_leaves_nothing_to_others_who_share_the_store() -> None:
    class Slow(Failing):
        waiting = asyncio.Event()
        go_on = asyncio.Event()

        async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
            await super().put(space, key, value, seconds)
            self.waiting.set()
            await self.go_on.wait()

    store, notes = Mailboxes(), Slow(ManualClock())
    async with Stage(answer=store.answer, tables=AT_MOST_ONCE) as stage:
        ours, others = (Journal(notes, log=stage.server.log, guarantee="at-most-once") for _ in range(2))
        talk = stage.talk(journal=ours)
        attempt = asyncio.create_task(send(talk, letter()))
        await notes.waiting.wait()
        talk._channel.lost()
        notes.go_on.set()
        await attempt
        for _ in range(10):
            await asyncio.sleep(0)
        assert not store.copies
        assert codes(await send(stage.talk(journal=others), letter())) == ["250"]
        assert store.copies == {ANN: 1}


@pytest.mark.parametrize("guarantee", GUARANTEES)
async def test_mailbox_that_was_full_takes_the_next_message_once_its_sender_has_heard_so(guarantee: Guarantee) -> None:
    store = Mailboxes({BOB: [FULL]})
    async with Stage(answer=store.answer, tables={"delivery": {"guarantee": guarantee}}) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["451"]
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["250"]
        assert +store.copies == {ANN: 1}
        assert codes(await send(stage.talk(), letter("two"), BOB)) == ["250"]
        assert +store.copies == {ANN: 1, BOB: 1}


async def test_refusal_is_heard_again_while_its_message_has_not_come_to_an_end() -> None:
    store = Mailboxes({BOB: [FULL], ANN: [replies.ACCEPTED], EVE: [LATER, LATER]})
    async with Stage(answer=store.answer) as stage:
        for expected in ("451", "451", "250"):
            assert codes(await send(stage.talk(), letter(), ANN, BOB, EVE)) == [expected]
        assert +store.copies == {ANN: 1, EVE: 1}


async def test_store_error_of_an_agent_is_none_of_the_journal() -> None:
    async def broken(mail: Transaction, message: Message) -> Reply:
        raise StoreError("mine")

    async with Stage(answer=broken) as stage:
        assert codes(await send(stage.talk(), letter())) == ["451"]
        assert not stage.events("not-handed-over")
        assert len(stage.events("delivery-failed")) == 1


@pytest.mark.parametrize("first", GUARANTEES)
async def test_reload_with_another_guarantee_forgets_nothing(first: Guarantee) -> None:
    (second,) = set(GUARANTEES) - {first}
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, tables={"delivery": {"guarantee": first}}) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["451"]
        await stage.reload({"delivery": {"guarantee": second}})
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["250"]
        assert store.copies == {ANN: 1, BOB: 1}


@pytest.mark.parametrize("first", GUARANTEES)
async def test_retry_after_a_reload_waits_for_a_delivery_from_before(first: Guarantee) -> None:
    (second,) = set(GUARANTEES) - {first}
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer, tables={"delivery": {"guarantee": first}}) as stage:
        said = await send(stage.talk(config=impatient(stage, delivery=0.02)), letter())
        assert said.startswith(TIMED_OUT)
        await stage.reload({"delivery": {"guarantee": second}})
        retry = asyncio.create_task(send(stage.talk(), letter()))
        await asyncio.sleep(0)
        store.go_on.set()
        assert (await retry).startswith(EARLIER)
        assert store.copies == {ANN: 1}


async def test_guarantee_of_a_configuration_that_was_refused_is_never_in_force() -> None:
    """The answer of the store never comes, so with at-most-once a retry is refused."""
    store = Mailboxes({ANN: [OUTCOME_UNKNOWN]})
    no_pem = {"tls": {"cert_file": __file__, "key_file": __file__}}
    async with Stage(answer=store.answer) as stage:
        with pytest.raises(TlsError):
            await stage.reload({**AT_MOST_ONCE, **no_pem})
        await stage.reload({})
        for expected in ("451", "250"):
            assert codes(await send(stage.talk(), letter())) == [expected]
