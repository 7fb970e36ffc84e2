"""Work on big messages of DKIM and ARC: in a thread, a slice at a time, and then it is the turn of another message.

A thread that computes can hold the event loop up for sys.getswitchinterval(), 5 ms, and several do so one after the
other: so only one computes at a time. In slices, since whoever sends many big messages at once would have everybody
else wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial


class Turns:
    """Messages that are worked on at the same time; each gets as many turns as the others."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)  # it lets them in as they came

    async def take[Found](self, work: Callable[[], Found]) -> Found:
        """Do all of something in one turn."""
        async with self._turn:
            return await asyncio.to_thread(work)

    async def finish[Found](self, steps: Generator[None, None, Found]) -> Found:
        """Take turns until the work is done; when that is cancelled, the slice that has begun is still finished."""
        while True:
            done = await self.take(partial(_step, steps))
            if done is not None:
                return done[0]


def finish_at_once[Found](steps: Generator[None, None, Found]) -> Found:
    """Do all of the work here and now."""
    while True:
        done = _step(steps)
        if done is not None:
            return done[0]


def _step[Found](steps: Generator[None, None, Found]) -> tuple[Found] | None:
    """One slice; the result when it was the last."""
    try:
        next(steps)
    except StopIteration as end:
        found: Found = end.value
        return (found,)
    return None
