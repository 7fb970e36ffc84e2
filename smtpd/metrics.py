"""What the server counts, and the registry it is counted in.

Counting sits on the path of every message, so the numbers are plain objects of our own (about a
tenth of the cost of the ones in prometheus_client); prometheus_client turns them into text when
somebody scrapes.

No label can be multiplied by strangers: values come from the configuration, from a closed set, or
through `Slots`. `Meters` is where the server's own labels are kept in bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypedDict, assert_never

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from smtpd.replies import all_replies
from smtpd.series import (
    OTHER,
    AnyFamily,
    Counter,
    CounterChild,
    Description,
    Family,
    Gauge,
    GaugeChild,
    Histogram,
    HistogramChild,
)

__all__ = [
    "OTHER", "SERVER_METRICS", "AuthResult", "Counter", "CounterChild", "DeliveryResult", "Description", "Family",
    "Gauge", "GaugeChild", "Histogram", "HistogramChild", "Meters", "Metrics", "Slots",
]  # fmt: skip

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
BYTES_BUCKETS = tuple(float(1 << exponent) for exponent in (10, 12, 14, 16, 18, 20, 22, 24, 26, 27))
REPLY_KEYS = frozenset(reply.key for reply in all_replies().values())
VERBS = frozenset((
    "HELO", "EHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY", "EXPN", "HELP",
    "STARTTLS", "AUTH", "XCLIENT",
))  # fmt: skip
MECHANISMS = frozenset((
    "PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS",
    "OAUTHBEARER", "XOAUTH2", "EXTERNAL",
))  # fmt: skip
TLS_VERSIONS = frozenset(("TLSv1.2", "TLSv1.3"))
MAX_PLUGIN_REASONS = 200  # reply keys that are not in replies.py, per listener
MAX_DROP_REASONS = 50

AuthResult = Literal["ok", "failed", "unavailable", "cancelled", "malformed"]
DeliveryResult = Literal["accepted", "deferred", "refused"]

# One connection
CONNECTIONS = Counter(
    "smtpd_connections_total",
    "Connections accepted. ip is the client's address while there are free slots, then other.",
    ("listener", "ip"),
)
CONNECTIONS_ACTIVE = Gauge("smtpd_connections_active", "Connections open now.", ("listener",))
CONNECTIONS_REFUSED = Counter(
    "smtpd_connections_refused_total",
    "Connections turned away before any command. reason says which limit or rule did it.",
    ("listener", "reason"),
)
DROPPED = Counter(
    "smtpd_dropped_total", "Connections cut because the peer did not speak SMTP. reason says what it did.", ("reason",)
)
PROXY_HEADERS = Counter(
    "smtpd_proxy_headers_total",
    "Connections from load balancers. kind is proxied (a client's address was told), local (the balancer's health "
    "check), unknown (a client it cannot describe), or none (closed without a header).",
    ("listener", "kind"),
)
TLS_CONNECTIONS = Counter(
    "smtpd_tls_connections_total",
    "TLS handshakes completed. version is TLSv1.2, TLSv1.3 or other.",
    ("listener", "version"),
)
AUTH_ATTEMPTS = Counter(
    "smtpd_auth_attempts_total",
    "AUTH exchanges that ended. mechanism is a known SASL name or other; result is ok, failed, unavailable "
    "(the provider could not say), cancelled or malformed.",
    ("listener", "mechanism", "result"),
)
COMMAND_SECONDS = Histogram(
    "smtpd_command_duration_seconds",
    "Time from a command to its reply, for DATA and the last BDAT from the end of the content on. command is a known "
    "verb or other.",
    ("command",),
)

# One message
MESSAGES_RECEIVED = Counter(
    "smtpd_messages_received_total",
    "Messages accepted, once for each recipient domain of a message. recipient_domain is a configured domain "
    "(a wildcard stands for all it covers) or other.",
    ("listener", "recipient_domain"),
)
MESSAGES_REJECTED = Counter(
    "smtpd_messages_rejected_total",
    "Refusals, temporary ones included. reason is the key of the reply; recipient_domain is a configured domain, "
    "or other, also when no recipient was known yet.",
    ("listener", "reason", "recipient_domain"),
)
MESSAGE_BYTES = Histogram(
    "smtpd_messages_size_bytes", "Size of accepted messages as received.", ("listener",), BYTES_BUCKETS
)
DELIVERY_SECONDS = Histogram(
    "smtpd_delivery_duration_seconds",
    "Time the delivery agents took for one message they were given, filters not included. result is accepted, deferred "
    "or refused.",
    ("result",),
)

SERVER_METRICS: tuple[Description, ...] = (
    CONNECTIONS, CONNECTIONS_ACTIVE, CONNECTIONS_REFUSED, DROPPED, PROXY_HEADERS, TLS_CONNECTIONS, AUTH_ATTEMPTS,
    COMMAND_SECONDS, MESSAGES_RECEIVED, MESSAGES_REJECTED, MESSAGE_BYTES, DELIVERY_SECONDS,
)  # fmt: skip


class Metrics:
    """All numbers of one server. Nothing is global: two servers in one process count apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Family[CounterChild]] = {}
        self._gauges: dict[str, Family[GaugeChild]] = {}
        self._histograms: dict[str, Family[HistogramChild]] = {}
        self._descriptions: dict[str, Description] = {}
        self.registry.register(_Snapshot(self))

    def counter(self, description: Counter) -> Family[CounterChild]:
        """The counter of this description; ValueError when another one has its name."""
        self._claim(description)
        return self._counters.setdefault(description.name, Family(description, CounterChild))

    def gauge(self, description: Gauge) -> Family[GaugeChild]:
        """The gauge of this description; ValueError when another one has its name."""
        self._claim(description)
        return self._gauges.setdefault(description.name, Family(description, GaugeChild))

    def histogram(self, description: Histogram) -> Family[HistogramChild]:
        """The histogram of this description; ValueError when another one has its name."""
        self._claim(description)
        bounds = description.buckets
        return self._histograms.setdefault(description.name, Family(description, lambda: HistogramChild(bounds)))

    def families(self) -> Iterator[AnyFamily]:
        """Everything that was asked for, by name."""
        for name in sorted(self._descriptions):
            description = self._descriptions[name]
            match description:
                case Counter():
                    yield self._counters[description.name]
                case Gauge():
                    yield self._gauges[description.name]
                case Histogram():
                    yield self._histograms[description.name]
                case _:
                    assert_never(description)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The numbers as text, and its content type; OpenMetrics when `accept` (an HTTP header) asks for it.

        The client library's own choice echoes parts of the header into the content type, so we choose.
        """
        kinds = (kind.partition(";")[0].strip().lower() for kind in accept.split(","))
        if "application/openmetrics-text" in kinds:
            render: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest
            return render(self.registry), OPENMETRICS_TYPE
        return generate_latest(self.registry), TEXT_TYPE

    def _claim(self, description: Description) -> None:
        # OpenMetrics names a counter without _total, so a gauge of that name would clash.
        name = description.name.removesuffix("_total")
        if self._descriptions.setdefault(name, description) != description:
            raise ValueError(f"two different metrics are called {description.name}")


class _Snapshot(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        for family in self._metrics.families():
            yield _shown(family)


class _Heading(TypedDict):
    name: str
    documentation: str
    labels: tuple[str, ...]


def _shown(family: AnyFamily) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    described = family.description
    heading = _Heading(name=described.name, documentation=described.help, labels=described.labels)
    if isinstance(described, Histogram):
        shown = HistogramMetricFamily(**heading)
        for values, child in family.series():
            if isinstance(child, HistogramChild):
                shown.add_metric(values, _cumulated(child), child.total)
        return shown
    numbers = CounterMetricFamily(**heading) if isinstance(described, Counter) else GaugeMetricFamily(**heading)
    for values, child in family.series():
        if not isinstance(child, HistogramChild):
            numbers.add_metric(values, child.value)
    return numbers


def _cumulated(child: HistogramChild) -> list[tuple[str, float]]:
    running = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, child.bounds), "+Inf"], child.counts, strict=True):
        running += count
        buckets.append((bound, running))
    return buckets


class _Observers(dict[str, Callable[[float], None]]):
    """By label, what counts one value; a label that is not known counts as other, and is not kept."""

    def __init__(self, known: Mapping[str, HistogramChild], other: HistogramChild) -> None:
        super().__init__((label, child.observe) for label, child in known.items())
        self._other = other.observe

    def __missing__(self, label: str) -> Callable[[float], None]:
        return self._other


class Slots:
    """Bounds a label: the first `limit` different values keep their own name, all later ones are "other".

    A value never loses its slot, so no series ever shrinks. 0 switches it off: every value is "other".
    """

    __slots__ = ("_taken", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken: set[str] = set()

    def label(self, value: str) -> str:
        """The label to count under."""
        taken = self._taken
        if value in taken:
            return value
        if len(taken) >= self.limit:
            return OTHER
        taken.add(value)
        return value


class Meters:
    """The server's own metrics for one listener, ready to count.

    `domains` are the keys of `[smtpd.domains]` ("example.com", "*.example.com", "*"), `slots` bounds the
    addresses; it is shared by all listeners of a server and outlives a reload.
    """

    def __init__(self, metrics: Metrics, listener: str, domains: Iterable[str], slots: Slots) -> None:
        self._listener = listener
        self._domains = frozenset(domain.lower() for domain in domains)
        self._slots = slots
        self._connections = metrics.counter(CONNECTIONS)
        self._by_ip: dict[str, CounterChild] = {}
        self._active = metrics.gauge(CONNECTIONS_ACTIVE).labels(listener)
        self._refused = metrics.counter(CONNECTIONS_REFUSED)
        self._dropped = metrics.counter(DROPPED)
        self._proxy_headers = metrics.counter(PROXY_HEADERS)
        self._tls = metrics.counter(TLS_CONNECTIONS)
        self._auth = metrics.counter(AUTH_ATTEMPTS)
        self._received = metrics.counter(MESSAGES_RECEIVED)
        self._received_by_domain: dict[str, CounterChild] = {}
        self._rejected = metrics.counter(MESSAGES_REJECTED)
        self._bytes = metrics.histogram(MESSAGE_BYTES).labels(listener)
        commands = metrics.histogram(COMMAND_SECONDS)
        other = commands.labels(OTHER)
        self.commands = _Observers({verb: commands.labels(verb) for verb in sorted(VERBS)}, other)
        """By verb in upper case: a command was answered, after so many seconds. What a client can invent is "other"."""
        deliveries = metrics.histogram(DELIVERY_SECONDS)
        self.deliveries: Mapping[DeliveryResult, Callable[[float], None]] = {
            "accepted": deliveries.labels("accepted").observe,
            "deferred": deliveries.labels("deferred").observe,
            "refused": deliveries.labels("refused").observe,
        }
        """By result: the agents answered for one message, after so many seconds."""
        self._plugin_reasons = Slots(MAX_PLUGIN_REASONS)
        self._drop_reasons = Slots(MAX_DROP_REASONS)

    def connected(self, ip: str) -> None:
        """A connection was accepted from this address."""
        self._active.inc()
        child = self._by_ip.get(ip)
        if child is None:
            label = self._slots.label(ip)
            child = self._connections.labels(self._listener, label)
            if label is not OTHER:
                self._by_ip[ip] = child
        child.inc()

    def disconnected(self) -> None:
        """A connection that was counted by `connected` is over."""
        self._active.inc(-1)

    def refused_connection(self, reason: str) -> None:
        """A connection was turned away; `reason` is a name of ours ("total", "address", ...)."""
        self._refused.labels(self._listener, self._drop_reasons.label(reason)).inc()

    def dropped(self, reason: str) -> None:
        """The peer did not speak SMTP; `reason` is a name of ours ("http", "tls-hello", ...)."""
        self._dropped.labels(self._drop_reasons.label(reason)).inc()

    def proxy_header(self, kind: Literal["proxied", "local", "unknown", "none"]) -> None:
        """A load balancer has introduced a connection."""
        self._proxy_headers.labels(self._listener, kind).inc()

    def tls(self, version: str) -> None:
        """A handshake was completed; `version` as in "TLSv1.3"."""
        self._tls.labels(self._listener, version if version in TLS_VERSIONS else OTHER).inc()

    def auth(self, mechanism: str, result: AuthResult) -> None:
        """An AUTH exchange ended; `mechanism` as the client wrote it."""
        name = mechanism.upper()
        self._auth.labels(self._listener, name if name in MECHANISMS else OTHER, result).inc()

    def received(self, domains: Iterable[str], size: int) -> None:
        """A message of `size` octets was accepted for recipients at these domains, in any order and number."""
        for label in {self._domain(domain) for domain in domains}:
            child = self._received_by_domain.get(label)
            if child is None:
                child = self._received_by_domain[label] = self._received.labels(self._listener, label)
            child.inc()
        self._bytes.observe(float(size))  # an integer costs more to compare with the bounds

    def received_one(self, domain: str, size: int) -> None:
        """What `received` does, for a message with one recipient."""
        child = self._received_by_domain.get(domain)  # a domain that is the name of a label counts under it
        if child is None:
            self.received((domain,), size)
        else:
            child.value += 1
            self._bytes.observe(float(size))

    def rejected(self, reason: str, domain: str | None) -> None:
        """A refusal was spoken: the key of its reply, and the recipient's domain when there is one."""
        if reason not in REPLY_KEYS:
            reason = self._plugin_reasons.label(reason)
        label = OTHER if domain is None else self._domain(domain)
        self._rejected.labels(self._listener, reason, label).inc()

    def _domain(self, domain: str) -> str:
        known = self._domains
        name = domain if domain in known else domain.lower()
        if name in known:
            return name
        rest = name
        while "." in rest:
            rest = rest.partition(".")[2]
            if "*." + rest in known:
                return "*." + rest
        return "*" if "*" in known else OTHER
