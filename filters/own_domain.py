"""Refuse mail that says it is from one of our own domains, but comes from outside and cannot prove it.

Our users log in to send, so mail from our domains that comes like any other is forged, or sent by a service that our
domains know: then SPF passes, or it has a DKIM signature of ours. So a message is refused with 550 5.7.1 when neither
of them passes for the domain, be it in the envelope (`envelope`) or in the From field (`header`). Each of them can be
set to "tag" (the label `own-domain`, nothing else) or "pass".

Our own domains are those in `[smtpd.domains]`, or in `domains` here; "*" there is everybody's, and does not count.
With `subdomains = true` so are all names below them. A pass counts for the domain itself; with `alignment = "relaxed"`
it counts for all names that belong to the same domain of ours, as `news.example.com` and `example.com` do when
`example.com` is ours.

This needs `spf` and `dkim`. Nobody is refused

- who logged in, or is in `trusted_networks`.
- whom `trusted_forwarders` knows, for the recipients it forwards to: our users' mail comes back that way. Whose name
  cannot be looked up now hears 451 4.7.1.
- when a sealer that `arc` trusts says that the message had passed DMARC before it was changed on its way (see
  `trust_arc`): mailing lists do that. Where its seal cannot be checked now, the answer is 451 4.7.1.
- when DNS does not answer about something that could have proven the sender, or `spf` or `dkim` broke. The message
  gets the label `own-domain-temperror`; with `on_tempfail = "defer"` it hears 451 4.7.1, and in any case when there was
  no time to read the body for a signature.

Start with `mode = "observe"`: printers, web servers and news letters that send as one of our domains without a login
show in `smtpd_own_domain_checks_total` and in the log. A message without a From field that can be read, or with
several, is what `headers` and `dmarc` refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import ClassVar, Literal

from filters.dmarc_assessment import Evidence, gather
from filters.reverse_names import may_be_forwarded
from smtpd import replies
from smtpd.address_list import MAX_OCTETS, parse_address_list
from smtpd.addresses import AddressError
from smtpd.findings import ArcResult, DkimResults, IprevResult, SpfResults
from smtpd.header_fields import values_of
from smtpd.metrics import Counter
from smtpd.model import Message, Transaction
from smtpd.options import FilterOptions, Strings
from smtpd.patterns import DomainPatterns, host_key
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services

CHECKS = Counter(
    "smtpd_own_domain_checks_total",
    "Own domains found in mail from outside. part is envelope or header; result is pass, fail, temperror, or arc (a "
    "trusted sealer vouches for the message).",
    ("part", "result"),
)

MAX_FIELDS = 10  # From fields that are read; there must be one

Action = Literal["reject", "tag", "pass"]
Part = Literal["envelope", "header"]
Result = Literal["pass", "fail", "temperror", "arc", "open"]

_FORGED = frozenset(("own-domain",))
_UNKNOWN = frozenset(("own-domain-temperror",))


class OwnDomainOptions(FilterOptions):
    """Options of `own_domain`."""

    domains: DomainPatterns = ()
    """Our own domains, "example.com" or "*.example.com"; empty: those in `[smtpd.domains]`."""
    subdomains: bool = False
    """Whether all names below our domains are ours, too."""
    envelope: Action = "reject"
    """What an unproven domain of ours in MAIL FROM does: 550, a label, or nothing."""
    header: Action = "reject"
    """What an unproven domain of ours in the From field does."""
    alignment: Literal["relaxed", "strict"] = "relaxed"
    """Whether a pass counts for all names below the same domain of ours, or for the very same name only."""
    on_tempfail: Literal["tag", "defer"] = "tag"
    """What mail hears that might have to be refused while DNS does not say so: nothing but a label, or 451 4.7.1."""
    trust_arc: bool = True
    """Whether a sealer that `arc` trusts may say that mail passed before it was changed on its way."""
    unless: Strings = ("authenticated", "trusted", "trusted-forwarder")
    """Conditions that silence a refusal; clients that logged in or are trusted are not even looked at."""


class OwnDomain(Filter):
    """Looks at the message when SPF and DKIM are known."""

    name = "own_domain"
    Options = OwnDomainOptions
    needs = (SpfResults, DkimResults)
    uses = (ArcResult, IprevResult)
    labels: ClassVar[frozenset[str]] = _FORGED | _UNKNOWN

    def __init__(self, name: str, options: OwnDomainOptions, services: Services) -> None:
        super().__init__(name, options, services)
        domains = options.domains or services.local_domains
        self._ours = OwnDomains(domains, subdomains=options.subdomains, strict=options.alignment == "strict")
        self._actions: dict[Part, Action] = {"envelope": options.envelope, "header": options.header}
        self._defers = options.on_tempfail == "defer"
        self._trust_arc = options.trust_arc
        self._checks = services.metrics.counter(CHECKS)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Ask every domain of ours that the message names for a proof."""
        if self.excuses(mail.session):
            return PASS
        authors = [domain for domain in _authors(message) if domain in self._ours]
        senders = [mail.sender.domain] if mail.sender.domain in self._ours else []
        if not authors and not senders:
            return PASS
        evidence = gather(mail.facts.get(SpfResults), mail.facts.get(DkimResults))
        arc = mail.facts.get(ArcResult) if self._trust_arc else None
        is_open = may_be_forwarded(mail, self.options.unless)
        verdicts = [self._judge("header", domain, evidence, arc, is_open) for domain in authors]
        # DMARC of the first host of a chain was about From; it says nothing about another domain in the envelope.
        spoken_for = any(self._ours.are_aligned(author, sender) for author in authors for sender in senders)
        verdicts += [
            self._judge("envelope", domain, evidence, arc if spoken_for else None, is_open) for domain in senders
        ]
        return _heaviest(verdicts)

    def _judge(self, part: Part, domain: str, evidence: Evidence, arc: ArcResult | None, is_open: bool) -> Verdict:
        action = self._actions[part]
        result = self._result(domain, evidence, arc, is_open)
        self._checks.labels(part, "temperror" if result == "open" else result).inc()
        if action == "pass" or result in ("pass", "arc"):
            return PASS
        if result == "fail":
            return Verdict(replies.OWN_DOMAIN(domain=domain) if action == "reject" else None, labels=_FORGED)
        # A seal or name that cannot be checked proves nothing, and any stranger can have one: its mail waits for DNS.
        is_deferred = action == "reject" and (self._defers or evidence.unread or result == "open")
        return Verdict(replies.OWN_DOMAIN_LATER(domain=domain) if is_deferred else None, labels=_UNKNOWN)

    def _result(self, domain: str, evidence: Evidence, arc: ArcResult | None, is_open: bool) -> Result:
        aligned = [one for one in evidence.identifiers if self._ours.are_aligned(one.domain, domain)]
        if any(one.is_proven for one in aligned):
            return "pass"
        if arc is not None and arc.status == "pass" and arc.trusted_by and arc.passed_upstream:
            return "arc"
        if aligned or evidence.missing:
            return "temperror"
        return "open" if is_open or (arc is not None and arc.status == "temperror") else "fail"


