"""A few threads for checks that block or burn CPU, and a bounded queue before them that clients share fairly."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from smtpd.limits import client_of

CLIENT: ContextVar[str | None] = ContextVar("client", default=None)
"""Address of the client that is worked for, None for nobody in particular. Whoever asks a provider sets it, so
that a provider has the shares kept without knowing of them.
"""
SHARE = 3
"""A client that has work in progress takes another place only while it holds less than this many times what is
left then. Alone it gets three quarters of all: most of them for a webmail server that logs in for everybody from
127.0.0.1, and yet room for everybody else. The last place is only for who has none. Those who want all they can
get end up with equal shares, and no place stays empty for a client that is not there.
"""

_Client = str | bytes | None


class Busy(Exception):  # noqa: N818 - a state, not a mistake
    """More work waits than we let wait, or more of one client than its share: it may try again."""


class Workers:
    """Runs what blocks: `threads` at the same time, and `waiting` more may wait for their turn.

    A flood of logins must cost neither the event loop nor memory: what does not fit raises Busy. Nor may it keep
    others out: clients (limits.py tells them apart) share the places, and their turns go round.
    """

    def __init__(self, name: str, *, threads: int = 2, waiting: int = 64) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._idle = threads
        self._free = threads + waiting
        self._held: dict[_Client, int] = {}
        self._waiting: dict[_Client, deque[_Job[Any]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    async def run[T](self, work: Callable[[], T]) -> T:
        """Call `work` in a thread and return its result; work that still waits goes when the caller does."""
        ip = CLIENT.get()
        job = _Job(None if ip is None else client_of(ip), work)
        self._enter(job)
        job.future.add_done_callback(lambda _: self._leave(job))
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and not (caller is not None and caller.cancelling()):
                raise Busy from None  # `close` dropped the work; nobody asked the caller to end
            raise

    def close(self) -> None:
        """Let what runs finish in its thread, drop what waits: its callers see Busy, and so do later ones."""
        with self._lock:
            self._closed = True
            dropped = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
        for job in dropped:
            job.future.cancel()
        self._pool.shutdown(wait=False)

    def _enter(self, job: _Job[Any]) -> None:
        with self._lock:
            held = self._held.get(job.client, 0)
            if self._closed or not self._may_have_another(job.client, held):
                raise Busy
            if self._idle:
                self._pool.submit(self._work)
                self._idle -= 1
            self._free -= 1
            self._held[job.client] = held + 1
            self._waiting.setdefault(job.client, deque()).append(job)

    def _may_have_another(self, client: _Client, held: int) -> bool:
        left = self._free - 1
        return left >= 0 and (client is None or held == 0 or held < SHARE * left)

    def _leave(self, job: _Job[Any]) -> None:
        with self._lock:
            self._free += 1
            self._held[job.client] -= 1
            if not self._held[job.client]:
                del self._held[job.client]
            if (jobs := self._waiting.get(job.client)) and job in jobs:  # its caller is gone
                jobs.remove(job)
                if not jobs:
                    del self._waiting[job.client]

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job.run()

    def _next(self) -> _Job[Any] | None:
        with self._lock:
            if not self._waiting:
                self._idle += 1
                return None
            client = next(iter(self._waiting))
            jobs = self._waiting.pop(client)
            job = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # behind all others: who asks for much waits for himself
            return job


@dataclass(slots=True, eq=False)
class _Job[T]:
    client: _Client
    work: Callable[[], T]
    future: Future[T] = field(default_factory=Future)

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # it is the caller's
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
