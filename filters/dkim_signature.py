"""One DKIM-Signature field, read with care (RFC 6376 §3.5, §6.1.1).

dkimpy reads the list of tags and has the last word on their values; before that come limits on everything it would
spend time on, and a reason for each refusal, which dkimpy has none for.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import dkim
from dkim.util import InvalidTagValueList, parse_tag_value

from filters.dkim_header import Canonicalisation
from filters.dkim_keys import Unusable
from smtpd.addresses import AddressError, normalise_domain
from smtpd.authentication_results import MAX_VALUE
from smtpd.findings import DkimSignature

MAX_FIELD = 8192  # octets; one with a key of 4096 bits and a hundred names has 3000
CLOCK_SKEW = 36_000  # seconds that a signer's clock may be wrong; what dkimpy allows
_MAX_SHOWN = 255  # characters of tags other than b=

_TAG_DOMAIN = re.compile(rb"(?:\A|;)\s*+d\s*+=\s*+([^;\s]*+)")
_NUMBER = re.compile(rb"[0-9]{1,76}")  # RFC 6376 §3.5
_ALGORITHMS = ("rsa-sha256", "ed25519-sha256")

Tags = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature says it is, all of it usable. Domains are A-labels in lower case."""

    domain: str
    selector: str
    algorithm: str
    identity: str
    """The domain of i=, or of d= when there is none."""
    names: tuple[bytes, ...]
    """h=, lower case, From among them."""
    header: Canonicalisation
    body: Canonicalisation
    length: int | None
    """l="""
    body_hash: bytes
    signature: bytes

    @property
    def key_name(self) -> str:
        """Where its key is."""
        return f"{self.selector}._domainkey.{self.domain}"


def claimed_domain(value: bytes) -> str:
    """The d= of a field at a glance, in lower case; "" when there is none."""
    match = _TAG_DOMAIN.search(value[:MAX_FIELD])
    return match[1].decode("ascii", "replace").lower() if match is not None else ""


def read_tags(value: bytes) -> Tags:
    """The tags of a signature field. Raises Unusable."""
    if len(value) > MAX_FIELD:
        raise Unusable("policy", f"the signature field is longer than {MAX_FIELD} octets")
    try:
        tags: dict[bytes, bytes] = parse_tag_value(value)
    except InvalidTagValueList:
        raise Unusable("neutral", "the signature field cannot be read") from None
    return tags


def described(tags: Tags) -> DkimSignature:
    """What reports say about a signature, however broken it is; the result is still to come."""
    d, s, a, i = (tags.get(tag, b"")[:_MAX_SHOWN].decode("utf-8", "replace") for tag in (b"d", b"s", b"a", b"i"))
    begin = b"".join(tags.get(b"b", b"").split())[:MAX_VALUE].decode("ascii", "replace")
    return DkimSignature("neutral", _domain(d) or d, s, a, i, begin)


def read_signature(tags: Tags, now: float) -> Signature:
    """What the tags say. `now`: seconds since 1970. Raises Unusable."""
    for tag in (b"v", b"a", b"b", b"bh", b"d", b"h", b"s"):
        if tag not in tags:
            raise Unusable("neutral", f"the signature has no {tag.decode()}=")
    if tags[b"v"] != b"1":
        raise Unusable("neutral", "the signature is of another version than 1")
    header, body = _canonicalisations(tags.get(b"c", b"simple/simple"))
    names = tuple(name.strip().lower() for name in tags[b"h"].split(b":"))
    if b"from" not in names:
        raise Unusable("permerror", "the From field is not signed")  # RFC 6376 §5.4
    _check_times(tags, now)
    domain = _domain(tags[b"d"].decode("utf-8", "replace"))
    selector = _selector(tags[b"s"])
    if not domain or not selector:
        raise Unusable("neutral", "d= or s= is no name")
    signature = Signature(
        domain=domain,
        selector=selector,
        algorithm=_algorithm(tags[b"a"]),
        identity=_identity(tags.get(b"i", b"@" + tags[b"d"]), domain),
        names=names,
        header=header,
        body=body,
        length=_length(tags),
        body_hash=_decoded(tags, b"bh"),
        signature=_decoded(tags, b"b"),
    )
    _ask_dkimpy(tags)
    return signature


def _canonicalisations(value: bytes) -> tuple[Canonicalisation, Canonicalisation]:
    header, _, body = value.decode("ascii", "replace").partition("/")
    known = {name: name for name in get_args(Canonicalisation)}
    if header not in known or (body or "simple") not in known:
        raise Unusable("neutral", "the canonicalisation is unknown")
    return known[header], known[body or "simple"]


def _algorithm(value: bytes) -> str:
    algorithm = value.decode("ascii", "replace")
    if algorithm == "rsa-sha1":  # RFC 8301 §3.1: has permanently failed
        raise Unusable("policy", "rsa-sha1 proves nothing")
    if algorithm not in _ALGORITHMS:
        raise Unusable("neutral", "the algorithm is unknown")
    return algorithm


def _check_times(tags: Tags, now: float) -> None:
    """RFC 6376 §3.5; §6.1.1 for what has expired."""
    signed, expires = _number(tags, b"t"), _number(tags, b"x")
    if signed is not None and signed > now + CLOCK_SKEW:
        raise Unusable("fail", "the signature is from the future")
    if expires is not None and expires < now - CLOCK_SKEW:
        raise Unusable("fail", "the signature has expired")
    if signed and expires is not None and expires < signed:
        raise Unusable("neutral", "the signature expires before it was made")


def _length(tags: Tags) -> int | None:
    return _number(tags, b"l")


def _number(tags: Tags, tag: bytes) -> int | None:
    if tag not in tags:
        return None
    if _NUMBER.fullmatch(tags[tag]) is None:
        raise Unusable("neutral", f"{tag.decode()}= is no number")
    return int(tags[tag])


def _domain(text: str) -> str:
    """The A-label form (RFC 8616 §5), "" when it is no domain."""
    try:
        return "" if text.startswith("[") else normalise_domain(text)
    except AddressError:
        return ""


def _selector(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return text.lower() if text.isascii() and text.isprintable() and " " not in text else _domain(text)


def _identity(value: bytes, domain: str) -> str:
    """RFC 6376 §3.5: the domain of i= is that of d=, or below it."""
    _, at, text = value.decode("utf-8", "replace").rpartition("@")
    identity = _domain(text)
    if not at or (identity != domain and not identity.endswith(f".{domain}")):
        raise Unusable("permerror", "the domain of i= is not below that of d=")
    return identity


def _decoded(tags: Tags, tag: bytes) -> bytes:
    try:
        octets = base64.b64decode(b"".join(tags[tag].split()), validate=True)
    except binascii.Error:
        octets = b""
    if not octets:
        raise Unusable("neutral", f"{tag.decode()}= is not base64")
    return octets


def _ask_dkimpy(tags: Tags) -> None:
    """Let it find what we did not; with values that it takes no time over."""
    short = {tag: value for tag, value in tags.items() if tag not in (b"t", b"x")}  # it has no clock but the system's
    short |= {tag: b"".join(tags[tag].split()) for tag in (b"b", b"bh")}
    if any(method.strip() == b"dns/txt" for method in short.get(b"q", b"dns/txt").split(b":")):
        short.pop(b"q", None)  # RFC 6376 §3.5 allows a list, dkimpy a single method
    try:
        dkim.validate_signature_fields(short)
    except dkim.ValidationError:
        raise Unusable("neutral", "the signature breaks the rules of RFC 6376") from None
