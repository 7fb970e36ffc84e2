"""Our own name: whether it has an address, and whether that address has our name."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from smtpd.dns import Resolver
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

_INSIDE = tuple(
    ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")
) + tuple(ip_network(text) for text in ("::1/128", "fc00::/7", "fe80::/10"))


async def addresses_of(resolver: Resolver, name: str) -> tuple[tuple[str, ...], str]:
    """Addresses of a name, and why there may be more ("" when nothing failed)."""
    answers = await asyncio.gather(resolver.resolve(name, "A"), resolver.resolve(name, "AAAA"))
    failures = [answer.reason for answer in answers if answer.failed]
    return tuple(text for answer in answers for text in answer.texts), failures[0] if failures else ""


async def check_own_name(examination: Examination) -> list[Finding]:
    """One finding for `hostname`, and one for each of its addresses."""
    hostname = examination.config.hostname
    subject = f"hostname {hostname}"
    if "." not in hostname:
        text = "It is no full name, as a developer's set-up has it; other servers cannot find it."
        return [Finding("info", subject, text, "Set [smtpd] hostname before mail comes from outside.")]
    addresses, failure = await addresses_of(examination.resolver, hostname)
    if failure:
        text = f"The DNS does not say now which addresses it has ({failure})."
        return [Finding("warning", subject, text, "Try again; then ask who runs the zone.")]
    if not addresses:
        text = "It has no address. We greet with a name that nobody can look up, and an MX record cannot lead to it."
        return [Finding("problem", subject, text, "Add A and AAAA records for it, or correct [smtpd] hostname.")]
    findings = [Finding("ok", subject, f"It has an address: {', '.join(addresses)}.")]
    return findings + list(await asyncio.gather(*(_check(examination, address) for address in addresses)))


async def _check(examination: Examination, address: str) -> Finding:
    hostname = examination.config.hostname.lower()
    subject = f"address {address}"
    ip = ip_address(address)
    if any(ip in network for network in _INSIDE if network.version == ip.version):
        text = "It is an address for the inside only; no server outside can connect to it."
        return Finding("warning", subject, text, "Fine in a closed network; otherwise correct the record.")
    answer = await examination.resolver.resolve(ip.reverse_pointer, "PTR")
    if answer.failed:
        text = f"The DNS does not say now which name it has ({answer.reason})."
        return Finding("warning", subject, text, "Try again.")
    advice = f"Ask who gave you the address to set its PTR record to {hostname}."
    if not answer.found:
        text = "It has no name (PTR). We send no mail, but whatever does from here is refused by many."
        return Finding("warning", subject, text, advice)
    confirmed = await _confirmed(examination.resolver, answer.texts, ip)
    if hostname in confirmed:
        return Finding("ok", subject, f"Its name is {hostname}, and that name leads back to it.")
    if confirmed:
        text = f"Its name is {', '.join(confirmed)}, not {hostname}. That is allowed."
        return Finding("info", subject, text, advice)
    text = f"Its name is {', '.join(answer.texts[:3])}, which does not lead back to it: the name counts for nothing."
    return Finding("warning", subject, text, advice)


async def _confirmed(resolver: Resolver, names: tuple[str, ...], ip: IPv4Address | IPv6Address) -> list[str]:
    names = names[:10]  # our own choice; it bounds how many lookups a stranger can cause
    found = await asyncio.gather(*(addresses_of(resolver, name) for name in names))
    return [name for name, (texts, _) in zip(names, found, strict=True) if ip in map(ip_address, texts)]
