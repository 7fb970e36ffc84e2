"""Lookups by aiodns (c-ares). Fast, and with gaps that are filled here:

- c-ares fits its timeouts to what it has seen, so they are only a hint; the resolver has its own. After some quick
  answers it tries again after a quarter of a second, and would have given up after one or two where a nameserver
  takes longer to find something out: so it gets as many tries as fill the time.
- It keeps answers itself, as long as their TTL says, in any number: when as many have gone through it as our
  own cache may hold, it is replaced by a fresh one.
- TTLs are known of A and AAAA only. Other records stay in our cache for `UNKNOWN_TTL`; then it is asked
  again, and c-ares knows whether their time is over. Of negative answers no TTL is known.
- It answers neither CNAME, SOA and TLSA nor, for the sake of host names, names with other characters than those
  (SPF makes names of what clients say): they are left to dnspython.
- A TXT record ends at its first NUL.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable
from typing import Any

import aiodns
import pycares

from smtpd.dns.answer import NODATA, NXDOMAIN, Answer, Mx, Record, Txt, Type, tempfail
from smtpd.dns.backend import BackendError
from smtpd.dns.cache import cost_of
from smtpd.dns.dnspython_backend import DnspythonBackend
from smtpd.dns.options import DnsOptions

UNKNOWN_TTL = 60.0
FOREVER = float("inf")  # as the TTL of a negative answer: the resolver cuts it down to its own limit

_QUICKEST = 0.25  # seconds for the first try; c-ares comes down to that by itself
_FEWEST = 1000  # questions before a channel is replaced, however small our cache is
_PLAIN = re.compile(r"[a-z0-9_./*-]+")
_LEFT_TO_DNSPYTHON = frozenset(("CNAME", "SOA", "TLSA"))
_ERRORS = {
    pycares.errno.ARES_ESERVFAIL: "servfail",
    pycares.errno.ARES_EREFUSED: "refused",
    pycares.errno.ARES_ENOTIMP: "refused",
    pycares.errno.ARES_EFORMERR: "malformed",
    pycares.errno.ARES_EBADRESP: "malformed",
    pycares.errno.ARES_ETIMEOUT: "timeout",
    pycares.errno.ARES_ECONNREFUSED: "unreachable",
    pycares.errno.ARES_EOF: "unreachable",
    pycares.errno.ARES_ECANCELLED: "stopped",
    pycares.errno.ARES_EDESTRUCTION: "stopped",
}


class AiodnsBackend:
    """See the top of the file; BackendError when c-ares cannot be set up."""

    def __init__(self, options: DnsOptions) -> None:
        self._options = options
        self._others: DnspythonBackend | None = None
        self._capacity = max(options.cache_entries, _FEWEST)
        self._channel = _Channel(options)
        self._retired: list[_Channel] = []

    async def ask(self, name: str, kind: Type) -> Answer:
        """See Backend."""
        if kind in _LEFT_TO_DNSPYTHON or not _PLAIN.fullmatch(name):
            self._others = self._others or DnspythonBackend(self._options)
            return await self._others.ask(name, kind)
        channel = self._channel
        answer = await channel.ask(name, kind)
        channel.passed += cost_of(answer)
        if channel.passed >= self._capacity and channel is self._channel:
            self.forget()
        for old in [old for old in self._retired if not old.waiting]:
            self._retired.remove(old)
            await old.close()
        return answer

    def forget(self) -> None:
        """See Backend. Questions on their way are still answered, by the old channel."""
        self._retired.append(self._channel)
        self._channel = _Channel(self._options)

    async def close(self) -> None:
        """See Backend."""
        for channel in (*self._retired, self._channel):
            await channel.close()
        await asyncio.sleep(0)  # c-ares's last answers come by way of the loop


class _Channel:
    """One c-ares channel: its sockets, its thread and its cache. `passed` is what went through it, in cache entries."""

    def __init__(self, options: DnsOptions) -> None:
        servers = options.servers
        try:
            self._resolver = aiodns.DNSResolver(
                nameservers=[address for address, _ in servers] or None,
                loop=asyncio.get_running_loop(),
                timeout=_QUICKEST,
                tries=_rounds(options, len(servers) or 1),
                **({"udp_port": servers[0][1], "tcp_port": servers[0][1]} if servers else {}),
            )
        except (pycares.AresError, RuntimeError, ValueError) as error:
            raise BackendError(str(error)) from error
        self.passed = 0
        self.waiting = 0

    async def ask(self, name: str, kind: Type) -> Answer:
        self.waiting += 1
        try:
            query: Any = self._resolver.query  # its overloads want one literal at a time
            found = await query(name, kind)
        except aiodns.error.DNSError as error:
            return _failure(error)
        finally:
            self.waiting -= 1
        return _success(kind, found)

    async def close(self) -> None:
        # Whom we have stopped waiting for, c-ares may still be busy with: it must not answer when the loop is gone.
        self._resolver.cancel()
        await self._resolver.close()


def _rounds(options: DnsOptions, servers: int) -> int:
    # In every round c-ares asks each server once, and waits twice as long, or up to half of that less, to be irregular.
    first_rounds = options.timeout / (_QUICKEST * servers)
    return max(options.tries, 1 + math.ceil(math.log2(max(first_rounds, 1))))


def _failure(error: aiodns.error.DNSError) -> Answer:
    code = error.args[0]
    if code == pycares.errno.ARES_ENODATA:
        return Answer(NODATA.status, ttl=FOREVER)
    if code == pycares.errno.ARES_ENOTFOUND:
        return Answer(NXDOMAIN.status, ttl=FOREVER)
    return tempfail(_ERRORS.get(code, "failed"))


def _success(kind: Type, found: Any) -> Answer:
    records: list[Record]
    match kind:
        case "A" | "AAAA":
            records = [_text(item.host) for item in found]
        case "MX":
            records = [Mx(item.priority, _host(item.host)) for item in found]
        case "TXT":
            records = [Txt((_octets(item.text),)) for item in found]
        case "NS":
            records = [_host(item.host) for item in found]
        case _:
            records = [_host(name) for name in found.aliases]
    if not records:
        return Answer(NODATA.status, ttl=FOREVER)
    return Answer("ok", tuple(records), ttl=_lowest(found) if kind in ("A", "AAAA") else UNKNOWN_TTL)


def _lowest(found: Iterable[Any]) -> float:
    return float(min(max(item.ttl, 0) for item in found))


def _text(value: str | bytes) -> str:
    # pycares gives bytes where the answer is not ASCII.
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _host(value: str | bytes) -> str:
    return _text(value).removesuffix(".").lower()
