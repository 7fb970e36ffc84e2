"""Whether mail for a domain of ours finds its way to us."""

from __future__ import annotations

import asyncio

from smtpd.dns import Answer
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding
from smtpd.doctor.own_name import addresses_of

MAX_HOSTS = 20  # looked at; more than that is a mistake anyway

_AGAIN = "Try again; then ask who runs the zone."


async def check_mx(examination: Examination, domain: str) -> list[Finding]:
    """One finding for the domain, and one for each host that has something wrong."""
    subject = f"MX of {domain}"
    answer = await examination.resolver.resolve(domain, "MX")
    if answer.failed:
        return [Finding("warning", subject, f"The DNS does not say now ({answer.reason}).", _AGAIN)]
    if answer.status == "nxdomain":
        text = "There is no such domain in the DNS; nobody outside can send to it."
        return [Finding("problem", subject, text, "Correct its name in [smtpd.domains], or register it.")]
    hostname = examination.config.hostname.lower()
    if not answer.found:
        return [await _without(examination, domain)]
    hosts = tuple(dict.fromkeys(record.host for record in answer.mx))[:MAX_HOSTS]
    if "" in hosts:
        text = "It says that it takes no mail (RFC 7505), but we have it as a domain of ours."
        return [Finding("problem", subject, text, f"Replace the record by: 10 {hostname}.")]
    findings = [finding for found in await asyncio.gather(*(_host(examination, subject, host) for host in hosts))
                for finding in found]  # fmt: skip
    return [await _leads_here(examination, subject, hosts), *findings]


async def _without(examination: Examination, domain: str) -> Finding:
    hostname = examination.config.hostname.lower()
    addresses, failure = await addresses_of(examination.resolver, domain)
    subject, advice = f"MX of {domain}", f"Publish MX {domain}: 10 {hostname}."
    if failure:
        return Finding("warning", subject, f"There is none, and the DNS does not say more ({failure}).", _AGAIN)
    if not addresses:
        return Finding("problem", subject, "There is none, and no address either; nobody can send to it.", advice)
    # RFC 5321 §5.1: without MX, the domain's own addresses count.
    text = f"There is none, so mail goes to the addresses of the domain itself ({', '.join(addresses)})."
    return Finding("warning", subject, text, advice)


async def _leads_here(examination: Examination, subject: str, hosts: tuple[str, ...]) -> Finding:
    hostname = examination.config.hostname.lower()
    if hostname in hosts:
        return Finding("ok", subject, f"It names us ({hostname}).")
    ours, failure = await addresses_of(examination.resolver, hostname)
    theirs = await asyncio.gather(*(addresses_of(examination.resolver, host) for host in hosts))
    if set(ours) & {address for addresses, _ in theirs for address in addresses}:
        return Finding("ok", subject, f"It names {', '.join(hosts)}, which is at our address.")
    text = f"It names {', '.join(hosts)}, neither us ({hostname}) nor our address."
    if failure or any(trouble for _, trouble in theirs):
        text += " But the DNS does not say all addresses now."
    return Finding("warning", subject, text, "Fine if these hosts pass mail on to us; otherwise correct the record.")


async def _host(examination: Examination, subject: str, host: str) -> list[Finding]:
    alias: Answer
    alias, (addresses, failure) = await asyncio.gather(
        examination.resolver.resolve(host, "CNAME"), addresses_of(examination.resolver, host)
    )
    if not addresses and not failure:
        text = f"{host} has no address, so nothing can be sent there."
        return [Finding("problem", subject, text, f"Give {host} an address, or take it out.")]
    if not addresses:
        return [Finding("warning", subject, f"The DNS does not say now where {host} is ({failure}).", _AGAIN)]
    if alias.found:
        text = f"{host} is an alias (CNAME), which an MX record must not name (RFC 2181 §10.3); some do not send there."
        return [Finding("warning", subject, text, f"Name {', '.join(alias.texts)} instead.")]
    return []
