"""Resolvers that do what no resolver should, for tests of filters that ask one."""

import asyncio

from smtpd.dns import Answer, Type
from smtpd.zone import Zone


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
