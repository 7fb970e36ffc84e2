"""A circuit breaker: after several failures in a row nobody waits any more; now and then one attempt looks again."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Closed: everything passes. Open: one attempt passes every `seconds`, until one succeeds.

    `changed` hears True when it opens and False when it closes; `clock` gives monotonic seconds.
    """

    __slots__ = ("_changed", "_clock", "_failures", "_limit", "_next", "_seconds", "is_open")

    def __init__(
        self, *, limit: int, seconds: float, clock: Callable[[], float], changed: Callable[[bool], None]
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._changed = changed
        self._failures = 0
        self._next = 0.0
        self.is_open = False

    def admits(self) -> bool:
        """Whether an attempt may be made now. Whoever was let through while it is open need not say how it went."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    def failed(self) -> None:
        """An attempt failed."""
        self._failures += 1
        if self._failures < self._limit and not self.is_open:
            return
        self._next = self._clock() + self._seconds
        if not self.is_open:
            self.is_open = True
            self._changed(True)

    def succeeded(self) -> None:
        """An attempt succeeded."""
        self._failures = 0
        if self.is_open:
            self.is_open = False
            self._changed(False)
