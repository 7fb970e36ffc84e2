"""The place of the file: links, and what comes of it when somebody takes it away."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from manual_clock import ManualClock

from smtpd import sqlite_store
from smtpd.sqlite_store import SqliteStore
from smtpd.store import StoreError


async def test_a_file_is_made_where_a_link_leads(tmp_path: Path) -> None:
    path, target = str(tmp_path / "link.db"), tmp_path / "elsewhere"
    os.symlink(target / "state.db", path)
    store = SqliteStore(path, ManualClock())
    with pytest.raises(StoreError, match=f"the directory {target} does not exist"):
        await store.start()
    os.mkdir(target)
    await store.start()
    await store.put("a", "key", b"value", 10.0)
    await store.stop()
    assert os.readlink(path) == str(target / "state.db")
    assert os.stat(target / "state.db").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("end", ["moved", "deleted", "replaced"])
async def test_a_file_that_is_not_where_it_was_is_told_and_written_on(tmp_path: Path, end: str) -> None:
    path, aside = str(tmp_path / "state.db"), tmp_path / "aside"
    store = SqliteStore(path, ManualClock())
    await store.start()
    await store.put("a", "key", b"old", 10)
    assert await store.get("a", "key") == b"old"
    assert await store.health() is None
    os.rename(path, aside)
    if end == "deleted":
        os.unlink(aside)
    elif end == "replaced":
        shutil.copy(aside, path)
    assert "moved, deleted or replaced: what is kept is lost" in str(await store.health())
    await store.put("a", "key", b"new", 10)
    assert await store.get("a", "key") == b"new"
    if end == "moved":
        os.rename(aside, path)
        assert await store.health() is None
    await store.stop()


async def test_a_file_that_was_taken_away_is_not_made_anew_behind_our_back(tmp_path: Path) -> None:
    path = str(tmp_path / "state.db")
    store = SqliteStore(path, ManualClock())
    await store.start()
    await store.stop()
    os.unlink(path)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        sqlite_store._connect(path, 0.0)
    assert os.listdir(tmp_path) == []
