"""Names of a client that lead back to its address, "iprev" in RFC 8601 §3. No filter of its own.

Whoever holds an address can give it any name. A name counts only when the owner of that name has the address in DNS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from ipaddress import IPv4Address, IPv6Address, ip_address

from smtpd.dns import Answer, Resolver, Type, normal_name, tempfail
from smtpd.findings import IprevResult
from smtpd.model import IPAddress, Transaction, plain_ip

MAX_NAMES = 10  # RFC 8601 §3: the number of names must be limited; RFC 7208 §4.6.4 takes 10, too
MAX_ADDRESSES = 10  # of one name; our own choice

_TIMEOUT = tempfail("timeout")


async def confirm_names(ip: IPAddress, resolver: Resolver, seconds: float) -> IprevResult:
    """Look the names of an address up, and then their addresses, all within `seconds`; trouble is "temperror"."""
    asking = _Asking(resolver, asyncio.get_running_loop().time() + seconds)
    address = plain_ip(ip)  # its names are where those of all IPv4 addresses are
    answer = await asking.ask(address.reverse_pointer, "PTR")
    if answer.failed:
        return IprevResult("temperror", str(address), reason=answer.reason)
    names = [name for name in dict.fromkeys(map(normal_name, answer.texts)) if name is not None][:MAX_NAMES]
    if not names:
        return IprevResult("permerror", str(address), reason="no name")
    kind: Type = "A" if address.version == 4 else "AAAA"
    answers = await asyncio.gather(*(asking.ask(name, kind) for name in names))
    confirmed = tuple(name for name, answer in zip(names, answers, strict=True) if _leads_to(address, answer))
    if confirmed:
        return IprevResult("pass", str(address), confirmed)
    failed = next((answer for answer in answers if answer.failed), None)
    if failed is not None:
        return IprevResult("temperror", str(address), reason=failed.reason)
    return IprevResult("fail", str(address), reason="no name leads back")


def may_be_forwarded(mail: Transaction, unless: Container[str]) -> bool:
    """Whether the client may be a trusted forwarder, whom `unless` excuses: its names cannot be looked up now."""
    iprev = mail.facts.get(IprevResult) if "trusted-forwarder" in unless else None
    return iprev is not None and iprev.may_forward


class _Asking:
    """Questions that share one deadline, seconds of the loop."""

    def __init__(self, resolver: Resolver, deadline: float) -> None:
        self._resolver = resolver
        self._deadline = deadline

    async def ask(self, name: str, kind: Type) -> Answer:
        answer = self._resolver.peek(name, kind)
        if answer is not None:
            return answer
        left = self._deadline - asyncio.get_running_loop().time()
        return await self._resolver.resolve(name, kind, left) if left > 0 else _TIMEOUT


def _leads_to(address: IPv4Address | IPv6Address, answer: Answer) -> bool:
    for text in answer.texts[:MAX_ADDRESSES]:
        try:
            if ip_address(text) == address:
                return True
        except ValueError:  # what is no address is not this one
            continue
    return False
