"""How a conversation ends other than by QUIT, and how a wait does.

Ended
  Disconnected    the client is gone
  TimedOut        it did not speak in time
  Draining        the server wants to stop
  Foreign         the client speaks something else than SMTP
Overrun           what was run goes on without us
"""

from __future__ import annotations

import asyncio
from typing import Any


class Ended(Exception):  # noqa: N818 - an event, not an error
    """The conversation cannot go on."""


class Disconnected(Ended):
    """The client is gone."""


class TimedOut(Ended):
    """The client did not speak in time; `too_slow`: it did, but below the minimum data rate."""

    def __init__(self, *, too_slow: bool = False) -> None:
        super().__init__()
        self.too_slow = too_slow


class Draining(Ended):
    """The server wants to stop, and this conversation is between two messages."""


class Foreign(Ended):
    """The client speaks `protocol`, not SMTP: whatever it says next is not to be taken for commands."""

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol


class Overrun(Exception):  # noqa: N818 - an event, not an error
    """What `Channel.run` ran was not done in time; it goes on in `task`."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__()
        self.task = task
