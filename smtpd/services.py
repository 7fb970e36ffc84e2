"""What the server hands to every filter, agent and provider: nothing is global."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd.dns import LimitedResolver, Resolver
from smtpd.store import MemoryStore, Store
from smtpd.zone import Zone

if TYPE_CHECKING:
    from smtpd.log import Log
    from smtpd.metrics import Metrics
    from smtpd.model import Transaction


@dataclass(frozen=True, slots=True)
class Services:
    """The surroundings of a plug-in."""

    hostname: str
    log: Log
    metrics: Metrics
    store: Store = field(default_factory=lambda: MemoryStore(time.monotonic))
    """What outlives a connection; see `[smtpd.state]`."""
    resolver: Resolver = field(default_factory=Zone)
    """Answers questions about a connection. About a message, ask `lookups`."""
    lookups_per_message: int = 0
    """See `[smtpd.dns]`."""
    authserv_id: str = ""
    """Who we are in Authentication-Results; empty: `hostname`."""
    local_domains: tuple[str, ...] = ()
    """Keys of `[smtpd.domains]`, domains as A-labels: "example.com", "*.example.com" or "*"."""
    subaddress_separator: str = "+"
    """See `[smtpd]`; empty: addresses have no details."""
    now: Callable[[], float] = time.time
    """What time it is, seconds since 1970; ask here, so that a run can be repeated (`smtpd explain --time`)."""
    is_rehearsal: bool = False
    """Mail is only played (`smtpd explain`, `smtpd test`): write, send and remember nothing outside of `store`."""

    def lookups(self, mail: Transaction) -> Resolver:
        """The resolver for one message: all its filters share one limit."""
        limited = mail.facts.get(LimitedResolver)
        if limited is None:
            limited = LimitedResolver(self.resolver, self.lookups_per_message, self.metrics)
            mail.facts.add(limited)
        return limited
