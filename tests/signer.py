"""Signs messages for tests: what is signed is canonicalised by dkimpy, so ours is never compared with itself."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import dkim
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dkim.canonicalization import CanonicalizationPolicy

LETTER = (
    b"From: Joe <joe@a.test>\r\nTo: ann@example.test\r\nSubject: Hi  there\r\n"
    b"Date: Fri, 1 Jan 2027 00:00:00 +0000\r\n\r\nHello,  you.\r\n\r\nJoe\r\n"
)
NAMES = "from:to:subject:date"


@cache
def rsa_key(bits: int = 2048) -> RSAPrivateKey:
    return generate_private_key(65537, bits)


@cache
def ed25519_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@dataclass(frozen=True)
class Signer:
    """One key of one domain."""

    domain: str = "a.test"
    selector: str = "s"
    bits: int = 2048
    """Of the RSA key; 0: Ed25519."""
    title: str = "DKIM-Signature"
    """The name of the field."""

    @property
    def name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def public(self) -> str:
        """p= of the record."""
        if self.bits:
            octets = rsa_key(self.bits).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        else:
            octets = ed25519_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(octets).decode()

    @property
    def record(self) -> str:
        return f"v=DKIM1; k={'rsa' if self.bits else 'ed25519'}; p={self.public}"

    @property
    def zone(self) -> dict[str, Mapping[str, object]]:
        return {self.name: {"TXT": [self.record]}}

    def field(self, message: bytes = LETTER, **changes: str | None) -> bytes:
        """A signature field; `changes` are tags, None takes one away. `bh` and `b` are made unless given."""
        tags: dict[str, str | None] = {
            "v": "1", "a": "rsa-sha256" if self.bits else "ed25519-sha256", "c": "relaxed/relaxed",
            "d": self.domain, "s": self.selector, "h": NAMES, "bh": "", "b": "",
        }  # fmt: skip
        tags |= changes
        tags["b"] = tags.pop("b")  # to the end
        headers, body = dkim.rfc822_parse(message)
        digest = hashlib.sha1 if tags["a"] == "rsa-sha1" else hashlib.sha256
        try:
            policy = CanonicalizationPolicy.from_c_value((tags["c"] or "simple/simple").encode())
        except dkim.InvalidCanonicalizationPolicyError:
            policy = CanonicalizationPolicy.from_c_value(b"simple/simple")
        if tags["bh"] == "":
            signed = policy.canonicalize_body(body)[: int(tags["l"]) if (tags.get("l") or "").isdigit() else None]
            tags["bh"] = base64.b64encode(digest(signed).digest()).decode()
        value = "".join(f" {name}={text};" for name, text in tags.items() if text is not None)[:-1].encode()
        if tags["b"] == "":
            hasher = digest()
            names = [name.strip().lower().encode() for name in (tags["h"] or "").split(":")]
            own = (self.title.encode(), value + b"\r\n")
            dkim.hash_headers(hasher, policy, policy.canonicalize_headers(headers), names, own, {})
            value += base64.b64encode(self._signature(hasher.digest(), digest))
        return self.title.encode() + b":" + value + b"\r\n"

    def sign(self, message: bytes = LETTER, **changes: str | None) -> bytes:
        """The message with a signature on top."""
        return self.field(message, **changes) + message

    def _signature(self, digest: bytes, kind: object) -> bytes:
        if not self.bits:
            return ed25519_key().sign(digest)
        algorithm = SHA1() if kind is hashlib.sha1 else SHA256()
        return rsa_key(self.bits).sign(digest, PKCS1v15(), Prehashed(algorithm))
