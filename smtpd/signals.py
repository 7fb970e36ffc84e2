"""Signals that come before the event loop can take them.

By default each of them ends a process on the spot, and reading the programs and the configuration takes a
second. Imports next to nothing, so that this second is short.
"""

from __future__ import annotations

import atexit
import os
import signal
from types import FrameType

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_ALL = (*ENDING, signal.SIGHUP, signal.SIGUSR1)


class EarlySignals:
    """Within `with`, which belongs to the main thread, SIGTERM and SIGINT exit with status 0; the others are noted.

    When it is left because one of those came, they end the process at once, also with status 0, should a thread
    of somebody else's keep it; the others are ignored.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.is_over = False
        """The process ends because it was told to."""
        self._may_exit = True
        self._was_told = False

    def __enter__(self) -> EarlySignals:
        self._before = {number: signal.signal(number, self._take) for number in _ALL}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._may_exit = False
        if self.is_over:
            for number in _ALL:
                signal.signal(number, _exit if number in ENDING else signal.SIG_IGN)
            atexit.register(_ignore)  # behind that Python takes its handlers away, and needs a moment to end
            if self._was_told and kind is not None:
                # What was interrupted may have made an error of it; pydantic does while it builds a model.
                raise SystemExit(0) from None
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Have all of them noted from now on: the event loop is being made, and its first task looks at `seen`."""
        self._may_exit = False

    def _take(self, number: int, _: FrameType | None) -> None:
        self.seen.add(number)
        if self._may_exit and number in ENDING:
            self.is_over = self._was_told = True
            raise SystemExit(0)


def _exit(*_: object) -> None:
    os._exit(0)


def _ignore() -> None:
    for number in _ALL:
        signal.signal(number, signal.SIG_IGN)
