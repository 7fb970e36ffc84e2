"""A program that ended while nobody looked."""

import os
from collections.abc import Iterable

import pytest

from delivery_agents.child import Child
from delivery_agents.pipe import Pipe
from smtpd.memory import MemoryServer


@pytest.mark.parametrize(("code", "reply"), [("0", "250 "), ("75", "451 "), ("67", "550 5.1.1")])
async def test_program_that_ended_while_the_process_was_stopped_has_not_overrun(
    monkeypatch: pytest.MonkeyPatch, code: str, reply: str
) -> None:
    feed = Child.feed

    async def feed_and_stand_still(child: Child, pieces: Iterable[bytes]) -> None:
        await feed(child, pieces)
        os.waitid(os.P_PID, child._process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it is what is tested
        raise TimeoutError  # timers come first

    monkeypatch.setattr(Child, "feed", feed_and_stand_still)
    command = ["/bin/sh", "-c", f"cat >/dev/null; exit {code}"]
    async with MemoryServer(agents={"pipe": (Pipe, {"command": command})}) as server:
        said = (await (await server.connect()).send("Subject: hello\n\nbody\n"))[-1]
    assert said.startswith(reply)
