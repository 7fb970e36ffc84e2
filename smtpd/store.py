"""Small state that expires: octets by space and key, in memory or in a file.

What must outlive a session is kept here and nowhere else, so that processes can share it. A space belongs to
one user of the store ("delivered", "refused" of the journal), who may have very many with a few values each: whether
one is empty is the question that costs least. Keys are short and say nothing about people; whoever puts decides how
long a value lives. Which backend holds it is the operator's choice (`state.py`).

OSError
  StoreError    the store cannot be used: a full or read-only disk, a file that is not ours
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sized
from typing import Protocol

MAX_VALUE = 1 << 20  # octets of one value
MAX_OCTETS = 64 << 20  # of all values in memory
_SLACK = 1000  # outdated notes about expiry that are not worth tidying up


class StoreError(OSError):
    """The store could not do what it was asked; whoever asked decides what that means for the mail."""


class Store(Protocol):
    """What every backend does. All methods belong to one event loop."""

    @property
    def entries(self) -> Sized:
        """Something to keep: while its length is 0 nothing is kept here, and `is_empty` need not be asked.

        A backend that others put something into has a length always.
        """

    async def start(self) -> None:
        """Get ready; StoreError when that is not possible, in words for the operator."""

    async def stop(self) -> None:
        """Finish what has begun and give everything back."""

    async def health(self) -> str | None:
        """None when values can be kept, else one sentence saying why not."""

    async def get(self, space: str, key: str) -> bytes | None:
        """The value, None when there is none or it has expired; StoreError."""

    async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """Keep a value (at most MAX_VALUE octets, else ValueError) that long, in place of an older one.

        When this returns, a backend that is durable has the value on disk. StoreError: it may be kept or not.
        """

    async def delete(self, space: str, key: str) -> None:
        """Forget a value, if there is one; StoreError."""

    def is_empty(self, *spaces: str) -> bool:
        """True only if it is certain that nothing is in these spaces; cheap, and never an exception."""


class MemoryStore:
    """For one process; everything is gone when it ends.

    `clock` gives seconds. With more than `max_entries` values, or more than `max_octets` of them in all, those
    that were put first go.
    """

    def __init__(self, clock: Callable[[], float], max_entries: int = 100_000, *, max_octets: int = MAX_OCTETS) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._octets = 0
        self._entries: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._sizes: dict[str, int] = {}  # number of entries by space
        self._deadlines: list[tuple[float, tuple[str, str]]] = []  # a heap; entries that were replaced linger

    @property
    def entries(self) -> Sized:
        """See Store; what has expired lingers."""
        return self._entries

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    async def start(self) -> None:
        """There is nothing to get ready."""

    async def stop(self) -> None:
        """There is nothing to give back."""

    async def health(self) -> str | None:
        """Memory is always there."""
        return None

    async def get(self, space: str, key: str) -> bytes | None:
        """See Store."""
        entry = self._entries.get((space, key))
        return entry[1] if entry is not None and entry[0] > self._clock() else None

    async def put(self, space: str, key: str, value: bytes, seconds: float) -> None:
        """See Store."""
        check_value(value)
        self._expire()
        name, deadline = (space, key), self._clock() + seconds
        self._remove(name)
        self._entries[name] = deadline, value
        self._sizes[space] = self._sizes.get(space, 0) + 1
        self._octets += len(value)
        heapq.heappush(self._deadlines, (deadline, name))
        while len(self._entries) > self._max_entries or self._octets > self._max_octets:
            self._remove(next(iter(self._entries)))
        if len(self._deadlines) > 2 * len(self._entries) + _SLACK:
            self._deadlines = [(entry[0], name) for name, entry in self._entries.items()]
            heapq.heapify(self._deadlines)

    async def delete(self, space: str, key: str) -> None:
        """See Store."""
        self._remove((space, key))

    def is_empty(self, *spaces: str) -> bool:
        """See Store."""
        if not self._sizes:
            return True
        self._expire()
        return self._sizes.keys().isdisjoint(spaces)

    def _expire(self) -> None:
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            name = heapq.heappop(self._deadlines)[1]
            if name in self._entries and self._entries[name][0] <= now:
                self._remove(name)

    def _remove(self, name: tuple[str, str]) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        self._octets -= len(entry[1])
        self._sizes[name[0]] -= 1
        if not self._sizes[name[0]]:
            del self._sizes[name[0]]


def check_value(value: bytes) -> None:
    """ValueError for a value that no backend takes."""
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value of {len(value)} octets is too big to be kept")
