"""One more set on a chain (RFC 8617 §5.1): what we found, a signature over the message, a seal over the chain."""

from __future__ import annotations

import base64
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from filters.arc_chain import MAX_SETS, ArcSet, Broken, has_chain, has_ended, highest_instance, read_chain
from filters.dkim_body import body_pieces, digest_steps
from filters.dkim_header import HeaderSection
from filters.dkim_keys import Unusable
from filters.dkim_turns import finish_at_once
from smtpd.model import ContentSource

MIN_BITS = 2048  # RFC 8301 §3.2: should be, and 1024 must be
_WIDTH = 72  # characters of base64 in a line

# RFC 6376 §5.4.1, without what other hosts change: Received, Return-Path, Authentication-Results.
_SIGNED = (
    b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"date", b"message-id", b"in-reply-to", b"references",
    b"mime-version", b"content-type", b"content-transfer-encoding", b"list-id", b"list-post", b"list-unsubscribe",
    b"list-unsubscribe-post", b"dkim-signature",
)  # fmt: skip
# Named once more than they are there, so that nobody can add another (RFC 6376 §5.4.2).
_CLOSED = (b"from", b"to", b"cc", b"subject", b"date", b"content-type", b"content-transfer-encoding")

Field = tuple[str, str]


class SealingKeyError(ValueError):
    """A private key that cannot be used; the text says why, and holds nothing of the key."""


class CannotSeal(Exception):  # noqa: N818 - it is a finding, not an error
    """Why a message gets no set, in our words."""


@dataclass(frozen=True, slots=True)
class Sealer:
    """Who seals. The public key is at `selector._domainkey.domain`."""

    domain: str
    selector: str
    key: RSAPrivateKey

    def seal(
        self, content: ContentSource, results: str, now: float, *, has_failed: bool = False
    ) -> tuple[Field, Field, Field]:
        """Name and value of the three fields, the topmost first, for above everything that is there.

        `results` is what would stand in Authentication-Results, and says how the chain was when it came here;
        `now` seconds since 1970. The chain must have passed, or there is none; or else it `has_failed`. Raises
        CannotSeal.
        """
        return finish_at_once(self.steps(content, results, now, has_failed=has_failed))

    def steps(
        self, content: ContentSource, results: str, now: float, *, has_failed: bool = False
    ) -> Generator[None, None, tuple[Field, Field, Field]]:
        """The same, for `Turns`."""
        head = content.head()
        below, chain, instance = _place(head, now, has_failed=has_failed)
        digests = yield from digest_steps(body_pieces(content.chunks(), len(head)), {("relaxed", None)})
        body = digests["relaxed", None].digest
        own = f"i={instance}; a=rsa-sha256; d={self.domain}; s={self.selector}; t={int(now)};"
        found: Field = ("ARC-Authentication-Results", f"i={instance}; {results}")
        names = _names(below)
        signature = (
            f"{own}\r\n\tc=relaxed/relaxed; h={b':\r\n\t'.join(names).decode()};"
            f"\r\n\tbh={base64.b64encode(body).decode()};\r\n\tb="
        )
        section = _section([("ARC-Message-Signature", signature), found], head)
        signature += self._sign(section.signed_octets(names, "relaxed", 0))
        validation = "fail" if has_failed else "pass" if instance > 1 else "none"
        seal = f"{own}\r\n\tcv={validation}; b="
        new: list[Field] = [("ARC-Seal", seal), ("ARC-Message-Signature", signature), found]
        seal += self._sign(_sealed_octets(_section(new, head), chain, len(new)))
        return ("ARC-Seal", seal), ("ARC-Message-Signature", signature), found

    def _sign(self, octets: bytes) -> str:
        signature = self.key.sign(sha256(octets).digest(), PKCS1v15(), Prehashed(SHA256()))
        text = base64.b64encode(signature).decode()
        return "\r\n\t".join(text[start : start + _WIDTH] for start in range(0, len(text), _WIDTH))


def read_key(pem: bytes) -> RSAPrivateKey:
    """An RSA key, PKCS #1 or #8, not encrypted. Raises SealingKeyError."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise SealingKeyError("it holds no private key in PEM that can be read without a password") from None
    if not isinstance(key, RSAPrivateKey):
        raise SealingKeyError("ARC is sealed with RSA keys only")
    if key.key_size < MIN_BITS:
        raise SealingKeyError(f"the key has {key.key_size} bits, fewer than {MIN_BITS}")
    return key


def _place(head: bytes, now: float, *, has_failed: bool) -> tuple[HeaderSection, list[ArcSet], int]:
    """The fields that are there, the sets that a seal is over beside its own, and the instance of the new one."""
    try:
        below = HeaderSection(head)
        # RFC 8617 §5.1.2: the seal of a chain that has failed is over its own set, as if there were no other.
        chain = read_chain(below, now) if has_chain(below) and not has_failed else []
    except (Unusable, Broken) as problem:
        raise CannotSeal(str(problem)) from None
    if has_failed and has_ended(below):
        raise CannotSeal("a host has said before that the chain failed")
    instance = (highest_instance(below) if has_failed else len(chain)) + 1
    if instance > MAX_SETS:
        raise CannotSeal(f"{MAX_SETS} hosts have sealed it already")
    return below, chain, instance


def _names(below: HeaderSection) -> list[bytes]:
    """h=: each field as often as it is there, and some once more."""
    names: list[bytes] = []
    for name in _SIGNED:
        names += [name] * (len(below.places(name)) + (name in _CLOSED))
    return names


def _section(fields: Sequence[Field], head: bytes) -> HeaderSection:
    """The header section with fields on top."""
    text = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return HeaderSection(text.encode() + head, max_octets=1 << 20, max_fields=10_000)


def _sealed_octets(section: HeaderSection, chain: Sequence[ArcSet], new: int) -> bytes:
    """What the seal on top of a section is over (RFC 8617 §5.1.1); `chain` was read before `new` fields were on top."""
    places = [new + place for one in chain for place in (one.results_place, one.message.place, one.seal_place)]
    octets = [section.canonical(place, "relaxed") for place in (*places, 2, 1)]
    return b"".join([*octets, section.signed_octets((), "relaxed", 0)])
