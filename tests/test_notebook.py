"""A journal whose store fails, in every call and in each: never mail lost, never a 5xx of our own making."""

import pytest
from journal_bench import (
    EARLIER,
    FULL,
    KEY,
    LATER,
    MAYBE,
    MIXED,
    NOBODY,
    ONCE,
    PLACE,
    SENDER,
    TAKEN,
    UNKNOWN,
    Bench,
    recipient,
    session,
)

from smtpd import journal as journal_module
from smtpd.notebook import COMPLAINT_SECONDS, MAX_SPARE
from smtpd.store import MemoryStore, StoreError

EVERYTHING = {"get", "put", "delete", "is_empty"}


@pytest.fixture
async def broken() -> Bench:
    """Something is known, and the store fails in every call."""
    bench = Bench()
    await bench.attempt({bench.ann: TAKEN, bench.bob: NOBODY}, told=MIXED)
    bench.store.broken = EVERYTHING
    return bench


async def test_a_store_that_cannot_be_read_knows_nothing(broken: Bench) -> None:
    assert await broken.known(broken.ann) == [None]
    assert await broken.heard(broken.bob) is None
    assert not broken.journal.idle


async def test_a_store_that_cannot_be_written_is_remembered_for(broken: Bench) -> None:
    await broken.attempt({broken.bob: TAKEN, broken.eve: FULL}, told=MIXED)
    assert await broken.known(broken.bob) == [EARLIER]
    assert await broken.heard(broken.eve) is not None
    await broken.journal.unconfirmed(KEY, {broken.eve: TAKEN})
    assert await broken.known(broken.bob, broken.eve) == [EARLIER, EARLIER]
    await broken.attempt({broken.bob: EARLIER, broken.eve: EARLIER}, told=EARLIER)
    assert await broken.known(broken.bob, broken.eve) == [None, None]


async def test_a_store_that_works_again_takes_over(broken: Bench) -> None:
    await broken.attempt({broken.bob: TAKEN, broken.eve: LATER}, told=MIXED)
    broken.store.broken = set()
    await broken.attempt({broken.bob: EARLIER, broken.eve: TAKEN, broken.ann: LATER}, told=MIXED)
    for bench in (broken, Bench(store=broken.store)):
        assert await bench.known(broken.bob, broken.eve, broken.ann) == [EARLIER, EARLIER, None]


async def test_what_an_empty_store_did_not_take_is_found_and_complained_about() -> None:
    bench = Bench()
    bench.store.broken = {"put"}
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert await bench.known(bench.ann, bench.bob) == [EARLIER, None]
    assert not bench.journal.idle
    assert bench.complaints == [("journal-failed", "the disk is full", 1)]


async def test_what_the_store_did_not_take_is_bounded(broken: Bench) -> None:
    for number in range(MAX_SPARE + 1):
        await broken.journal.unconfirmed(f"{number}", {broken.ann: TAKEN})
    settled = [await broken.journal.settled(f"{number}", [broken.ann]) for number in (0, 1, MAX_SPARE)]
    assert [len(found) for found in settled] == [0, 1, 1]


async def test_a_failing_store_is_complained_about_once_a_minute(broken: Bench) -> None:
    for _ in range(3):
        await broken.known(broken.ann)
    broken.clock.now += COMPLAINT_SECONDS
    await broken.heard(broken.bob)
    problem = "the disk is full"
    assert broken.complaints == [("journal-failed", problem, 1), ("journal-failed", problem, 3)]


@pytest.mark.parametrize("broken_call", ["get", "put"])
async def test_at_most_once_delivers_nothing_without_its_store(broken_call: str) -> None:
    bench = Bench(ONCE)
    bench.store.broken = {broken_call}
    with pytest.raises(StoreError):
        await bench.journal.begin(KEY, [bench.ann])
    bench.store.broken = set()
    assert await bench.known(bench.ann) == [None]
    await bench.journal.begin(KEY, [bench.ann])


async def test_marks_of_a_begin_that_failed_are_not_believed() -> None:
    bench = Bench(ONCE)
    bench.store.late, bench.store.broken = True, {"put"}
    with pytest.raises(StoreError):
        await bench.journal.begin(KEY, [bench.ann])
    assert await MemoryStore.get(bench.store, *PLACE)
    assert await bench.known(bench.ann) == [None]


@pytest.mark.parametrize("calls", [{"get"}, {"put", "delete"}, EVERYTHING])
async def test_a_store_that_breaks_during_a_delivery_makes_no_refusal_of_a_deferral(calls: set[str]) -> None:
    bench = Bench(ONCE)
    before = recipient("before")
    await bench.journal.unconfirmed(KEY, {before: TAKEN})
    with bench.journal.claim(KEY, [bench.ann]):
        await bench.journal.begin(KEY, [bench.ann, bench.bob, bench.eve])
        bench.store.broken = calls
        fared = {bench.ann: TAKEN, bench.bob: LATER, bench.eve: UNKNOWN}
        await bench.journal.record(KEY, session(), SENDER, fared, told=MIXED)
    bench.store.broken = set()
    assert await bench.known(bench.ann, bench.bob, bench.eve, before) == [EARLIER, None, MAYBE, EARLIER]
    assert not bench.journal._begun


async def test_mark_that_the_store_has_lost_is_made_again_when_nobody_knows_the_outcome() -> None:
    """A store in memory lets the oldest go when it is full."""
    bench = Bench(ONCE)
    await bench.journal.begin(KEY, [bench.ann])
    await bench.store.delete(*PLACE)
    await bench.journal.record(KEY, session(), SENDER, {bench.ann: UNKNOWN}, told=UNKNOWN)
    assert await bench.known(bench.ann) == [MAYBE]


async def test_marks_that_cannot_be_read_are_not_overwritten() -> None:
    bench = Bench(ONCE)
    await bench.journal.begin(KEY, [bench.ann])
    later = Bench(ONCE, store=bench.store)
    bench.store.broken = {"get"}
    await later.journal.unconfirmed(KEY, {bench.bob: TAKEN})
    await later.journal.record(KEY, session(), SENDER, {bench.bob: LATER}, told=LATER)
    bench.store.broken = set()
    assert await later.known(bench.ann) == [MAYBE]


@pytest.mark.parametrize("value", [b"\xff", b"[", b"[]", b"{}", b'{"delivered": 1, "maybe": []}', b"[" * 100_000])
async def test_an_entry_that_makes_no_sense_is_like_none(value: bytes) -> None:
    bench = Bench()
    await bench.store.put(*PLACE, value, 100)
    assert await bench.known(bench.ann) == [None]
    await bench.attempt({bench.ann: TAKEN, bench.bob: LATER}, told=MIXED)
    assert await bench.known(bench.ann) == [EARLIER]
    assert [event for event, *_ in bench.complaints] == ["journal-failed"]


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        b"[]",
        b'[450, "5.1.1", "x"]',
        b'[550, "5.7.1", "x"]',
        b'[550, "5.1.1\\r\\n", "x"]',
        b'["550", "5.1.1", "x"]',
    ],
)
async def test_a_refusal_that_makes_no_sense_is_not_said(value: bytes) -> None:
    bench = Bench()
    await bench.store.put(*journal_module._refusal_place(session(), SENDER, bench.bob), value, 100)
    assert await bench.heard(bench.bob) is None
    assert [event for event, *_ in bench.complaints] == ["journal-failed"]
