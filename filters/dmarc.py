"""Do with mail what the domain in its From field asks for when nothing proves that it sent it (DMARC, RFC 9989).

Needs `spf` and `dkim`, and looks at what `arc` and `trusted_forwarders` found when they are there. A message passes
when SPF of its sender or one of its DKIM signatures passes for the domain in From, or for one of the same
organisation. If not, the record of that domain says what to do:

- `p=reject`: 550 5.7.1 to the end of the data, naming the domain and its policy.
- `p=quarantine`: the label `quarantine`; agents can put such mail into another folder. It is never refused.
- `p=none`: nothing but the label `dmarc-fail`, which all messages get that fail.

`sp` and `np` of the record of an organisation, or of a public suffix, hold for subdomains that exist or do not.
Mail that passes gets the label `dmarc-pass`, so other filters can have it in their `unless`. When DNS does not answer
about something that could have proven the author, or `spf` or `dkim` broke, the message gets `dmarc-temperror` and is
taken; with `on_tempfail = "defer"` it hears 451 4.7.1 where the policy is "reject" or not known. It hears that in any
case when there was no time to read the body for a signature: whoever sends a lot at once could bring that about.
Some domains have names below them that no nameserver answers for, and a forger may use one as sender; "defer" keeps
that out, too, at the price of delay while DNS has trouble.

Whose policy is "reject" or "quarantine" is not obeyed, and the reason stands in Authentication-Results, when

- the client is a trusted forwarder of the recipient (`trusted_forwarder`). Other recipients of the same message hear
  the refusal.
- a trusted sealer says by ARC that the message passed DMARC when it came there (`local_policy`, see `trust_arc`).
- the domain is in `exempt_domains` (`local_policy`).
- the record says that it is only tried (`t=y`): one level less than it asks for (`policy_test_mode`).
- the record says `pct`, and `pct = "apply"`: one level less for the rest of the messages (`sampled_out`).
- nothing would be refused anyway, as in observe mode (`local_policy`).

Where the seal of a trusted sealer cannot be checked now, or whether the client is a trusted forwarder, a message that
would be refused hears 451 4.7.1.

A message has exactly one From field, with at least one domain (see `no_author`) and ten at most, or hears 550 5.6.0.
If it has several domains each of them is asked, and the strictest outcome counts.

Where RFC 9989 differs from RFC 7489, which it replaces:

| | RFC 9989, the default | RFC 7489 |
|---|---|---|
| organisation of a domain | tree walk: asks for `_dmarc` at up to 8 names | public suffix list: `discovery = "psl"` |
| two records at one name | none counts, the walk goes on upwards | none counts, the search is over |
| `np`, `t`, `psd` | new | unknown; here `np` and `t` count all the same |
| `pct` | gone: it is ignored | samples: `pct = "apply"` |
| `p` missing | "none", if reports are wanted | the same, but `p` should be there |
| `!10m` behind an address in `rua` | ignored | size limit |

The public suffix list is the one inside the library publicsuffixlist, or a newer one in `psl_file`.

We send no reports. With `report_file` every message from a domain that wants aggregate reports gives one line of
JSON in that file (RFC 9990's names), to be made into reports by another program that moves the file away first.
`smtpd_dmarc_checks_total` counts outcomes.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from filters.dmarc_assessment import Assessment, Evidence, assess, gather
from filters.dmarc_authors import Authors, find_authors
from filters.dmarc_discovery import Discovery, Records, Suffixes, SuffixList, TreeWalk
from filters.dmarc_outcome import Circumstances, Outcome, Sampler, decide, strictest
from filters.dmarc_rows import Reason, RowFile, make_row
from smtpd import metrics, replies
from smtpd.findings import ArcResult, DkimResults, DmarcResult, IprevResult, SpfResults, TrustedForwarder
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import Bytes, FilterOptions, InputFile, OutputFile, Strings
from smtpd.patterns import DomainPatterns, HostSet
from smtpd.plugins import BrokenPlugin
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services

CHECKS = metrics.Counter(
    "smtpd_dmarc_checks_total",
    "Messages by the outcome of DMARC: pass, fail, none (no policy), temperror, permerror (a record that asks for "
    "nothing), or malformed (not one From field with a domain).",
    ("result",),
)


class DmarcOptions(FilterOptions):
    """Options of `dmarc`."""

    unless: Strings = ("authenticated",)
    """Conditions that silence a refusal; mail of users who logged in is not even looked at."""
    discovery: Literal["tree", "psl"] = "tree"
    """How the organisation of a domain is found: "tree" (RFC 9989) or "psl", the public suffix list (RFC 7489)."""
    psl_file: InputFile = ""
    """A newer public suffix list than the one inside the library, for `discovery = "psl"`."""
    pct: Literal["ignore", "apply"] = "ignore"
    """What `pct` in a record does: nothing (RFC 9989), or sample messages (RFC 7489)."""
    on_tempfail: Literal["tag", "defer"] = "tag"
    """What mail hears that might have to be refused while DNS does not say so: nothing but a label, or 451 4.7.1."""
    no_author: Literal["reject", "pass"] = "reject"
    """What becomes of mail with nobody in its From field who has a domain: 550 5.6.0, or it passes."""
    trust_arc: bool = True
    """Whether a sealer that `arc` trusts may say that mail passed before it was changed on its way."""
    exempt_domains: DomainPatterns = ()
    """Authors' domains whose policy is not obeyed, such as "list.example" or "*.example"; mail is labelled only."""
    report_file: OutputFile = ""
    """File that gets one line of JSON for each message whose domain wants aggregate reports; empty: none."""
    report_max_size: Annotated[Bytes, Field(gt=0)] = 100 << 20
    """Size at which the report file is left alone until somebody moves it away."""
    report_recipients: bool = False
    """Whether the domains of the recipients stand in the report file."""

    @field_validator("psl_file")
    @classmethod
    def _is_read(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("discovery") == "tree":
            raise ValueError('needs discovery = "psl": a tree walk reads no list')
        return value


class Dmarc(Filter):
    """Looks at the message when SPF and DKIM are known."""

    name = "dmarc"
    Options = DmarcOptions
    needs = (SpfResults, DkimResults)
    uses = (ArcResult, TrustedForwarder, IprevResult)
    gives = (DmarcResult,)
    labels: ClassVar[frozenset[str]] = frozenset(("dmarc-pass", "dmarc-fail", "dmarc-temperror", "quarantine"))

    def __init__(self, name: str, options: DmarcOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._limits = options
        self._checks = services.metrics.counter(CHECKS)
        self._exempt = HostSet(options.exempt_domains)
        self._suffixes: Suffixes | None = None
        self._rows: RowFile | None = None
        self.sampler = Sampler()

    async def start(self) -> None:
        """Read the public suffix list, when it is wanted; OSError when its file cannot be read."""
        options = self._limits
        if options.discovery == "psl":
            try:
                self._suffixes = await asyncio.to_thread(_load_suffixes, options.psl_file)
            except ValueError as error:
                problem = f"{options.psl_file}: no public suffix list: {error}"
                raise BrokenPlugin(f"filter {self.table}: {problem}") from error
        if options.report_file and not self.services.is_rehearsal:
            self._rows = RowFile(options.report_file, options.report_max_size, self.services.log)

    async def stop(self) -> None:
        """Close the report file."""
        if self._rows is not None:
            self._rows.close()

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """Assess every domain in From; the strictest outcome counts."""
        if mail.session.authenticated and "authenticated" in self._limits.unless:
            return PASS  # what they submit begins its way here: there is nothing that could prove it yet
        authors = find_authors(message)
        if authors.problem:
            return self._malformed(mail, authors)
        discovery = self._discovery(mail)
        evidence = gather(mail.facts.get(SpfResults), mail.facts.get(DkimResults))
        thinking = (self._assess(domain, discovery, evidence) for domain in authors.domains)
        outcomes = [
            decide(assessment, self._circumstances(mail, message, assessment, evidence))
            for assessment in await asyncio.gather(*thinking)
        ]
        worst = strictest(outcomes)
        self._checks.labels(worst.assessment.status).inc()
        mail.facts.add(worst.finding())
        self._write_rows(mail, outcomes, discovery.method)
        return self._verdict(mail, outcomes, worst)

    async def _assess(self, domain: str, discovery: Discovery, evidence: Evidence) -> Assessment:
        if domain.startswith("["):
            return Assessment(domain, "none", reason="an address literal has no policy")
        try:
            # Each author has a time of its own, and all together end before the filter has to: whose DNS is slow on
            # purpose must not stand beside somebody else in From and get round the policy of that one.
            async with asyncio.timeout(self.lookup_time):
                return await assess(domain, discovery, evidence, thorough=bool(self._limits.report_file))
        except TimeoutError:
            return Assessment(domain, "temperror", reason="DNS takes too long")

    def _malformed(self, mail: Transaction, authors: Authors) -> Verdict:
        self._checks.labels("malformed").inc()
        mail.facts.add(DmarcResult("permerror", reason=authors.problem))
        if authors.kind == "nobody" and self._limits.no_author == "pass":
            return PASS
        return Verdict(replies.BAD_HEADER(problem=authors.problem))

    def _discovery(self, mail: Transaction) -> Discovery:
        # What an author's domain asks for is looked up without the limit of the message: it takes eight questions,
        # and a sender with a costly SPF record of its own must not get round somebody else's policy.
        records = Records(self.services.resolver, self.services.lookups(mail))
        return TreeWalk(records) if self._suffixes is None else SuffixList(records, self._suffixes)

    def _circumstances(
        self, mail: Transaction, message: Message, assessment: Assessment, evidence: Evidence
    ) -> Circumstances:
        options, record = self._limits, assessment.published.record if assessment.published is not None else None
        exemptions: list[Reason] = []
        arc = mail.facts.get(ArcResult)
        if options.trust_arc and arc is not None and arc.status == "pass" and arc.trusted_by and arc.passed_upstream:
            exemptions.append(("local_policy", f"arc=pass, sealed by {arc.trusted_by}"))
        if assessment.author in self._exempt:
            exemptions.append(("local_policy", "exempt here"))
        forwarder, iprev = mail.facts.get(TrustedForwarder), mail.facts.get(IprevResult)
        helps = forwarder is not None and len(_rest(mail)) < len(mail.recipients)
        samples = options.pct == "apply" and record is not None and record.percent < 100
        return Circumstances(
            forwarder=forwarder.name if forwarder is not None and helps else "",
            exemptions=tuple(exemptions),
            silence=self._silence(mail),
            is_sampled_out=samples and record is not None and self.sampler.leaves_out(message, record.percent),
            defers=options.on_tempfail == "defer" or evidence.unread,
            is_open=(options.trust_arc and arc is not None and arc.undecided)
            or (iprev is not None and iprev.may_forward),
        )

    def _silence(self, mail: Transaction) -> str:
        """Why a refusal would not be heard, as far as can be known here."""
        session, unless = mail.session, set(self._limits.unless)
        if self._limits.mode == "observe":
            return "only observed here"
        if ("trusted" in unless and session.trusted) or ("tls" in unless and session.tls is not None):
            return "exempt client"
        if mail.recipients and all(recipient.exempt for recipient in mail.recipients):
            return "postmaster"
        return "exempt message" if unless & mail.all_labels else ""

    def _verdict(self, mail: Transaction, outcomes: list[Outcome], worst: Outcome) -> Verdict:
        assessment = worst.assessment
        label = f"dmarc-{assessment.status}"
        marks = frozenset((label,)) & self.labels
        if worst.is_deferred:
            return _refuse(replies.DMARC_LATER(domain=assessment.author), mail, _rest(mail), marks)
        if worst.wanted == "reject" and assessment.published is not None:
            reply = replies.DMARC_REJECT(
                domain=assessment.author, policy_domain=assessment.published.domain, tag=assessment.tag or "p"
            )
            return _refuse(reply, mail, _rest(mail), marks)
        rest = _rest(mail)
        if worst.wanted == "quarantine" and rest:
            return Verdict(labels=frozenset(("quarantine",)), recipients=_scope(mail, rest), marks=marks)
        return Verdict(marks=marks) if marks else PASS

    def _write_rows(self, mail: Transaction, outcomes: list[Outcome], method: str) -> None:
        if self._rows is None:
            return
        recipients = sorted({recipient.address.domain for recipient in mail.recipients})
        for outcome in outcomes:
            row = make_row(
                mail, outcome.assessment, outcome.disposition, outcome.reasons,
                method=method, begin=int(self.services.now()),
                recipient_domains=recipients if self._limits.report_recipients else None,
            )  # fmt: skip
            if row is not None:
                self._rows.write(row)


def _rest(mail: Transaction) -> list[Recipient]:
    """Recipients that no trusted forwarder delivers for."""
    forwarder = mail.facts.get(TrustedForwarder)
    if forwarder is None:
        return mail.recipients
    return [recipient for recipient in mail.recipients if not forwarder.forwards_for(recipient.address.domain)]


def _scope(mail: Transaction, recipients: list[Recipient]) -> frozenset[Recipient] | None:
    return None if len(recipients) == len(mail.recipients) else frozenset(recipients)


def _refuse(
    reply: Reply, mail: Transaction, recipients: list[Recipient], marks: frozenset[str] = frozenset()
) -> Verdict:
    if mail.recipients and not recipients:
        return Verdict(marks=marks)
    return Verdict(reply, recipients=_scope(mail, recipients), marks=marks)


def _load_suffixes(path: str) -> Suffixes:
    from publicsuffixlist import PublicSuffixList

    if not path:
        return PublicSuffixList()
    with open(path, "rb") as file:
        return PublicSuffixList(file)
