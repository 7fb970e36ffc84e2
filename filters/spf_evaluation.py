"""One check of SPF: pyspf, which cannot wait, in a greenlet that goes back to the event loop whenever it would.

Nothing is shared between checks but the one function that pyspf asks; it finds out by the greenlet it is called in
whose question it is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import get_args

from greenlet import getcurrent, greenlet

from filters import spf_query
from filters.spf_query import LONGEST_CHECK, MAX_ADDRESSES, Query, TempError
from smtpd.authentication_results import SpfResult
from smtpd.dns import TYPES, Answer, Resolver, Type, normal_name
from smtpd.replies import clean


@dataclass(frozen=True, slots=True)
class Client:
    """Who is on the line: its address, the name it gave itself, and our own name for `%{r}`."""

    ip: IPv4Address | IPv6Address
    helo: str
    receiver: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out; all text is printable ASCII of at most 200 characters."""

    result: SpfResult
    reason: str = ""
    mechanism: str = ""
    """The term of the record that decided, "" when none did."""
    explanation: str = ""
    """What the domain says to it: its words."""
    failure: Exception | None = None
    """What broke when it was evaluated; the result is permerror then."""


async def evaluate(
    client: Client, local: str, domain: str, resolver: Resolver, *, longest: float = LONGEST_CHECK
) -> Evaluation:
    """Check one identity (RFC 7208 §4): its local part without quotes, and its domain as A-labels.

    Takes `longest` seconds at most, then the result is temperror. Raises nothing but what `resolver` raises; when it
    is cancelled, nothing of it stays.
    """
    if not is_domain(domain):
        return Evaluation("none", "no domain that could have a record")  # RFC 7208 §4.3
    query = Query(client.ip, local, domain.removesuffix("."), client.helo, client.receiver, longest)
    check = _Check(query)
    scope = asyncio.timeout(longest)
    try:
        async with scope:
            result, explanation = await _run(check, resolver)
    except TimeoutError:
        if not scope.expired():
            raise
        return Evaluation("temperror", f"not done in {longest:g} s")
    except _LibraryError as error:
        return Evaluation("permerror", "the record cannot be evaluated", failure=error.cause)
    finally:
        if not check.dead:
            check.throw()  # GreenletExit: it ends where it stands
    known = next((one for one in get_args(SpfResult) if one == result), None)
    if known is None:
        return Evaluation("permerror", f"pyspf said {clean(result)}")
    mechanism = clean(query.mechanism or "")
    return Evaluation(known, _reason(known, mechanism, query.problem), mechanism, explanation)


def is_domain(text: str) -> bool:
    """Whether there can be a record: a name of two labels or more, no address (RFC 7208 §4.3)."""
    name = normal_name(text)
    if name is None or name.startswith("["):
        return False
    _, dot, last = name.rpartition(".")
    return bool(dot) and not last.isdigit()


class _LibraryError(Exception):
    """pyspf raised what it should not have."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Question:
    """What a check waits for."""

    __slots__ = ("kind", "name", "seconds")

    def __init__(self, name: str, kind: Type, seconds: float) -> None:
        self.name = name
        self.kind = kind
        self.seconds = seconds


class _Check(greenlet):  # type: ignore[misc]
    """pyspf at work. `switch` gives the next question, and at last the result."""

    def __init__(self, query: Query) -> None:
        super().__init__(self._work)
        self._query = query

    def _work(self, _: None) -> tuple[str, str]:
        try:
            return self._query.run()
        except Exception as error:
            # Whatever it was, the owner of a record brought it about: no crash of the filter, but permerror.
            raise _LibraryError(error) from error


async def _run(check: _Check, resolver: Resolver) -> tuple[str, str]:
    said = check.switch(None)
    while isinstance(said, _Question):
        name, kind = said.name, said.kind
        said = check.switch(resolver.peek(name, kind) or await resolver.resolve(name, kind, said.seconds))
    result, explanation = said
    return result, explanation


def _look_up(name: str, kind: str, seconds: float) -> list[object] | None:
    check = getcurrent()
    known = next((one for one in TYPES if one == kind), None)
    if not isinstance(check, _Check) or known is None:
        return None  # other users of pyspf in this process
    if not name.isascii():
        return []  # made of a name in EHLO that RFC 8616 §4 does not allow
    answer = check.parent.switch(_Question(name, known, seconds))
    assert isinstance(answer, Answer)
    if answer.failed:
        raise TempError(f"DNS: {answer.reason} for {known} of {name}")
    return [((name, kind), value) for value in library_values(answer, known)]


def library_values(answer: Answer, kind: Type) -> list[object]:
    """Records in the form of pyspf, which may change the list, but not what is in it.

    It takes a microsecond over each, and a record of SPF may name a hundred hosts with four thousand addresses each.
    """
    if kind == "MX":
        return [(record.preference, record.host) for record in answer.mx[: spf_query.MAX_HOSTS]]
    if kind == "TXT":
        return [(text,) for text in answer.txt]
    return list(answer.texts[:MAX_ADDRESSES])


def _reason(result: SpfResult, mechanism: str, problem: str) -> str:
    if result in ("temperror", "permerror"):
        return clean(problem)
    if result == "none":
        return "no record"
    return f"{mechanism} matches" if mechanism else "no mechanism matches"


spf_query.use(_look_up)
