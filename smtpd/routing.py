"""Which delivery agent a recipient goes to, and what it is asked to store; whoever is not ours is refused here.

Only a login earns relaying, never an address: neither the client's nor a cleverly written recipient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpd import replies
from smtpd.addresses import Address, parse_address
from smtpd.domains import agent_of, covering_key, find_dead_ends
from smtpd.model import Recipient
from smtpd.recipient_map import Hit, RecipientMap, Step, domain_key
from smtpd.replies import Reply
from smtpd.rewriting import Target, make_mailbox, plain_folder

if TYPE_CHECKING:
    from smtpd.config import Config


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a recipient was looked up, and the answer: what `Router.route` says."""

    steps: tuple[Step, ...]
    answer: Recipient | Reply


class Router:
    """The domains, the recipient map and the relay of one configuration; see `[smtpd.domains]` for the keys.

    A recipient of ours is looked up in this order, and the first hit counts: its address as it stands, its
    address without subaddress, the patterns in file order, "@domain", the domain's own agent. The value is
    an agent's name, "deny", another address of ours to put the mail into, or a `Target`.
    """

    def __init__(
        self,
        domains: Mapping[str, str],
        recipients: Mapping[str, Target | str],
        relay: str | None,
        *,
        postmaster: str,
        separator: str = "+",
        case_sensitive: bool = False,
        subaddress_folders: bool = False,
    ) -> None:
        """Take the tables as configured; `postmaster` is an address or "". ValueError for one that makes no sense."""
        self._domains = {domain_key(domain): agent for domain, agent in domains.items()}
        self._relay = relay
        self._subaddress_folders = subaddress_folders
        self._map = RecipientMap(recipients, separator=separator, case_sensitive=case_sensitive)
        self._mapped = bool(recipients) or subaddress_folders
        for key, message in find_dead_ends(self._domains, self._map):
            raise ValueError(f"{key}: {message}")
        self._postmaster = self._postmaster_recipient(postmaster)

    @classmethod
    def from_config(cls, config: Config) -> Router:
        """The router of a configuration."""
        return cls(
            config.domains,
            config.recipients,
            config.relay.agent if config.relay else None,
            postmaster=config.postmaster,
            separator=config.subaddress_separator,
            case_sensitive=config.case_sensitive_local_parts,
            subaddress_folders=config.subaddress_folders,
        )

    def route(self, address: Address, *, authenticated: bool) -> Recipient | Reply:
        """The recipient with its agent, or the refusal: 550 5.1.1 (denied) or 550 5.7.1 (not ours)."""
        local = address.local
        agent = self._domains.get(address.domain)
        if agent is None or self._mapped or len(local) == _POSTMASTER_LENGTH:
            return self._route_slowly(address, authenticated)
        if "%" in local or "!" in local or "@" in local:  # it may be a source route
            return self._route_slowly(address, authenticated)
        return Recipient(address, agent)

    def explain(self, address: Address, *, authenticated: bool) -> Explanation:
        """What `route` says, and every step that led there."""
        steps = [Step(f"address {address}", f"compared as {self._map.key_of(address)}")]
        answer = self._route_slowly(address, authenticated, steps)
        return Explanation(tuple(steps), answer)

    def _route_slowly(
        self, address: Address, authenticated: bool, steps: list[Step] | None = None
    ) -> Recipient | Reply:
        domain = address.domain
        key = domain if domain in self._domains else covering_key(self._domains, domain)
        if steps is not None:
            steps.append(Step(f"domain {domain}", self._about(key)))
        if address.local.lower() == "postmaster" and (key is not None or not domain):
            return self._route_postmaster(address, key, steps)
        if key is None:
            return self._route_outside(address, authenticated, steps)
        hit = self._map.find(address, key, steps)
        if hit is not None and hit.rewriting.target.deny:
            return replies.NO_SUCH_USER(address=address)
        # Only its whole name lets one in: a catch-all or a pattern was written with others in mind.
        if _SOURCE_ROUTE.search(address.local) and self._map.named(address) is None:
            if steps is not None:
                steps.append(Step('"%", "!" or "@" inside the local part', "looks like a route, has to be in the map"))
            return replies.RELAY_DENIED(address=address)
        if hit is None and not self._subaddress_folders:
            return Recipient(address, self._domains[key])
        return self._deliver(address, key, hit, steps)

    def _about(self, key: str | None) -> str:
        return "not in [smtpd.domains]" if key is None else f'one of ours by "{key}", agent "{self._domains[key]}"'

    def _route_outside(self, address: Address, authenticated: bool, steps: list[Step] | None) -> Recipient | Reply:
        if steps is not None:
            login = "logged in" if authenticated else "not logged in"
            steps.append(Step("relay", f'agent "{self._relay}", {login}' if self._relay else f"none, {login}"))
        if authenticated and self._relay is not None and address.domain:
            return Recipient(address, self._relay)
        return (replies.NO_RELAY if authenticated else replies.RELAY_DENIED)(address=address)

    def _route_postmaster(self, address: Address, key: str | None, steps: list[Step] | None) -> Recipient | Reply:
        """RFC 5321 §4.5.1: postmaster is always reached, so no "deny" applies.

        A catch-all does not apply either, unless nobody said where mail to postmaster goes.
        """
        hit = self._map.find_named(address)
        if steps is not None:
            steps.append(Step("postmaster", "in the map" if hit else "always reached, whatever the map refuses"))
        if key is not None and hit is not None and not hit.rewriting.target.deny:
            answer = self._deliver(address, key, hit, steps)
            if isinstance(answer, Recipient):
                answer.exempt = True
                return answer
        if self._postmaster is not None:
            found = self._postmaster
            return Recipient(address, found.agent, found.destination, exempt=True, folder=found.folder)
        if key is not None:
            found = self._mapped_unless_denied(address, key)
            return Recipient(address, found.agent, found.mailbox, exempt=True, folder=found.folder)
        # <Postmaster> without a domain: the first of ours that is one.
        domain = next((name for name in self._domains if not name.startswith("*")), None)
        if domain is None:
            return replies.NO_SUCH_USER(address=address)
        found = self._mapped_unless_denied(Address("postmaster", domain, f"postmaster@{domain}"), domain)
        return Recipient(address, found.agent, found.destination, exempt=True, folder=found.folder)

    def _mapped_unless_denied(self, address: Address, key: str) -> Recipient:
        hit = self._map.find(address, key)
        found = self._deliver(address, key, None if hit is None or hit.rewriting.target.deny else hit)
        return found if isinstance(found, Recipient) else Recipient(address, self._domains[key])

    def _deliver(
        self, address: Address, key: str, hit: Hit | None, steps: list[Step] | None = None
    ) -> Recipient | Reply:
        recipient = Recipient(address, self._domains[key])
        folder = None
        if hit is not None:
            target, values = hit.rewriting.target, self._values(address, hit)
            if target.mailbox:
                recipient.mailbox = hit.rewriting.mailbox(values)
                if recipient.mailbox is None:
                    if steps is not None:
                        steps.append(
                            Step(f"mailbox {target.mailbox}", "this address makes none that is safe to ask for")
                        )
                    return replies.NO_SUCH_USER(address=address)
                recipient.agent = agent_of(recipient.mailbox, self._domains, self._map) or recipient.agent
            recipient.agent = target.agent or recipient.agent
            folder = hit.rewriting.folder(values)
        if folder is not None:
            self._put_into(recipient, folder)
        elif self._subaddress_folders and not (hit is not None and hit.is_whole and recipient.mailbox is None):
            _, detail = self._map.split(recipient.destination.local)
            if steps is not None and detail is not None:
                steps.append(
                    Step(f"subaddress {detail}", "a folder" if plain_folder(detail) else "no folder name, left alone")
                )
            self._put_into(recipient, plain_folder(detail or ""), strip=True)
        return recipient

    def _values(self, address: Address, hit: Hit) -> dict[str, str]:
        user, detail = self._map.split(address.local)
        parts = {"user": user, "detail": detail or "", "local": address.local, "domain": address.domain}
        return {**parts, **hit.groups}

    def _put_into(self, recipient: Recipient, folder: str, *, strip: bool = False) -> None:
        """Set the folder. A detail beside it would name a second one, so it goes unless the operator wrote it."""
        if not folder:
            return
        destination = recipient.destination
        user, detail = self._map.split(destination.local)
        if detail is None or (recipient.mailbox is not None and not strip):
            recipient.folder = folder
            return
        mailbox = make_mailbox(user, destination.domain)
        if mailbox is not None:
            recipient.mailbox, recipient.folder = mailbox, folder

    def _postmaster_recipient(self, text: str) -> Recipient | None:
        """Where all postmasters' mail goes, one step through the map included; None: each domain has its own."""
        address = parse_address(text) if text else None
        if address is None or not address.domain:
            return None
        key = covering_key(self._domains, address.domain)
        if key is None:
            # The operator wrote it, so a relay may carry it.
            return Recipient(address, self._relay) if self._relay is not None else None
        return self._mapped_unless_denied(address, key)


# `user%elsewhere@us`, `elsewhere!user@us` and `"user@elsewhere"@us` once made hosts relay. To us they are local
# parts like any other, but what stands behind us may think otherwise: the recipient map has to name them.
# Postfix (allow_untrusted_routing = no) and Exim's default configuration refuse them as well.
_SOURCE_ROUTE = re.compile(r".[%!@].", re.DOTALL)
_POSTMASTER_LENGTH = len("postmaster")
