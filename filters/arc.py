"""Validate the chain of hosts that a message came through (ARC, RFC 8617), and know whom of them to believe.

Mailing lists and forwarders change messages, so signatures of authors break. A host that seals writes down what it
found before (`ARC-Authentication-Results`), and signs that and the message. The result stands in our
Authentication-Results field:

- none: nobody sealed.
- pass: all seals and the newest message signature verify, and nothing is missing. `header.oldest-pass` is the oldest
  host whose message signature still verifies, so that the message was not changed behind it; 0 means all.
- fail: anything else. It is worth as much as none (RFC 8617 §5.2): the message gets the label `arc-fail`, and is
  refused with 550 5.7.29 only by `fail = "reject"`. A header section beyond our limits is a fail that never refuses.
- temperror: a key cannot be looked up now, or the filter broke. Nothing happens, but where the host that sealed last is
  believed (see below) and `dmarc` or `own_domain` would refuse the message, it hears 451.

**Anybody can seal.** A chain that passes says who claims something, not that it is true. So it counts for nothing but
the label `arc-pass` unless the host that sealed last is in `trusted_sealers`. Then `dmarc` and `own_domain` do not
refuse the message if DMARC passed when it came to that host, for the domain that is in From now. What hosts before it
wrote is believed as far down as they are trusted, too, without a gap: whoever is not could have written anything.
Nothing is believed where the last host left something unsigned that readers would see: the end of the body (l=), or
a second Subject.

Put there whoever forwards to you, and checks DMARC itself. The name is that of the seal (d=), such as "google.com".

A stranger cannot make it work hard: a chain that cannot pass costs no lookup; each key is looked up once, eight at a
time; body and header are read once, however many have signed them; keys have the limits of `dkim`.
`smtpd_arc_checks_total` counts results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from filters.arc_chain import MAX_SETS, NAMES, ArcSet, Broken, TooLong, has_chain, read_chain
from filters.arc_results import dmarc_passes
from filters.arc_verification import ChainReport, ChainVerification
from filters.dkim_header import HeaderSection
from filters.dkim_keys import Keys, Unusable
from filters.dkim_signature import Signature
from filters.dkim_turns import Turns
from filters.dmarc_authors import find_authors
from smtpd import metrics, replies
from smtpd.content import MAX_HEAD
from smtpd.findings import ArcResult, DkimResults, SpfResults
from smtpd.model import ContentSource, Message, Transaction
from smtpd.options import Bytes, FilterOptions, Strings
from smtpd.patterns import DomainPatterns, HostSet
from smtpd.policy import PASS, Filter, Verdict
from smtpd.services import Services

CHECKS = metrics.Counter(
    "smtpd_arc_checks_total",
    "Messages by the result of their ARC chain: none, pass, fail or temperror. trusted counts those of pass whose last "
    "host is in trusted_sealers.",
    ("result",),
)
RESULTS = ("none", "pass", "fail", "temperror", "trusted")

INLINE = 1 << 16  # octets of a message; hashing more than that is left to a thread
INLINE_FIELDS = 15  # of a chain; five sets take a millisecond, and fifty would take 23

# What decides how a message is shown, and is to be there once (RFC 5322 §3.6, RFC 2045); From is looked at anyway.
_SINGLE = ("Content-Transfer-Encoding", "Content-Type", "Date", "Message-ID", "MIME-Version", "Sender", "Subject")


class ArcOptions(FilterOptions):
    """Options of `arc`."""

    unless: Strings = ("authenticated",)
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""
    trusted_sealers: DomainPatterns = ()
    """Domains of seals (d=) that are believed, such as "lists.example" or "*.example"."""
    fail: Literal["tag", "reject"] = "tag"
    """What happens to a message whose chain fails: the label "arc-fail", or 550 5.7.29 as well."""
    max_instances: Annotated[int, Field(ge=1, le=MAX_SETS)] = MAX_SETS
    """Most hosts in a chain; a longer one fails, but is not refused where these are fewer than the 50 of RFC 8617."""
    max_header: Annotated[Bytes, Field(gt=0, lt=MAX_HEAD)] = 256 << 10
    """Biggest header section in which a chain is looked at."""
    max_fields: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Most fields of a header section in which a chain is looked at."""
    min_rsa_bits: Annotated[int, Field(ge=1024, le=4096)] = 1024
    """Smallest RSA key that counts; RFC 8301 allows no less than 1024."""
    max_rsa_bits: Annotated[int, Field(ge=4096, le=8192)] = 4096
    """Biggest RSA key that is computed with."""


