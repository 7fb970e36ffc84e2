"""What is remembered of an attempt, and what the next one hears of it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from journal_bench import (
    AGAIN,
    EARLIER,
    FULL,
    HINT,
    KEY,
    LATER,
    MAYBE,
    MIXED,
    NOBODY,
    ONCE,
    PARTLY,
    PLACE,
    SENDER,
    SPAM,
    TAKEN,
    UNKNOWN,
    Bench,
    recipient,
    session,
)
from manual_clock import ManualClock

from smtpd import replies
from smtpd.delivery import combine
from smtpd.journal import Guarantee
from smtpd.journal_entry import MAX_RECIPIENTS
from smtpd.replies import Reply
from smtpd.sqlite_store import SqliteStore
from smtpd.store import StoreError

DAY = 86400.0

# guarantee, what ann, bob and eve fared, what the client heard, what is settled for the three afterwards
RULES: list[tuple[Guarantee, Sequence[Reply], Reply | None, Sequence[Reply | None]]] = [
    (AGAIN, (TAKEN, LATER, NOBODY), MIXED, (EARLIER, None, None)),
    (AGAIN, (TAKEN, TAKEN, LATER), MIXED, (EARLIER, EARLIER, None)),
    (AGAIN, (TAKEN, SPAM, SPAM), PARTLY, (EARLIER, None, None)),
    (AGAIN, (TAKEN, UNKNOWN, UNKNOWN), MIXED, (EARLIER, None, None)),
    (AGAIN, (UNKNOWN, UNKNOWN, UNKNOWN), UNKNOWN, (None, None, None)),
    (AGAIN, (TAKEN, TAKEN, TAKEN), TAKEN, (None, None, None)),
    (AGAIN, (SPAM, SPAM, SPAM), SPAM, (None, None, None)),
    (AGAIN, (LATER, LATER, SPAM), LATER, (None, None, None)),
    (AGAIN, (TAKEN, LATER, SPAM), None, (None, None, None)),
    (ONCE, (TAKEN, LATER, NOBODY), MIXED, (EARLIER, None, None)),
    (ONCE, (TAKEN, SPAM, SPAM), PARTLY, (EARLIER, None, None)),
    (ONCE, (TAKEN, UNKNOWN, LATER), MIXED, (EARLIER, MAYBE, None)),
    (ONCE, (UNKNOWN, UNKNOWN, LATER), UNKNOWN, (MAYBE, MAYBE, None)),
    (ONCE, (TAKEN, UNKNOWN, SPAM), None, (None, MAYBE, None)),
    (ONCE, (TAKEN, TAKEN, TAKEN), TAKEN, (None, None, None)),
    (ONCE, (SPAM, SPAM, SPAM), SPAM, (None, None, None)),
    (ONCE, (LATER, LATER, LATER), LATER, (None, None, None)),
]


@pytest.mark.parametrize(("guarantee", "fared", "told", "expected"), RULES)
async def test_what_is_settled_after_an_attempt(
    guarantee: Guarantee, fared: Sequence[Reply], told: Reply | None, expected: Sequence[Reply | None]
) -> None:
    bench = Bench(guarantee)
    await bench.attempt(dict(zip((bench.ann, bench.bob, bench.eve), fared, strict=True)), told=told)
    assert await bench.known(bench.ann, bench.bob, bench.eve) == list(expected)
    assert bench.store.is_empty(PLACE[0]) == (not any(expected))
    assert bench.complaints == []
    assert not bench.journal._begun


async def test_a_retry_that_completes_forgets_the_message() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER, bench.eve: LATER}, told=MIXED)
    settled = await bench.known(bench.ann, bench.bob, bench.eve)
    assert settled == [EARLIER, None, None]
    await bench.attempt({bench.ann: EARLIER, bench.bob: TAKEN, bench.eve: LATER}, told=MIXED)
    assert await bench.known(bench.ann, bench.bob, bench.eve) == [EARLIER, EARLIER, None]
    outcomes = {bench.ann: EARLIER, bench.bob: EARLIER, bench.eve: TAKEN}
    await bench.attempt(outcomes, told=combine(outcomes, prdr=False))
    assert bench.store.is_empty(PLACE[0])
    assert bench.journal.idle


async def test_a_retry_for_some_of_the_recipients_leaves_the_others_in_the_entry() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: TAKEN, bench.eve: LATER}, told=MIXED)
    await bench.attempt({bench.ann: EARLIER}, told=EARLIER)
    assert await bench.known(bench.ann, bench.bob, bench.eve) == [None, EARLIER, None]


async def test_a_client_lost_before_it_read_our_answer_does_not_double() -> None:
    bench = Bench()
    outcomes = {bench.ann: TAKEN, bench.bob: SPAM}
    await bench.attempt(outcomes, told=None)
    assert bench.store.is_empty(PLACE[0])
    await bench.journal.unconfirmed(KEY, outcomes)
    assert await bench.known(bench.ann, bench.bob) == [EARLIER, None]


async def test_a_client_that_hears_the_refusal_of_what_it_had_delivered_is_done() -> None:
    bench = Bench()
    await bench.journal.unconfirmed(KEY, {bench.ann: TAKEN})
    await bench.attempt({bench.ann: SPAM}, told=SPAM)  # the store could not be read before the hand-over
    assert bench.store.is_empty(PLACE[0])


async def test_a_client_that_lost_the_last_answer_of_a_retry_does_not_double_either() -> None:
    bench = Bench(ONCE)
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    last = {bench.ann: EARLIER, bench.bob: TAKEN}
    await bench.journal.begin(KEY, [bench.bob])
    await bench.journal.record(KEY, session(), SENDER, last, told=TAKEN)
    await bench.journal.unconfirmed(KEY, last)
    assert await bench.known(bench.ann, bench.bob) == [EARLIER, EARLIER]


async def test_who_may_have_it_hears_so_for_as_long_as_the_entry_lives() -> None:
    bench = Bench(ONCE)
    await bench.attempt({bench.ann: UNKNOWN}, told=UNKNOWN)
    for _ in range(2):
        assert await bench.known(bench.ann) == [MAYBE]
        await bench.journal.record(KEY, session(), SENDER, {bench.ann: MAYBE}, told=MAYBE)


async def test_a_process_that_died_in_the_middle_leaves_its_marks() -> None:
    bench = Bench(ONCE)
    await bench.journal.begin(KEY, [bench.ann])
    later = Bench(ONCE, store=bench.store)
    assert await later.known(bench.ann, bench.bob) == [MAYBE, None]
    with pytest.raises(StoreError, match="another attempt"):
        await later.journal.begin(KEY, [bench.ann, bench.bob])
    await later.journal.begin(KEY, [bench.bob])


async def test_nothing_begins_for_a_recipient_that_another_attempt_has_reached_meanwhile() -> None:
    bench = Bench(ONCE)
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    with pytest.raises(StoreError, match="another attempt"):
        await bench.journal.begin(KEY, [bench.ann])


async def test_marks_are_not_heeded_after_a_change_to_at_least_once() -> None:
    bench = Bench(ONCE)
    await bench.journal.begin(KEY, [bench.ann])
    assert await Bench(AGAIN, store=bench.store).known(bench.ann) == [None]


async def test_at_least_once_notes_nothing_before_the_hand_over() -> None:
    bench = Bench()
    await bench.journal.begin(KEY, [bench.ann])
    assert bench.store.calls == []


async def test_nothing_is_asked_or_written_when_all_is_well() -> None:
    bench = Bench()
    assert bench.journal.idle
    assert await bench.journal.settled(KEY, [bench.ann]) == {}
    assert await bench.heard(bench.ann) is None
    await bench.attempt({bench.ann: TAKEN, bench.bob: TAKEN}, told=TAKEN)
    assert bench.store.calls == []


async def test_at_most_once_is_never_idle() -> None:
    assert not Bench(ONCE).journal.idle


async def test_what_others_keep_in_the_store_is_nothing_to_look_for() -> None:
    bench = Bench()
    await bench.store.put("another", "key", b"x", 10)
    assert not bench.journal.may_know(HINT)
    assert not bench.may_refuse(bench.bob)


async def test_what_another_process_left_is_looked_for(tmp_path: Path) -> None:
    ours, others = (SqliteStore(str(tmp_path / "state.db"), ManualClock()) for _ in range(2))
    await ours.start()
    await others.start()
    bench = Bench(store=ours)
    assert not bench.journal.may_know(HINT)
    assert not bench.may_refuse(bench.bob)
    await Bench(store=others).attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    assert (bench.journal.may_know(HINT), bench.journal.may_know(HINT[::-1])) == (True, False)
    assert bench.may_refuse(bench.bob)
    await others.stop()
    await ours.stop()


async def test_rules_that_were_renewed_share_what_is_known() -> None:
    bench = Bench()
    renewed = bench.journal.renewed(guarantee=AGAIN, keep=DAY, remember_refusals=DAY)
    with bench.journal.claim(KEY, [bench.ann]):
        assert not renewed.idle
    assert renewed.idle
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert not renewed.idle
    assert not bench.journal.renewed(guarantee=ONCE, keep=DAY, remember_refusals=DAY).idle


async def test_a_message_without_key_is_not_remembered_but_its_refusals_are() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED, key=None)
    assert bench.store.is_empty(PLACE[0])
    assert not bench.journal.idle
    assert await bench.journal.settled(None, [bench.ann]) == {}
    assert (await bench.heard(bench.bob)) is not None
    await bench.journal.unconfirmed(None, {bench.ann: TAKEN})
    assert bench.store.is_empty(PLACE[0])
    once = Bench(ONCE)
    await once.journal.begin(None, [once.ann])
    assert once.store.calls == []


async def test_entries_go_after_days_and_refusals_after_hours() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    bench.clock.now += 4 * 3600 - 1
    assert await bench.heard(bench.bob) is not None
    bench.clock.now += 1
    assert await bench.heard(bench.bob) is None
    bench.clock.now += 5 * DAY - 4 * 3600 - 1
    assert await bench.known(bench.ann) == [EARLIER]
    assert not bench.journal.idle
    bench.clock.now += 1
    assert await bench.known(bench.ann) == [None]
    assert bench.journal.idle


async def test_both_times_are_options_and_zero_is_never() -> None:
    bench = Bench(keep=10.0, remember_refusals=0.0)
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    assert bench.store.calls == ["put"]
    bench.clock.now += 10
    assert not bench.journal.may_know(HINT)
    none = Bench()
    none.journal = none.journal.renewed(guarantee=AGAIN, keep=0.0, remember_refusals=0.0)
    await none.attempt({none.ann: TAKEN, none.bob: NOBODY}, told=MIXED)
    assert none.store.calls == ["delete"]


@pytest.mark.parametrize("refusal", [NOBODY, FULL, Reply("said", 553, "5.1.3", "No {such} address")])
async def test_a_refusal_nobody_heard_is_said_at_the_next_attempt(refusal: Reply) -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: refusal}, told=MIXED)
    reply = await bench.heard(bench.bob)
    assert reply is not None
    assert reply.key == "refused-earlier"
    assert reply.encode() == refusal.encode()
    assert await bench.heard(bench.ann) is None


@pytest.mark.parametrize(
    ("fared", "told"),
    [
        ((TAKEN, SPAM), PARTLY),
        ((TAKEN, SPAM), MIXED),
        ((TAKEN, NOBODY), PARTLY),
        ((TAKEN, NOBODY), None),
        ((TAKEN, replies.MAILBOX_FULL(address="x")), MIXED),
        ((NOBODY, NOBODY), NOBODY),
        ((LATER, NOBODY), LATER),
    ],
)
async def test_other_refusals_are_not_remembered(fared: Sequence[Reply], told: Reply | None) -> None:
    bench = Bench()
    await bench.attempt(dict(zip((bench.ann, bench.bob), fared, strict=True)), told=told)
    assert not any(map(bench.may_refuse, (bench.ann, bench.bob)))


async def test_a_refusal_of_a_retry_counts_as_mixed_with_what_was_delivered_before() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    await bench.attempt({bench.bob: NOBODY}, told=MIXED)  # ann is settled and left out
    assert await bench.heard(bench.bob) is not None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.255", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("192.0.2.1", "::ffff:192.0.2.9", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
async def test_a_refusal_is_for_the_network_of_the_client(first: str, second: str, same: bool) -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED, ip=first)
    assert (await bench.heard(bench.bob, ip=second) is not None) is same


async def test_a_refusal_is_for_one_sender_recipient_and_agent() -> None:
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    assert await bench.heard(bench.bob, sender="ann@client.test") is None
    assert await bench.heard(bench.eve) is None
    assert await bench.heard(recipient("bob", "other")) is None
    assert await bench.heard(recipient("bob")) is not None


async def test_recipients_are_told_apart_by_what_the_client_wrote_and_by_agent() -> None:
    bench = Bench()
    alias = recipient("alias", mailbox="ann@example.test")
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert await bench.known(alias, recipient("ann", "other"), recipient("ann")) == [None, None, EARLIER]
    assert await bench.journal.settled(KEY[::-1], [bench.ann]) == {}


async def test_two_names_of_a_mailbox_get_a_copy_each() -> None:
    bench = Bench()
    other = recipient("sales", mailbox="ann@example.test")
    await bench.attempt({bench.ann: TAKEN, other: LATER, bench.bob: TAKEN}, told=MIXED)
    assert await bench.known(bench.ann, other, bench.bob) == [EARLIER, None, EARLIER]


async def test_entries_hold_no_addresses_and_are_bounded() -> None:
    bench = Bench()
    many = {recipient(f"user{number}"): TAKEN for number in range(MAX_RECIPIENTS + 10)}
    await bench.attempt({**many, bench.ann: LATER}, told=MIXED)
    value = await bench.store.get(*PLACE)
    assert value is not None
    assert len(value) < 200_000
    assert b"user" not in value
    assert await bench.known(*many) == [None] * 10 + [EARLIER] * MAX_RECIPIENTS


async def test_at_most_once_is_not_promised_to_more_than_can_be_noted() -> None:
    bench = Bench(ONCE)
    with pytest.raises(StoreError, match="too many"):
        await bench.journal.begin(KEY, [recipient(f"user{number}") for number in range(MAX_RECIPIENTS + 1)])


async def test_two_changes_of_one_entry_at_the_same_time_both_count(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "state.db"), ManualClock())
    await store.start()
    bench = Bench(store=store)
    await asyncio.gather(
        bench.journal.unconfirmed(KEY, {bench.ann: TAKEN}),
        bench.journal.unconfirmed(KEY, {bench.bob: TAKEN}),
        bench.journal.unconfirmed(KEY, {bench.eve: TAKEN}),
    )
    assert await bench.known(bench.ann, bench.bob, bench.eve) == [EARLIER] * 3
    assert not bench.journal._locks
    await store.stop()


async def test_what_is_remembered_survives_a_restart(tmp_path: Path) -> None:
    for attempt in range(2):
        store = SqliteStore(str(tmp_path / "state.db"), ManualClock())
        await store.start()
        bench = Bench(ONCE, store=store)
        if attempt == 0:
            await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY, bench.eve: UNKNOWN}, told=MIXED)
        assert await bench.known(bench.ann, bench.bob, bench.eve) == [EARLIER, None, MAYBE]
        assert await bench.heard(bench.bob) is not None
        await store.stop()


async def test_a_second_attempt_waits_for_the_first() -> None:
    bench = Bench()
    assert bench.journal.under_way(KEY, [bench.ann]) is None
    with bench.journal.claim(KEY, [bench.ann]):
        assert not bench.journal.idle
        gone, waiting = bench.journal.under_way(KEY, [bench.ann]), bench.journal.under_way(KEY, [bench.ann])
        assert gone is not None
        assert waiting is not None
        gone.cancel()
        await asyncio.sleep(0)  # callbacks
        assert not waiting.done()
        assert bench.journal._under_way[HINT][0].waiting == {waiting: None}
        assert bench.journal.under_way(KEY[::-1], [bench.ann]) is None
        with pytest.raises(RuntimeError, match="under way"), bench.journal.claim(KEY, [bench.ann]):
            pass
        last = bench.journal.under_way(KEY, [bench.ann])
        assert last is not None
        last.cancel()
    await waiting
    assert bench.journal.under_way(KEY, [bench.ann]) is None
    assert bench.journal.idle


async def test_an_attempt_that_broke_lets_the_next_one_go_on() -> None:
    bench = Bench()
    attempt = bench.journal.claim(KEY, [bench.ann])
    attempt.__enter__()
    waiting = bench.journal.under_way(KEY, [bench.ann])
    assert waiting is not None
    assert not attempt.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    await waiting


async def test_a_message_without_key_is_never_under_way() -> None:
    bench = Bench()
    with bench.journal.claim(None, [bench.ann]), bench.journal.claim(None, [bench.ann]):
        assert bench.journal.under_way(None, [bench.ann]) is None
        assert bench.journal.idle
