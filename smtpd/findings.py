"""What filters find out about a sender: the facts of SPF, DKIM, ARC and DMARC, and of who forwards.

They are here, and not beside the filters, because other filters read them: `needs = (SpfResults,)`. A fact that
is `Evidence` also stands in our Authentication-Results field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol, runtime_checkable

from smtpd.authentication_results import MethodResult, SpfResult, authentication_results
from smtpd.model import Transaction

DkimResult = Literal["pass", "fail", "policy", "neutral", "temperror", "permerror"]  # RFC 8601 §2.7.1, without "none"
ArcStatus = Literal["none", "pass", "fail", "temperror"]  # RFC 8617 §4.4 and, for a key nobody answers for, ours
IprevStatus = Literal["pass", "fail", "temperror", "permerror"]  # RFC 8601 §2.7.3
DmarcStatus = Literal["none", "pass", "fail", "temperror", "permerror"]
Policy = Literal["none", "quarantine", "reject"]
# RFC 9990, "Policy Override Reason", and what RFC 7489 appendix C has besides.
Override = Literal[
    "trusted_forwarder", "mailing_list", "local_policy", "policy_test_mode", "sampled_out", "forwarded", "other"
]  # fmt: skip

_LEAST_SHOWN = 8  # characters of b=, RFC 6008 §4
_NOT_TOLD = ("b", "i")  # of a signature: too long, and somebody's address
_ORDER = ("iprev", "spf", "dkim", "arc", "dmarc")  # of methods in our field; others stand behind them


@runtime_checkable
class Evidence(Protocol):
    """A fact with something to say in Authentication-Results (RFC 8601)."""

    def results(self) -> Iterable[MethodResult]:
        """One entry for each thing that was looked at; also "none" and errors."""


@dataclass(frozen=True, slots=True)
class SpfCheck:
    """One identity checked by SPF (RFC 7208 §2.4): `domain` is an A-label, `identifier` what the client said."""

    result: SpfResult
    identity: Literal["mailfrom", "helo"]
    domain: str
    identifier: str
    reason: str = ""
    """Why, in our words; for the log and Authentication-Results."""
    explanation: str = ""
    """What the domain says to those it refuses (`exp=`): its words, cleaned to printable ASCII and cut."""
    mechanism: str = ""
    """The term of the domain's record that decided, cleaned and cut; "" when none did."""


@dataclass(frozen=True, slots=True)
class SpfResults:
    """SPF of a transaction: MAIL FROM (with the empty sender postmaster@HELO, RFC 7208 §2.4) and HELO."""

    given_by: ClassVar[str] = "spf"

    mailfrom: SpfCheck
    helo: SpfCheck | None = None

    def results(self) -> Iterable[MethodResult]:
        """RFC 8601 §2.7.2."""
        checks = [self.mailfrom]
        if self.helo is not None and self.helo.identity != self.mailfrom.identity:
            checks.append(self.helo)
        for check in checks:
            # RFC 8601 §2.7.2 would leave the local part out unless the policy looks at it. Here it stays, as with Gmail
            # and policyd-spf: people look for mail by its sender, and not every mailbox keeps Return-Path.
            properties = (("smtp", check.identity, check.identifier or check.domain),)
            yield MethodResult("spf", check.result, reason=check.reason, properties=properties)


@dataclass(frozen=True, slots=True)
class DkimSignature:
    """One signature (RFC 6376): `domain`, `selector`, `algorithm`, `identity` are its d=, s=, a=, i=."""

    result: DkimResult
    domain: str
    selector: str
    algorithm: str = ""
    identity: str = ""
    signature: str = ""
    """The first 400 characters of b= without blanks; in Authentication-Results as many as tell several apart."""
    reason: str = ""
    testing: bool = False
    """The key says t=y: its owner only tries it (RFC 6376 §3.6.1)."""
    counts: bool = True
    """Whether a pass may count for DMARC: not when `l=` left something unsigned, or the key is only tried."""
    unread: bool = False
    """It is "temperror" because we had no time to read the body: whoever sends a lot can bring that about."""


@dataclass(frozen=True, slots=True)
class DkimResults:
    """All signatures that were looked at, in the order of the message; none: unsigned."""

    given_by: ClassVar[str] = "dkim"

    signatures: tuple[DkimSignature, ...] = ()
    unchecked: int = 0
    """How many more there are, that nobody looked at."""

    def results(self) -> Iterable[MethodResult]:
        """RFC 8601 §2.7.1, RFC 6008."""
        if not self.signatures:
            yield MethodResult("dkim", "none", comment="message not signed")
        beginnings = _beginnings([one.signature for one in self.signatures])
        for one, b in zip(self.signatures, beginnings, strict=True):
            values = (("d", one.domain), ("s", one.selector), ("a", one.algorithm), ("i", one.identity), ("b", b))
            properties = tuple(("header", name, value) for name, value in values if value)
            is_cut = self.unchecked and one is self.signatures[-1]
            comment = f"{self.unchecked} more signatures not looked at" if is_cut else ""
            yield MethodResult("dkim", one.result, reason=one.reason, comment=comment, properties=properties)


