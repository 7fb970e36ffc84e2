"""From what a domain asks for to what becomes of its mail here: tests, samples, and who is not obeyed. Pure.

An override never makes an outcome stricter, and every one that changed something is told (RFC 9989 §5.4).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from filters.dmarc_assessment import Assessment
from filters.dmarc_rows import Reason
from smtpd.findings import DmarcResult, Override, Policy
from smtpd.header_fields import values_of
from smtpd.model import Message

_LOWER: dict[Policy, Policy] = {"reject": "quarantine", "quarantine": "none", "none": "none"}
_WEIGHT: dict[Policy, int] = {"none": 0, "quarantine": 2, "reject": 4}
_LOWERING: frozenset[Override] = frozenset(("policy_test_mode", "sampled_out"))
_DEFERRED = 3
_STATUSES = ("pass", "none", "permerror", "temperror", "fail")


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What keeps us from doing what a domain asks for."""

    forwarder: str = ""
    """Name of the trusted forwarder that delivers for some of the recipients."""
    exemptions: tuple[Reason, ...] = ()
    """Reasons of ours that hold for all recipients."""
    silence: str = ""
    """Why a refusal would not be heard."""
    is_sampled_out: bool = False
    defers: bool = False
    """Whether mail is put off that might have to be refused, but nobody can say now."""
    is_open: bool = False
    """Whether somebody may speak for the message who cannot be asked now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a message on behalf of one author's domain."""

    assessment: Assessment
    wanted: Policy
    """For recipients that no trusted forwarder delivers for."""
    disposition: Policy
    """What a delivered copy is told, and the domain's owner."""
    reasons: tuple[Reason, ...] = ()
    is_deferred: bool = False

    @property
    def severity(self) -> tuple[int, int]:
        """Of several authors the strictest outcome counts (RFC 9989 §11.5)."""
        weight = _DEFERRED if self.is_deferred else _WEIGHT[self.wanted]
        return weight, _STATUSES.index(self.assessment.status)

    def finding(self) -> DmarcResult:
        """What other filters and Authentication-Results are told."""
        assessment = self.assessment
        kind, comment = self.reasons[-1] if self.reasons else (None, assessment.reason)
        return DmarcResult(
            assessment.status,
            domain=assessment.author,
            organizational_domain=assessment.organization,
            policy_domain=assessment.published.domain if assessment.published is not None else "",
            policy=assessment.policy,
            disposition=self.disposition,
            override=kind,
            reason=comment,
            evaluated=lowered(assessment.policy) if _LOWERING.intersection(kind for kind, _ in self.reasons) else None,
        )


def decide(assessment: Assessment, circumstances: Circumstances) -> Outcome:
    """What becomes of a message on behalf of one author."""
    if assessment.status not in ("fail", "temperror"):
        return Outcome(assessment, "none", "none")
    wanted, reasons = _asked(assessment, circumstances)
    if assessment.status == "temperror":
        is_open = assessment.published is None and not circumstances.exemptions
        return Outcome(
            assessment, "none", "none", is_deferred=circumstances.defers and (is_open or wanted == "reject")
        )
    if wanted == "reject" and circumstances.is_open and not circumstances.silence:
        return Outcome(assessment, "none", "none", tuple(reasons), is_deferred=True)
    disposition = wanted
    if wanted != "none" and circumstances.forwarder:
        disposition = "none"
        reasons.append(("trusted_forwarder", circumstances.forwarder))
    elif wanted != "none" and circumstances.silence:
        disposition = "none"
        reasons.append(("local_policy", circumstances.silence))
    return Outcome(assessment, wanted, disposition, tuple(reasons))


def _asked(assessment: Assessment, circumstances: Circumstances) -> tuple[Policy, list[Reason]]:
    wanted = assessment.policy
    reasons: list[Reason] = []
    record = assessment.published.record if assessment.published is not None else None
    if wanted != "none" and record is not None and record.testing:
        wanted = lowered(wanted)  # RFC 9989 §4.7
        reasons.append(("policy_test_mode", "t=y"))
    elif wanted != "none" and record is not None and circumstances.is_sampled_out:
        wanted = lowered(wanted)  # RFC 7489 §6.6.4
        reasons.append(("sampled_out", f"pct={record.percent}"))
    if wanted != "none" and circumstances.exemptions:
        wanted = "none"
        reasons += circumstances.exemptions
    return wanted, reasons


def lowered(policy: Policy) -> Policy:
    """One level less."""
    return _LOWER[policy]


def strictest(outcomes: Sequence[Outcome]) -> Outcome:
    """The one that counts for the message; the first of equals."""
    return max(outcomes, key=lambda outcome: outcome.severity)


class Sampler:
    """Says for each message whether it is one of the `pct` percent; the same message gets the same answer again.

    Without the key nobody can choose a Message-ID that is left out.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key if key is not None else os.urandom(32)

    def leaves_out(self, message: Message, percent: int) -> bool:
        """Whether the policy is not meant for this message (RFC 7489 §6.6.4)."""
        digest, head = blake2b(digest_size=8, key=self._key), message.content.head()
        for field in ("message-id", "date", "from"):
            for value in values_of(head, field):
                digest.update(len(value).to_bytes(4) + value)
        return int.from_bytes(digest.digest()) % 100 >= percent
