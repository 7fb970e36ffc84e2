"""Our domains: which key of `[smtpd.domains]` covers one, and where the recipient map leads within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from smtpd.addresses import Address, parse_address
from smtpd.recipient_map import RecipientMap, domain_key
from smtpd.rewriting import parts_of


def covering_key(domains: Mapping[str, str], domain: str) -> str | None:
    """The key of `[smtpd.domains]` for a domain: itself or the wildcard with the longest suffix.

    An address literal is never covered by a wildcard.
    """
    if domain in domains:
        return domain
    if not domain or domain[0] == "[":
        return None
    dot = domain.find(".")
    while dot >= 0:
        wildcard = "*" + domain[dot:]
        if wildcard in domains:
            return wildcard
        dot = domain.find(".", dot + 1)
    return "*" if "*" in domains else None


def agent_of(mailbox: Address, domains: Mapping[str, str], recipients: RecipientMap) -> str | None:
    """The agent of a mailbox that the map leads to, None when its domain is not ours.

    It is looked up by its name only, in one step: its own mailbox and folder do not count, nor does a "deny",
    so an address can be closed for the world and still be an alias's mailbox.
    """
    key = covering_key(domains, mailbox.domain)
    if key is None:
        return None
    target = recipients.named(mailbox)
    return target.agent if target is not None and target.agent else domains[key]


def find_dead_ends(domains: Mapping[str, str], recipients: RecipientMap) -> Iterator[tuple[str, str]]:
    """(key, message) for every target that leads nowhere, outside, or further than one step."""
    for key, name, known in recipients.unknown_parts():
        yield key, f"{{{name}}} stands for nothing here, known are {', '.join(sorted(known))}"
    for key, target in recipients.targets.items():
        if not target.mailbox or target.agent:
            continue
        domain = target.mailbox.rpartition("@")[2]
        if domain == "{domain}":
            continue  # one of ours, or the map would not have been asked
        if parts_of(domain):
            yield key, f"{target.mailbox} needs an agent beside it, as its domain is known only when mail comes"
            continue
        if covering_key(domains, domain_key(domain)) is None:
            yield key, f"{target.mailbox} is not in one of our domains, so it needs an agent beside it"
            continue
        further = None if parts_of(target.mailbox) else recipients.named(parse_address(target.mailbox))
        if further is not None and further.mailbox and further is not recipients.named(parse_address(further.mailbox)):
            yield key, f"{target.mailbox} leads to yet another address, {further.mailbox}"
