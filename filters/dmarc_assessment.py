"""Whether a message proves that it comes from its author's domain, and what that domain asks for if it does not.

The steps of RFC 9989 §5.3. An identifier that a sender could prove counts when it is *aligned*: the same domain as
the author's, or, unless the record is strict about it, one of the same organisation (RFC 9989 §4.4). No answer from
DNS about something that could have been aligned makes the outcome "temperror", never "fail" (RFC 9989 §5.3.6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from filters.dmarc_discovery import Discovery, Published, Undecided
from filters.dmarc_record import PolicyTag
from smtpd.findings import DkimResults, DmarcStatus, Policy, SpfResults

Mechanism = Literal["spf", "dkim"]

_STRENGTH: dict[Policy, int] = {"none": 0, "quarantine": 1, "reject": 2}
MECHANISMS: tuple[Mechanism, ...] = ("dkim", "spf")


@dataclass(frozen=True, slots=True)
class Identifier:
    """A domain that a mechanism was asked about. `is_proven`: it passed; otherwise nobody could say."""

    mechanism: Mechanism
    domain: str
    is_proven: bool
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What may speak for a message."""

    identifiers: tuple[Identifier, ...] = ()
    missing: tuple[Mechanism, ...] = ()
    """Mechanisms that should have been looked at and were not, since their filter broke or came too late."""
    unread: bool = False
    """There was no time to read the body for a signature. A sender can bring that about, so it is no excuse."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """DMARC of one author's domain."""

    author: str
    status: DmarcStatus
    published: Published | None = None
    policy: Policy = "none"
    """What the record asks for when the message fails."""
    tag: PolicyTag | None = None
    """Which tag of the record says so; None when the record is not known."""
    organization: str = ""
    """The author's organisational domain, "" when nobody had to find it out."""
    aligned: frozenset[Mechanism] = field(default_factory=frozenset)
    """What passed and is aligned."""
    reason: str = ""


def gather(spf: SpfResults | None, dkim: DkimResults | None) -> Evidence:
    """What the two mechanisms found, without what failed."""
    missing: list[Mechanism] = []
    found: list[Identifier] = []
    if dkim is None:
        missing.append("dkim")
    for signature in dkim.signatures if dkim is not None else ():
        # RFC 9989 §4.4.1: any signature that passes will do.
        if signature.domain and (signature.result == "temperror" or (signature.result == "pass" and signature.counts)):
            trouble = signature.reason or "its key could not be fetched"
            found.append(Identifier("dkim", _normal(signature.domain), signature.result == "pass", trouble))
    if spf is None:
        missing.append("spf")
    elif spf.mailfrom.domain and spf.mailfrom.result in ("pass", "temperror"):
        # RFC 9989 §4.4.2: MAIL FROM alone; for <> that is the name in HELO (RFC 7208 §2.4).
        check = spf.mailfrom
        found.append(Identifier("spf", _normal(check.domain), check.result == "pass", check.reason))
    unread = dkim is not None and any(one.unread for one in dkim.signatures)
    return Evidence(tuple(dict.fromkeys(found)), tuple(missing), unread)


async def assess(author: str, discovery: Discovery, evidence: Evidence, *, thorough: bool = True) -> Assessment:
    """DMARC of one author's domain, an A-label. `thorough`: find out about SPF even when DKIM has passed."""
    try:
        published = await discovery.policy_of(author)
    except Undecided as problem:
        return Assessment(author, "temperror", reason=str(problem))
    if published is None:
        return Assessment(author, "none", reason=_why_none(author, discovery))
    if not published.record.is_usable:
        return Assessment(author, "permerror", published, reason=f"the record of {published.domain} asks for nothing")
    return await _Case(author, published, discovery, evidence).decide(thorough)


class _Case:
    """An author's domain that a record was found for."""

    def __init__(self, author: str, published: Published, discovery: Discovery, evidence: Evidence) -> None:
        self._author = author
        self._published = published
        self._record = published.record
        self._discovery = discovery
        self._evidence = evidence
        self._doubts: list[str] = []

    async def decide(self, thorough: bool) -> Assessment:
        aligned: set[Mechanism] = set()
        for mechanism in MECHANISMS:
            if (thorough or not aligned) and await self._is_proven(mechanism):
                aligned.add(mechanism)
        policy, tag = await self._policy(failed=not aligned)
        status: DmarcStatus = "pass" if aligned else "temperror" if self._doubts else "fail"
        return Assessment(
            self._author, status, self._published, policy, tag, self._discovery.known_organization(self._author),
            frozenset(aligned), "" if aligned else "; ".join(self._doubts),
        )  # fmt: skip

    async def _is_proven(self, mechanism: Mechanism) -> bool:
        """Whether this mechanism proves the author; what keeps it from being known becomes a doubt."""
        if mechanism in self._evidence.missing:
            self._doubts.append(f"{mechanism} was not checked")
        own = [one for one in self._evidence.identifiers if one.mechanism == mechanism]
        is_strict = self._record.strict_dkim if mechanism == "dkim" else self._record.strict_spf
        for identifier in sorted(own, key=lambda one: (not one.is_proven, one.domain != self._author)):
            try:
                is_aligned = await self._is_aligned(identifier.domain, is_strict)
            except Undecided as problem:
                self._doubts.append(str(problem))
                continue
            if is_aligned and identifier.is_proven:
                return True
            if is_aligned:
                self._doubts.append(f"{mechanism} of {identifier.domain}: {identifier.trouble}")
        return False

    async def _is_aligned(self, domain: str, is_strict: bool) -> bool:
        author = self._author
        if domain == author:
            return True
        # An organisation is the domain itself or one above it, so two that end differently never share one.
        if is_strict or domain.rpartition(".")[2] != author.rpartition(".")[2]:
            return False
        organization = await self._discovery.organization_of(author, is_author=True)
        if domain != organization and not domain.endswith(f".{organization}"):
            return False
        return await self._discovery.organization_of(domain) == organization

    async def _policy(self, *, failed: bool) -> tuple[Policy, PolicyTag]:
        """RFC 9989 §4.10.1. Whether the author exists is only asked when it makes a difference."""
        if self._published.domain == self._author:
            return self._record.policy_for("domain")
        existing = self._record.policy_for("subdomain")
        nonexistent = self._record.policy_for("nonexistent")
        if not failed or existing[0] == nonexistent[0]:
            return existing
        try:
            return existing if await self._discovery.records.exists(self._author) else nonexistent
        except Undecided as problem:
            self._doubts.append(str(problem))
            return max(existing, nonexistent, key=lambda asked: _STRENGTH[asked[0]])


def _why_none(author: str, discovery: Discovery) -> str:
    doubled = [name for name in discovery.records.doubled if f".{author}".endswith(f".{name}")]
    return f"more than one record at {max(doubled, key=len)}" if doubled else ""


def _normal(domain: str) -> str:
    return domain.lower().removesuffix(".")