@dataclass(frozen=True, slots=True)
class ArcResult:
    """The chain of Authenticated Received (RFC 8617) as it is now."""

    given_by: ClassVar[str] = "arc"

    status: ArcStatus
    instances: int = 0
    reason: str = ""
    oldest_pass: int | None = None
    """RFC 8617 §5.2: the oldest message signature that still verifies; 0 when all do."""
    sealers: tuple[str, ...] = ()
    """d= of the seals, the newest first."""
    trusted_by: str = ""
    """The sealer in our list that vouches for the message, "" when there is none or the chain does not pass."""
    passed_upstream: bool = False
    """The trusted sealer wrote that DMARC passed when the message came to the first host of the chain."""
    undecided: bool = False
    """A sealer in our list may vouch for the message, but that cannot be found out now."""
    client_ip: str = ""
    is_unread: bool = False
    """It fails because the header section cannot be read, or not within our limits: it may be a good one elsewhere."""

    def results(self) -> Iterable[MethodResult]:
        """RFC 8617 §10.2: smtp.remote-ip, header.oldest-pass."""
        properties: list[tuple[str, str, str]] = []
        if self.client_ip:
            properties.append(("smtp", "remote-ip", self.client_ip))
        if self.oldest_pass is not None:
            properties.append(("header", "oldest-pass", str(self.oldest_pass)))
        yield MethodResult("arc", self.status, reason=self.reason, properties=tuple(properties))


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """DMARC (RFC 9989) of the author's domain."""

    given_by: ClassVar[str] = "dmarc"

    status: DmarcStatus
    domain: str = ""
    """The domain in From, an A-label."""
    organizational_domain: str = ""
    """Its organisation's, "" when nobody had to find it out."""
    policy_domain: str = ""
    """Where the record was found."""
    policy: Policy = "none"
    """What the domain asks for, for this message."""
    disposition: Policy = "none"
    """What becomes of it here, overrides considered."""
    override: Override | None = None
    reason: str = ""
    evaluated: Policy | None = None
    """The policy once `t` and `pct` of the record are considered; None: `policy` itself."""

    def results(self) -> Iterable[MethodResult]:
        """RFC 8601 §2.7, and RFC 9989, "IANA Considerations": header.from, policy.dmarc.

        What becomes of the message stands in a comment, as everybody does it: no property is registered for that.
        """
        comment = ""
        if self.policy_domain:
            comment = f"p={self.policy} dis={self.disposition}"
            comment += f" override={self.override}" if self.override else ""
        properties = [("header", "from", self.domain)] if self.domain else []
        if self.policy_domain:
            properties.append(("policy", "dmarc", self.evaluated or self.policy))
        yield MethodResult("dmarc", self.status, comment=comment, reason=self.reason, properties=tuple(properties))


@dataclass(frozen=True, slots=True)
class TrustedForwarder:
    """The client forwards mail of our recipients (filter `trusted_forwarders`)."""

    given_by: ClassVar[str] = "trusted_forwarders"

    name: str
    """Of the entry in the configuration."""
    domains: frozenset[str]
    """Recipient domains it forwards for; empty: all of ours."""
    never_reject: bool = False

    def forwards_for(self, domain: str) -> bool:
        """Whether it does so for recipients in this domain of ours (an A-label)."""
        return not self.domains or domain in self.domains


@dataclass(frozen=True, slots=True)
class IprevResult:
    """Whether a name of the client leads back to its address (RFC 8601 §3); only when that was looked up.

    "fail": its names lead elsewhere or nowhere; "permerror": it has none.
    """

    given_by: ClassVar[str] = "trusted_forwarders"

    status: IprevStatus
    ip: str
    names: tuple[str, ...] = ()
    """Names that lead back, A-labels in lower case."""
    reason: str = ""
    may_forward: bool = False
    """Nobody can say now whether the client is a trusted forwarder, as its names are not known."""

    def results(self) -> Iterable[MethodResult]:
        """RFC 8601 §2.7.3; the name is a comment."""
        properties = (("policy", "iprev", self.ip),)
        comment = self.names[0] if self.names else ""
        yield MethodResult("iprev", self.status, reason=self.reason, comment=comment, properties=properties)


def _beginnings(signatures: Sequence[str]) -> list[str]:
    """As much of each as tells it from the others, and no less than `_LEAST_SHOWN` (RFC 6008 §4)."""
    ordered = sorted(set(signatures))  # of all others the neighbours have the longest beginning in common
    lengths = dict.fromkeys(ordered, _LEAST_SHOWN)
    for one, other in pairwise(ordered):
        differences = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        needed = next(differences, len(one)) + 1  # without one, `one` is the beginning of `other`
        lengths[one], lengths[other] = max(lengths[one], needed), max(lengths[other], needed)
    return [signature[: lengths[signature]] for signature in signatures]


def results_field(authserv_id: str, mail: Transaction) -> bytes:
    """Our Authentication-Results field for a message: everything that filters found out about its sender."""
    return authentication_results(authserv_id, _found(mail), utf8=mail.smtputf8)


def results_told(mail: Transaction) -> list[str]:
    """The same for the log, one text for each result: a message that is refused carries no such field to anybody.

    Who the client and the sender say they are is left out: the line has both, and knows when they are to be hidden.
    """
    return [_told(one) for one in _found(mail)]


def _found(mail: Transaction) -> list[MethodResult]:
    facts = (*mail.session.facts, *mail.facts)
    found = [one for fact in facts if isinstance(fact, Evidence) for one in fact.results()]
    # Not in the order of what DNS answered first, so that a recorded run repeats to the letter.
    found.sort(key=lambda one: _ORDER.index(one.method) if one.method in _ORDER else len(_ORDER))
    return found


def _told(found: MethodResult) -> str:
    words = [f"{found.method}={found.result}", *(f"({text})" for text in (found.comment, found.reason) if text)]
    for ptype, name, value in found.properties:
        if ptype == "smtp":
            words.append(f"{ptype}.{name}")
        elif name not in _NOT_TOLD:
            words.append(f"{ptype}.{name}={value}")
    return " ".join(words)
