"""Looks whether what is kept can still be relied on, also while nobody writes, and tells the operator when not."""

from __future__ import annotations

import asyncio

from smtpd.log import Log
from smtpd.metrics import Gauge, Metrics
from smtpd.store import Store

LOOK_SECONDS = 5.0

STATE_BROKEN = Gauge("smtpd_state_broken", "1 while [smtpd.state] keeps nothing, or nothing beyond a restart; else 0.")


class StoreWatch:
    """One store, from its start to its stop."""

    def __init__(self, store: Store, log: Log, metrics: Metrics) -> None:
        self._store = store
        self._log = log
        self._gauge = metrics.gauge(STATE_BROKEN).labels()
        self._is_broken = False

    async def run(self) -> None:
        """Look every few seconds, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Say once that it is broken, and once that it is over."""
        problem = await self._store.health()
        if problem is not None and not self._is_broken:
            self._log.error("state-broken", problem=problem)
        if problem is None and self._is_broken:
            self._log.info("state-works")
        self._is_broken = problem is not None
        self._gauge.set(float(self._is_broken))
