"""One resolver for everything: SPF, DKIM, DMARC, blocklists, reverse names. It caches, and it never raises for DNS.

    answer = resolver.peek("example.org", "MX") or await resolver.resolve("example.org", "MX", timeout=2.0)

`peek` answers at once from what is known; whoever can wait uses `resolve`, which peeks first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from smtpd.dns.answer import INVALID, STATUSES, TYPES, Answer, Type, normal_name, tempfail
from smtpd.dns.backend import Backend, BackendError
from smtpd.dns.cache import Cache, Key
from smtpd.dns.choice import load_libraries, make_backend
from smtpd.dns.options import DnsOptions
from smtpd.log import Log
from smtpd.metrics import Counter, Gauge, Histogram, Metrics

FAILURE_SECONDS = 1.0  # for which a failure is kept (RFC 9520 §3.2: at least 1 second)
STALE_SECONDS = 30.0  # for which an old answer counts again when nobody answers (RFC 8767 §4: 30 seconds)
PROBE_SECONDS = 2.0

QUERIES = Counter(
    "smtpd_dns_queries_total",
    "Questions put to nameservers. type is A, AAAA, MX, TXT, PTR, CNAME, NS, SOA or TLSA; status is ok, nodata (the "
    "name has no such record), nxdomain (no such name) or tempfail.",
    ("type", "status"),
)
LOOKUPS = Counter(
    "smtpd_dns_lookups_total",
    "Lookups by plug-ins. result is hit (answered from the cache), miss (asked), joined (somebody was asking already), "
    "stale (answered with what was kept beyond its time), invalid (cannot be a name) or limit (too many for one "
    "message).",
    ("result",),
)
SECONDS = Histogram("smtpd_dns_duration_seconds", "Time nameservers took for one question.")
ENTRIES = Gauge("smtpd_dns_cache_entries", "Answers kept in the cache now.")

_TIMEOUT = tempfail("timeout")
_STOPPED = tempfail("stopped")
_LIMIT = tempfail("limit")
_NO_BACKEND = tempfail("backend")
_SILENCE = frozenset(("timeout", "unreachable", "backend"))


class Resolver(Protocol):
    """Whatever answers lookups: over the network, from a Zone in memory, or within a limit for one message."""

    def peek(self, name: str, kind: Type) -> Answer | None:
        """The answer if it is known already. Never waits."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """The answer, within `timeout` seconds from now or the resolver's own limit, whichever is shorter.

        Trouble is an answer, too: "tempfail" with a reason. Only being cancelled is raised.
        """

    async def start(self) -> None:
        """Called once, before the first lookup of a server."""

    async def stop(self) -> None:
        """Called once; lookups on their way and later ones fail."""

    async def health(self) -> str | None:
        """What is wrong with it now, if anything."""


class CachingResolver:
    """Asks nameservers by way of a backend, and remembers what they said.

    Several who ask for the same share one question; each has its own deadline, and one that goes away does not
    take the question along. `make` makes the backend, at the first question. `clock` gives steady seconds.
    """

    def __init__(
        self,
        options: DnsOptions,
        metrics: Metrics,
        log: Log,
        *,
        make: Callable[[DnsOptions, Log], Backend] = make_backend,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._log = log
        self._make = make
        self._clock = clock
        self._backend: Backend | None = None
        self._cache = Cache(options.cache_entries, clock, stale=options.serve_stale)
        self._flights: dict[Key, asyncio.Task[Answer]] = {}
        self._tasks: set[asyncio.Task[Answer]] = set()  # the flights, also those that a flush took away
        self._stopped = False
        self._silent = False
        queries, lookups = metrics.counter(QUERIES), metrics.counter(LOOKUPS)
        self._queries = {(kind, status): queries.labels(kind, status) for kind in TYPES for status in STATUSES}
        self._hits, self._misses, self._joined = (lookups.labels(result) for result in ("hit", "miss", "joined"))
        self._stale, self._invalid = (lookups.labels(result) for result in ("stale", "invalid"))
        self._seconds = metrics.histogram(SECONDS).labels()
        metrics.gauge(ENTRIES).labels().set_function(self._cache.__len__)

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        answer = self._cache.get((name, kind))
        if answer is None:
            normal = normal_name(name)
            if normal is None:
                self._invalid.inc()
                return INVALID
            answer = self._cache.get((normal, kind)) if normal != name else None
        if answer is not None:
            self._hits.inc()
        return answer

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver."""
        answer = self.peek(name, kind)
        if answer is not None:
            return answer
        if self._stopped:
            return _STOPPED
        key: tuple[str, Type] = (normal_name(name) or name, kind)
        flight = self._flights.get(key)
        (self._misses if flight is None else self._joined).inc()
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._ask(*key))
            self._tasks.add(flight)
            flight.add_done_callback(lambda task: self._landed(key, task))
        done, _ = await asyncio.wait((flight,), timeout=timeout)
        if not done:
            return self._revived(key) or _TIMEOUT
        return _STOPPED if flight.cancelled() else flight.result()

    def flush(self, name: str | None = None) -> int:
        """Forget what is known about a name, or about all; how many answers that were. Questions are put anew."""
        normal = None if name is None else normal_name(name)
        if name is not None and normal is None:
            return 0
        for key in [key for key in self._flights if normal in (None, key[0])]:
            del self._flights[key]
        if self._backend is not None:
            self._backend.forget()
        return self._cache.flush(normal)

    async def start(self) -> None:
        """Nothing is opened before the first question."""

    async def stop(self) -> None:
        """See Resolver."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.close()

    async def health(self) -> str | None:
        """See Resolver. Only after a question nobody answered are nameservers probed: the name may be to blame."""
        if not self._silent or self._stopped:
            return None
        answer = await self._question(".", "NS", min(PROBE_SECONDS, self._options.timeout))
        return f"no nameserver answers ({answer.reason})" if answer.reason in _SILENCE else None

    async def _ask(self, name: str, kind: Type) -> Answer:
        key = (name, kind)
        answer = await self._question(name, kind, self._options.timeout)
        if self._flights.get(key) is not asyncio.current_task():
            return answer  # flushed meanwhile: good for those who waited, not for keeping
        if answer.failed and (revived := self._revived(key)) is not None:
            return revived
        answer = replace(answer, ttl=self._keep(answer))
        self._cache.put(key, answer, answer.ttl)
        return answer

    async def _question(self, name: str, kind: Type, timeout: float) -> Answer:
        started = self._clock()
        try:
            async with asyncio.timeout(timeout):
                answer = await self._open().ask(name, kind)
        except TimeoutError:
            answer = _TIMEOUT
        except BackendError as error:
            if not self._silent:
                self._log.error("dns-backend-failed", problem=str(error))
            answer = _NO_BACKEND
        self._seconds.observe(self._clock() - started)
        self._queries[kind, answer.status].inc()
        self._silent = answer.reason in _SILENCE
        return answer

    def _open(self) -> Backend:
        if self._backend is None:
            self._backend = self._make(self._options, self._log)
        return self._backend

    def _keep(self, answer: Answer) -> float:
        options = self._options
        if answer.failed:
            return FAILURE_SECONDS
        if not answer.found:
            return min(answer.ttl, options.negative_ttl)
        return min(max(answer.ttl, options.min_ttl), options.max_ttl)

    def _revived(self, key: Key) -> Answer | None:
        answer = self._cache.revive(key, STALE_SECONDS)
        if answer is not None:
            self._stale.inc()
        return answer

    def _landed(self, key: Key, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if self._flights.get(key) is task:
            del self._flights[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("dns-failed", exception=error)


class LimitedResolver:
    """A resolver for one message: after `limit` lookups that were not answered from memory, further ones fail.

    All filters of a transaction share one. 0: no limit. `metrics` counts what was turned away.
    """

    __slots__ = ("_inner", "_left", "_limited", "_metrics")

    def __init__(self, inner: Resolver, limit: int, metrics: Metrics | None = None) -> None:
        self._inner = inner
        self._left = limit
        self._limited = limit > 0
        self._metrics = metrics

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        return self._inner.peek(name, kind)

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver; over the limit "tempfail" with the reason "limit"."""
        answer = self._inner.peek(name, kind)
        if answer is not None:
            return answer
        if self._limited and self._left <= 0:
            if self._metrics is not None:
                self._metrics.counter(LOOKUPS).labels("limit").inc()
            return _LIMIT
        self._left -= 1
        return await self._inner.resolve(name, kind, timeout)

    async def start(self) -> None:
        """The resolver inside is not ours to start."""

    async def stop(self) -> None:
        """The resolver inside is not ours to stop."""

    async def health(self) -> str | None:
        """See Resolver."""
        return await self._inner.health()


def make_resolver(options: DnsOptions, metrics: Metrics, log: Log) -> CachingResolver:
    """The resolver of a server; it opens nothing before the first lookup."""
    load_libraries()
    return CachingResolver(options, metrics, log)
