"""A chain, verified (RFC 8617 §5.2, steps 4 to 7): its newest message signature, all seals, older message signatures.

Nothing here waits, so it can run in a thread. Body and header are read once, however many sets there are: each seal
is over all fields of the chain below it, so their hash is carried on from set to set.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from filters.arc_chain import ArcSet
from filters.dkim_header import HeaderSection
from filters.dkim_keys import Found, Unusable
from filters.dkim_signature import Signature
from filters.dkim_turns import finish_at_once
from filters.dkim_verification import Verification, misfit
from smtpd.findings import ArcStatus, DkimResult, DkimSignature
from smtpd.model import ContentSource

_Finding = tuple[DkimResult, str]


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What came out. `oldest_pass` is None when the chain does not pass."""

    status: ArcStatus
    reason: str = ""
    oldest_pass: int | None = None
    is_whole: bool = False
    """The newest message signature is over the whole body, and over each field as often as it is there."""


class ChainVerification:
    """The work on one chain; `sets` are those of `read_chain`, `keys` hold those that they name."""

    def __init__(
        self,
        header: HeaderSection,
        content: ContentSource,
        sets: Sequence[ArcSet],
        keys: Mapping[str, Found],
        *,
        single: Sequence[str] = (),
    ) -> None:
        self._header = header
        self._sets = sets
        self._keys = keys
        self._single = single
        candidates = [one.message for one in reversed(sets)]
        self._messages = Verification(header, content, candidates, keys, counts_tried=True)

    def abandon(self) -> None:
        """The report is not wanted any more; to be called from another thread."""
        self._messages.is_abandoned = True

    def run(self) -> ChainReport:
        """The report. A chain fails when one thing is wrong, even where DNS does not answer about another."""
        return finish_at_once(self.steps())

    def steps(self) -> Generator[None, None, ChainReport]:
        """The same, for `Turns`."""
        messages = yield from self._messages.steps()
        newest = self._sets[-1].instance
        findings: list[tuple[str, _Finding]] = [
            (f"ARC-Message-Signature {newest}", (messages[0].result, messages[0].reason))
        ]
        findings += [(f"ARC-Seal {one.instance}", self._seal_finding(one, digest)) for one, digest in self._digests()]
        for status in ("fail", "temperror"):
            for name, (result, reason) in findings:
                if result != "pass" and (result == "temperror") == (status == "temperror"):
                    return ChainReport("temperror" if status == "temperror" else "fail", f"{name}: {reason}")
        return ChainReport("pass", oldest_pass=_oldest_pass(messages), is_whole=self._is_whole(messages[0]))

    def _digests(self) -> list[tuple[ArcSet, bytes]]:
        """What each seal is over (RFC 8617 §5.1.1), the newest first, for its reason is the one that is told."""
        so_far = sha256()
        digests = []
        for one in self._sets:
            so_far.update(self._header.canonical(one.results_place, "relaxed"))
            so_far.update(self._header.canonical(one.message.place, "relaxed"))
            own = so_far.copy()
            own.update(self._header.signed_octets((), "relaxed", one.seal_place))
            digests.append((one, own.digest()))
            so_far.update(self._header.canonical(one.seal_place, "relaxed"))
        return digests[::-1]

    def _seal_finding(self, one: ArcSet, digest: bytes) -> _Finding:
        key = self._keys[one.seal.key_name]
        problem = key if isinstance(key, Unusable) else misfit(one.seal, key)
        if problem is not None:
            return problem.result, problem.reason
        assert not isinstance(key, Unusable)
        return ("pass", "") if key.verifies(one.seal.signature, digest) else ("fail", "the signature does not match")

    def _is_whole(self, newest: DkimSignature) -> bool:
        found = self._sets[-1].message.found
        assert isinstance(found, Signature)
        names = [name.lower().encode() for name in self._single]
        return newest.counts and not any(1 < len(self._header.places(name)) > found.names.count(name) for name in names)


def _oldest_pass(messages: Sequence[DkimSignature]) -> int:
    """RFC 8617 §5.2 step 5; `messages` are the newest first, and that one has passed."""
    for older, message in enumerate(messages):
        if message.result != "pass":
            return len(messages) - older + 1
    return 0
