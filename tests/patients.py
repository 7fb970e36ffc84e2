"""What the doctor looks at, in memory: a configuration, a zone, and nothing of this machine."""

import ssl
from collections.abc import Mapping
from typing import Any

from smtpd.config import Config, from_tables
from smtpd.dns import Answer, Type
from smtpd.doctor import Finding
from smtpd.doctor.examination import Examination
from smtpd.zone import Zone

TABLES: dict[str, Any] = {
    "hostname": "mx.example.com",
    "postmaster": "ann@example.com",
    "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
    "domains": {"example.com": "store"},
    "agents": {"store": {"type": "discard", "allow_discard": True}},
}


def configuration(**tables: Any) -> Config:
    return from_tables(TABLES, over=tables, files=False)


def patient(
    zone: Mapping[str, Mapping[str, object]] | Zone | None = None, *, config: Config | None = None, **more: Any
) -> Examination:
    """An examination of mx.example.com, which is in this zone and no other."""
    resolver = zone if isinstance(zone, Zone) else Zone(zone)
    more.setdefault("trust", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return Examination(config=config or configuration(), resolver=resolver, **more)


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


class CountingZone(Zone):
    """Counts the questions."""

    asked = 0

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked += 1
        return await super().resolve(name, kind, timeout)
