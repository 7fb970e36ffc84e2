"""Coroutines of others, so many at once and for so long: in the event loop, or in threads with loops of their own.

TimeoutError
  Queued     there was no free place in time: nothing has begun
  Overrun    it has begun and did not end in time: nobody knows what came of it
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

type Begin = Callable[[], Awaitable[object]]


class Queued(TimeoutError):  # noqa: N818 - reads as what happened
    """Nothing has begun."""


class Overrun(TimeoutError):  # noqa: N818
    """Something has begun, and may still go on."""


class Calls:
    """At most `limit` at once. In threads they end when they want to, in the event loop they are cancelled."""

    def __init__(self, *, limit: int, in_threads: bool) -> None:
        self._limit = limit
        self._in_threads = in_threads
        self._places = asyncio.Semaphore(limit)
        self._deadlines: dict[asyncio.Task[object], float] = {}

    async def run(self, begin: Begin, seconds: float) -> object:
        """What the coroutine returns or raises; Queued or Overrun after so many seconds.

        Once begun it is not cancelled with the caller.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise Queued(f"all {self._limit} calls were busy for {seconds:g} s") from None
        work = self._work_in_thread(begin) if self._in_threads else _work(begin)
        task = asyncio.ensure_future(work)
        self._deadlines[task] = deadline
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=deadline - loop.time())
        if done:
            return task.result()
        if not self._in_threads:
            task.cancel()
        raise Overrun(f"a call did not end within {seconds:g} s")

    async def finish(self) -> None:
        """Wait for all that is still within its time."""
        if self._deadlines:
            seconds = max(self._deadlines.values()) - asyncio.get_running_loop().time()
            await asyncio.wait(set(self._deadlines), timeout=max(seconds, 0.0))

    def _ended(self, task: asyncio.Task[object]) -> None:
        del self._deadlines[task]
        self._places.release()
        if not task.cancelled():
            task.exception()  # looked at, should nobody be waiting any more

    async def _work_in_thread(self, begin: Begin) -> object:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[object] = loop.create_future()

        def tell(result: object, failure: BaseException | None) -> None:
            if ended.done():
                return
            if failure is not None:
                ended.set_exception(failure)
            else:
                ended.set_result(result)

        def run() -> None:
            result: object = None
            failure: BaseException | None = None
            try:
                result = asyncio.run(_work(begin))
            except BaseException as error:
                failure = error
            with suppress(RuntimeError):  # the server has stopped meanwhile
                loop.call_soon_threadsafe(tell, result, failure)

        # A thread of an executor would keep the process from ending as long as the call does not return.
        threading.Thread(target=run, name="handler", daemon=True).start()
        return await ended


async def _work(begin: Begin) -> object:
    try:
        return await begin()
    except SystemExit as error:
        raise RuntimeError("it called sys.exit()") from error  # which would end the server
