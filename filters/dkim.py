"""Verify the DKIM signatures of messages (RFC 6376, RFC 8301, RFC 8463).

Each signature gets a result and a reason of its own, which stand in our Authentication-Results field; DMARC and ARC
build on them. By itself a result refuses nothing: a broken signature is worth as much as none (RFC 6376 §6.1).
The message gets one of the labels `dkim-pass` (a signature passes and counts), `dkim-fail` (none does),
`dkim-temperror` (none does, and the key of one could not be looked up) and `dkim-none` (nothing is signed).

Results (RFC 8601 §2.7.1):

- pass: it verifies. It does not count for DMARC when part of the body is not signed (`body_length`), or when the
  key says that its owner is only trying (`testing_keys`).
- fail: body or header were changed, a From field is not signed, or the signature has expired.
- policy: not acceptable here, such as rsa-sha1, a key that is too small or too big, a second Subject that the
  signature leaves out (`single`), more header than our limits.
- neutral: what the signature says makes no sense.
- temperror: the key cannot be looked up now.
- permerror: there is no key, it was revoked, cannot be read or is not for this; or From is not signed.

A stranger cannot make it work hard: `max_signatures` are looked at, each with one lookup; keys and header sections
have limits; a body is read once however many sign it, and only for signatures that are good but for that. Big ones are
read in a thread, in turns, half a megabyte each. When so many come that there is no time to read one to its end, its
signatures are temperror. Of too many signatures those that have to do with the domain in From come first, then the
topmost.

dkimpy is behind it, with guards: it reads tags and keys, and has the last word on what a signature says. Fields are
chosen and canonicalised, and bodies hashed, by code of our own that takes the same time whatever the message looks
like; the arithmetic of keys is that of OpenSSL. `smtpd_dkim_checks_total` counts results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from filters.dkim_header import HeaderSection
from filters.dkim_keys import Found, Keys, Unusable
from filters.dkim_signature import Signature, claimed_domain, described, read_signature, read_tags
from filters.dkim_turns import Turns
from filters.dkim_verification import Candidate, Verification
from filters.headers import FieldNames
from smtpd import metrics, replies
from smtpd.address_list import parse_address_list
from smtpd.addresses import AddressError
from smtpd.content import MAX_HEAD
from smtpd.findings import DkimResults, DkimSignature
from smtpd.model import ContentSource, Message, Transaction
from smtpd.options import Bytes, FilterOptions, Strings
from smtpd.policy import Filter, Verdict
from smtpd.replies import Reply
from smtpd.services import Services

CHECKS = metrics.Counter(
    "smtpd_dkim_checks_total",
    "DKIM signatures looked at; result is that of RFC 8601: pass, fail, policy, neutral, temperror or permerror. none "
    "counts messages without a signature.",
    ("result",),
)
RESULTS = ("none", "pass", "fail", "policy", "neutral", "temperror", "permerror")

INLINE = 1 << 16  # octets of a message; hashing more than that is left to a thread
_FIELD = b"dkim-signature"
_READING_SHARE = 5 / 6  # of `timeout`: after that there are results even if the body was not read to its end


class DkimOptions(FilterOptions):
    """Options of `dkim`."""

    unless: Strings = ("authenticated",)
    """Conditions that silence a refusal: "authenticated", "trusted", "tls", or a label another filter gives."""
    unsigned: Literal["tag", "reject"] = "tag"
    """What happens to a message without a signature: the label "dkim-none", or 550 5.7.20 as well."""
    failed: Literal["tag", "reject"] = "tag"
    """What happens when no signature counts: the label "dkim-fail", or 550 5.7.20 (5.7.21 for policy) as well."""
    unaligned: Literal["accept", "reject"] = "accept"
    """What happens when no signature that counts is by the domain in From or one above or below: 550 5.7.22."""
    temperror: Literal["tag", "defer"] = "tag"
    """What happens when only a key that cannot be looked up is missing: the label, or 451 4.7.5 as well."""
    # RFC 6376 §8.2: whoever can append to a body can show anything.
    body_length: Literal["ignore", "count"] = "ignore"
    """Whether a pass that leaves out the end of the body (l=) counts for DMARC, and as a pass at all."""
    testing_keys: Literal["ignore", "count"] = "ignore"
    """Whether a pass by a key with t=y counts; RFC 6376 §3.6.1 wants such a message to be treated as unsigned."""
    # The same as `headers` refuses, and what decides how a body is shown.
    single: FieldNames = (
        "Content-Transfer-Encoding", "Content-Type", "Date", "Message-ID", "MIME-Version", "Sender", "Subject"
    )  # fmt: skip
    """Fields, besides From, that make a signature worthless when there are more of them than it signs."""
    # opendkim 3, from the top down, unless it is told which domains to trust.
    max_signatures: Annotated[int, Field(ge=1, le=50)] = 8
    """Most signatures of a message that are looked at."""
    min_rsa_bits: Annotated[int, Field(ge=1024, le=4096)] = 1024
    """Smallest RSA key that counts; RFC 8301 allows no less than 1024."""
    max_rsa_bits: Annotated[int, Field(ge=4096, le=8192)] = 4096
    """Biggest RSA key that is computed with."""
    max_header: Annotated[Bytes, Field(gt=0, lt=MAX_HEAD)] = 256 << 10
    """Biggest header section in which signatures are looked at."""
    max_fields: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """Most fields of a header section in which signatures are looked at."""


class Dkim(Filter):
    """Verifies signatures."""

    name = "dkim"
    Options = DkimOptions
    gives = (DkimResults,)
    labels: ClassVar[frozenset[str]] = frozenset(("dkim-pass", "dkim-fail", "dkim-temperror", "dkim-none"))
    labels_at_will: ClassVar[frozenset[str]] = frozenset(("dkim-pass",))  # by a domain of his own

    def __init__(self, name: str, options: DkimOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self._wishes = options
        self._keys = Keys(min_bits=options.min_rsa_bits, max_bits=options.max_rsa_bits)
        checks = services.metrics.counter(CHECKS)
        self._turns = Turns()
        self._reading_time = options.timeout * _READING_SHARE or None
        self._checks = {result: checks.labels(result) for result in RESULTS}

    def can_refuse(self) -> bool:
        """Only where an option says so."""
        wishes = self._wishes
        return "reject" in (wishes.unsigned, wishes.failed, wishes.unaligned) or wishes.temperror == "defer"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        """All signatures, up to the limit."""
        began = asyncio.get_running_loop().time()
        head = message.content.head()
        if _FIELD not in head.lower():
            return self._judge(mail, DkimResults())
        try:
            header = HeaderSection(head, max_octets=self._wishes.max_header, max_fields=self._wishes.max_fields)
        except Unusable as unusable:
            report = DkimSignature(unusable.result, "", "", reason=unusable.reason)
            return self._judge(mail, DkimResults((report,)))
        places, left_out = self._choose(header)
        candidates = [self._candidate(header, place) for place in places]
        names = {one.found.key_name for one in candidates if isinstance(one.found, Signature)}
        # Without the limit of the message, as `max_signatures` is one: a sender that uses it up with an SPF record of
        # its own must not turn a signature it forged into one that nobody can judge, and DMARC into a doubt.
        keys = await self._keys.find(self.services.resolver, sorted(names), self.lookup_time)
        ends = began + self._reading_time if self._reading_time is not None else None
        reports = await self._verify(header, message.content, candidates, keys, ends)
        return self._judge(mail, DkimResults(reports, unchecked=left_out), header)

    def _choose(self, header: HeaderSection) -> tuple[list[int], int]:
        """The signatures to look at, topmost first, and how many there are besides."""
        places, limit = header.places(_FIELD), self._wishes.max_signatures
        if len(places) <= limit:
            return places, 0
        authors = _author_domains(header)
        ranked = sorted(places, key=lambda place: _distance(claimed_domain(header.value(place)), authors))
        return sorted(ranked[:limit]), len(places) - limit

    def _candidate(self, header: HeaderSection, place: int) -> Candidate:
        try:
            tags = read_tags(header.value(place))
        except Unusable as unusable:
            return Candidate(place, DkimSignature(unusable.result, "", ""), unusable)
        try:
            return Candidate(place, described(tags), read_signature(tags, self.services.now()))
        except Unusable as unusable:
            return Candidate(place, described(tags), unusable)

    async def _verify(
        self,
        header: HeaderSection,
        content: ContentSource,
        candidates: Sequence[Candidate],
        keys: dict[str, Found],
        ends: float | None,
    ) -> tuple[DkimSignature, ...]:
        verification = Verification(
            header,
            content,
            candidates,
            keys,
            single=self._wishes.single,
            counts_partial=self._wishes.body_length == "count",
            counts_tried=self._wishes.testing_keys == "count",
        )
        if content.size <= INLINE:
            return verification.run()
        scope = asyncio.timeout_at(ends)
        try:
            async with scope:
                return await self._turns.finish(verification.steps())
        except TimeoutError:
            if not scope.expired():
                raise
            return verification.so_far()
        finally:
            verification.is_abandoned = True

    def _judge(self, mail: Transaction, results: DkimResults, header: HeaderSection | None = None) -> Verdict:
        mail.facts.add(results)
        for one in results.signatures:
            self._checks[one.result].inc()
        if not results.signatures:
            self._checks["none"].inc()
        label, reply = self._action(results.signatures, header)
        return Verdict(reply, labels=frozenset((label,)))

    def _action(self, signatures: Sequence[DkimSignature], header: HeaderSection | None) -> tuple[str, Reply | None]:
        wishes = self._wishes
        counting = [one for one in signatures if one.result == "pass" and one.counts]
        if counting:
            refused = wishes.unaligned == "reject" and not _is_by_author(counting, header)
            return "dkim-pass", replies.DKIM_NOT_BY_AUTHOR() if refused else None
        if any(one.result == "temperror" for one in signatures):
            return "dkim-temperror", replies.DKIM_KEY_LATER() if wishes.temperror == "defer" else None
        # RFC 6376 §3.6.1: who is only trying is treated like somebody who does not sign
        meant = [one for one in signatures if not one.testing]
        if not meant:
            return "dkim-none", replies.DKIM_UNSIGNED() if wishes.unsigned == "reject" else None
        is_policy = any(one.result in ("pass", "policy") for one in meant)
        reply = replies.DKIM_NOT_ACCEPTABLE if is_policy else replies.DKIM_FAILED
        return "dkim-fail", reply(reason=meant[0].reason) if wishes.failed == "reject" else None


_STRANGER = 2


def _distance(domain: str, authors: frozenset[str]) -> int:
    """0: a domain in From; 1: above or below one; 2: it has nothing to do with it."""
    if domain in authors:
        return 0
    is_related = any(domain.endswith(f".{author}") or author.endswith(f".{domain}") for author in authors)
    return 1 if is_related and domain else _STRANGER


def _is_by_author(signatures: Sequence[DkimSignature], header: HeaderSection | None) -> bool:
    authors = _author_domains(header) if header is not None else frozenset()
    return any(_distance(one.domain, authors) < _STRANGER for one in signatures)


def _author_domains(header: HeaderSection) -> frozenset[str]:
    found: set[str] = set()
    for place in header.places(b"from"):
        try:
            found.update(address.domain for address in parse_address_list(header.value(place)).addresses)
        except AddressError:
            continue
    return frozenset(found)
