"""What agents share that hand mail to a server behind us: its connections, and what is counted and logged of them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from delivery_agents.answers import Answer
from delivery_agents.backend import Backend, TlsMode, parse_place
from delivery_agents.breaker import Breaker
from delivery_agents.connection import Connection
from delivery_agents.failures import Failure
from delivery_agents.lmtp_delivery import Path, Stage, Terms
from delivery_agents.login import Login
from delivery_agents.pool import Pool
from smtpd.delivery import DeliveryAgent
from smtpd.metrics import Counter, Gauge
from smtpd.model import Recipient, Transaction
from smtpd.options import AgentOptions, ExistingFile, Seconds
from smtpd.plugins import BrokenPlugin
from smtpd.services import Services

FAILURES = 5  # in a row, until nobody waits any more
PAUSE = 5.0  # seconds between attempts then
LONGEST = 3600.0  # seconds for one message, however slowly the server reads; 25 MiB in this time are 58 kbit/s
STOP_SECONDS = 5.0  # for what is still under way when the server stops


def _check_address(text: str) -> str:
    parse_place(text)
    return text


class ForwardingOptions(AgentOptions):
    """Options of agents that hand mail to a server."""

    address: Annotated[str, AfterValidator(_check_address)]
    """Where the server listens: "unix:PATH", "host:port" or "[v6 address]:port"."""
    tls: TlsMode = "off"
    """Whether TLS begins by STARTTLS, or "implicit" with the connection; the certificate must be good for the host."""
    ca_file: Annotated[str | None, ExistingFile()] = None
    """Authorities that may have signed the server's certificate, PEM; unset: those of the system."""
    connections: Annotated[int, Field(ge=1)] = 20
    """Most connections to the server at a time; when it greets one with 421, mail waits for those that are open."""
    connect_timeout: Annotated[Seconds, Field(gt=0, le=20)] = 5.0
    """Longest time until a new connection is ready for mail."""
    reply_timeout: Annotated[Seconds, Field(gt=0, lt=30)] = 25.0
    """Longest time for the answer about a recipient, with the wait for a connection; below 30 s, our own limit."""
    delivery_timeout: Annotated[Seconds, Field(gt=0)] = 300.0
    """Longest time in which the server reads nothing of the content, and from its last octet to the last answer."""
    idle_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    """How long a connection is kept that nobody uses."""
    chunking: bool = True
    """Whether content is sent by BDAT if the server offers CHUNKING, which saves a round trip."""

    def obstacles(self) -> Iterable[tuple[str, str]]:
        """A file of authorities that holds none."""
        try:
            make_context(self)
        except OSError as error:
            yield "ca_file", _unusable(self.ca_file, error)

    @model_validator(mode="after")
    def _tls_has_a_name_to_check(self) -> Self:
        if self.tls != "off" and self.address.startswith("unix:"):
            raise ValueError("tls needs an address with a host, whose name the certificate must have")
        return self


class Counted(NamedTuple):
    """The metrics of one kind of agent: two with the label `agent`, the last with `agent`, `at` and `class`."""

    connections: Gauge
    circuit_open: Gauge
    answers: Counter


class Forwarding(DeliveryAgent):
    """An agent with a pool of connections to one server."""

    Options = ForwardingOptions
    options: ForwardingOptions
    hello: ClassVar[Literal["LHLO", "EHLO"]]
    counted: ClassVar[Counted]

    def __init__(self, name: str, options: ForwardingOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options
        self.carries_utf8 = False  # until the server has said so
        self._pool: Pool | None = None
        self._terms = Terms(
            reply_timeout=options.reply_timeout,
            delivery_timeout=options.delivery_timeout,
            longest=max(LONGEST, options.delivery_timeout),
            chunking=options.chunking,
            path=self._path,
            header=self._header,
            has_login=self._login() is not None,
        )
        self._answers = services.metrics.counter(self.counted.answers)
        self._circuit_open = services.metrics.gauge(self.counted.circuit_open).labels(name)

    async def start(self) -> None:
        """Look at the server, which may come up later than we do; ValueError when `ca_file` cannot be used."""
        options = self.options
        self._circuit_open.set(0)  # whatever an agent of that name left behind at a reload
        backend = Backend(
            address=options.address,
            hello=self.hello,
            hostname=self.services.hostname,
            tls=options.tls,
            context=self._context(),
            timeout=options.connect_timeout,
            login=self._login(),
        )
        self._breaker = Breaker(
            limit=FAILURES, seconds=PAUSE, clock=asyncio.get_running_loop().time, changed=self._circuit_changed
        )
        self._pool = Pool(
            backend,
            limit=options.connections,
            idle_seconds=options.idle_timeout,
            breaker=self._breaker,
            greeted=self._greeted,
            gauge=self.services.metrics.gauge(self.counted.connections).labels(self.name),
        )
        if problem := await self._pool.problem():
            self.services.log.warning("backend-failed", agent=self.name, problem=problem)

    async def stop(self) -> None:
        """Let what is under way come to its end, then hang up."""
        if self._pool is not None:
            await self._pool.close(STOP_SECONDS)

    async def health(self) -> str | None:
        """Whether there is a connection to the server, or one can be had."""
        return await self._connections.problem()

    def answered(self, at: Stage, answer: Answer) -> None:
        """Count what the server said about a recipient."""
        self._answers.labels(self.name, at, f"{answer.code // 100}xx").inc()

    def failed(self, at: Stage, failure: Failure, mail: Transaction) -> None:
        """Count and log that it said nothing of use; while it is down one line has been enough."""
        self._answers.labels(self.name, at, "none").inc()
        if not self._breaker.is_open:
            self.services.log.warning("backend-failed", agent=self.name, trace=mail.id, problem=str(failure))

    def _login(self) -> Login | None:
        return None

    def _path(self, mail: Transaction, recipient: Recipient) -> Path:
        return recipient.destination.text

    def _header(self, mail: Transaction) -> bytes:
        return b""

    @property
    def _connections(self) -> Pool:
        assert self._pool is not None, "start() comes first"
        return self._pool

    def _context(self) -> ssl.SSLContext | None:
        try:
            return make_context(self.options)
        except OSError as error:
            raise BrokenPlugin(f"agent {self.name}: {_unusable(self.options.ca_file, error)}") from error

    def _greeted(self, connection: Connection) -> None:
        self.carries_utf8 = "SMTPUTF8" in connection.extensions

    def _circuit_changed(self, is_open: bool) -> None:
        self._circuit_open.set(int(is_open))
        if is_open:
            self.services.log.warning("backend-down", agent=self.name, problem=self._connections.last_problem)
        else:
            self.services.log.info("backend-up", agent=self.name)


def make_context(options: ForwardingOptions) -> ssl.SSLContext | None:
    """For connections to the server; OSError when the authorities cannot be read."""
    return None if options.tls == "off" else ssl.create_default_context(cafile=options.ca_file)


def _unusable(file: str | None, error: OSError) -> str:
    reason = "no certificate in PEM form" if isinstance(error, ssl.SSLError) else error.strerror
    return f"ca_file cannot be used: {file}: {reason}"
