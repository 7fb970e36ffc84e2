"""A zone as the whole DNS of a server that was just started: the first lookup of a name and type asks, later ones know.

So a rehearsal counts against `lookups_per_message` what that server would.
"""

from __future__ import annotations

from dataclasses import replace

from smtpd.dns import Answer, CachingResolver, DnsOptions, Type
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.zone import TTL, Zone


class ZoneNameserver:
    """A backend (smtpd.dns.backend) that asks nobody but a zone."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone

    async def ask(self, name: str, kind: Type) -> Answer:
        """What the zone says. That something does not exist is kept, too, as with nameservers that have a SOA."""
        answer = self._zone.ask(name, kind)
        return replace(answer, ttl=TTL) if answer.status in ("nodata", "nxdomain") else answer

    def forget(self) -> None:
        """Nothing is cached here."""

    async def close(self) -> None:
        """Nothing is open."""


def resolver_of(zone: Zone, options: DnsOptions, log: Log) -> CachingResolver:
    """What a server with these options would look things up with, were the zone the whole DNS.

    Its clock stands still: however long a rehearsal takes, what was known stays known.
    """
    return CachingResolver(options, Metrics(), log, make=lambda _, __: ZoneNameserver(zone), clock=lambda: 0.0)
