"""A store that may fail, and a small memory for what it did not take: for those who can do without, but not well."""

from __future__ import annotations

from collections.abc import Callable

from smtpd.log import Log
from smtpd.store import MemoryStore, Store

MAX_SPARE = 1000  # values that the store did not take; the oldest go
COMPLAINT_SECONDS = 60.0  # between two lines about a store that fails


class Notebook:
    """What is in the spare memory hides what is in the store. An empty value stands for none; `clock` gives seconds."""

    def __init__(self, store: Store, log: Log, clock: Callable[[], float]) -> None:
        self._store = store
        self._spare = MemoryStore(clock, MAX_SPARE)
        self.pages = (self._spare.entries, store.entries)
        """While each has the length 0 nothing is known: see `Store.entries`."""
        self._log = log
        self._clock = clock
        self._complained: float | None = None
        self._failures = 0

    def is_empty(self, *spaces: str) -> bool:
        """True only if it is certain that nothing is known; cheap."""
        return self._spare.is_empty(*spaces) and self._store.is_empty(*spaces)

    async def read(self, space: str, key: str) -> bytes | None:
        """The value; StoreError when it is not known here and the store cannot be read."""
        spare = await self._spare.get(space, key)
        return spare if spare is not None else await self._store.get(space, key)

    async def write(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """Keep a value, or with an empty one nothing; StoreError when the store did not take it."""
        if value and seconds > 0:
            await self._store.put(space, key, value, seconds)
        else:
            await self._store.delete(space, key)
        await self._spare.delete(space, key)

    async def write_or_spare(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """Keep a value, if need be in memory only."""
        try:
            await self.write(space, key, value, seconds)
        except OSError as error:
            self.complain(error)
            await self.spare(space, key, value, seconds)

    async def spare(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """Keep a value in memory, whatever the store holds; never fails and never waits."""
        await self._spare.put(space, key, value, seconds)

    def complain(self, error: OSError) -> None:
        """Log that the store failed, at most once a minute."""
        self._failures += 1
        now = self._clock()
        if self._complained is None or now - self._complained >= COMPLAINT_SECONDS:
            self._log.warning("journal-failed", problem=str(error), failures=self._failures)
            self._complained, self._failures = now, 0
