"""When waiting ends: the clock and the timers are the test's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from delivery_agents.connection import Connection
from delivery_agents.failures import TimedOut


class Loop:
    """Just what a connection needs of a loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self.timers.append((when, callback))
        return asyncio.get_running_loop().call_later(3600, callback)

    def go_to(self, now: float) -> None:
        """Call what is due, as after a time in which nothing ran."""
        self.now = now
        due, self.timers = [timer for timer in self.timers if timer[0] <= now], []
        for _, callback in due:
            callback()


async def waiting(loop: Loop) -> tuple[Connection, "asyncio.Task[Any]"]:
    connection = Connection(loop)  # type: ignore[arg-type]
    connection.wait_until(103.0)
    task = asyncio.create_task(connection.answer())
    await asyncio.sleep(0)
    return connection, task


@pytest.mark.parametrize("now", [103.0, 103.5, 130.0])
async def test_answer_that_came_while_the_process_was_stopped_is_heard(now: float) -> None:
    loop = Loop()
    connection, task = await waiting(loop)
    loop.go_to(now)
    connection.data_received(b"250 2.0.0 saved\r\n")
    assert (await task).code == 250


@pytest.mark.parametrize("now", [103.0, 130.0])
async def test_no_answer_is_no_answer_a_moment_later(now: float) -> None:
    loop = Loop()
    _, task = await waiting(loop)
    loop.go_to(now)
    loop.go_to(now + 6)
    with pytest.raises(TimedOut):
        await task


async def test_server_that_was_stopped_as_well_gets_some_time_to_answer() -> None:
    loop = Loop()
    connection, task = await waiting(loop)
    loop.go_to(110.0)
    loop.go_to(112.0)
    connection.data_received(b"250 2.0.0 saved\r\n")
    assert (await task).code == 250
