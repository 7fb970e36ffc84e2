"""All signatures of one message, verified: the cheap questions first, then the keys, at last one pass over the body.

So a body is read only for signatures that are good but for that: nobody can forge one to have it read. Nothing here
waits, so it can run in a thread. dkimpy's own `verify` would do all of this once per signature, and
says no more than yes or no; a test compares our answers with its.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from filters.dkim_body import BodyDigest, Part, body_pieces, digest_steps
from filters.dkim_header import HeaderSection
from filters.dkim_keys import Found, Key, Unusable
from filters.dkim_signature import Signature
from filters.dkim_turns import finish_at_once
from smtpd.findings import DkimSignature
from smtpd.model import ContentSource


@dataclass(frozen=True, slots=True)
class Candidate:
    """A signature field of the message: where it is, what a report says of it, and what it is if it can be used."""

    place: int
    report: DkimSignature
    found: Signature | Unusable


class Verification:
    """The work on one message. `single`: names of fields that may not be there more often than they are signed."""

    def __init__(
        self,
        header: HeaderSection,
        content: ContentSource,
        candidates: Sequence[Candidate],
        keys: Mapping[str, Found],
        *,
        single: Sequence[str] = (),
        counts_partial: bool = False,
        counts_tried: bool = False,
    ) -> None:
        self.is_abandoned = False
        """Set by whoever does not want the results any more."""
        self._header = header
        self._content = content
        self._candidates = candidates
        self._keys = keys
        self._single = single
        self._counts_partial = counts_partial
        self._counts_tried = counts_tried
        self._keys_that_match: list[Found] | None = None

    def run(self) -> tuple[DkimSignature, ...]:
        """One report for each candidate, in order."""
        return finish_at_once(self.steps())

    def steps(self) -> Generator[None, None, tuple[DkimSignature, ...]]:
        """The same, for `Turns`."""
        keys = self._keys_that_match = [self._matching_key(candidate) for candidate in self._candidates]
        wanted = {
            (candidate.found.body, candidate.found.length)
            for candidate, key in zip(self._candidates, keys, strict=True)
            if isinstance(candidate.found, Signature) and isinstance(key, Key)
        }
        if not wanted:
            return self._reports(keys, {})
        return self._reports(keys, (yield from digest_steps(self._body(), wanted)))

    def so_far(self) -> tuple[DkimSignature, ...]:
        """What can be said before the body is read to its end; what depends on that nobody knows."""
        unread = Unusable("temperror", "there was no time to read the body")
        keys = self._keys_that_match
        if keys is None:
            keys = [self._matching_key(candidate) for candidate in self._candidates]
        reports = self._reports([unread if isinstance(key, Key) else key for key in keys], {})
        return tuple(replace(report, unread=isinstance(key, Key)) for report, key in zip(reports, keys, strict=True))

    def _body(self) -> Iterator[bytes]:
        for piece in body_pieces(self._content.chunks(), self._header.octets):
            if self.is_abandoned:
                return
            yield piece

    def _reports(self, keys: Sequence[Found], digests: Mapping[Part, BodyDigest]) -> tuple[DkimSignature, ...]:
        return tuple(
            self._judged(candidate, key, digests) for candidate, key in zip(self._candidates, keys, strict=True)
        )

    def _matching_key(self, candidate: Candidate) -> Found:
        """The key, when it made this signature of the header and so of the body hash; or why it does not count."""
        key, found = self._key_for(candidate.found), candidate.found
        if isinstance(key, Unusable) or isinstance(found, Unusable):
            return key
        octets = self._header.signed_octets(found.names, found.header, candidate.place)
        if not key.verifies(found.signature, sha256(octets).digest()):
            return Unusable("fail", "the signature does not match")
        return key

    def _key_for(self, found: Signature | Unusable) -> Found:
        """The key to use, or why there is no use."""
        if isinstance(found, Unusable):
            return found
        key = self._keys[found.key_name]
        return self._wrong_fields(found) or (misfit(found, key) if isinstance(key, Key) else None) or key

    def _wrong_fields(self, signature: Signature) -> Unusable | None:
        """RFC 6376 §8.15: a field on top of the signed one would be shown in its place."""
        places = self._header.places
        if not places(b"from"):
            return Unusable("permerror", "the message has no From field")
        if len(places(b"from")) > signature.names.count(b"from"):
            return Unusable("fail", "a From field is not signed")
        for field in self._single:
            name = field.lower().encode()
            if len(places(name)) > signature.names.count(name) > 0:
                return Unusable("policy", f"a second {field} field is not signed")
        return None

    def _judged(self, candidate: Candidate, key: Found, digests: Mapping[Part, BodyDigest]) -> DkimSignature:
        known = self._keys.get(candidate.found.key_name) if isinstance(candidate.found, Signature) else None
        report = replace(candidate.report, testing=isinstance(known, Key) and known.is_tried)
        if isinstance(candidate.found, Unusable) or isinstance(key, Unusable):
            problem = key if isinstance(key, Unusable) else candidate.found
            assert isinstance(problem, Unusable)
            return replace(report, result=problem.result, reason=problem.reason)
        signature = candidate.found
        body = digests[signature.body, signature.length]
        if body.digest != signature.body_hash:
            return replace(report, result="fail", reason="the body was changed")
        if body.beyond < 0:
            return replace(report, result="neutral", reason="l= is more than the body has")
        return self._passed(report, body.beyond)

    def _passed(self, report: DkimSignature, unsigned: int) -> DkimSignature:
        reasons = []
        if unsigned:
            reasons.append(f"{unsigned} octets of the body are not signed")
        if report.testing:
            reasons.append("the key is only tried")
        counts = (not unsigned or self._counts_partial) and (not report.testing or self._counts_tried)
        return replace(report, result="pass", reason=", ".join(reasons), counts=counts)


def misfit(signature: Signature, key: Key) -> Unusable | None:
    """RFC 6376 §6.1.2: what the key says about its use."""
    if not key.fits(signature.algorithm):
        return Unusable("permerror", "the key is of another kind than the signature")
    if key.hashes is not None and b"sha256" not in key.hashes:
        return Unusable("permerror", "the key does not allow the hash algorithm")
    if key.is_strict and signature.identity != signature.domain:
        return Unusable("permerror", "the key does not allow subdomains in i=")
    return None
