"""What was said in one turn of the event loop leaves at its end, all together.

A client that waits for its reply sleeps, and to wake it up takes longer than to send it. Where replies leave one
behind the other, a busy peer is still awake for the next one; where each leaves behind its own command, none is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd.channel import Channel


class Outbox:
    """The channels of one listener that have something to say."""

    __slots__ = ("_channels",)

    def __init__(self) -> None:
        self._channels: list[Channel] = []

    def add(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        """Let it be flushed at the end of this turn."""
        if not self._channels:
            loop.call_soon(self._send, loop)
        self._channels.append(channel)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        channels, self._channels = iter(self._channels), []
        try:
            for channel in channels:
                channel.flush()
        finally:  # should one of them break, the others are not to blame
            for channel in channels:
                self.add(channel, loop)
