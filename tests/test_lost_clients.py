"""A client that is lost behind our 250: whether it can have read it decides what a resend of the same octets means."""

import asyncio
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from journal_bench import Failing
from letters import ANN, BOB, EARLIER, LATER, LMTP, Mailboxes, chunk, envelope, greeted, letter, send
from manual_clock import ManualClock
from stage import Stage, codes

from smtpd.delivery import AgentAnswer
from smtpd.handover import SMALL
from smtpd.journal import DELIVERED, Guarantee, Journal
from smtpd.memory import Talk
from smtpd.model import Message, Transaction

GUARANTEES: list[Guarantee] = ["at-least-once", "at-most-once"]
SIZES = {"small": 0, "big": SMALL + 1, "spilled": 200_000}
COMMON = {"limits": {"content_in_memory": 150_000}, "timeouts": {"delivery": 2.0}}  # nobody should ever wait for that

both_guarantees = pytest.mark.parametrize("guarantee", GUARANTEES)
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


def tables(guarantee: Guarantee) -> dict[str, Any]:
    return {"delivery": {"guarantee": guarantee}, **COMMON}


def used(stage: Stage) -> int:
    """Octets of content that are in memory."""
    octets: int = stage.service.budget.used  # type: ignore[attr-defined]
    return octets


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("listener", [None, LMTP], ids=["smtp", "lmtp"])
@every_size
@both_guarantees
async def test_client_lost_before_it_read_our_reply_gets_no_second_copy(
    guarantee: Guarantee, size: int, listener: Any
) -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, listener=listener, tables=tables(guarantee)) as stage:
        files = open_files()
        for expected in (b"250 2.0.0 Ok, delivered [", EARLIER, EARLIER):
            talk = stage.talk()
            assert (await send(talk, letter(size=size))).startswith(expected)
            await talk.hang_up()
        assert store.copies == {ANN: 1}
        assert (used(stage), open_files()) == (0, files)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("next_octets", [b"NOOP\r\n", b"QUIT\r\n", b"RSET\r\n", b"nonsense\r\n", b"QUI"])
@both_guarantees
async def test_client_that_went_on_has_read_our_reply(guarantee: Guarantee, next_octets: bytes, size: int) -> None:
    """The same octets again are then what they seem: sent a second time."""
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        files = open_files()
        for copies in (1, 2):
            talk = stage.talk()
            assert codes(await send(talk, letter(size=size))) == ["250"]
            await talk.say(next_octets)
            if b"\r\n" in next_octets:
                assert (used(stage), open_files()) == (0, files)
            await talk.hang_up()
            assert store.copies == {ANN: copies}
        assert (used(stage), open_files()) == (0, files)
        assert stage.service.journal.idle is (guarantee == "at-least-once")


@every_size
@both_guarantees
async def test_quit_in_the_same_burst_proves_nothing(guarantee: Guarantee, size: int) -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        for expected in (b"250 2.0.0 Ok, delivered [", EARLIER):
            talk = await greeted(stage.talk())
            await talk.say(envelope())
            said = await talk.say(chunk(letter(size=size)) + b"QUIT\r\n")
            assert said.startswith(expected)
            assert codes(said) == ["250", "221"]
        assert store.copies == {ANN: 1}


@both_guarantees
async def test_big_content_takes_no_memory_while_its_client_may_not_have_read_our_reply(guarantee: Guarantee) -> None:
    """A client may sit there for minutes, and there may be thousands of them."""
    async with Stage(tables=tables(guarantee)) as stage:
        talk = stage.talk()
        assert codes(await send(talk, letter(size=SIZES["big"]))) == ["250"]
        assert not used(stage)
        assert not talk.is_over


@both_guarantees
async def test_only_the_client_that_heard_451_is_not_waited_for(guarantee: Guarantee) -> None:
    """Everything about such a message is noted: it may sit there while another connection tries again."""
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        for expected in ("451", "250"):
            assert codes(await send(stage.talk(), letter(), ANN, BOB)) == [expected]
        assert store.copies == {ANN: 1, BOB: 1}


async def test_message_that_is_split_among_connections_waits_for_none_of_them() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-most-once")) as stage:
        for name in (ANN, BOB):
            assert codes(await send(stage.talk(), letter(), name)) == ["250"]
        assert store.copies == {ANN: 1, BOB: 1}


@both_guarantees
async def test_messages_of_one_burst_are_all_remembered_when_it_is_lost(guarantee: Guarantee) -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        names = ["one", "two", "three"]
        for _ in range(2):
            talk = await greeted(stage.talk())
            said = await talk.say(b"".join(envelope() + chunk(letter(name)) for name in names))
            assert codes(said) == ["250"] * 9
            assert used(stage) <= len(letter("three")), "only the last one needs its content"
            await talk.hang_up()
            assert not used(stage)
            assert store.copies == {ANN: 3}


