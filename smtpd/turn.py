"""One turn of the event loop: what came in it is handled behind all reading, and answered behind all handling.

A client that waits for its reply sleeps, and to wake it up takes longer than to send it. Where replies leave one
behind the other, a busy peer is still awake for the next one; where each leaves behind its own command, none is.
And whoever handles one command behind the other finds more of his tools at hand than after each trip to the kernel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class Speaker(Protocol):
    """What takes part in a turn: a channel."""

    def go_on(self) -> None:
        """Handle what came in this turn."""

    def flush(self) -> None:
        """Send what was said in this turn."""


class Turn:
    """The channels of one listener that have heard something, and those that have something to say."""

    __slots__ = ("_hearing", "_is_due", "_speaking")

    def __init__(self) -> None:
        self._hearing: deque[Speaker] = deque()
        self._speaking: deque[Speaker] = deque()
        self._is_due = False

    def hears(self, channel: Speaker, loop: asyncio.AbstractEventLoop) -> None:
        """Let it go on when all octets of this turn are there."""
        self._hearing.append(channel)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._end, loop)

    def speaks(self, channel: Speaker, loop: asyncio.AbstractEventLoop) -> None:
        """Let it be flushed at the end of this turn."""
        self._speaking.append(channel)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._hearing:
                self._hearing.popleft().go_on()
            while self._speaking:
                self._speaking.popleft().flush()
        finally:
            self._is_due = bool(self._hearing or self._speaking)
            if self._is_due:  # one of them broke, and the others are not to blame
                loop.call_soon(self._end, loop)
