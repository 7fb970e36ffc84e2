"""Servers that read so slowly that a message takes longer than an answer may."""

import asyncio
from pathlib import Path

import pytest
from lmtp_store import LmtpStore

from smtpd import replies
from smtpd.model import Message
from smtpd.replies import Reply
from tests.delivery_agents.test_lmtp_transactions import ANN, Endless, agent_for, mail

BLOCKS = 32  # of 256 KiB
PIECES = 4 * BLOCKS  # of 64 KiB, which the server reads at a time; a few wait in the buffers between us


@pytest.mark.parametrize(
    ("seconds", "timeout", "outcome"),
    [(PIECES * 4, 100, replies.STORE_SAID), (PIECES * 40, 1000, replies.BACKEND_TIMEOUT)],
    ids=["longer than the timeout", "longer than an hour"],
)
async def test_server_that_reads_on_is_given_time_but_not_for_ever(
    directory: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, timeout: int, outcome: Reply
) -> None:
    loop, passed = asyncio.get_running_loop(), 0.0
    real = loop.time

    def read() -> None:
        nonlocal passed
        passed += seconds / PIECES

    async with LmtpStore(path=directory / "lmtp") as store, agent_for(store, delivery_timeout=timeout) as agent:
        delivery = agent.open(mail(recipients=[ANN]))
        assert await delivery.recipient(ANN) is None
        monkeypatch.setattr(loop, "time", lambda: real() + passed)
        store.on_piece = read
        said = await delivery.deliver(Message(Endless(BLOCKS)))
        assert isinstance(said, dict)
        assert said[ANN].key == outcome.key
        monkeypatch.undo()
