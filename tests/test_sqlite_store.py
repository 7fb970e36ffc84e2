"""The file: durable, shared, private, checked; and errors that are said in words."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from manual_clock import ManualClock

from smtpd import sqlite_store
from smtpd.sqlite_store import PURGE_SECONDS, PURGE_STEP, SqliteStore
from smtpd.store import StoreError

# Says a number as soon as its value is kept, for ever.
WRITER = """
import asyncio, sys, time
from smtpd.sqlite_store import SqliteStore

async def run():
    store = SqliteStore(sys.argv[1], time.time)
    await store.start()
    number = 0
    while True:
        await store.put("a", f"{sys.argv[2]}{number}", b"kept", 1e6)
        print(number, flush=True)
        number += 1

asyncio.run(run())
"""


@asynccontextmanager
async def opened(path: Path, clock: ManualClock | None = None) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path), clock or ManualClock())
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


class Held:
    """The first transaction waits in the middle until it may go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.batches: list[int] = []
        self._execute = sqlite_store._execute

    def execute(self, batch: list[sqlite_store._Write], connection: sqlite3.Connection) -> None:
        self.batches.append(len(batch))
        self.entered.set()
        self.go_on.wait()
        self._execute(batch, connection)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    made = Held()
    monkeypatch.setattr(sqlite_store, "_execute", made.execute)
    return made


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    return int(count)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process in the middle of a transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_values_survive_a_restart_and_expire_by_the_wall_clock(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as store:
        await store.put("a", "short", b"one", 10)
        await store.put("a", "long", b"two", 1000)
    clock.now += 100
    async with opened(path, clock) as store:
        assert await store.get("a", "short") is None
        assert await store.get("a", "long") == b"two"


async def test_a_store_can_be_started_again(path: Path) -> None:
    store = SqliteStore(str(path), ManualClock())
    for number in range(2):
        await store.start()
        await store.put("a", str(number), b"one", 10)
        await store.stop()
    assert rows(path) == 2


async def test_what_was_put_before_the_end_is_committed(path: Path, held: Held) -> None:
    store = SqliteStore(str(path), ManualClock())
    await store.start()
    puts = [asyncio.ensure_future(store.put("a", "first", b"x", 10))]
    await asyncio.to_thread(held.entered.wait)
    puts += [asyncio.ensure_future(store.put("a", str(number), b"x", 10)) for number in range(50)]
    stopping = asyncio.ensure_future(store.stop())
    await asyncio.sleep(0)  # every put is on its way, and so is the end
    held.go_on.set()
    await asyncio.gather(stopping, *puts)
    assert rows(path) == 51


async def test_puts_that_wait_share_transactions(path: Path, held: Held) -> None:
    async with opened(path) as store:
        puts = [asyncio.ensure_future(store.put("a", "first", b"x", 10))]
        await asyncio.to_thread(held.entered.wait)
        puts += [asyncio.ensure_future(store.put("a", str(number), b"x", 10)) for number in range(200)]
        await asyncio.sleep(0)
        held.go_on.set()
        await asyncio.gather(*puts)
    assert held.batches == [1, 200]


async def test_a_put_whose_caller_is_gone_disturbs_nobody(path: Path) -> None:
    async with opened(path) as store:
        gone = asyncio.ensure_future(store.put("a", "gone", b"x", 10))
        await asyncio.sleep(0)
        gone.cancel()
        await store.put("a", "next", b"y", 10)
        assert await store.get("a", "next") == b"y"
        assert gone.cancelled()


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db-shm"])
async def test_the_file_is_private_whatever_the_umask(path: Path, name: str) -> None:
    before = os.umask(0)
    try:
        async with opened(path) as store:
            await store.put("a", "key", b"x", 10)
            assert mode(path.parent / name) == 0o600
    finally:
        os.umask(before)


def test_the_file_is_private_from_the_first_moment(path: Path) -> None:
    before = os.umask(0)
    try:
        with sqlite_store._alone(str(path)):
            assert mode(path) == 0o600
    finally:
        os.umask(before)


async def test_a_file_of_ours_that_others_can_read_is_closed_to_them(path: Path) -> None:
    async with opened(path):
        pass
    os.chmod(path, 0o644)
    async with opened(path):
        assert mode(path) == 0o600


async def failure(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        await SqliteStore(str(path), ManualClock()).start()
    return str(caught.value)


async def test_a_missing_directory_is_named(path: Path) -> None:
    assert await failure(path / "x" / "state.db") == f"the directory {path / 'x'} does not exist"


async def test_a_directory_in_the_place_of_the_file_is_an_error(path: Path) -> None:
    os.mkdir(path)
    assert "cannot be used" in await failure(path)


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    write(path, b"Dear diary, " * 1000)
    os.chmod(path, 0o644)
    assert await failure(path) == f"{path} cannot be used: file is not a database"
    assert read(path) == b"Dear diary, " * 1000
    assert mode(path) == 0o644


@pytest.mark.parametrize("statement", ["CREATE TABLE x (y)", "PRAGMA user_version = 3", "PRAGMA application_id = 9"])
async def test_a_database_of_another_program_is_left_alone(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    content = read(path)
    assert await failure(path) == f"{path} is a database of another program"
    assert read(path) == content


async def test_a_file_of_another_version_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    assert await failure(path) == f"{path} was made by another version of smtpd (2, not 1)"


async def test_a_broken_file_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await asyncio.gather(*(store.put("a", str(number), bytes(500), 10) for number in range(500)))
    content = bytearray(read(path))
    content[4096 : len(content) // 2] = b"\xa5" * (len(content) // 2 - 4096)
    write(path, bytes(content))
    message = await failure(path)
    assert "is broken" in message or "malformed" in message


async def test_expired_entries_are_purged_in_steps(path: Path) -> None:
    clock = ManualClock()
    async with opened(path, clock) as store:
        await asyncio.gather(*(store.put("a", str(number), b"x", 10) for number in range(PURGE_STEP + 100)))
        await store.put("a", "kept", b"x", 1e6)
        clock.now += PURGE_SECONDS
        left = []
        for number in range(4):  # a purge comes behind the answer to a put, and before the next one
            await store.put("b", str(number), b"x", 1e6)
            left.append(rows(path) - number - 2)
    assert left[0] in (PURGE_STEP + 100, 100)
    assert left[1] in (100, 0)
    assert left[3] == 0


async def test_a_clock_that_was_set_back_does_not_end_purging(path: Path) -> None:
    clock = ManualClock()
    clock.now += 1e9
    async with opened(path, clock) as store:
        await store.put("a", "first", b"x", 1)
        clock.now -= 1e9
        await store.put("a", "old", b"x", -1)
        clock.now += PURGE_SECONDS
        await store.put("a", "second", b"x", 100)
        await store.put("a", "third", b"x", 100)
        assert rows(path) == 3


async def test_two_stores_share_a_file(path: Path) -> None:
    async with opened(path) as one, opened(path) as two:
        assert one.is_empty("a")
        await two.put("a", "key", b"x", 10)
        assert not one.is_empty("a")
        assert await one.get("a", "key") == b"x"
        await one.delete("a", "key")
        assert two.is_empty("a")


async def test_processes_that_start_together_agree_on_one_file(path: Path) -> None:
    writers = [start_writer(path, name) for name in "wxyz"]
    for writer in writers:
        assert writer.stdout is not None
        assert [writer.stdout.readline() for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]
    for writer in writers:
        kill(writer)
    async with opened(path) as store:
        assert [await store.get("a", f"{name}2") for name in "wxyz"] == [b"kept"] * 4


async def test_nobody_who_starts_at_the_same_moment_is_turned_away(path: Path) -> None:
    for number in range(30):
        stores = [SqliteStore(f"{path}{number}", time.time) for _ in range(4)]
        await asyncio.gather(*(store.start() for store in stores))
        for store in stores:
            await store.stop()


async def test_what_was_confirmed_survives_a_killed_process(path: Path) -> None:
    writer = start_writer(path, "k")
    assert writer.stdout is not None
    confirmed = [int(writer.stdout.readline()) for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    confirmed += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
    kill(writer)
    async with opened(path) as store:
        assert [await store.get("a", f"k{number}") for number in confirmed] == [b"kept"] * len(confirmed)


def start_writer(path: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def test_a_write_that_fails_says_so_and_the_next_one_can_succeed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_WRITE_PATIENCE", 0.01)
    async with opened(path) as store:
        with locked(path):
            with pytest.raises(StoreError, match="cannot be used: database is locked"):
                await store.put("a", "key", b"x", 10)
            assert await store.health() == f"{path} cannot be used: database is locked"
            assert await store.get("a", "key") is None
        await store.put("a", "key", b"x", 10)
        assert await store.health() is None


async def test_a_full_disk_is_an_error_and_what_was_there_stays(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", "key", b"x", 10)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(StoreError, match="cannot be used"):
                await store.put("a", "big", bytes(1 << 20), 10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert await store.get("a", "key") == b"x"
        await store.put("a", "big", bytes(1 << 20), 10)
        assert await store.get("a", "big") == bytes(1 << 20)


async def test_a_stopped_store_answers_with_errors(path: Path) -> None:
    store = SqliteStore(str(path), ManualClock())
    for attempt in (store.get("a", "key"), store.put("a", "key", b"x", 10), store.delete("a", "key")):
        with pytest.raises(StoreError, match="is not open"):
            await attempt
    assert not store.is_empty("a")
    assert await store.health() == f"{path} is not open"
    await store.stop()


async def test_writes_that_wait_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_WAITING", 2)
    async with opened(path) as store:
        with locked(path):
            puts = [asyncio.ensure_future(store.put("a", str(number), b"x", 10)) for number in range(3)]
            await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
            assert [put.done() for put in puts] == [False, False, True]
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), type(None), StoreError]
        await store.put("a", "later", b"x", 10)


async def test_text_that_cannot_be_stored_hurts_nobody_else(path: Path) -> None:
    async with opened(path) as store:
        with locked(path):
            puts = [asyncio.ensure_future(store.put("a", key, b"x", 10)) for key in ("one", "\ud800", "two")]
            await asyncio.sleep(0)
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), UnicodeEncodeError, type(None)]