async def test_the_same_message_twice_in_one_burst_does_not_wait_for_itself() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-most-once")) as stage:
        talk = await greeted(stage.talk())
        assert codes(await talk.say((envelope() + chunk(letter())) * 2)) == ["250"] * 6
        assert store.copies == {ANN: 1}, "the first 250 has not been read: it counts as a retry"
        await talk.hang_up()
        assert (await send(stage.talk(), letter())).startswith(EARLIER)
        assert store.copies == {ANN: 1}


async def test_at_most_once_forgets_a_message_when_its_250_was_read_and_not_before() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-most-once")) as stage:
        talk = await greeted(stage.talk())
        assert codes(await talk.say(envelope() + chunk(letter()))) == ["250"] * 3
        # As after a kill: another process knows only what was written.
        assert (await send(stage.talk(), letter())).startswith(EARLIER)
        await talk.say(b"NOOP\r\n")
        assert codes(await send(talk, letter())) == ["250"]
        assert store.copies == {ANN: 2}, "sent again on purpose"


async def test_burst_of_messages_in_files_does_not_keep_them_open(tmp_path: Path) -> None:
    options = {"spool": str(tmp_path), "limits": {"content_in_memory": 10}}
    async with Stage(tables=options) as stage:
        files = open_files()
        talk = await greeted(stage.talk())
        await talk.say(b"".join(envelope() + chunk(letter(str(number))) for number in range(20)))
        assert len(stage.kept) == 20
        assert open_files() <= files + 1
        await talk.say(b"NOOP\r\n")
        assert open_files() == files


async def test_resend_at_once_waits_until_the_loss_is_noted() -> None:
    class Slow(Failing):
        def __init__(self) -> None:
            super().__init__(ManualClock())
            self.go_on = asyncio.Event()

        async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
            await self.go_on.wait()
            await super().put(space, key, value, seconds)

    store, notes = Mailboxes(), Slow()
    async with Stage(answer=store.answer) as stage:
        journal = Journal(notes, log=stage.server.log)
        talk = stage.talk(journal=journal)
        await send(talk, letter())
        await talk.hang_up()
        retry = asyncio.create_task(send(stage.talk(journal=journal), letter()))
        await asyncio.sleep(0)
        assert not len(notes)
        notes.go_on.set()
        assert (await retry).startswith(EARLIER)
        assert store.copies == {ANN: 1}


async def test_client_that_is_lost_while_its_resend_is_looked_up_gets_no_second_copy() -> None:
    class Losing(Failing):
        victim: Talk | None = None

        async def get(self, space: str, key: str) -> bytes | None:
            value = await super().get(space, key)
            if self.victim is not None and space.startswith(DELIVERED):
                victim, self.victim = self.victim, None
                victim._channel.lost()
            return value

    store, notes = Mailboxes(), Losing(ManualClock())
    async with Stage(answer=store.answer) as stage:
        journal = Journal(notes, log=stage.server.log)
        talk = stage.talk(journal=journal)
        await send(talk, letter())
        notes.broken.add("is_empty")  # as if others could have put something there
        notes.victim = talk
        assert (await send(stage.talk(journal=journal), letter())).startswith(EARLIER)
        assert store.copies == {ANN: 1}


async def test_message_without_message_id_is_never_taken_for_another() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer) as stage:
        for copies in (1, 2):
            talk = stage.talk()
            await send(talk, b"From: joe@client.test\r\n\r\nHi\r\n")
            await talk.hang_up()
            assert store.copies == {ANN: copies}
        assert not used(stage)


@both_guarantees
async def test_message_whose_first_line_is_its_message_id_gets_no_second_copy(guarantee: Guarantee) -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        for expected in (b"250 2.0.0 Ok, delivered [", EARLIER):
            talk = stage.talk()
            said = await send(talk, b"Message-ID: <one@client.test>\r\nFrom: joe@client.test\r\n\r\nHi\r\n")
            assert said.startswith(expected)
            await talk.hang_up()
        assert store.copies == {ANN: 1}


async def test_another_message_is_not_swallowed() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer) as stage:
        for number, content in enumerate((letter("one"), letter("two"), letter("one") + b"P.S.\r\n"), 1):
            talk = stage.talk()
            await send(talk, content)
            await talk.hang_up()
            assert store.copies == {ANN: number}


@pytest.mark.parametrize("prdr", [False, True])
async def test_client_lost_after_a_mixed_outcome_finds_each_as_it_was(prdr: bool) -> None:
    store = Mailboxes({BOB: [LATER]})
    async with Stage(answer=store.answer) as stage:
        talk = stage.talk()
        await send(talk, letter(), ANN, BOB, prdr=prdr)
        await talk.hang_up()
        said = await send(stage.talk(), letter(), ANN, BOB, prdr=prdr)
        assert codes(said) == (["353", "250", "250", "250"] if prdr else ["250"])
        assert store.copies == {ANN: 1, BOB: 1}


BURST = b"EHLO client.test\r\n" + envelope() + chunk(letter())


