"""Public keys of DKIM and ARC: found in DNS, looked at before any arithmetic, kept parsed, and used.

dkimpy reads the record (its tags, the ASN.1 of RSA keys); what a key must be like is ours, and the arithmetic is
done by `cryptography`. dkimpy would compute in plain Python with whatever modulus and exponent a stranger
publishes: seconds for one signature.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from dkim.crypto import UnparsableKeyError, parse_public_key
from dkim.util import InvalidTagValueList, parse_tag_value

from smtpd.dns import Answer, Resolver
from smtpd.dns.answer import tempfail
from smtpd.findings import DkimResult

MAX_RECORD = 4096  # octets; a record with a key of 8192 bits has 1500
MAX_RECORDS = 4  # of one name that are looked at (RFC 6376 §3.6.2.2: there is to be one)
MAX_EXPONENT_BITS = 33  # 65537 has 17; larger ones exist to cost time
MAX_KEPT = 1000  # parsed keys; about 1 KiB each
# Questions about keys that one message has on their way. As many as `dkim` asks about a message and `dmarc` about a
# domain: honest mail waits no longer, and a chain of fifty hosts does not put a hundred to our nameserver in one burst.
AT_ONCE = 8

_PADDING = PKCS1v15()
_DIGEST = Prehashed(SHA256())


class Unusable(Exception):  # noqa: N818 - it is a finding, not an error
    """Why a signature cannot pass: a result of RFC 8601 §2.7.1, and the reason in our words."""

    def __init__(self, result: DkimResult, reason: str) -> None:
        super().__init__(reason)
        self.result: DkimResult = result
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may be used. `hashes` None: any (h= of the record, RFC 6376 §3.6.1)."""

    public: RSAPublicKey | Ed25519PublicKey
    hashes: frozenset[bytes] | None = None
    is_tried: bool = False
    """t=y: the signer only tries DKIM."""
    is_strict: bool = False
    """t=s: the domain of i= must be that of d= itself."""

    def fits(self, algorithm: str) -> bool:
        """Whether it is a key for a=, "rsa-sha256" or "ed25519-sha256"."""
        return algorithm.partition("-")[0] == ("rsa" if isinstance(self.public, RSAPublicKey) else "ed25519")

    def verifies(self, signature: bytes, digest: bytes) -> bool:
        """Whether `signature` is that of the SHA-256 `digest` (RFC 8017 §8.2.2, RFC 8463 §3)."""
        try:
            if isinstance(self.public, RSAPublicKey):
                self.public.verify(signature, digest, _PADDING, _DIGEST)
            else:
                self.public.verify(signature, digest)
        except InvalidSignature:
            return False
        return True


Found = Key | Unusable


class Keys:
    """Looks keys up and keeps parsed ones: at most 1000, by their record, so one that DNS changes is parsed anew."""

    def __init__(self, *, min_bits: int, max_bits: int) -> None:
        self._min_bits = min_bits
        self._max_bits = max_bits
        self._kept: dict[bytes, Key] = {}

    async def find(
        self, resolver: Resolver, names: Collection[str], seconds: float | None = None
    ) -> dict[str, Found]:
        """The keys of names such as "selector._domainkey.example.org"; each is looked up once, in order, 8 at a time.

        What is not known after `seconds` (None: as long as the resolver waits) is a temperror.
        """
        answers: dict[str, Answer | None] = {name: resolver.peek(name, "TXT") for name in names}
        missing = [name for name, answer in answers.items() if answer is None]
        if len(missing) == 1:
            answers[missing[0]] = await resolver.resolve(missing[0], "TXT", seconds)
        elif missing:
            answers.update(await _ask(resolver, missing, seconds))
        return {name: self._first(answer) for name, answer in answers.items() if answer is not None}

    def parse(self, record: bytes) -> Key:
        """The key in a record. Raises Unusable."""
        key = self._kept.get(record)
        if key is None:
            key = parse_key(record, min_bits=self._min_bits, max_bits=self._max_bits)
            if len(self._kept) >= MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[record] = key
        return key

    def _first(self, answer: Answer) -> Found:
        """RFC 6376 §6.1.2: of several records we may choose; the first that can be used is taken."""
        if answer.failed:
            return Unusable("temperror", f"the key cannot be looked up now ({answer.reason})")
        problem = Unusable("permerror", "there is no key")
        for number, record in enumerate(answer.txt[:MAX_RECORDS]):
            try:
                return self.parse(record)
            except Unusable as unusable:
                problem = unusable if number == 0 else problem
        return problem


