"""How a conversation waits for a task, and what becomes of one that does not end when it is cancelled.

Filters and agents are somebody else's, and may swallow their CancelledError. Nothing can stop such a task; but the
client it was for is gone, and must not count as a connection for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from types import coroutine
from typing import Any

DEAF_SECONDS = 5.0  # that a task may take to end once it was cancelled


@coroutine
def wait_for(wanted: object) -> Generator[object, None, None]:
    """Give way to whoever advances the conversation, until what is wanted is there."""
    yield wanted


def cancel(
    task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop, *, otherwise: Callable[[asyncio.Task[Any]], None]
) -> None:
    """Cancel a task; `otherwise` is called when it goes on all the same, and the log says where it is."""
    task.cancel()
    look = loop.call_later(DEAF_SECONDS, _look, task, otherwise)
    task.add_done_callback(lambda _: look.cancel())  # or everything the client had would stay that much longer


def _look(task: asyncio.Task[Any], otherwise: Callable[[asyncio.Task[Any]], None]) -> None:
    if not task.done():
        complain(task)
        otherwise(task)


def complain(task: asyncio.Task[Any]) -> None:
    """Say in the log where somebody's task is that did not end when it was cancelled."""
    text = f"{_place(task)} goes on although it was cancelled: it has to let CancelledError through"
    asyncio.get_running_loop().call_exception_handler({"message": text})


def _place(task: asyncio.Task[Any]) -> str:
    """Where a task waits, from the outermost coroutine to the innermost."""
    coroutines: list[Any] = [task.get_coro()]
    while hasattr(inner := getattr(coroutines[-1], "cr_await", None), "cr_await"):
        coroutines.append(inner)
    return " > ".join(getattr(one, "__qualname__", type(one).__name__) for one in coroutines)
