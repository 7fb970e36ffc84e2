"""Chains of ARC for tests, and a server with the filter. Sets are made by dkimpy, or with whatever mistake is wanted.

Nothing of ours takes part in making a chain: canonical forms are those of dkimpy.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import ClassVar

import dkim
import witness
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dkim.canonicalization import CanonicalizationPolicy
from signer import LETTER, Signer, rsa_key

from filters.arc import Arc
from smtpd.dns import Resolver
from smtpd.findings import ArcResult
from smtpd.memory import MemoryServer
from smtpd.policy import Filter
from smtpd.zone import Zone

PASSED = "dmarc=pass header.from=a.test"
CHANGED_TEXT = (b"Hello", b"Hallo")
_FIELDS = ("arc-authentication-results", "arc-message-signature", "arc-seal")
_RELAXED = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")

Tags = Mapping[str, str | None]
_AS_USUAL: Tags = MappingProxyType({})


@cache
def private_key() -> bytes:
    """The key of all hops, as PEM."""
    return rsa_key(2048).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


@dataclass(frozen=True)
class Hop:
    """A host that seals."""

    signer: Signer
    message_signer: Signer | None = None
    """Another key for message signatures."""

    @property
    def domain(self) -> str:
        return self.signer.domain

    def add(self, message: bytes, results: str = PASSED) -> bytes:
        """The message with one more set on top, by dkimpy; the chain so far is said to have passed."""
        name = f"mx.{self.domain}"
        chained = "; arc=pass" if b"\r\nARC-" in b"\r\n" + message else ""
        judged = f"Authentication-Results: {name}; {results}{chained}\r\n".encode() + message
        fields: list[bytes] = dkim.arc_sign(
            judged, self.signer.selector.encode(), self.domain.encode(), private_key(), name.encode(),
            include_headers=[b"from", b"to", b"subject", b"date"],
        )  # fmt: skip
        assert len(fields) == 3
        return b"".join(field.rstrip(b"\r\n") + b"\r\n" for field in fields) + message

    def forge(
        self,
        message: bytes,
        instance: int,
        *,
        results: str = PASSED,
        signature: Tags = _AS_USUAL,
        seal: Tags = _AS_USUAL,
    ) -> bytes:
        """The same by hand: tags can be others (None takes one away), and what they sign is signed all the same."""
        d, s, i = self.domain, self.signer.selector, str(instance)
        fields = {
            "ARC-Authentication-Results": f" i={i}; mx.{d}; {results}\r\n".encode(),
            "ARC-Message-Signature": replace(self.message_signer or self.signer, title="ARC-Message-Signature")
            .field(message, **{"i": i, "v": None, **signature})
            .partition(b":")[2],
        }
        tags: dict[str, str | None] = {
            "i": i, "cv": "pass" if instance > 1 else "none", "a": "rsa-sha256", "d": d, "s": s, **seal
        }  # fmt: skip
        value = "".join(f" {name}={text};" for name, text in tags.items() if text is not None).encode() + b" b="
        new = [(name.encode(), octets) for name, octets in fields.items()]
        below = [(name, octets) for name, octets in chain_fields(message) if _instance(octets) < instance]
        scope = _RELAXED.canonicalize_headers([*below, *new, (b"ARC-Seal", value)])
        text = b"".join(name + b":" + octets for name, octets in scope).removesuffix(b"\r\n")
        value += base64.b64encode(rsa_key(2048).sign(hashlib.sha256(text).digest(), PKCS1v15(), Prehashed(SHA256())))
        return b"".join(n + b":" + v for n, v in [(b"ARC-Seal", value + b"\r\n"), *new[::-1]]) + message


def chain_fields(message: bytes) -> list[tuple[bytes, bytes]]:
    """Fields of sets, in the order in which seals are over them."""
    fields = [(name, value) for name, value in dkim.rfc822_parse(message)[0] if name.lower().decode() in _FIELDS]
    return sorted(fields, key=lambda field: (_instance(field[1]), _FIELDS.index(field[0].lower().decode())))


def _instance(value: bytes) -> int:
    match = re.search(rb"\bi\s*=\s*([0-9]+)", value)
    return int(match[1]) if match is not None else 0


ONE, TWO, THREE = (Hop(Signer(f"{name}.test", name)) for name in ("one", "two", "three"))
HOPS = (ONE, TWO, THREE)


@cache
def chain(number: int) -> bytes:
    """A message that so many hosts have sealed by dkimpy, one after the other."""
    message = LETTER
    for hop in HOPS[:number]:
        message = hop.add(message)
    return message


def drop(message: bytes, name: str, instance: int) -> bytes:
    """Without one field of the chain."""
    return message.replace(field_of(message, name, instance), b"", 1)


def field_of(message: bytes, name: str, instance: int) -> bytes:
    """One field of the chain, as it is there."""
    for match in re.finditer(rb"(?im)^%b:(?:.*\r\n)(?:[ \t].*\r\n)*" % name.encode(), message):
        if _instance(match[0]) == instance:
            return match[0]
    raise LookupError(name)


def zone(**records: object) -> Zone:
    """The keys of all hops; `records` are tables by selector that stand there instead."""
    found = Zone({})
    for hop in HOPS:
        table = records.get(hop.signer.selector)
        assert table is None or isinstance(table, dict)
        found.put(hop.signer.name, **(table if table is not None else {"TXT": [hop.signer.record]}))
    return found


class Witness(witness.Witness):
    needs = (ArcResult,)
    seen: ClassVar[list[ArcResult]] = []


def house(
    options: Mapping[str, object] | None = None, resolver: Resolver | None = None, others: Sequence[type[Filter]] = ()
) -> MemoryServer:
    """A server with the filter."""
    Witness.seen.clear()
    return MemoryServer(
        filters={"arc": (Arc, options or {}), "witness": Witness, **{one.name: one for one in others}},
        resolver=zone() if resolver is None else resolver,
    )


async def found(message: bytes, resolver: Resolver | None = None, **options: object) -> ArcResult:
    """The fact that is left about a message."""
    async with house(options, resolver) as server:
        heard = (await (await server.connect()).send(message))[-1]
        assert heard.startswith("250 "), heard
    return Witness.seen.pop()
