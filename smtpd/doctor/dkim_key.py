"""Whether the keys of DKIM selectors are there and can be used."""

from __future__ import annotations

import asyncio
import base64
import binascii

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

GOOD_BITS = 2048  # RFC 8301 §3.2: signers should use at least these
LEAST_BITS = 1024  # RFC 8301 §3.2: verifiers must not take less

_ED25519_OCTETS = 32
_PUBLISH = "Publish the record that your signing program has made."


async def check_dkim(examination: Examination, domain: str) -> list[Finding]:
    """One finding for each selector."""
    return list(await asyncio.gather(*(_check(examination, word, domain) for word in examination.selectors)))


async def _check(examination: Examination, selector: str, domain: str) -> Finding:
    name = f"{selector}._domainkey.{domain}"
    subject = f"DKIM key {name}"
    answer = await examination.resolver.resolve(name, "TXT")
    if answer.failed:
        return Finding("warning", subject, f"The DNS does not say now ({answer.reason}).", "Try again.")
    if not answer.txt:
        return Finding("problem", subject, "There is none, so signatures with this selector fail.", _PUBLISH)
    if len(answer.txt) > 1:
        text = f"There are {len(answer.txt)} records; which one is looked at is chance."
        return Finding("problem", subject, text, "Keep one.")
    return _judged(subject, answer.txt[0])


def _judged(subject: str, record: bytes) -> Finding:
    tags = {tag.strip(): value for tag, _, value in (part.partition("=") for part in _text(record).split(";"))}
    if tags.get("v", "DKIM1").strip() != "DKIM1":
        return Finding("problem", subject, "It is of a version nobody knows.", "Begin it with v=DKIM1.")
    key = "".join(tags.get("p", "").split())
    if not key:
        text = "It holds no key (p=), so signatures with this selector fail. That is how a selector is withdrawn."
        return Finding("problem", subject, text, "Sign with another selector, or publish the key.")
    try:
        strength = _strength(tags.get("k", "rsa").strip() or "rsa", base64.b64decode(key, validate=True))
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
        return Finding("problem", subject, f"It holds no key that can be used: {error}", _PUBLISH)
    if "y" in "".join(tags.get("t", "").split()).split(":"):
        text = "It is marked as a test (t=y): receivers may treat signed mail as if it were not."
        return Finding("warning", subject, text, "Take t=y out.")
    if strength is not None and strength < GOOD_BITS:
        is_ignored = strength < LEAST_BITS
        text = f"Its key has {strength} bits; {'receivers ignore it' if is_ignored else 'that is weak today'}."
        return Finding("problem" if is_ignored else "warning", subject, text, f"Make one of {GOOD_BITS} bits.")
    what = "an Ed25519 key" if strength is None else f"an RSA key of {strength} bits"
    return Finding("ok", subject, f"It holds {what}.")


def _text(record: bytes) -> str:
    return record.decode("ascii", "backslashreplace")


def _strength(kind: str, octets: bytes) -> int | None:
    """Bits of an RSA key, None for Ed25519; ValueError for all others."""
    if kind == "ed25519":
        if len(octets) != _ED25519_OCTETS:
            raise ValueError(f"an Ed25519 key has {_ED25519_OCTETS} octets, this one {len(octets)}")
        return None
    if kind != "rsa":
        raise ValueError(f"nobody knows keys of type {kind}")
    key = load_der_public_key(octets)
    if not isinstance(key, RSAPublicKey):
        raise ValueError("it says RSA, but is not")
    return key.key_size
