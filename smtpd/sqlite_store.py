"""State in one SQLite file that several processes of one machine may share.

Reads are made on the thread of the event loop: they take microseconds, and in WAL mode nobody makes a reader
wait. Writes go to one thread, which commits together what waits together; `put` returns when its transaction
has been synced. Expiry goes by the wall clock, because it has to survive a restart.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from queue import Empty, SimpleQueue
from urllib.parse import quote

from smtpd.store import StoreError, check_value

APPLICATION_ID = 0x736D7470  # "smtp": how we know our file again
VERSION = 1  # of the tables below
PURGE_SECONDS = 60.0  # between two looks for expired entries
PURGE_STEP = 1000  # entries that one transaction takes away
MAX_WAITING = 10_000  # writes
MAX_WAITING_OCTETS = 64 << 20
_MAX_BATCH = 1000  # writes in one transaction
_READ_PATIENCE = 0.05  # seconds that the event loop may stand still for a lock
_WRITE_PATIENCE = 5.0  # seconds for another process to finish its transaction

_TABLES = (
    "CREATE TABLE entries (space TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, expires REAL NOT NULL,"
    " PRIMARY KEY (space, key)) WITHOUT ROWID",
    "CREATE INDEX entries_by_expiry ON entries (expires)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
_GET = "SELECT value, expires FROM entries WHERE space = ? AND key = ?"
_ANY = "SELECT 1 FROM entries WHERE space = ?"
_PUT = "INSERT OR REPLACE INTO entries (space, key, value, expires) VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM entries WHERE space = ? AND key = ?"
_PURGE = (
    "DELETE FROM entries WHERE (space, key) IN"
    " (SELECT space, key FROM entries WHERE expires <= ? ORDER BY expires LIMIT ?)"
)

type _Values = tuple[str, str] | tuple[str, str, bytes, float]


class SqliteStore:
    """See `store.Store`. `clock` gives seconds since the epoch; the directory of `path` must exist."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path = os.path.abspath(path)
        self._clock = clock
        self._file = (0, 0)
        self._reader: sqlite3.Connection | None = None
        self._writer: _Writer | None = None

    @property
    def entries(self) -> Sized:
        """See Store: other processes may have put something there."""
        return (self._path,)

    async def start(self) -> None:
        """Make or check the file; StoreError when it cannot be used, is broken, or is not ours."""
        await asyncio.to_thread(_prepare, self._path)
        try:
            self._reader = _connect(self._path, _READ_PATIENCE)
            self._reader.execute("PRAGMA query_only = ON")
            self._file = _number(self._path)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self._path, error) from error
        self._writer = _Writer(self._path, self._clock)

    async def stop(self) -> None:
        """Commit what was put, then close the file."""
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        if reader is not None:
            reader.close()
        if writer is not None:
            await writer.stop()

    async def health(self) -> str | None:
        """What the last write failed with, if it did, or that the file is not where it was.

        Such a file is written on: opening another one beside the log (-wal) of this one would break it.
        """
        if self._writer is None or not self._writer.is_running:
            return f"{self._path} is not open"
        try:
            is_there = _number(self._path) == self._file
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            return str(_unusable(self._path, error))
        if not is_there:
            return f"{self._path} was moved, deleted or replaced: what is kept is lost at the next restart"
        problem = self._writer.problem
        return None if problem is None else str(_unusable(self._path, problem))

    async def get(self, space: str, key: str) -> bytes | None:
        """See Store."""
        rows = self._read(_GET, space, key)
        if not rows:
            return None
        value, expires = rows[0]
        if not isinstance(value, bytes) or not isinstance(expires, float):
            raise StoreError(f"{self._path} holds an entry of a wrong kind")
        return value if expires > self._clock() else None

    async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """See Store."""
        check_value(value)
        await self._write(_PUT, (space, key, value, self._clock() + seconds))

    async def delete(self, space: str, key: str) -> None:
        """See Store."""
        await self._write(_DELETE, (space, key))

    def is_empty(self, *spaces: str) -> bool:
        """Asks the file, because other processes may have put something there."""
        try:
            return not self._read(_any_of(len(spaces)), *spaces)
        except StoreError:
            return False

    def _read(self, query: str, *values: str) -> list[tuple[object, ...]]:
        if self._reader is None:
            raise StoreError(f"{self._path} is not open")
        try:
            # All rows at once: a query that is left half-way would keep the log of the database from shrinking.
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    async def _write(self, statement: str, values: _Values) -> None:
        if self._writer is None:
            raise StoreError(f"{self._path} is not open")
        failure = await self._writer.submit(statement, values)
        if failure is not None:
            raise _unusable(self._path, failure) from failure


@dataclass(slots=True, eq=False)
class _Write:
    statement: str
    values: _Values
    future: asyncio.Future[Exception | None]
    octets: int


