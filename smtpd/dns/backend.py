"""What asks nameservers. Chosen once, made at the first lookup inside the running loop, closed with the resolver."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from smtpd.dns.answer import Answer, Type
from smtpd.dns.options import DnsOptions
from smtpd.log import Log


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


def load_libraries() -> None:
    """Import what `make_backend` needs: it takes a tenth of a second, which a loop at work does not have."""
    import_module("smtpd.dns.aiodns_backend")


def make_backend(options: DnsOptions, log: Log) -> Backend:
    """The backend that the options ask for. To be called in the running loop; BackendError when it cannot work."""
    from smtpd.dns.aiodns_backend import AiodnsBackend
    from smtpd.dns.dnspython_backend import DnspythonBackend

    if options.backend == "aiodns" or (options.backend == "auto" and options.shares_port):
        try:
            return AiodnsBackend(options)
        except BackendError as error:
            if options.backend == "aiodns":
                raise
            log.warning("dns-fallback", problem=str(error))
    return DnspythonBackend(options)
