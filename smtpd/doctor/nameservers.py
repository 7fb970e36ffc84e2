"""Whom lookups are sent to: whether they answer, are our own, and tell the truth about names that do not exist."""

from __future__ import annotations

from ipaddress import ip_address

from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

IMPOSSIBLE = "smtpd-doctor.invalid"  # RFC 6761 §6.4: no name below "invalid" ever exists

_PUBLIC = frozenset(
    (
        "1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001",  # Cloudflare
        "8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844",  # Google
        "9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9",  # Quad9
        "208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53",  # OpenDNS
        "94.140.14.14", "94.140.15.15", "76.76.2.0", "76.76.10.0", "64.6.64.6", "64.6.65.6",
    )
)  # fmt: skip
_OWN = "Run a resolver of your own (unbound, or the like) and name it in [smtpd.dns] nameservers."


def system_nameservers() -> tuple[str, ...]:
    """Addresses of the system's nameservers; empty when there are none, or they cannot be read."""
    import dns.resolver

    try:
        return tuple(str(server) for server in dns.resolver.Resolver().nameservers)
    except (dns.resolver.NoResolverConfiguration, OSError):
        return ()


async def check_nameservers(examination: Examination) -> list[Finding]:
    """Whether anybody answers, whether a name that cannot exist is denied, and what kind each one is."""
    answer = await examination.resolver.resolve(IMPOSSIBLE, "A")
    if answer.failed:
        text = f"No nameserver answers ({answer.reason}). Filters that ask the DNS know nothing, so nothing is refused."
        return [Finding("problem", "nameservers", text, "Look at [smtpd.dns] nameservers, and at port 53.")]
    if answer.found:
        text = f"{IMPOSSIBLE} has an address ({', '.join(answer.texts)}): somebody invents answers for names that do"
        text += " not exist. Every blocklist would list everybody."
        return [Finding("problem", "nameservers", text, _OWN)]
    findings = [Finding("ok", "nameservers", "They answer, and deny names that do not exist.")]
    return findings + [_kind(address) for address in examination.nameservers]


def _kind(address: str) -> Finding:
    subject = f"nameserver {address}"
    ip = ip_address(address.partition("%")[0])
    if str(ip) in _PUBLIC:
        text = "It is a public one. Blocklists refuse to answer those, or say so in a way that looks like a listing."
        return Finding("warning", subject, text, _OWN)
    if ip.is_loopback:
        text = "It runs on this machine. Whether it asks by itself or passes questions on shows in the blocklists."
        return Finding("ok", subject, text)
    if ip.is_private or ip.is_link_local:
        text = "It is in a private network. If it passes questions on to a public one, blocklists refuse to answer."
        return Finding("info", subject, text, "Try a list with --blocklist.")
    text = "It is in a public network: your provider's, perhaps. Many who ask through it share the blocklists' limits."
    return Finding("info", subject, text, "Try a list with --blocklist.")
