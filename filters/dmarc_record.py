"""The policy record of DMARC: what a domain asks for (RFC 9989 §4.7 and §4.8, RFC 7489 §6.3). Pure.

A record begins with `v=DMARC1`. Whatever is wrong behind that is left out in favour of the default (RFC 9989 §4.8),
but for `p`, `sp` and `np`: whoever gets one of these wrong gets "none" if it wants reports, and nothing otherwise
(RFC 9989 §4.10.1). A tag that stands twice is wrong: nobody could say which one is meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from smtpd.findings import Policy

MAX_RECORD = 4096  # octets; our own choice, the longest seen in use have some hundred
MAX_URIS = 20  # of `rua`; our own choice
REMEMBERED = 2048  # records, so 8 MiB of text at most

PolicyTag = Literal["p", "sp", "np"]
Author = Literal["domain", "subdomain", "nonexistent"]
"""What the author's domain is to the domain with the record."""

_START = re.compile(rb"[vV][ \t]*+=[ \t]*+DMARC1[ \t]*+(?:;|\Z)")  # RFC 9989 §4.8: DMARC1 in this case only
_POLICIES: dict[str, Policy] = {"none": "none", "quarantine": "quarantine", "reject": "reject"}
_URI = re.compile(r"(?!mailto:)[a-z][a-z0-9+.\-]*:[^\s!]+|mailto:[^\s!@]+@[^\s!@]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One record, defaults filled in."""

    p: Policy
    sp: Policy | None = None
    np: Policy | None = None
    strict_dkim: bool = False
    strict_spf: bool = False
    psd: Literal["y", "n", "u"] = "u"
    testing: bool = False
    percent: int = 100
    """`pct` of RFC 7489; RFC 9989 knows it no longer."""
    reports_to: tuple[str, ...] = ()
    """The URIs of `rua`, those that are none left out."""
    failure_options: str = "0"
    is_usable: bool = True
    """False: `p`, `sp` or `np` cannot be read and no reports are wanted, so DMARC does not apply."""

    def policy_for(self, author: Author) -> tuple[Policy, PolicyTag]:
        """What is asked for, and which tag says so (RFC 9989 §4.10.1)."""
        if author == "nonexistent" and self.np is not None:
            return self.np, "np"
        if author != "domain" and self.sp is not None:
            return self.sp, "sp"
        return self.p, "p"


def find_record(texts: Sequence[bytes]) -> tuple[Record | None, int]:
    """The one record among the TXT records of a name, and how many there are.

    Of several none counts (RFC 9989 §4.10 step 2, RFC 7489 §6.6.3 step 5); what does not begin like a record is none.
    """
    found = [text for text in texts if _START.match(text) and len(text) <= MAX_RECORD]
    return (parse_record(found[0]) if len(found) == 1 else None), len(found)


@lru_cache(maxsize=REMEMBERED)
def parse_record(text: bytes) -> Record | None:
    """Read one record; None when it does not begin with `v=DMARC1`, or is longer than `MAX_RECORD`."""
    start = _START.match(text)
    if start is None or len(text) > MAX_RECORD:
        return None
    tags = _tags(text[start.end() :].decode("ascii", "replace"))
    reports_to = _uris(tags.get("rua", ""))
    policies = {tag: _POLICIES.get(tags[tag].lower()) for tag in ("p", "sp", "np") if tag in tags}
    is_sound = "p" in policies and None not in policies.values()
    percent = tags.get("pct", "")
    psd = tags.get("psd", "").lower()
    return Record(
        p=(policies["p"] if is_sound else None) or "none",
        sp=policies.get("sp") if is_sound else None,
        np=policies.get("np") if is_sound else None,
        strict_dkim=tags.get("adkim", "").lower() == "s",
        strict_spf=tags.get("aspf", "").lower() == "s",
        psd="y" if psd == "y" else "n" if psd == "n" else "u",
        testing=tags.get("t", "").lower() == "y",
        percent=int(percent) if re.fullmatch(r"\d{1,2}|100", percent, re.ASCII) else 100,
        reports_to=reports_to,
        failure_options=_failure_options(tags.get("fo", "")),
        is_usable=is_sound or bool(reports_to),
    )


def _tags(text: str) -> dict[str, str]:
    """Values by tag, in lower case; of a tag that stands twice the value is one that is never valid."""
    tags: dict[str, str] = {}
    for piece in text.split(";"):
        name, equals, value = piece.partition("=")
        if equals:
            name = name.strip(" \t").lower()
            tags[name] = "\0" if name in tags else value.strip(" \t")
    return tags


def _uris(value: str) -> tuple[str, ...]:
    # RFC 7489 §6.2 let a size limit follow ("!10m"). RFC 9989 does without it; reporters look at the address alone.
    pieces = [piece.strip(" \t").partition("!")[0] for piece in value.split(",")[:MAX_URIS]]
    return tuple(piece for piece in pieces if piece.isascii() and _URI.fullmatch(piece))


def _failure_options(value: str) -> str:
    # RFC 9989 §4.7: "0" and "1" exclude each other; §4.8: "d" and "s" may stand there once.
    options = [option.strip(" \t").lower() for option in value.split(":", 4)]
    is_sound = len(set(options)) == len(options) and {"0", "1", "d", "s"}.issuperset(options)
    return ":".join(options) if is_sound and not {"0", "1"}.issubset(options) else "0"
