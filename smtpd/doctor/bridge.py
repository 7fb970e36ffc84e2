"""Our resolver for libraries that want one of dnspython, from another thread: same nameservers, cache and limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from typing import Any

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.resolver

from smtpd.dns import TYPES, Answer, Resolver, Txt, Type
from smtpd.dns.answer import Record, format_record

MAX_LOOKUPS = 200


class BridgedResolver(dns.resolver.Resolver):
    """Asks `resolver` on `loop`, for `seconds` from now and MAX_LOOKUPS questions; then every question fails at once.

    To be used in a thread beside the loop. `failures` are the questions nobody answered.
    """

    def __init__(self, resolver: Resolver, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        super().__init__(configure=False)
        self._resolver = resolver
        self._loop = loop
        self._until = time.monotonic() + seconds
        self._left = MAX_LOOKUPS
        self.failures: list[str] = []

    def resolve(self, qname: Any, rdtype: Any = "A", *_: Any, **__: Any) -> dns.resolver.Answer:
        """As in dnspython; raises NXDOMAIN, NoAnswer or LifetimeTimeout."""
        name = dns.name.from_text(qname) if isinstance(qname, str) else qname
        kind = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rdtype))
        known = next((known for known in TYPES if known == kind), None)
        answer = None if known is None else self._ask(name.to_text(omit_final_dot=True), known)
        if answer is not None and answer.failed:
            self.failures.append(f"{name.to_text(omit_final_dot=True)} {kind}")
            raise dns.resolver.LifetimeTimeout(timeout=0.0, errors=[])  # type: ignore[no-untyped-call]
        return _translated(name, kind, answer)

    def _ask(self, name: str, kind: Type) -> Answer:
        left = self._until - time.monotonic()
        if left <= 0 or self._left <= 0:
            return _GIVEN_UP
        self._left -= 1
        waiting = asyncio.run_coroutine_threadsafe(self._resolver.resolve(name, kind), self._loop)
        try:
            return waiting.result(left)
        except (TimeoutError, concurrent.futures.CancelledError):
            waiting.cancel()
            return _GIVEN_UP


_GIVEN_UP = Answer("tempfail", reason="limit")


def _translated(name: dns.name.Name, kind: str, answer: Answer | None) -> dns.resolver.Answer:
    response = dns.message.make_response(dns.message.make_query(name, kind))
    if answer is not None and answer.status == "nxdomain":
        raise dns.resolver.NXDOMAIN(qnames=[name], responses={name: response})  # type: ignore[no-untyped-call]
    if answer is None or not answer.found:
        raise dns.resolver.NoAnswer(response=response)  # type: ignore[no-untyped-call]
    records = [_data(kind, record) for record in answer.records]
    code = dns.rdatatype.RdataType.make(kind)
    found = response.find_rrset(response.answer, name, dns.rdataclass.IN, code, create=True)
    for record in records:
        found.add(record, int(answer.ttl))
    return dns.resolver.Answer(name, code, dns.rdataclass.IN, response)  # type: ignore[arg-type]


def _data(kind: str, record: Record) -> dns.rdata.Rdata:
    if isinstance(record, Txt):
        strings = [part[start : start + 255] for part in record.parts for start in range(0, len(part) or 1, 255)]
        return dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, dns.rdatatype.TXT, strings)
    return dns.rdata.from_text("IN", kind, format_record(record), origin=dns.name.root, relativize=False)
