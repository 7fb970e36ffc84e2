"""Which delivery agent a recipient goes to; whoever is not ours is refused here.

Only a login earns relaying, never an address: neither the client's nor a cleverly written recipient.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fnmatch import translate

from smtpd import replies
from smtpd.addresses import Address, normalise_domain, parse_address
from smtpd.model import Recipient
from smtpd.replies import Reply

DENY = "deny"
OTHER = "other"


class Router:
    """The domains, the recipient map and the relay of one configuration; see `[smtpd.domains]` for the keys.

    A recipient of ours is looked up in this order, and the first hit counts: its address as it stands, its
    address without subaddress, the patterns in file order, "@domain", the domain's own agent. The value is
    an agent's name, "deny", or another address of ours to put the mail into.
    """

    def __init__(
        self,
        domains: Mapping[str, str],
        recipients: Mapping[str, str],
        relay: str | None,
        *,
        postmaster: str,
        separator: str = "+",
        case_sensitive: bool = False,
    ) -> None:
        """Take the tables as configured; `postmaster` is an address or "". ValueError for one that makes no sense."""
        self._domains = {_domain_key(domain): agent for domain, agent in domains.items()}
        self._relay = relay
        self._separator = separator
        self._case_sensitive = case_sensitive
        self._exact: dict[str, str] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        self._catch_alls: dict[str, str] = {}
        self._mapped = bool(recipients)
        for key, value in recipients.items():
            self._map(key, value)
        self._aliases = {value: self._alias(value) for value in recipients.values() if "@" in value}
        self._postmaster = self._postmaster_recipient(postmaster)

    def route(self, address: Address, *, authenticated: bool) -> Recipient | Reply:
        """The recipient with its agent, or the refusal: 550 5.1.1 (denied) or 550 5.7.1 (not ours)."""
        local = address.local
        agent = self._domains.get(address.domain)
        if agent is None or self._mapped or len(local) == _POSTMASTER_LENGTH or _SOURCE_ROUTE.search(local):
            return self._route_slowly(address, authenticated)
        return Recipient(address, agent)

    def metric_domain(self, address: Address) -> str:
        """A label for metrics: the key of `[smtpd.domains]` that covers the address, or "other"."""
        domain = address.domain
        if domain in self._domains:
            return domain
        return self._covering(domain) or OTHER

    def _route_slowly(self, address: Address, authenticated: bool) -> Recipient | Reply:
        key = address.domain if address.domain in self._domains else self._covering(address.domain)
        if address.local.lower() == "postmaster" and (key is not None or not address.domain):
            return self._route_postmaster(address, key)
        if key is None:
            if authenticated and self._relay is not None and address.domain:
                return Recipient(address, self._relay)
            return (replies.NO_RELAY if authenticated else replies.RELAY_DENIED)(address=address)
        value = self._look_up(address, key) if self._mapped else None
        if value == DENY:
            return replies.NO_SUCH_USER(address=address)
        # Only its whole name lets one in: a catch-all or a pattern was written with others in mind.
        if _SOURCE_ROUTE.search(address.local) and self._key(address.local, address.domain) not in self._exact:
            return replies.RELAY_DENIED(address=address)
        if value is None:
            return Recipient(address, self._domains[key])
        return self._mapped_recipient(address, value)

    def _route_postmaster(self, address: Address, key: str | None) -> Recipient | Reply:
        """RFC 5321 §4.5.1: postmaster is always reached, so no "deny" and no catch-all applies."""
        value = self._exact.get(self._key(address.local, address.domain), DENY)
        if value != DENY:
            recipient = self._mapped_recipient(address, value)
            recipient.exempt = True
            return recipient
        if self._postmaster is not None:
            mailbox, agent = self._postmaster
            return Recipient(address, agent, mailbox, exempt=True)
        if key is not None:
            return Recipient(address, self._domains[key], exempt=True)
        # <Postmaster> without a domain: the first of ours that is one.
        domain = next((name for name in self._domains if not name.startswith("*")), None)
        if domain is None:
            return replies.NO_SUCH_USER(address=address)
        return Recipient(
            address, self._domains[domain], Address("postmaster", domain, f"postmaster@{domain}"), exempt=True
        )

    def _mapped_recipient(self, address: Address, value: str) -> Recipient:
        if value in self._aliases:
            mailbox, agent = self._aliases[value]
            return Recipient(address, agent, mailbox)
        return Recipient(address, value)

    def _look_up(self, address: Address, domain_key: str) -> str | None:
        local, domain = address.local, address.domain
        key = self._key(local, domain)
        value = self._exact.get(key)
        if value is None and self._separator:
            user, found, _ = local.partition(self._separator)
            value = self._exact.get(self._key(user, domain)) if found and user else None
        if value is not None:
            return value
        for pattern, value in self._patterns:
            if pattern.match(key):
                return value
        return self._catch_alls.get(domain) or self._catch_alls.get(domain_key)

    def _covering(self, domain: str) -> str | None:
        """The wildcard key with the longest suffix; an address literal is never covered by one."""
        if not domain or domain[0] == "[":
            return None
        dot = domain.find(".")
        while dot >= 0:
            wildcard = "*" + domain[dot:]
            if wildcard in self._domains:
                return wildcard
            dot = domain.find(".", dot + 1)
        return "*" if "*" in self._domains else None

    def _map(self, key: str, value: str) -> None:
        local, _, domain = key.rpartition("@")
        domain = _domain_key(domain)
        # A pattern for everybody is a catch-all: a "deny" further down still counts.
        if local in ("", "*"):
            self._catch_alls[domain] = value
        elif _WILD.search(local) or domain.startswith("*"):
            self._patterns.append((re.compile(translate(self._key(local, domain)), re.DOTALL), value))
        else:
            self._exact[self._key(parse_address(f"{local}@{domain}").local, domain)] = value

    def _key(self, local: str, domain: str) -> str:
        if self._case_sensitive:
            return f"{unicodedata.normalize('NFC', local)}@{domain}"
        return Address(local, domain, "").key

    def _alias(self, text: str) -> tuple[Address, str]:
        """Where mail goes that the map sends to another address: one step, never in a circle, never outside."""
        address = parse_address(text)
        key = address.domain if address.domain in self._domains else self._covering(address.domain)
        if key is None:
            raise ValueError(f"{text} is not in one of our domains")
        value = self._exact.get(self._key(address.local, address.domain), DENY)
        if "@" in value and parse_address(value).key != address.key:
            raise ValueError(f"{text} leads to yet another address, {value}")
        return address, self._domains[key] if value == DENY or "@" in value else value

    def _postmaster_recipient(self, text: str) -> tuple[Address, str] | None:
        """None: each domain has a postmaster of its own."""
        address = parse_address(text) if text else None
        if address is None or not address.domain:
            return None
        if address.domain not in self._domains and self._covering(address.domain) is None:
            # The operator wrote it, so a relay may carry it.
            return (address, self._relay) if self._relay is not None else None
        return self._alias(text)


# `user%elsewhere@us`, `elsewhere!user@us` and `"user@elsewhere"@us` once made hosts relay. To us they are local
# parts like any other, but what stands behind us may think otherwise: the recipient map has to name them.
# Postfix (allow_untrusted_routing = no) and Exim's default configuration refuse them as well.
_SOURCE_ROUTE = re.compile(r".[%!@].", re.DOTALL)
_POSTMASTER_LENGTH = len("postmaster")
_WILD = re.compile(r"[*?\[]")


def _domain_key(text: str) -> str:
    if text == "*":
        return text
    return f"*.{normalise_domain(text[2:])}" if text.startswith("*.") else normalise_domain(text)
