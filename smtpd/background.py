"""What runs beside the conversations: work that nobody waits for, and watches, which have no end of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from smtpd.log import Log


class Background:
    """The tasks of one server, from its start to its stop. What breaks in them is logged."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._work: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something that `finish` waits for."""
        self._begin(work, self._work)

    def watch(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin something that goes on until `stop_watching`."""
        self._begin(work, self._watches)

    async def stop_watching(self) -> None:
        """End the watches."""
        watches = tuple(self._watches)
        for watch in watches:
            watch.cancel()
        if watches:
            await asyncio.wait(watches)

    async def finish(self, seconds: float) -> None:
        """Wait for the work, no longer than that."""
        if self._work:
            await asyncio.wait(self._work, timeout=seconds)

    def _begin(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        try:
            task = asyncio.create_task(work)
        except RuntimeError:  # the event loop is gone, and so is the server
            work.close()
            return
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("our-fault", exception=error)
