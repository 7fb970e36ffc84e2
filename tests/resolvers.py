"""Resolvers that count, or do what no resolver should, for tests of filters that ask one."""

import asyncio
import contextlib
from collections.abc import Mapping

from smtpd.dns import Answer, Type
from smtpd.dns.answer import tempfail
from smtpd.zone import Zone


class Counting(Zone):
    """Knows nothing at once, and notes what is asked."""

    def __init__(self, tables: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__(tables, cached=False)
        self.asked: list[str] = []

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append(name)
        return await super().resolve(name, kind, timeout)


class Broken(Zone):
    """Raises where a resolver never would."""

    def peek(self, name: str, kind: Type) -> Answer | None:
        raise RuntimeError("broken")


class Silent(Zone):
    """Never answers."""

    def peek(self, name: str, kind: Type) -> Answer | None:
        return None

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


class Slow(Silent):
    """Has no answer when the time is over."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(super().resolve(name, kind), timeout)
        return tempfail("timeout")


class SlowAbout(Slow):
    """Has no answer in time about the names below one, and knows all others."""

    slow = "evil.example"

    def peek(self, name: str, kind: Type) -> Answer | None:
        return None if self._is_slow(name) else Zone.peek(self, name, kind)

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        if self._is_slow(name):
            return await super().resolve(name, kind, timeout)
        return await Zone.resolve(self, name, kind, timeout)

    def _is_slow(self, name: str) -> bool:
        return name == self.slow or name.endswith(f".{self.slow}")
