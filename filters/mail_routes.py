"""Whether mail can be sent to a domain: its MX records, and the addresses behind them. No filter of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from smtpd.dns import Answer, Resolver, Type

MAX_HOSTS = 10  # of MX records that are looked up; RFC 7208 §4.6.4 takes as many of them
HEAD_START = 1.0  # seconds in which only the best host is asked about; our own choice


@dataclass(frozen=True, slots=True)
class MailRoute:
    """What was found; `reason` says why there is no way, or why nobody knows."""

    result: Literal["pass", "null-mx", "unresolvable", "temperror"]
    reason: str = ""


_FOUND = MailRoute("pass")
_NULL_MX = MailRoute("null-mx")
_NO_DOMAIN = MailRoute("unresolvable", "there is no such domain")
_NO_RECORD = MailRoute("unresolvable", "it has neither MX nor address records")
_NO_HOST = MailRoute("unresolvable", "no host of its MX records has an address")


async def find_route(domain: str, resolver: Resolver, seconds: float) -> MailRoute:
    """Look for one host that takes mail for a domain (A-labels), all within `seconds`; trouble is "temperror"."""
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await _find(domain, resolver)
    except TimeoutError:
        if not scope.expired():
            raise
        return MailRoute("temperror", "timeout")


async def _find(domain: str, resolver: Resolver) -> MailRoute:
    answer = await resolver.resolve(domain, "MX")
    if answer.failed:
        return MailRoute("temperror", answer.reason)
    if answer.status == "nxdomain":  # RFC 5321 §5.1: that is the end, there is no implicit MX either
        return _NO_DOMAIN
    if not answer.found:
        return await _first_address((domain,), resolver, _NO_RECORD)
    hosts = tuple(dict.fromkeys(mx.host for mx in answer.mx if mx.host))
    if not hosts:  # RFC 7505 §3
        return _NULL_MX
    # An address is no host name (RFC 5321 §5.1), but there are domains with that mistake, and servers that deliver.
    if any(_is_address(host) for host in hosts):
        return _FOUND
    return await _first_address(hosts, resolver, _NO_HOST)


async def _first_address(hosts: Sequence[str], resolver: Resolver, none: MailRoute) -> MailRoute:
    """Ask for one address of the best host; only when that is not there soon, for all that are left at once."""
    first = await resolver.resolve(hosts[0], "A", HEAD_START)
    if first.found:
        return _FOUND
    kinds: tuple[Type, ...] = ("A", "AAAA")
    questions = [(host, kind) for host in hosts[:MAX_HOSTS] for kind in kinds]
    left = questions if first.failed else questions[2 if first.status == "nxdomain" else 1 :]
    answers = await _until_found(left, resolver)
    if any(answer.found for answer in answers) or len(hosts) > MAX_HOSTS:  # others, not asked about, may have addresses
        return _FOUND
    failed = next((answer for answer in answers if answer.failed), None)
    return none if failed is None else MailRoute("temperror", failed.reason)


async def _until_found(questions: Iterable[tuple[str, Type]], resolver: Resolver) -> list[Answer]:
    """Answers up to the first with records, as they come."""
    asking = [asyncio.create_task(resolver.resolve(host, kind)) for host, kind in questions]
    answers: list[Answer] = []
    try:
        for answered in asyncio.as_completed(asking):
            answers.append(await answered)
            if answers[-1].found:
                break
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)  # nothing of ours runs on
    return answers


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
