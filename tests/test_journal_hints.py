"""What the journal says without looking up a message: where it says that nothing is known, nothing is."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as some
from journal_bench import (
    EARLIER,
    FORMER_PLACE,
    FULL,
    HINT,
    KEY,
    LATER,
    MIXED,
    NOBODY,
    ONCE,
    PLACE,
    SENDER,
    TAKEN,
    Bench,
    Failing,
    session,
)
from letters import ANN, BOB, Mailboxes, envelope, greeted, letter, send
from letters import LATER as FULL_FOR_NOW
from letters import NOBODY as UNKNOWN_THERE
from manual_clock import ManualClock
from stage import Stage, codes

from smtpd import handover
from smtpd.content import Content
from smtpd.handover import BIG, SMALL
from smtpd.journal import Journal
from smtpd.limits import ContentBudget
from smtpd.message_key import HINT as DIGITS
from smtpd.message_key import message_key
from smtpd.model import ContentSource, Message, Recipient, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.sqlite_store import SqliteStore

ANOTHER = HINT[::-1]  # hint of a message that nothing is known of
DAY = 86400.0


class Thorough(Journal):
    """Looks up every message and every recipient."""

    idle = False

    def may_refuse(self, sender: str, recipient: Recipient) -> bool:
        return True

    def may_know(self, hint: str | None) -> bool:
        return True


async def test_only_messages_with_the_hint_of_an_entry_have_to_be_looked_up() -> None:
    bench = Bench()
    assert not bench.journal.may_know(HINT)
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert (bench.journal.may_know(HINT), bench.journal.may_know(ANOTHER), bench.journal.may_know(None)) == (
        True, False, False
    )  # fmt: skip
    await bench.attempt({bench.ann: EARLIER, bench.bob: TAKEN}, told=EARLIER)
    assert not bench.journal.may_know(HINT)


async def test_recipients_have_to_be_looked_up_only_while_a_refusal_is_kept() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert not bench.may_refuse(bench.bob)
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    assert bench.may_refuse(bench.bob)
    bench.clock.now += 4 * 3600
    assert not bench.may_refuse(bench.bob)


async def test_only_the_sender_and_the_recipient_of_a_refusal_have_to_be_looked_up() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY, bench.eve: FULL}, told=MIXED)
    everybody = (bench.ann, bench.bob, bench.eve)
    assert [bench.may_refuse(who) for who in everybody] == [False, True, True]
    assert not any(bench.may_refuse(who, "eve@client.test") for who in everybody)
    await bench.journal.forget_refusals(session(), SENDER, [bench.bob])
    assert [bench.may_refuse(who) for who in everybody] == [False, False, True]


async def test_with_at_most_once_every_message_is_looked_up() -> None:
    journal = Bench(ONCE).journal
    assert journal.may_know(ANOTHER)
    assert journal.may_know(None)
    assert journal.renewed(guarantee="at-least-once", keep=DAY, remember_refusals=DAY).may_know(ANOTHER) is False


async def test_marks_from_before_a_change_to_at_least_once_are_looked_up() -> None:
    bench = Bench(ONCE)
    await bench.journal.begin(KEY, [bench.ann])
    renewed = bench.journal.renewed(guarantee="at-least-once", keep=DAY, remember_refusals=DAY)
    assert (renewed.may_know(HINT), renewed.may_know(ANOTHER)) == (True, False)


async def test_an_attempt_under_way_has_to_be_looked_up_by_its_hint() -> None:
    bench = Bench()
    with bench.journal.claim(KEY, [bench.ann]), bench.journal.claim(HINT + "f" * 64, [bench.ann]):
        assert (bench.journal.may_know(HINT), bench.journal.may_know(ANOTHER)) == (True, False)
        assert bench.journal.under_way(HINT + "e" * 64, [bench.ann]) is None
    assert not bench.journal.may_know(HINT)


async def test_what_was_begun_is_known_until_no_attempt_of_the_message_is_left() -> None:
    bench = Bench(ONCE)
    with bench.journal.claim(HINT + "f" * 64, [bench.ann]):
        with bench.journal.claim(KEY, [bench.ann]):
            await bench.journal.begin(KEY, [bench.ann])
            with bench.journal.claim(KEY, [bench.bob]):
                pass
            assert bench.journal._begun
        assert not bench.journal._begun


async def test_what_the_store_did_not_take_has_to_be_looked_up_by_its_hint() -> None:
    bench = Bench()
    bench.store.broken = {"put"}
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert (bench.journal.may_know(HINT), bench.journal.may_know(ANOTHER)) == (True, False)
    bench.store.broken = {"is_empty"}
    assert bench.journal.may_know(ANOTHER), "others may have put something there"
    assert bench.may_refuse(bench.bob)


async def test_what_a_file_holds_at_the_start_has_to_be_looked_up_by_its_hint(tmp_path: Path) -> None:
    for first in (True, False):
        store = SqliteStore(str(tmp_path / "state.db"), ManualClock())
        await store.start()
        bench = Bench(store=store)
        if first:
            await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
        assert (bench.journal.may_know(HINT), bench.journal.may_know(ANOTHER)) == (True, False)
        assert bench.may_refuse(bench.bob)
        await store.stop()


async def test_an_entry_from_before_keys_had_hints_may_be_about_any_message() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: TAKEN, bench.eve: LATER}, told=MIXED)
    value = await bench.store.get(*PLACE)
    assert value is not None
    await bench.store.delete(*PLACE)
    await bench.store.put(*FORMER_PLACE, value, 10)
    assert bench.journal.may_know(ANOTHER)
    assert await bench.known(bench.ann, bench.bob, bench.eve) == [EARLIER, EARLIER, None]
    await bench.attempt({bench.ann: EARLIER}, told=EARLIER)
    assert await bench.known(bench.ann, bench.bob, bench.eve) == [None, EARLIER, None]
    await bench.attempt({bench.bob: EARLIER}, told=EARLIER)
    assert not bench.journal.may_know(ANOTHER)
    assert len(bench.store) == 0


async def test_marks_of_a_begin_that_failed_hide_no_entry_from_before_keys_had_hints() -> None:
    bench = Bench(ONCE)
    await bench.store.put(*FORMER_PLACE, b'{"delivered":[],"maybe":[]}', 10)
    bench.store.late, bench.store.broken = True, {"put"}
    with pytest.raises(OSError, match="full"):
        await bench.journal.begin(KEY, [bench.ann])
    assert await bench.known(bench.ann) == [None]


Step = Literal["lost", "mixed", "done", "begin", "wait", "break", "mend", "renew", "start", "end"]
STEPS: tuple[Step, ...] = ("lost", "mixed", "done", "begin", "wait", "break", "mend", "renew", "start", "end")
KEYS = [hint * 16 + rest * 64 for hint in "ab" for rest in "12"]


@given(some.lists(some.tuples(some.sampled_from(STEPS), some.sampled_from(KEYS), some.booleans()), max_size=12))
async def test_nothing_is_known_where_nothing_may_be_known(steps: Sequence[tuple[Step, str, bool]]) -> None:
    """Two processes share a store that breaks now and then; the other one promises at-most-once."""
    ours = Bench()
    benches = [ours, Bench(ONCE, store=ours.store)]
    attempts: dict[tuple[str, bool], ExitStack] = {}
    for step, key, is_other in steps:
        await _take(step, key, benches[is_other], attempts.setdefault((key, is_other), ExitStack()))
        for one in benches:
            one.clock.now += 2 * DAY * (step == "wait")
            ours.store.broken = {"break": {"put", "delete"}, "mend": set[str]()}.get(step, ours.store.broken)
            await _agrees(one)
    for attempt in attempts.values():
        attempt.close()


async def _take(step: Step, key: str, bench: Bench, attempt: ExitStack) -> None:
    journal, ann, bob = bench.journal, bench.ann, bench.bob
    match step:
        case "lost":
            await journal.unconfirmed(key, {ann: TAKEN})
        case "mixed":
            await journal.record(key, session(), SENDER, {ann: TAKEN, bob: NOBODY}, told=MIXED)
        case "done":
            await journal.record(key, session(), SENDER, {ann: TAKEN, bob: TAKEN}, told=TAKEN)
        case "begin":
            with suppress(OSError):
                await journal.begin(key, [ann])
        case "renew":
            bench.journal = journal.renewed(guarantee="at-least-once", keep=5 * DAY, remember_refusals=DAY)
        case "start":
            if journal.under_way(key, [ann]) is None:
                attempt.enter_context(journal.claim(key, [ann]))
        case "end":
            attempt.close()


async def _agrees(bench: Bench) -> None:
    journal, everybody = bench.journal, [bench.ann, bench.bob]
    for key in KEYS:
        if not journal.may_know(key[:DIGITS]):
            entry, _ = await journal._read(key)
            assert not entry.delivered
            assert not entry.maybe
            assert journal.under_way(key, everybody) is None
    if not bench.may_refuse(bench.bob):
        assert await journal.refusal(session(), SENDER, bench.bob) is None


async def test_message_that_nothing_is_known_of_is_not_looked_up_although_others_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyed = []

    def key_of(sender: str, content: ContentSource) -> str | None:
        keyed.append(content.head())
        return message_key(sender, content)

    monkeypatch.setattr(handover, "message_key", key_of)
    store, notes = Mailboxes(), Failing(ManualClock())
    async with Stage(answer=store.answer) as stage:
        journal = Journal(notes, log=stage.server.log)
        lost = stage.talk(journal=journal)
        await send(lost, letter("one"))
        await lost.hang_up()
        for _ in range(10):
            await asyncio.sleep(0)
        assert (notes.calls, len(keyed)) == (["put"], 1)
        assert codes(await send(stage.talk(journal=journal), letter("two"))) == ["250"]
        assert (notes.calls, len(keyed)) == (["put"], 1)
        assert codes(await send(stage.talk(journal=journal), letter("one"))) == ["250"]
        assert "get" in notes.calls
        assert store.copies == {ANN: 2}


class Looks(Filter):
    name = "looks"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        await asyncio.sleep(0)
        return PASS


class Renames(Filter):
    """Makes another message of it each time."""

    name = "renames"
    changes = True
    number = 0

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        Renames.number += 1
        content = Content(ContentBudget(0), in_memory=1 << 20)
        content.write(letter(f"other{Renames.number}"))
        message.replace_content(content)
        return PASS


Behaviour = Literal["stays", "goes on", "is lost"]
Attempt = tuple[bytes, tuple[str, ...], str, Behaviour]
CONTENTS = [
    letter("one"), letter("one") + b"P.S.\r\n", b"Received: x\r\n" + letter("one"), letter("two"),
    b"From: joe@client.test\r\n\r\nHi\r\n", b"Message-ID: <3@a.test>\r\nMessage-ID: <4@a.test>\r\n\r\nHi\r\n",
    letter("one").replace(b"Message-ID:", b"X-Smtpd-Trace: x\r\nmessage-id :\r\n"),
    b"X: " + b"x" * SMALL + b"\r\n" + letter("one"), letter("one", size=BIG),
]  # fmt: skip


@given(
    some.lists(
        some.tuples(
            some.sampled_from(CONTENTS), some.sampled_from([(ANN,), (BOB,), (ANN, BOB)]),
            some.sampled_from(["192.0.2.1", "198.51.100.1"]), some.sampled_from(["stays", "goes on", "is lost"]),
        ),
        max_size=8,
    ),
    some.lists(some.sampled_from([TAKEN, FULL_FOR_NOW, UNKNOWN_THERE]), max_size=4),
    some.sampled_from([None, Looks, Renames]),
)  # fmt: skip
async def test_clients_hear_and_recipients_get_the_same_as_if_everything_were_looked_up(
    attempts: Sequence[Attempt], script: Sequence[Reply], kind: type[Filter] | None
) -> None:
    filters = {"some": kind} if kind is not None else {}
    assert await _outcome(Journal, attempts, script, filters) == await _outcome(Thorough, attempts, script, filters)


async def _outcome(
    kind: type[Journal], attempts: Sequence[Attempt], script: Sequence[Reply], filters: Mapping[str, type[Filter]]
) -> object:
    """What was heard, who has how many copies, and what is remembered in the end."""
    store, notes = Mailboxes({BOB: script}), Failing(ManualClock())
    heard = []
    async with Stage(answer=store.answer, filters=filters) as stage:
        journal = kind(notes, log=stage.server.log)
        for content, recipients, ip, behaviour in attempts:
            talk = await greeted(stage.talk(ip=ip, journal=journal))
            heard.append(_texts(await talk.say(envelope(*recipients))))
            if not talk.session.errors or len(recipients) > 1:
                heard.append(_texts(await talk.say(b"BDAT %d LAST\r\n%b" % (len(content), content))))
            if behaviour == "goes on":
                await talk.say(b"NOOP\r\n")
            elif behaviour == "is lost":
                await talk.hang_up()
    return heard, store.copies, notes._entries


def _texts(said: bytes) -> list[bytes]:
    """Without trace ids."""
    return [line.partition(b" [")[0] for line in said.splitlines()]
