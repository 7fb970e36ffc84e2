"""Whether DNS lists answer as they should at the points every list has for tests (RFC 5782)."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network

from smtpd.dns import Answer
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

LISTED, UNLISTED = "2.0.0.127", "1.0.0.127"  # 127.0.0.2 and 127.0.0.1, their octets turned round
NAME_LISTED, NAME_UNLISTED = "test", "invalid"  # the same for lists of names

_CODES = IPv4Network("127.0.0.0/8")
_REFUSED = IPv4Network("127.255.255.0/24")  # Spamhaus's codes for "I do not answer you", which others took over


async def check_blocklists(examination: Examination) -> list[Finding]:
    """One finding for each list."""
    if not examination.blocklists:
        return [Finding("info", "blocklists", "None was named, so none was asked.", "Try yours with --blocklist ZONE.")]
    return list(await asyncio.gather(*(_check(examination, zone) for zone in examination.blocklists)))


async def _check(examination: Examination, zone: str) -> Finding:
    points = (LISTED, UNLISTED, NAME_LISTED, NAME_UNLISTED)
    answers = await asyncio.gather(*(examination.resolver.resolve(f"{point}.{zone}", "A") for point in points))
    listed, unlisted, name_listed, name_unlisted = answers
    subject = f"blocklist {zone}"
    if refusal := next((found for answer in answers for found in _inside(answer, _REFUSED)), None):
        text = f"It refuses to answer ({refusal}): it does not know us, or we ask through a public resolver."
        return Finding("problem", subject, text, "Ask through a resolver of your own, or get a key from the list.")
    if failed := next((answer for answer in (listed, unlisted) if answer.failed), None):
        text = f"It does not answer ({failed.reason}), so it lists nobody."
        return Finding("warning", subject, text, "Take it out if this lasts.")
    if unlisted.found or name_unlisted.found:
        text = "It lists what no list may list (127.0.0.1, or the name invalid): it lists everybody, or is no list."
        return Finding("problem", subject, text, "Take it out; all mail would be refused.")
    hits = [*_inside(listed, _CODES), *_inside(name_listed, _CODES)]
    if not hits:
        odd = f" but {', '.join(listed.texts)}" if listed.texts else ""
        text = f"Its test points (127.0.0.2, or the name test) are not listed{odd}: it is dead, or is no list."
        return Finding("problem", subject, text, "Take it out, or correct its name.")
    what = "addresses" if listed.found else "names"
    return Finding("ok", subject, f"It answers as a list of {what} should ({hits[0]}).")


def _inside(answer: Answer, network: IPv4Network) -> list[str]:
    return [text for text in answer.texts if IPv4Address(text) in network]
