"""What the operator hears of a store that cannot be relied on any more."""

import asyncio
import os
from pathlib import Path

import pytest
from log_lines import Lines
from manual_clock import ManualClock

from smtpd import store_watch
from smtpd.config import LogOptions, from_tables
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.server import Server
from smtpd.store import MemoryStore
from smtpd.store_watch import STATE_BROKEN, StoreWatch


class Patient(MemoryStore):
    problem: str | None = None

    async def health(self) -> str | None:
        return self.problem


async def test_each_end_of_trouble_is_told_once() -> None:
    lines, metrics, store = Lines(), Metrics(), Patient(ManualClock())
    log = Log(LogOptions(), sink=lines)
    watch, gauge = StoreWatch(store, log, metrics), metrics.gauge(STATE_BROKEN).labels()
    for problem, value in ((None, 0), ("gone", 1), ("still gone", 1), (None, 0), (None, 0)):
        store.problem = problem
        await watch.look()
        assert gauge.value == value
    log.flush()
    assert [(line["level"], line["event"], line.get("problem")) for line in lines.entries] == [
        ("error", "state-broken", "gone"),
        ("info", "state-works", None),
    ]


async def test_server_tells_that_its_state_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_watch, "LOOK_SECONDS", 0.001)
    lines, path = Lines(), tmp_path / "state.db"
    tables = {
        "hostname": "mx.test",
        "postmaster": "ann@example.test",
        "domains": {"example.test": "nowhere"},
        "agents": {"nowhere": {"type": "discard", "allow_discard": True}},
        "state": {"url": f"sqlite:{path}"},
        "metrics": {"enabled": False},
    }
    async with Server(from_tables(tables), log=Log(LogOptions(), sink=lines)), asyncio.timeout(20):
        os.unlink(path)
        while not any(line["event"] == "state-broken" for line in lines.entries):  # noqa: ASYNC110 - the log has no event
            await asyncio.sleep(0.001)
    assert [line["event"] for line in lines.entries].count("state-broken") == 1
