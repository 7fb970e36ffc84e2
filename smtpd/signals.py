"""Signals that come before the event loop can take them.

By default each of them ends a process on the spot, and reading the programs and the configuration takes a
second. Imports next to nothing, so that this second is short.
"""

from __future__ import annotations

import signal
from types import FrameType

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_ALL = (*ENDING, signal.SIGHUP, signal.SIGUSR1)


class EarlySignals:
    """Within `with`, which belongs to the main thread, SIGTERM and SIGINT exit with status 0; the others are noted.

    When it is left because one of those came, all are ignored: one more is to change nothing about how it ends.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.is_over = False
        """The process ends because it was told to."""
        self._may_exit = True

    def __enter__(self) -> EarlySignals:
        self._before = {number: signal.signal(number, self._take) for number in _ALL}
        return self

    def __exit__(self, *_: object) -> None:
        self._may_exit = False
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.is_over else handler)

    def hold(self) -> None:
        """Have all of them noted from now on: the event loop is being made, and its first task looks at `seen`."""
        self._may_exit = False

    def _take(self, number: int, _: FrameType | None) -> None:
        self.seen.add(number)
        if self._may_exit and number in ENDING:
            self.is_over = True
            raise SystemExit(0)