@both_guarantees
@pytest.mark.parametrize("how", ["lost", "feed_eof"])
async def test_client_that_sends_all_in_one_burst_does_not_overtake_the_news_of_its_own_loss(
    guarantee: Guarantee, how: Literal["lost", "feed_eof"]
) -> None:
    """The loop has octets of the new connection before it tells that the old one is gone."""
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables(guarantee)) as stage:
        first = stage.talk()
        await first.say(BURST)
        asyncio.get_running_loop().call_soon(getattr(first._channel, how))
        assert EARLIER in await stage.talk().say(BURST)
        assert store.copies == {ANN: 1}


async def test_the_same_message_from_two_connections_is_delivered_twice_when_neither_is_lost() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-least-once")) as stage:
        talks = [stage.talk(), stage.talk()]
        for talk in talks:
            assert b"250 2.0.0 Ok, delivered [" in await talk.say(BURST)
        for talk in talks:
            await talk.say(b"QUIT\r\n")
        assert store.copies == {ANN: 2}
        assert stage.service.journal.idle


async def test_the_same_message_twice_from_one_connection_is_delivered_twice_although_nothing_was_read() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-least-once")) as stage:
        said = await stage.talk().say(BURST + envelope() + chunk(letter()))
        assert said.count(b"250 2.0.0 Ok, delivered [") == 2
        assert store.copies == {ANN: 2}


async def test_client_that_is_lost_while_another_loss_is_waited_for_gets_nothing_delivered() -> None:
    store = Mailboxes()
    async with Stage(answer=store.answer, tables=tables("at-least-once")) as stage:
        talk = stage.talk()
        talk._channel.feed(BURST)
        await talk.hang_up()
        assert not store.copies
        assert (used(stage), stage.service.journal.idle) == (0, True)


async def test_client_that_closes_behind_a_pipelined_quit_and_comes_back_at_once() -> None:
    """It may still listen, but it can say nothing more, so nobody will ever know whether it has read our 250."""
    store, names = Mailboxes(holds=True), ("one", "two")
    async with Stage(answer=store.answer) as stage:
        talk = await greeted(stage.talk())
        talk._channel.feed(b"".join(envelope() + chunk(letter(name)) for name in names) + b"QUIT\r\n")
        retries = []
        for name in names:
            await store.begun.wait()
            if not retries:
                talk._channel.feed_eof()
            retries.append(asyncio.create_task(send(stage.talk(), letter(name))))
            for _ in range(5):
                await asyncio.sleep(0)
            store.begun.clear()
            store.go_on.set()
            store.go_on.clear()
        store.go_on.set()
        assert [(await retry).startswith(EARLIER) for retry in retries] == [True, True]
        assert store.copies == {ANN: 2}


async def test_first_message_of_a_lost_burst_gets_no_second_copy_while_the_next_one_is_delivered() -> None:
    second = asyncio.Event()

    class HoldsSecond(Mailboxes):
        async def answer(self, mail: Transaction, message: Message) -> AgentAnswer:
            if self.copies:
                self.go_on.clear()
                second.set()
            return await super().answer(mail, message)

    store = HoldsSecond()
    async with Stage(answer=store.answer) as stage:
        talk = await greeted(stage.talk())
        talk._channel.feed(b"".join(envelope() + chunk(letter(name)) for name in ("one", "two")))
        await second.wait()
        talk._channel.lost()
        retry = asyncio.create_task(send(stage.talk(), letter("one")))
        for _ in range(9):
            await asyncio.sleep(0)
        store.go_on.set()
        assert (await retry).startswith(EARLIER)
        assert store.copies == {ANN: 2}


async def test_of_those_who_wait_for_a_lost_attempt_whoever_is_gone_as_well_uses_up_nothing() -> None:
    store = Mailboxes(holds=True)
    async with Stage(answer=store.answer) as stage:
        talks = [stage.talk() for _ in range(10)]
        for talk in talks:
            talk._channel.feed(BURST + b"QUIT\r\n")
            await store.begun.wait()
            if talk is not talks[-1]:
                talk._channel.feed_eof()
        store.go_on.set()
        assert EARLIER in await talks[-1].hear()
        assert store.copies == {ANN: 1}


async def test_message_that_is_sent_again_in_the_same_last_words_does_not_wait_for_itself() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    store = Mailboxes()

    async def answer(mail: Transaction, message: Message) -> AgentAnswer:
        if b"<two@" in bytes(message):
            begun.set()
            await go_on.wait()
        return await store.answer(mail, message)

    async with Stage(answer=answer, tables={"timeouts": {"delivery": 300.0}}) as stage:
        talk = await greeted(stage.talk())
        words = b"".join(envelope() + chunk(letter(name)) for name in ("one", "two", "one"))
        answering = asyncio.create_task(talk.say(words + b"QUIT\r\n"))
        await begun.wait()
        talk._channel.feed_eof()
        go_on.set()
        async with asyncio.timeout(30):
            assert codes(await answering) == ["250"] * 9 + ["221"]
