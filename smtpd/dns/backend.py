"""What asks nameservers: made at the first lookup inside the running loop, closed with the resolver."""

from __future__ import annotations

from typing import Protocol

from smtpd.dns.answer import Answer, Type


class BackendError(Exception):
    """The library that asks nameservers cannot be used here."""


class Backend(Protocol):
    """Asks one question at a time; the caller limits how long that may take."""

    async def ask(self, name: str, kind: Type) -> Answer:
        """What the nameservers say about a normal name; trouble is "tempfail". `ttl` is as they gave it."""

    def forget(self) -> None:
        """Drop whatever the library has cached."""

    async def close(self) -> None:
        """Let go of sockets and threads; questions on their way fail."""