class _Writer:
    """The thread that writes, and the way in and out of it; made on the event loop that waits for it."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self.problem: Exception | None = None
        """What the last transaction failed with; None when it did not."""
        self._path = path
        self._clock = clock
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._waiting = 0
        self._waiting_octets = 0
        self._stopping = False
        self._connection: sqlite3.Connection | None = None
        self._purged_at = clock() - PURGE_SECONDS
        self._loop = asyncio.get_running_loop()
        # A daemon, so that a program that forgets `stop` can still end.
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    async def stop(self) -> None:
        """Commit what waits, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, statement: str, values: _Values) -> Exception | None:
        """Have one statement committed: None when that is done, else why not."""
        # Text that cannot be stored is an error here, where it hurts nobody else's write.
        octets = sum(len(value.encode()) for value in values[:2]) + (len(values[2]) if len(values) == 4 else 0)
        if self._waiting >= MAX_WAITING or self._waiting_octets + octets > MAX_WAITING_OCTETS:
            return sqlite3.OperationalError("too much is waiting to be written")
        self._waiting += 1
        self._waiting_octets += octets
        write = _Write(statement, values, self._loop.create_future(), octets)
        self._queue.put(write)
        return await write.future

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            failure = self._attempt(partial(_execute, batch)) if batch else None
            try:
                self._loop.call_soon_threadsafe(self._answer, batch, failure)
            except RuntimeError:  # the loop was closed without `stop`: nobody waits any more
                break
            # Not within the time, or the clock was set back.
            if not 0 <= self._clock() - self._purged_at < PURGE_SECONDS:
                self._attempt(self._purge)
        if self._connection is not None:
            self._connection.close()

    def _answer(self, batch: list[_Write], failure: Exception | None) -> None:
        for write in batch:
            self._waiting -= 1
            self._waiting_octets -= write.octets
            if not write.future.done():  # whoever waited may be gone
                write.future.set_result(failure)

    def _next_batch(self) -> list[_Write] | None:
        """Everything that waits, at most _MAX_BATCH; empty when it is time to purge; None at the end."""
        if self._stopping:
            return None
        batch: list[_Write] = []
        try:
            write = self._queue.get(timeout=PURGE_SECONDS)
            while write is not None:
                batch.append(write)
                if len(batch) == _MAX_BATCH:
                    return batch
                write = self._queue.get_nowait()
        except Empty:
            return batch
        self._stopping = True
        return batch or None

    def _attempt(self, step: Callable[[sqlite3.Connection], None]) -> Exception | None:
        """Do something in one transaction; after a failure nothing of it is left, and the file is opened anew."""
        try:
            if self._connection is None:
                self._connection = _connect(self._path, _WRITE_PATIENCE)
                self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("BEGIN IMMEDIATE")
            step(self._connection)
            self._connection.execute("COMMIT")
        except Exception as exception:  # a bug of ours must not end the thread: everybody would wait for ever
            self.problem = exception
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()
            return exception
        self.problem = None
        return None

    def _purge(self, connection: sqlite3.Connection) -> None:
        now = self._clock()
        found = connection.execute(_PURGE, (now, PURGE_STEP)).rowcount
        self._purged_at = now - PURGE_SECONDS if found == PURGE_STEP else now  # with a full step there is more


@cache
def _any_of(spaces: int) -> str:
    # Half the time of "space IN (...)".
    return " UNION ALL ".join([_ANY] * spaces) + " LIMIT 1"


def _execute(batch: list[_Write], connection: sqlite3.Connection) -> None:
    for write in batch:
        connection.execute(write.statement, write.values)


def _connect(path: str, patience: float) -> sqlite3.Connection:
    # mode=rw: a file that somebody took away is an error, not a new file that everybody can read.
    return sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=patience, isolation_level=None)


def _number(path: str) -> tuple[int, int]:
    """What tells a file from all others that are there."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _prepare(path: str) -> None:
    """Make the file if it is missing, or check that it is ours and whole."""
    try:
        with _alone(path), closing(_connect(path, _WRITE_PATIENCE)) as connection:
            _check_owner(connection, path)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreError(f"{path} is on a filesystem without shared memory")
            connection.execute("BEGIN IMMEDIATE")
            if _is_new(connection):
                for statement in _TABLES:
                    connection.execute(statement)
            connection.execute("COMMIT")
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise StoreError(f"{path} is broken: {verdict}")
        if stat.S_IMODE(os.stat(path).st_mode) != 0o600:
            os.chmod(path, 0o600)
    except StoreError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """One process at a time: SQLite lets nobody wait who sets up the same file, and shows each half of it."""
    path = os.path.realpath(path)  # with O_EXCL a link counts as a file, also one to where there is none yet
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise StoreError(f"the directory {directory} does not exist")
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not os.path.exists(path):
            # Only then: closing any descriptor of a file drops the locks that SQLite holds in this process.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            os.fsync(descriptor)
        yield
    finally:
        os.close(descriptor)


def _check_owner(connection: sqlite3.Connection, path: str) -> None:
    application, version = _marks(connection)
    if application != APPLICATION_ID and not _is_new(connection):
        raise StoreError(f"{path} is a database of another program")
    if application == APPLICATION_ID and version != VERSION:
        raise StoreError(f"{path} was made by another version of smtpd ({version}, not {VERSION})")


def _is_new(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return _marks(connection) == (0, 0) and tables == 0


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _unusable(path: str, error: Exception) -> StoreError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(f"{path} cannot be used: {reason}")
