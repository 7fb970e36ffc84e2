"""A server with SPF, and what became of messages from domains of all kinds."""

import re
from collections.abc import Mapping
from typing import Any

from filters.spf import Spf
from smtpd.dns import Resolver
from smtpd.memory import MemoryServer
from smtpd.zone import Zone

MESSAGE = "From: joe@fail.example\n\nHi\n"
ZONE: Mapping[str, Mapping[str, object]] = {
    "pass.example": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]},
    "fail.example": {"TXT": ["v=spf1 -all"]},
    "told.example": {"TXT": ["v=spf1 -all exp=why.told.example"]},
    "why.told.example": {"TXT": ["Ask %{o}\r\n250 2.0.0 Ok " + "x" * 300]},
    "soft.example": {"TXT": ["v=spf1 ~all"]},
    "neutral.example": {"TXT": ["v=spf1 ?all"]},
    "broken.example": {"TXT": ["v=spf1 nonsense\x07 -all"]},
    "down.example": {"TXT": "tempfail: servfail"},
}
STRICT: Mapping[str, object] = {"fail": "reject", "permerror": "reject", "helo_fail": "reject"}


def house(table: Mapping[str, object] | None = None, *, resolver: Resolver | None = None, **more: Any) -> MemoryServer:
    filters = {"spf": (Spf, table or {}), **more.pop("filters", {})}
    return MemoryServer(filters=filters, resolver=resolver or Zone(ZONE), **more)


async def answers(
    server: MemoryServer, domain: str, *, helo: str = "client.example", sender: str | None = None, **client: Any
) -> list[str]:
    """The answers to MAIL, RCPT and the content; the last one is enough to know whether it got through."""
    talk = await server.connect(helo=helo, **client)
    return await talk.send(MESSAGE, sender=f"joe@{domain}" if sender is None else sender)


def results(server: MemoryServer) -> str:
    """Our Authentication-Results of the last message, unfolded."""
    content = server.delivered[-1].content.decode()
    found = re.match(r"Authentication-Results: mx\.example\.test;(.*?)\r\n(?![ \t])", content, re.DOTALL)
    assert found is not None, content
    return " ".join(found[1].split())


def labels(server: MemoryServer) -> frozenset[str]:
    return server.delivered[-1].labels
