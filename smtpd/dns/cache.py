"""Answers by name and type until their time is over; bounded, and no clock of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from smtpd.dns.answer import TYPES, Answer, size_of

Key = tuple[str, str]
"""Name in lower case without its last dot, and type."""

OCTETS_PER_ENTRY = 512
_CHANCES = 16  # entries passed over for one that nobody asked for, so that making room takes no longer than this


def cost_of(answer: Answer) -> int:
    """How many entries an answer counts as."""
    return 1 + size_of(answer) // OCTETS_PER_ENTRY


class _Entry:
    __slots__ = ("answer", "cost", "expires", "gone", "used")

    def __init__(self, answer: Answer, expires: float, gone: float) -> None:
        self.answer = answer
        self.expires = expires
        self.gone = gone
        self.cost = cost_of(answer)
        self.used = False


class Cache:
    """Holds `capacity` answers. Where there is no room, the oldest goes that was not asked for again.

    `clock` gives seconds of a steady clock; `stale` is how many seconds answers stay for emergencies.
    """

    __slots__ = ("_clock", "_entries", "_stale", "_taken", "capacity")

    def __init__(self, capacity: int, clock: Callable[[], float], *, stale: float = 0.0) -> None:
        self.capacity = capacity
        self._clock = clock
        self._stale = stale
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def taken(self) -> int:
        """How much of `capacity` is used."""
        return self._taken

    def get(self, key: Key) -> Answer | None:
        """The answer, as long as its time is not over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() < entry.expires:
            entry.used = True
            return entry.answer
        if self._clock() >= entry.gone:
            self._remove(key)
        return None

    def put(self, key: Key, answer: Answer, seconds: float) -> None:
        """Keep an answer for that long, in place of an older one; with 0 seconds, or too big, it is not kept."""
        now = self._clock()
        keeps = self._stale if answer.status != "tempfail" else 0.0
        self._insert(key, _Entry(answer, now + seconds, now + seconds + keeps) if seconds > 0 else None)

    def revive(self, key: Key, seconds: float) -> Answer | None:
        """Let an answer whose time is over count once more for that long, if it is still there."""
        entry = self._entries.get(key)
        now = self._clock()
        if entry is None or now >= entry.gone or entry.answer.status == "tempfail":
            return None
        answer = entry.answer if now < entry.expires else replace(entry.answer, ttl=seconds, stale=True)
        if answer is not entry.answer:
            self._insert(key, _Entry(answer, min(now + seconds, entry.gone), entry.gone))
        return answer

    def flush(self, name: str | None = None) -> int:
        """Forget everything about a name (lower case, no last dot), or everything; how many answers that were."""
        doomed = list(self._entries) if name is None else [(name, kind) for kind in TYPES]
        return sum(self._remove(key) for key in doomed)

    def _insert(self, key: Key, entry: _Entry | None) -> None:
        self._remove(key)
        if entry is None or entry.cost > self.capacity:
            return
        while self._taken + entry.cost > self.capacity:
            self._evict()
        self._entries[key] = entry
        self._taken += entry.cost

    def _evict(self) -> None:
        now = self._clock()
        for _ in range(_CHANCES):
            key, entry = next(iter(self._entries.items()))
            if not entry.used or now >= entry.expires:
                break
            entry.used = False
            self._entries.move_to_end(key)
        self._remove(next(iter(self._entries)))

    def _remove(self, key: Key) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._taken -= entry.cost
        return True
