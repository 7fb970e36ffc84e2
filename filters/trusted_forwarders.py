"""Know the hosts that forward mail to our users, so that what forwarding breaks is not held against them.

Who lets mail be forwarded from an old address breaks SPF, and often DKIM, of everybody who writes there. Such a host
sends with the best intentions, and whatever it is refused bounces to somebody who cannot help it. An entry names one:

    [[smtpd.filters.trusted_forwarders.entries]]
    name = "university"
    networks = ["192.0.2.0/28"]
    reverse_names = ["*.mail.university.example"]
    domains = ["example.com"]
    never_reject = true

- `networks` are its addresses.
- `reverse_names` are its names in DNS, "host.example" or "*.example" for all names below. A name counts when the
  address leads to it and it leads back to the address; what that showed stands as `iprev` in Authentication-Results.
  Nothing the client says about itself, such as its name in EHLO or the sender, makes it a trusted forwarder.
- `domains` are recipient domains of ours that it forwards to; without any, all of them. Recipients in other domains
  are treated as with every other client, also when they are in the same message. One that `[smtpd.domains]` does not
  have is a mistake in the configuration.

Whose names cannot be looked up now is no trusted forwarder now; but as it may be one, `spf`, `dmarc`, `own_domain` and
`sender_domain` put its mail off (451) where they would refuse it.

The first entry that knows the client counts: entries with its address come before those with its name. An entry that
can never be reached, because an earlier one has the same, is a mistake in the configuration.

Recipients that the client forwards to get the label `trusted-forwarder`:

- filters with that label in their `unless` refuse nothing for them. `spf`, `own_domain` and `sender_domain` have it
  there by default; put it into `unless` of every other filter that judges the client's address, such as blocklists and
  greylisting. The label is there at RCPT, so those filters cannot have an `act_at` before it.
- `dmarc` obeys no policy for them, and says so in Authentication-Results (`override=trusted_forwarder`).

With `never_reject = true` they also get the label `never-reject`: no filter refuses a message to them any more with
5xx at the end of the data. It is taken, and gets the label `would-reject` beside those that filters gave it, so
agents can put it into another folder. Answers with 4xx stay, so do refusals at RCPT, such as those of recipients that
do not exist, and those of agents. In observe mode nothing of all this happens.

`smtpd_trusted_forwarder_connections_total` counts their connections.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from filters.reverse_names import confirm_names
from smtpd.addresses import AddressError, normalise_domain
from smtpd.findings import IprevResult, TrustedForwarder
from smtpd.metrics import Counter
from smtpd.model import Recipient, Session, Transaction
from smtpd.options import FilterOptions, IPNetwork, Networks, Options, Seconds, StageName, as_tuple
from smtpd.patterns import HostPatterns, HostSet, NetworkSet, host_key
from smtpd.policy import NEVER_REJECT, PASS, Filter, Verdict
from smtpd.services import Services

CONNECTIONS = Counter(
    "smtpd_trusted_forwarder_connections_total",
    "Connections of trusted forwarders. forwarder is the name of the entry, by is network or name.",
    ("forwarder", "by"),
)

LABEL = "trusted-forwarder"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _domain(text: str) -> str:
    try:
        return normalise_domain(text)
    except AddressError as error:
        raise ValueError(f"is no domain: {error.problem}") from None


class Forwarder(Options):
    """One host, or several that belong together."""

    name: str
    """What it is called in Authentication-Results and metrics: letters, digits, ".", "_" and "-"."""
    networks: Networks = ()
    """Its addresses."""
    reverse_names: HostPatterns = ()
    """Its names, such as "mx.host.example" or "*.host.example"."""
    domains: Annotated[tuple[Annotated[str, AfterValidator(_domain)], ...], BeforeValidator(as_tuple)] = ()
    """Recipient domains of ours that it forwards to; empty: all."""
    never_reject: bool = False
    """Whether no filter refuses messages from it with 5xx."""

    @model_validator(mode="after")
    def _is_narrow(self) -> Self:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f'name must be letters, digits, ".", "_" and "-", 64 at most, not {self.name!r}')
        if not self.networks and not self.reverse_names:
            raise ValueError(f"{self.name}: needs networks or reverse_names")
        for network in self.networks:
            if network.prefixlen == 0:
                raise ValueError(f"{self.name}: {network} is everybody")
        for pattern in self.reverse_names:
            if "." not in pattern.removeprefix("*."):
                raise ValueError(f'{self.name}: "{pattern}" is too wide')
        return self


def _are_distinct(entries: Sequence[Forwarder]) -> Sequence[Forwarder]:
    """Let entries pass of which each can be reached."""
    names: set[str] = set()
    owners: dict[IPNetwork, str] = {}
    known: list[tuple[HostSet, str]] = []
    for entry in entries:
        if entry.name in names:
            raise ValueError(f'there are two entries with the name "{entry.name}"')
        names.add(entry.name)
        for network in entry.networks:
            supernets = (network.supernet(new_prefix=length) for length in range(network.prefixlen + 1))
            if owner := next((owners[wider] for wider in supernets if wider in owners), ""):
                raise ValueError(f"{entry.name}: {network} is in the entry {owner} already")
        for pattern in entry.reverse_names:
            if owner := next((owner for names_before, owner in known if _covers(names_before, pattern)), ""):
                raise ValueError(f'{entry.name}: "{pattern}" is in the entry {owner} already')
        owners |= dict.fromkeys(entry.networks, entry.name)
        known.append((HostSet(entry.reverse_names), entry.name))
    return entries


def _covers(names: HostSet, pattern: str) -> bool:
    # Whatever stands for the star, as a "*" is no part of a name: only another star can match it.
    return host_key(pattern) in names


class TrustedForwardersOptions(FilterOptions):
    """Options of `trusted_forwarders`."""

    entries: Annotated[tuple[Forwarder, ...], BeforeValidator(as_tuple), AfterValidator(_are_distinct)] = ()
    """Who forwards: tables with `name`, `networks`, `reverse_names`, `domains` and `never_reject`."""
    lookup_time: Annotated[Seconds, Field(gt=0)] = 4.0
    """Longest time for all lookups of a client's names together; who has no name by then is no trusted forwarder."""

    def recipient_domains(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Nobody is forwarded to in a domain whose mail does not come here."""
        for number, entry in enumerate(self.entries):
            for position, domain in enumerate(entry.domains):
                yield ("entries", number, "domains", position), domain


class _Search:
    """What is known about a client, as a fact of its session: `found` is final when `done` is set."""

    __slots__ = ("done", "found")

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.found: TrustedForwarder | None = None


class TrustedForwarders(Filter):
    """Recognises forwarders when they connect, and marks their recipients."""

    name = "trusted_forwarders"
    Options = TrustedForwardersOptions
    gives = (TrustedForwarder, IprevResult)
    labels: ClassVar[frozenset[str]] = frozenset((LABEL, NEVER_REJECT))
    labels_at: ClassVar[Mapping[str, StageName]] = {LABEL: "rcpt", NEVER_REJECT: "rcpt"}
    early = True

    def __init__(self, name: str, options: TrustedForwardersOptions, services: Services) -> None:
        super().__init__(name, options, services)
        facts = [TrustedForwarder(one.name, frozenset(one.domains), one.never_reject) for one in options.entries]
        entries = list(zip(facts, options.entries, strict=True))
        self._by_network = [(fact, NetworkSet(one.networks)) for fact, one in entries if one.networks]
        self._by_name = [(fact, HostSet(one.reverse_names)) for fact, one in entries if one.reverse_names]
        self._longest = min(options.lookup_time, self.lookup_time or options.lookup_time)
        self._connections = services.metrics.counter(CONNECTIONS)
        # Labels of a filter in observe mode have no effect; its facts must have none, either.
        self._acts = options.mode != "observe"

    def can_refuse(self) -> bool:
        """Never; so nobody waits for lookups but who is about to be refused."""
        return False

    async def on_connect(self, session: Session) -> Verdict:
        """Recognise the client by its address, or else by its names."""
        search = _Search()
        session.facts.add(search)
        try:
            search.found = self._find_by_network(session) or await self._find_by_name(session)
            if search.found is not None and self._acts:
                session.facts.add(search.found)
        finally:
            search.done.set()
        return PASS

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        """Mark the recipient if the client forwards for its domain."""
        search = mail.session.facts.get(_Search)
        if search is None:
            return PASS
        await search.done.wait()
        found = search.found
        if found is None or not found.forwards_for(recipient.address.domain):
            return PASS
        return Verdict(labels=self.labels if found.never_reject else frozenset((LABEL,)))

    def _find_by_network(self, session: Session) -> TrustedForwarder | None:
        for fact, networks in self._by_network:
            if session.ip in networks:
                self._connections.labels(fact.name, "network").inc()
                return fact
        return None

    async def _find_by_name(self, session: Session) -> TrustedForwarder | None:
        if not self._by_name:
            return None
        result = await confirm_names(session.ip, self.services.resolver, self._longest)
        # In observe mode nobody would be spared, so nobody has to wait.
        session.facts.add(replace(result, may_forward=self._acts and result.status == "temperror"))
        for fact, names in self._by_name:
            if any(name in names for name in result.names):
                self._connections.labels(fact.name, "name").inc()
                return fact
        return None
