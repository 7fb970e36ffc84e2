"""Looks whether a file can still be opened: uvloop hangs up on whom it has no descriptor for, and tells nobody."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable

from smtpd.log import Log

LOOK_SECONDS = 1.0
COMPLAINT_SECONDS = 60.0  # between two lines about it


class DescriptorWatch:
    """One process. `clock` gives seconds."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._silent_until = -math.inf

    async def run(self) -> None:
        """Look every second, until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Say it at most once a minute."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:  # EMFILE of the process, or ENFILE of the system
            if self._clock() >= self._silent_until:
                self._silent_until = self._clock() + COMPLAINT_SECONDS
                self._log.error("no-descriptors", problem=error.strerror or str(error))
