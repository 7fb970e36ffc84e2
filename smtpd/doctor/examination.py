"""What is looked at, and how all checks run: at the same time, each with a limit, none able to stop the others."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd.doctor.finding import Finding
from smtpd.doctor.kernel_clock import ClockState, read_clock

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.dns import Resolver

Fetch = Callable[["Resolver", str], Awaitable[str]]
"""Gets the MTA-STS policy of a domain as text; PolicyError when there is none."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What the checks go by."""

    config: Config
    resolver: Resolver
    nameservers: tuple[str, ...] = ()
    """Addresses of those the resolver asks; empty: unknown."""
    domains: tuple[str, ...] = ()
    """Domains of ours, as A-labels."""
    selectors: tuple[str, ...] = ()
    """DKIM selectors that every domain should have."""
    blocklists: tuple[str, ...] = ()
    """Zones of DNS lists."""
    fetch: Fetch | None = None
    """None: nothing is fetched over HTTPS."""
    timeout: float = 20.0
    """Longest time of one check, seconds."""
    now: Callable[[], float] = time.time
    """Seconds since 1970."""
    clock: Callable[[], ClockState | None] = read_clock
    trust: Callable[[], ssl.SSLContext] = field(default=ssl.create_default_context)
    """Makes a context of a client that trusts whom this machine trusts."""


Check = Callable[[Examination], Awaitable[list[Finding]]]
DomainCheck = Callable[[Examination, str], Awaitable[list[Finding]]]


def about(domain: str, check: DomainCheck) -> Check:
    """The check of this domain."""

    async def bound(examination: Examination) -> list[Finding]:
        return await check(examination, domain)

    return bound


@asynccontextmanager
async def quiet_resolver(config: Config) -> AsyncIterator[Resolver]:
    """The resolver the server would have; of its troubles only errors are logged, to standard error."""
    from smtpd.config import LogOptions
    from smtpd.dns import make_resolver
    from smtpd.log import Log
    from smtpd.metrics import Metrics

    log = Log(LogOptions(to="stderr", level="error", format="console"))
    resolver = make_resolver(config.dns, Metrics(), log)
    try:
        yield resolver
    finally:
        await resolver.stop()
        log.close()


async def run(examination: Examination, checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Run named checks; their findings in the order of the checks."""
    found = await asyncio.gather(*(_run_one(examination, name, check) for name, check in checks))
    return [finding for findings in found for finding in findings]


async def _run_one(examination: Examination, name: str, check: Check) -> list[Finding]:
    try:
        async with asyncio.timeout(examination.timeout):
            return await check(examination)
    except TimeoutError:
        text = f"This check did not come to an end in {examination.timeout:g} s, so nothing is known."
        return [Finding("warning", name, text, "Look at what the nameserver says, or give it more time (--timeout).")]
    except Exception as error:  # whatever breaks one check: the others are still worth hearing
        text = f"This check broke, so nothing is known: {type(error).__name__}: {error}"
        return [Finding("warning", name, text, "Please report this; it is a mistake of this program.")]
