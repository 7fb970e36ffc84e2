"""What the server hands to every filter, agent and provider: nothing is global."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd.store import MemoryStore, Store

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Services:
    """The surroundings of a plug-in; later rooms (a resolver) join here."""

    hostname: str
    log: Log
    metrics: Metrics
    store: Store = field(default_factory=lambda: MemoryStore(time.monotonic))
    """What outlives a connection; see `[smtpd.state]`."""
