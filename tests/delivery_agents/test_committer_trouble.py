"""Disks that hang, and file systems that complain late."""

import asyncio
import errno
import os
import platform
import threading
from pathlib import Path

import pytest

from smtpd import replies
from tests.delivery_agents.conftest import Start, deliver, events, stored


async def test_file_whose_closing_fails_does_not_end_the_thread(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await start()
    close, full = os.close, set[int]()

    def fail_to_write(descriptor: int, pieces: object) -> int:
        full.add(descriptor)
        raise OSError(errno.EDQUOT, "full")

    def close_and_complain(descriptor: int) -> None:  # as NFS does it
        close(descriptor)
        if descriptor in full:
            full.discard(descriptor)
            raise OSError(errno.EDQUOT, "still full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail_to_write)
        patch.setattr(os, "close", close_and_complain)
        async with asyncio.timeout(30):
            assert await deliver(agent, "bob@example.com") is replies.NO_SPACE
    assert f"'mailboxes': ['{tmp_path}/mail/example.com/bob'], 'problem': 'full'" in events(agent)[0]
    assert await agent.health() is None
    assert await deliver(agent, "bob@example.com") is replies.ACCEPTED
    assert not stored(tmp_path, "tmp")


async def test_disk_that_hangs_does_not_keep_the_process_from_ending(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "unknown")
    agent = await start()
    await deliver(agent, "bob@example.com")
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: begun.set() or go_on.wait(30) or None)
    delivery = asyncio.create_task(deliver(agent, "bob@example.com"))
    while not begun.is_set():  # noqa: ASYNC110 - it happens in a thread
        await asyncio.sleep(0)
    stopping = asyncio.create_task(agent.stop())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [thread for thread in threading.enumerate() if not thread.daemon] == [threading.main_thread()]
    assert not stopping.done()
    go_on.set()
    await stopping
    assert await delivery is replies.ACCEPTED
