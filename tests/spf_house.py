"""Checks of SPF against zones in memory, with what they asked; several test files do them."""

import asyncio
from collections import Counter
from ipaddress import ip_address

from filters.spf_evaluation import Client, Evaluation, evaluate
from smtpd.dns import Answer, Type
from smtpd.zone import Zone

NAME = "a.example"
Tables = dict[str, dict[str, object]]


class Asked:
    """A resolver that counts questions, and may hold back answers."""

    def __init__(self, zone: Zone, *, holds: str = "") -> None:
        self._zone = zone
        self._holds = holds
        self.questions: Counter[tuple[str, str]] = Counter()
        self.held = asyncio.Event()
        self.released = asyncio.Event()

    @property
    def kinds(self) -> Counter[str]:
        return Counter(kind for _, kind in self.questions.elements())

    def peek(self, name: str, kind: Type) -> Answer | None:
        return None

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.questions[name, kind] += 1
        if name == self._holds:
            self.held.set()
            await self.released.wait()
        return self._zone.ask(name, kind)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def health(self) -> str | None:
        return None


def client(ip: str = "192.0.2.1", helo: str = "host.example") -> Client:
    return Client(ip_address(ip), helo, "mx.test")


def record(*terms: str, **more: object) -> dict[str, object]:
    return {"TXT": [" ".join(("v=spf1", *terms))], **more}


def elsewhere(hosts: list[str]) -> Tables:
    """Hosts that are not the client."""
    return {host: {"A": ["192.0.2.9"]} for host in hosts}


async def check(
    tables: Tables, local: str = "joe", domain: str = NAME, ip: str = "192.0.2.1"
) -> tuple[Evaluation, Asked]:
    resolver = Asked(Zone(tables))
    return await evaluate(client(ip), local, domain, resolver), resolver
