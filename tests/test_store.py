"""What every store promises, for memory and for a file; what is special about memory; which store a URL names."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from manual_clock import ManualClock

from smtpd.sqlite_store import SqliteStore
from smtpd.state import open_store
from smtpd.store import MAX_VALUE, MemoryStore, Store, StoreError


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = MemoryStore(clock) if request.param == "memory" else SqliteStore(str(tmp_path / "state.db"), clock)
    await made.start()
    yield made
    await made.stop()


async def test_what_was_put_is_there(store: Store) -> None:
    await store.put("a", "key", b"one\0\xff", 10)
    assert await store.get("a", "key") == b"one\0\xff"
    assert await store.get("a", "other") is None
    assert await store.health() is None


async def test_spaces_do_not_see_each_other(store: Store) -> None:
    await store.put("a", "key", b"one", 10)
    assert await store.get("b", "key") is None
    assert (store.is_empty("a"), store.is_empty("b"), store.is_empty("b", "a"), store.is_empty("b", "c")) == (
        False, True, False, True
    )  # fmt: skip
    await store.delete("b", "key")
    assert await store.get("a", "key") == b"one"


async def test_a_second_value_takes_the_place_and_the_time_of_the_first(store: Store, clock: ManualClock) -> None:
    await store.put("a", "key", b"one", 10)
    await store.put("a", "key", b"two", 20)
    clock.now += 15
    assert await store.get("a", "key") == b"two"
    assert not store.is_empty("a")


async def test_a_value_vanishes_when_its_time_is_up(store: Store, clock: ManualClock) -> None:
    await store.put("a", "key", b"one", 10)
    clock.now += 9.5
    assert await store.get("a", "key") == b"one"
    clock.now += 0.5
    assert await store.get("a", "key") is None


async def test_what_was_deleted_is_gone_also_when_it_was_not_there(store: Store) -> None:
    await store.put("a", "key", b"one", 10)
    await store.delete("a", "key")
    await store.delete("a", "key")
    assert await store.get("a", "key") is None
    assert store.is_empty("a")


async def test_entries_have_a_length_as_long_as_something_may_be_kept(store: Store, clock: ManualClock) -> None:
    entries = store.entries
    is_shared = isinstance(store, SqliteStore)
    assert bool(entries) is is_shared
    await store.put("a", "key", b"one", 10)
    assert entries
    clock.now += 10
    assert store.is_empty("a") or is_shared
    assert bool(entries) is is_shared
    await store.put("a", "key", b"one", 10)
    await store.delete("a", "key")
    assert bool(entries) is is_shared


async def test_a_value_beyond_the_limit_is_a_mistake_of_the_caller(store: Store) -> None:
    await store.put("a", "key", bytes(MAX_VALUE), 10)
    with pytest.raises(ValueError, match="too big"):
        await store.put("a", "key", bytes(MAX_VALUE + 1), 10)


async def test_a_full_memory_forgets_what_was_put_first(clock: ManualClock) -> None:
    store = MemoryStore(clock, max_entries=3)
    for key in ("one", "two", "three", "one", "four"):
        await store.put("a", key, key.encode(), 10)
    assert [await store.get("a", key) for key in ("two", "three", "one", "four")] == [None, b"three", b"one", b"four"]


async def test_octets_in_memory_are_bounded(clock: ManualClock) -> None:
    store = MemoryStore(clock, max_octets=100)
    await store.put("a", "one", bytes(60), 10)
    await store.put("b", "two", bytes(60), 10)
    assert store.is_empty("a")
    assert not store.is_empty("b")


async def test_memory_is_empty_once_everything_expired(clock: ManualClock) -> None:
    store = MemoryStore(clock)
    await store.put("a", "key", b"one", 10)
    clock.now += 10
    assert store.is_empty("a")
    assert len(store) == 0


async def test_memory_does_not_grow_with_values_that_are_put_again_and_again(clock: ManualClock) -> None:
    store = MemoryStore(clock)
    for number in range(10_000):
        await store.put("a", str(number % 7), b"x", 1e9)
    assert len(store) == 7
    assert len(store._deadlines) < 2_000


Step = tuple[str, str, str, int]


@given(
    some.lists(
        some.tuples(
            some.sampled_from(["put", "delete", "wait"]),
            some.sampled_from("ab"),
            some.sampled_from("xyz"),
            some.integers(1, 5),
        )
    )
)
async def test_memory_is_a_dictionary_with_deadlines(steps: list[Step]) -> None:
    clock, known = ManualClock(), dict[tuple[str, str], tuple[float, bytes]]()
    store = MemoryStore(clock)
    for number, (what, space, key, seconds) in enumerate(steps):
        if what == "put":
            await store.put(space, key, b"%d" % number, seconds)
            known[space, key] = clock.now + seconds, b"%d" % number
        elif what == "delete":
            await store.delete(space, key)
            known.pop((space, key), None)
        else:
            clock.now += seconds
        known = {name: entry for name, entry in known.items() if entry[0] > clock.now}
        found = {(space, key): await store.get(space, key) for space in "ab" for key in "xyz"}
        assert {name: value for name, value in found.items() if value is not None} == {
            name: value for name, (_, value) in known.items()
        }
        assert [store.is_empty(space) for space in "ab"] == [
            not any(name[0] == space for name in known) for space in "ab"
        ]
        assert len(store) == len(known)


def test_memory_is_named_in_a_url() -> None:
    assert isinstance(open_store("memory:"), MemoryStore)


async def test_a_file_is_named_in_a_url(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path / 'st?te #1.db'}")
    await store.start()
    await store.put("a", "key", b"one", 60)
    await store.stop()
    assert (tmp_path / "st?te #1.db").exists()
    again = SqliteStore(str(tmp_path / "st?te #1.db"), time.time)
    await again.start()
    assert await again.get("a", "key") == b"one"
    await again.stop()


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory:x", "sqlite", "sqlite:", "sqlite::memory:", "sqlite:a\0b", "file:x", "redis://u:pw1@host"],
)
def test_any_other_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match='"memory:" or "sqlite:PATH"') as caught:
        open_store(url)
    assert "pw1" not in str(caught.value)


def test_redis_is_said_to_come_later() -> None:
    with pytest.raises(ValueError, match="not supported yet"):
        open_store("redis://host")


def test_whoever_can_deal_with_a_broken_disk_can_deal_with_a_broken_store() -> None:
    assert issubclass(StoreError, OSError)