class Arc(Filter):
    """Validates chains."""

    name = "arc"
    Options = ArcOptions
    # It reads neither: but of the lookups of a message the author's proofs come before those of strangers.
    uses = (SpfResults, DkimResults)
    gives = (ArcResult,)
    labels: ClassVar[frozenset[str]] = frozenset(("arc-pass", "arc-fail"))
    labels_at_will: ClassVar[frozenset[str]] = frozenset(("arc-pass",))  # anybody can seal

    def __init__(self, name: str, options: ArcOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._wishes = options
        self._trusted = HostSet(options.trusted_sealers)
        self._believes = bool(options.trusted_sealers)
        self._keys = Keys(min_bits=options.min_rsa_bits, max_bits=options.max_rsa_bits)
        checks = services.metrics.counter(CHECKS)
        self._checks = {result: checks.labels(result) for result in RESULTS}
        self._turns = Turns()

    def can_refuse(self) -> bool:
        """Only where the option says so."""
        return self._wishes.fail == "reject"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """One chain, or none."""
        head = message.content.head()
        if b"arc-" not in head.lower():
            return self._judge(mail, ArcResult("none"))
        ip = mail.session.ip_text
        try:
            header = HeaderSection(head, max_octets=self._wishes.max_header, max_fields=self._wishes.max_fields)
        except Unusable as unusable:
            return self._judge(mail, ArcResult("fail", reason=unusable.reason, client_ip=ip, is_unread=True))
        if not has_chain(header):
            return self._judge(mail, ArcResult("none"))
        # This stands if the filter breaks or comes too late: nobody is to be refused for good because of that.
        mail.facts.add(ArcResult("temperror", reason="not validated", client_ip=ip, undecided=self._believes))
        is_big = message.content.size > INLINE or sum(len(header.places(name)) for name in NAMES) > INLINE_FIELDS
        try:
            read = partial(read_chain, header, self.services.now(), max_sets=self._wishes.max_instances)
            chain = await self._turns.take(read) if is_big else read()
        except Broken as broken:
            is_ours = isinstance(broken, TooLong) and self._wishes.max_instances < MAX_SETS
            return self._judge(mail, ArcResult("fail", reason=str(broken), client_ip=ip, is_unread=is_ours))
        report = await self._verify(mail, message.content, header, chain, is_big)
        return self._judge(mail, self._result(report, message, header, chain, ip))

    async def _verify(
        self, mail: Transaction, content: ContentSource, header: HeaderSection, chain: Sequence[ArcSet], is_big: bool
    ) -> ChainReport:
        newest = chain[-1].message.found
        if isinstance(newest, Unusable):
            return ChainReport("fail", f"ARC-Message-Signature {len(chain)}: {newest.reason}")
        found = [one.message.found for one in chain] + [one.seal for one in chain]
        names = {one.key_name for one in found if isinstance(one, Signature)}
        keys = await self._keys.find(self.services.lookups(mail), sorted(names), self.lookup_time)
        verification = ChainVerification(header, content, chain, keys, single=_SINGLE)
        try:
            return await self._turns.finish(verification.steps()) if is_big else verification.run()
        finally:
            verification.abandon()

    def _result(
        self, report: ChainReport, message: Message, header: HeaderSection, chain: Sequence[ArcSet], ip: str
    ) -> ArcResult:
        sealers = tuple(one.seal.domain for one in reversed(chain))
        is_trusted = report.status == "pass" and report.is_whole and sealers[0] in self._trusted
        return ArcResult(
            report.status,
            instances=len(chain),
            reason=report.reason,
            oldest_pass=report.oldest_pass,
            sealers=sealers,
            trusted_by=sealers[0] if is_trusted else "",
            passed_upstream=is_trusted and self._has_passed(message, header, chain),
            undecided=report.status == "temperror" and sealers[0] in self._trusted,
            client_ip=ip,
        )

    def _has_passed(self, message: Message, header: HeaderSection, chain: Sequence[ArcSet]) -> bool:
        """Whether somebody says so whom nobody we do not trust came behind.

        RFC 8617 leaves it to us whom to believe what. The first host of the chain alone would not do: whoever
        begins a chain with a lie, and sends it through a list we trust, gets a seal on it that is good.
        """
        authors = frozenset(find_authors(message).domains)
        for one in reversed(chain):
            if one.seal.domain not in self._trusted:
                return False
            if authors and authors <= dmarc_passes(header.value(one.results_place)):
                return True
        return False

    def _judge(self, mail: Transaction, result: ArcResult) -> Verdict:
        mail.facts.add(result)
        self._checks[result.status].inc()
        if result.trusted_by:
            self._checks["trusted"].inc()
        if result.status not in ("pass", "fail"):
            return PASS
        refused = result.status == "fail" and self._wishes.fail == "reject" and not result.is_unread
        label = frozenset((f"arc-{result.status}",))
        return Verdict(replies.ARC_FAILED(reason=result.reason) if refused else None, labels=label)
