"""A server with the DKIM filter, and what it found; several test files ask it."""

from collections.abc import Mapping
from typing import ClassVar

import witness
from signer import Signer

from filters.dkim import Dkim
from smtpd.dns import Resolver
from smtpd.findings import DkimResults, DkimSignature
from smtpd.memory import MemoryServer
from smtpd.zone import Zone

JOE = Signer()
SUBDOMAIN = Signer("mail.a.test")
ED25519 = Signer(selector="ed", bits=0)
SMALL = Signer(selector="small", bits=1024)
EVE = Signer("eve.test", "e")


class Witness(witness.Witness):
    needs = (DkimResults,)
    seen: ClassVar[list[DkimResults]] = []


def house(
    options: Mapping[str, object] | None = None, *, resolver: Resolver | None = None, **records: str
) -> MemoryServer:
    """A server with the filter; `records` replace records of signers by selector."""
    Witness.seen.clear()
    zone = Zone({})
    for signer in (JOE, EVE, SUBDOMAIN, ED25519, SMALL):
        zone.put(signer.name, TXT=[records.get(signer.selector, signer.record)])
    return MemoryServer(
        filters={"dkim": (Dkim, options or {}), "witness": Witness}, resolver=zone if resolver is None else resolver
    )


async def found(message: bytes, options: Mapping[str, object] | None = None, **records: str) -> DkimResults:
    """The fact that is left about a message."""
    async with house(options, **records) as server:
        await (await server.connect()).send(message)
    return Witness.seen.pop()


async def only(message: bytes, options: Mapping[str, object] | None = None, **records: str) -> DkimSignature:
    (signature,) = (await found(message, options, **records)).signatures
    return signature
