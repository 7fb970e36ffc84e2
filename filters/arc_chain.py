"""The chain of a message (RFC 8617 §4.2): its sets, and whether they can be a chain at all. No key is needed for that.

Fields are read as those of DKIM are: a message signature is one with another meaning of i=, and a seal is read as a
signature over nothing but fields of the chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from filters.dkim_header import HeaderSection
from filters.dkim_keys import Unusable
from filters.dkim_signature import Signature, Tags, described, read_signature, read_tags
from filters.dkim_verification import Candidate

RESULTS = b"arc-authentication-results"
SIGNATURE = b"arc-message-signature"
SEAL = b"arc-seal"
NAMES = (RESULTS, SIGNATURE, SEAL)
MAX_SETS = 50  # RFC 8617 §4.2.1

_BLANKS = rb"(?:[ \t\r\n]++|\((?:[^()\\]|\\.)*+\))*+"  # comments in comments are nobody's here
_INSTANCE = re.compile(rb"0?[1-9]|[1-4][0-9]|50")
_RESULTS_INSTANCE = re.compile(_BLANKS + rb"i" + _BLANKS + rb"=" + _BLANKS + rb"([0-9]{1,3})" + _BLANKS + rb";")
# What fields say for themselves, as far as they can be read, however wrong the rest of them is.
_SAID_INSTANCE = re.compile(rb"(?:\A|;)[ \t\r\n]*+i[ \t\r\n]*+=[ \t\r\n]*+([0-9]{1,9})")
_SAID_FAILED = re.compile(rb"(?:\A|;)[ \t\r\n]*+cv[ \t\r\n]*+=[ \t\r\n]*+(?i:fail)[ \t\r\n]*+(?:;|\Z)")
_MAX_BEFORE_RESULTS = 256  # octets in which i= of ARC-Authentication-Results ends
_SHOWN = {RESULTS: "ARC-Authentication-Results", SIGNATURE: "ARC-Message-Signature", SEAL: "ARC-Seal"}


class Broken(Exception):  # noqa: N818 - it is a finding, not an error
    """Why the chain fails, in our words."""


class TooLong(Broken):
    """There are more sets than are looked at."""


@dataclass(frozen=True, slots=True)
class ArcSet:
    """What one host added. The three places are those of its fields in the header section."""

    instance: int
    results_place: int
    seal_place: int
    message: Candidate
    """Its ARC-Message-Signature."""
    seal: Signature
    """Its ARC-Seal; the names and the body hash in here mean nothing."""


def has_chain(header: HeaderSection) -> bool:
    """Whether there is any field of a chain."""
    return any(header.places(name) for name in NAMES)


def read_chain(header: HeaderSection, now: float, *, max_sets: int = MAX_SETS) -> list[ArcSet]:
    """The sets, oldest first (RFC 8617 §5.2, steps 1 to 3). `now`: seconds since 1970. Raises Broken."""
    if any(len(header.places(name)) > max_sets for name in NAMES):
        raise TooLong(f"there are more than {max_sets} sets")
    seal_tags = {place: _tags(header, place, SEAL) for place in header.places(SEAL)}
    message_tags = {place: _tags(header, place, SIGNATURE) for place in header.places(SIGNATURE)}
    results = _by_instance(((_results_instance(header.value(one)), one) for one in header.places(RESULTS)), RESULTS)
    messages = _by_instance(((_instance(tags, SIGNATURE), one) for one, tags in message_tags.items()), SIGNATURE)
    seals = _by_instance(((_instance(tags, SEAL), one) for one, tags in seal_tags.items()), SEAL)
    highest = max((*results, *messages, *seals))
    if highest > max_sets:
        raise TooLong(f"there are more than {max_sets} sets")
    _check_complete(highest, (results, messages, seals))
    chain = range(1, highest + 1)
    _check_validations([seal_tags[seals[instance]].get(b"cv", b"") for instance in chain])
    return [
        ArcSet(
            instance,
            results[instance],
            seals[instance],
            _message_candidate(messages[instance], message_tags[messages[instance]], now),
            _seal(instance, seal_tags[seals[instance]], now),
        )
        for instance in chain
    ]


def has_ended(header: HeaderSection) -> bool:
    """Whether a host has said that the chain failed: nobody continues it then (RFC 8617 §5.1.3)."""
    return any(_SAID_FAILED.search(header.value(place)) for place in header.places(SEAL))


def highest_instance(header: HeaderSection) -> int:
    """The highest i= of any field, also of a chain that is none; 0: there is none. It may be more than `MAX_SETS`."""
    said = [_RESULTS_INSTANCE.match(header.value(place)[:_MAX_BEFORE_RESULTS]) for place in header.places(RESULTS)]
    said += [_SAID_INSTANCE.search(header.value(place)) for name in (SIGNATURE, SEAL) for place in header.places(name)]
    return max((int(match[1]) for match in said if match is not None), default=0)


def _tags(header: HeaderSection, place: int, name: bytes) -> Tags:
    try:
        return read_tags(header.value(place))
    except Unusable as unusable:
        raise Broken(f"{_SHOWN[name]}: {unusable.reason}") from None


def _instance(tags: Tags, name: bytes) -> int:
    if _INSTANCE.fullmatch(tags.get(b"i", b"")) is None:
        raise Broken(f"i= of {_SHOWN[name]} is no number from 1 to {MAX_SETS}")
    return int(tags[b"i"])


def _results_instance(value: bytes) -> int:
    match = _RESULTS_INSTANCE.match(value[:_MAX_BEFORE_RESULTS])
    return _instance({b"i": match[1]} if match is not None else {}, RESULTS)


def _by_instance(fields: Iterator[tuple[int, int]], name: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    for instance, place in fields:
        if instance in found:
            raise Broken(f"there are two {_SHOWN[name]} fields {instance}")
        found[instance] = place
    return found


def _check_complete(highest: int, fields: tuple[dict[int, int], ...]) -> None:
    for instance in range(1, highest + 1):
        for name, found in zip(NAMES, fields, strict=True):
            if instance not in found:
                raise Broken(f"there is no {_SHOWN[name]} {instance}")


def _check_validations(said: list[bytes]) -> None:
    """cv= of each seal, oldest first."""
    if said[-1] == b"fail":
        raise Broken(f"it had failed already when it came to host {len(said)}")
    for instance, one in enumerate(said, start=1):
        wanted = b"none" if instance == 1 else b"pass"
        if one != wanted:
            raise Broken(f"cv= of ARC-Seal {instance} is not {wanted.decode()}")


def _message_candidate(place: int, tags: Tags, now: float) -> Candidate:
    """RFC 8617 §4.1.2: the same as a DKIM-Signature, but i= is the instance, and v= is nothing."""
    as_dkim = {tag: value for tag, value in tags.items() if tag != b"i"} | {b"v": b"1"}
    found: Signature | Unusable
    try:
        found = read_signature(as_dkim, now)
        # It must not sign fields of ARC; but OpenARC signed the two others up to 1.0, and that harms nobody.
        if SEAL in found.names:
            found = Unusable("permerror", "it signs a seal")
    except Unusable as unusable:
        found = unusable
    return Candidate(place, described(as_dkim), found)


def _seal(instance: int, tags: Tags, now: float) -> Signature:
    """RFC 8617 §4.1.3."""
    if b"h" in tags:
        raise Broken(f"ARC-Seal {instance} has h=")
    as_dkim = {tag: tags[tag] for tag in (b"a", b"b", b"d", b"s", b"t") if tag in tags}
    as_dkim |= {b"v": b"1", b"h": b"from", b"bh": tags.get(b"b", b"")}
    try:
        return read_signature(as_dkim, now)
    except Unusable as unusable:
        raise Broken(f"ARC-Seal {instance}: {unusable.reason}") from None