async def _ask(resolver: Resolver, names: Collection[str], seconds: float | None) -> dict[str, Answer]:
    clock = asyncio.get_running_loop().time
    end = None if seconds is None else clock() + seconds
    answers: dict[str, Answer] = {}
    waiting = iter(names)

    async def ask_on() -> None:
        for name in waiting:
            left = None if end is None else end - clock()
            is_late = left is not None and left <= 0
            answers[name] = tempfail("timeout") if is_late else await resolver.resolve(name, "TXT", left)

    await asyncio.gather(*(ask_on() for _ in range(min(AT_ONCE, len(names)))))
    return answers


def parse_key(record: bytes, *, min_bits: int = 1024, max_bits: int = 4096) -> Key:
    """Read a key record (RFC 6376 §3.6.1, RFC 8463 §4). Raises Unusable."""
    if len(record) > MAX_RECORD:
        raise Unusable("permerror", f"the key record is longer than {MAX_RECORD} octets")
    try:
        tags: dict[bytes, bytes] = parse_tag_value(record)
    except InvalidTagValueList:
        raise Unusable("permerror", "the key record cannot be read") from None
    if tags.get(b"v", b"DKIM1") != b"DKIM1":
        raise Unusable("permerror", "the record is of another version than DKIM1")
    if b"p" not in tags:
        raise Unusable("permerror", "the record holds no key")
    if not tags[b"p"]:
        raise Unusable("permerror", "the key was revoked")  # RFC 6376 §6.1.2
    if not {b"*", b"email"}.intersection(_words(tags.get(b"s", b"*"))):
        raise Unusable("permerror", "the key is not for mail")
    flags = _words(tags.get(b"t", b""))
    return Key(
        _public_key(tags.get(b"k", b"rsa"), _decoded(tags[b"p"]), min_bits, max_bits),
        hashes=frozenset(_words(tags[b"h"])) if b"h" in tags else None,
        is_tried=b"y" in flags,
        is_strict=b"s" in flags,
    )


def _words(value: bytes) -> list[bytes]:
    return [word.strip().lower() for word in value.split(b":")]


def _decoded(value: bytes) -> bytes:
    try:
        return base64.b64decode(value)  # passes over what is not of its alphabet, like dkimpy
    except binascii.Error:
        raise Unusable("permerror", "the key is not base64") from None


def _public_key(kind: bytes, octets: bytes, min_bits: int, max_bits: int) -> RSAPublicKey | Ed25519PublicKey:
    match kind:
        case b"rsa":
            return _rsa_key(octets, min_bits, max_bits)
        case b"ed25519":
            try:
                return Ed25519PublicKey.from_public_bytes(octets)
            except ValueError:
                raise Unusable("permerror", "the key is no Ed25519 key") from None
        case _:
            raise Unusable("permerror", "the key is of an unknown kind")


def _rsa_key(octets: bytes, min_bits: int, max_bits: int) -> RSAPublicKey:
    try:
        numbers: dict[str, int] = parse_public_key(octets)
    except (UnparsableKeyError, IndexError, AssertionError):
        raise Unusable("permerror", "the key is no RSA key") from None
    modulus, exponent = numbers["modulus"], numbers["publicExponent"]
    bits = modulus.bit_length()
    if bits < min_bits:  # RFC 8301 §3.2
        raise Unusable("policy", f"the key has {bits} bits, fewer than {min_bits}")
    if bits > max_bits:
        raise Unusable("policy", f"the key has {bits} bits, more than {max_bits}")
    if exponent.bit_length() > MAX_EXPONENT_BITS:
        raise Unusable("policy", f"the exponent of the key has more than {MAX_EXPONENT_BITS} bits")
    if not modulus % 2:
        raise Unusable("permerror", "the key is no RSA key")
    try:
        return RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise Unusable("permerror", "the key is no RSA key") from None
