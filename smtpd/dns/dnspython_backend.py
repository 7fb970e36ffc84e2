"""Lookups by dnspython. Slower than aiodns, but it knows the TTL of everything, and what DNSSEC says."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterable
from typing import Any

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.resolver

from smtpd.dns.answer import Answer, Mx, Record, Soa, Status, Tlsa, Txt, Type, tempfail
from smtpd.dns.backend import BackendError
from smtpd.dns.options import DnsOptions

_ASYNCIO = dns.asyncbackend.get_backend("asyncio")  # loaded now, as that takes long
_UDP_OCTETS = 1232  # what passes everywhere in one piece; more comes by TCP
_FILE_SHARE = 4  # of the files that the process may have open, one in so many may be one of our sockets
_MOST_SOCKETS = 4096


class DnspythonBackend:
    """Asks with a socket of its own for each question; `at_once` questions at a time, the others wait.

    Without that limit, mail that names many keys which nobody answers for would leave no file to accept clients with.
    """

    def __init__(self, options: DnsOptions, *, at_once: int | None = None) -> None:
        self._room = asyncio.Semaphore(at_once or _sockets_at_once())
        servers = options.servers
        try:
            resolver = dns.asyncresolver.Resolver(configure=not servers)
        except (dns.resolver.NoResolverConfiguration, OSError) as error:
            raise BackendError(str(error)) from error
        if servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(address, port) for address, port in servers]
        resolver.cache = None
        resolver.search = []
        resolver.lifetime = options.timeout
        resolver.timeout = options.timeout / (options.tries * max(len(resolver.nameservers), 1))
        resolver.use_edns(0, 0, _UDP_OCTETS)
        # A nameserver that has checked DNSSEC says so only when it is asked to, by AD or DO.
        resolver.flags = int(dns.flags.RD | dns.flags.AD)
        self._resolver = resolver

    async def ask(self, name: str, kind: Type) -> Answer:
        """See Backend."""
        question = _question(name)
        try:
            async with self._room:
                answer = await self._resolver.resolve(
                    question, kind, raise_on_no_answer=False, search=False, backend=_ASYNCIO
                )
        except dns.resolver.NXDOMAIN as error:
            return _negative("nxdomain", error.response(question))  # type: ignore[no-untyped-call]
        except dns.resolver.NoNameservers as error:
            return tempfail(_reason(error.kwargs.get("errors", ())))
        except dns.exception.Timeout:
            return tempfail("timeout")
        except dns.exception.DNSException:
            return tempfail("malformed")
        except OSError:
            return tempfail("unreachable")
        if answer.rrset is None:
            return _negative("nodata", answer.response)
        records = tuple(_record(kind, item) for item in answer.rrset)
        authentic = bool(answer.response.flags & dns.flags.AD)
        return Answer("ok", records, float(answer.chaining_result.minimum_ttl), authentic=authentic)

    def forget(self) -> None:
        """There is nothing to forget."""

    async def close(self) -> None:
        """There is nothing to close."""


def _sockets_at_once() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_SOCKETS if files == resource.RLIM_INFINITY else min(max(files // _FILE_SHARE, 1), _MOST_SOCKETS)


def _question(name: str) -> dns.name.Name:
    # Not from text: a backslash would be read as an escape.
    return dns.name.root if name == "." else dns.name.Name([*name.encode().split(b"."), b""])


def _negative(status: Status, response: dns.message.Message) -> Answer:
    authentic = bool(response.flags & dns.flags.AD)
    try:
        ttl = float(response.resolve_chaining().minimum_ttl)  # type: ignore[attr-defined]
    except dns.exception.DNSException:
        return tempfail("malformed")
    # Without the head of a zone (SOA) there is no TTL, and dnspython gives the longest there is.
    return Answer(status, ttl=ttl, authentic=authentic)


def _reason(errors: Iterable[Any]) -> str:
    reasons = [_one_reason(error[3]) for error in errors]
    return reasons[-1] if reasons else "unreachable"


def _one_reason(error: object) -> str:
    match error:
        case "SERVFAIL":
            return "servfail"
        case "REFUSED" | "NOTIMP":
            return "refused"
        case dns.exception.Timeout():
            return "timeout"
        case OSError():
            return "unreachable"
        case _:
            return "malformed"


def _record(kind: Type, item: Any) -> Record:
    match kind:
        case "A" | "AAAA":
            return str(item.address)
        case "MX":
            return Mx(item.preference, _host(item.exchange))
        case "TXT":
            return Txt(tuple(item.strings))
        case "SOA":
            times = (item.serial, item.refresh, item.retry, item.expire, item.minimum)
            return Soa(_host(item.mname), _host(item.rname), *times)
        case "TLSA":
            return Tlsa(item.usage, item.selector, item.mtype, item.cert)
        case _:
            return _host(item.target)


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).removesuffix(".").lower()