class OwnDomains:
    """Domains of ours: keys as in `[smtpd.domains]`. Questions are about A-labels in lower case."""

    def __init__(self, keys: Iterable[str], *, subdomains: bool, strict: bool) -> None:
        names = {host_key(key) for key in keys}  # no domain is below "*"
        self._exact = frozenset(name for name in names if not name.startswith("*."))
        below = frozenset(name[2:] for name in names if name.startswith("*."))
        self._heads = self._exact | below
        self._above = self._heads if subdomains else below
        self._strict = strict

    def __contains__(self, domain: str) -> bool:
        if not domain:
            return False
        return domain in self._exact or any(parent in self._above for parent in _parents(domain))

    def are_aligned(self, one: str, other: str) -> bool:
        """Whether a proof for one is a proof for the other."""
        if one == other:
            return True
        return not self._strict and bool(self._heads_of(one) & self._heads_of(other))

    def _heads_of(self, domain: str) -> set[str]:
        return {name for name in (domain, *_parents(domain)) if name in self._heads}


def _authors(message: Message) -> Iterator[str]:
    """The domains in From, each once; of several fields all, as far as they can be read."""
    found: dict[str, None] = {}
    octets = MAX_OCTETS
    for value in islice(values_of(message.content.head(), "from"), MAX_FIELDS):
        try:
            domains = parse_address_list(value, max_octets=octets).domains
        except AddressError:
            break
        octets -= len(value)
        found |= dict.fromkeys(domains)
    return iter(found)


def _parents(domain: str) -> Iterator[str]:
    if domain.startswith("["):  # an address literal is below nothing
        return
    while domain:
        _, _, domain = domain.partition(".")
        if domain:
            yield domain


def _heaviest(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several: the heaviest refusal, the first of equals, and all labels."""
    heaviest, labels = None, frozenset[str]()
    for verdict in verdicts:
        labels |= verdict.labels
        reply = verdict.reply
        if reply is not None and (heaviest is None or (reply.is_permanent and not heaviest.is_permanent)):
            heaviest = reply
    return Verdict(heaviest, labels=labels) if labels or heaviest else PASS
