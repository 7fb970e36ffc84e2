"""Hand mail to a mailstore such as Dovecot or Cyrus by LMTP (RFC 2033), while the sender is on the line.

The store is asked at RCPT, so unknown, full and disabled mailboxes are refused there, in the store's own words.
After the content it answers for each recipient; what it says is what the sender hears. Nothing is kept here: when
the store is down, the sender hears 451 and tries again.

```toml
[smtpd.agents.mailstore]
type = "lmtp"
address = "unix:/run/dovecot/lmtp"
```

For Dovecot, add `lmtp` to its `protocols`. Its socket is `/run/dovecot/lmtp`, and this server's user must be allowed to
connect to it (`service lmtp { unix_listener lmtp { mode = 0660 user = smtpd } }`). With `lmtp_rcpt_check_quota = yes`
full mailboxes are refused at RCPT already. For Cyrus it is `unix:/run/cyrus/socket/lmtp`. A store on another machine
is `"store.example.com:24"`; put `tls` on, or the network in between must be yours. Port 25 is for SMTP, never for LMTP.

- Connections are kept and shared: while a client takes its time between RCPT and the message, its connection may
  serve another one, and MAIL and RCPT are said anew. So 20 connections do for many more clients, and no client can keep
  one from the others.
- When the store does not say whether it took the message (it hangs, closes, or talks nonsense after the
  content), the sender hears 451 4.4.2 and comes again.
- After five failures in a row the store is left in peace: mail is put off at once, and every five seconds one
  attempt is made. `/readyz` and `smtpd_lmtp_circuit_open` say so, and the log has a line `backend-down`.
- A store that cannot take 8-bit content (no 8BITMIME), addresses beyond ASCII (no SMTPUTF8) or messages
  of that size (SIZE) gets none: the sender hears 554 5.6.3, 553 5.6.7 or 552 5.3.4. SMTPUTF8 is offered to clients
  as long as the store offers it.

A folder that the recipient map names becomes the detail, too: `user+Folder@domain`.

Labels that filters gave can reach the store in two ways. `details = { junk = "Junk" }` delivers what has the
label `junk` to `user+Junk@domain`; a detail that the sender wrote gives way to it, and the store must know details
(Dovecot: `recipient_delimiter` and `lmtp_save_to_detail_mailbox = yes`). `labels_field = "X-Labels"` puts a header
field of that name on top of every message; its value is "none" without labels, so that nobody can write it himself:
rules in the store should look at the topmost one.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from delivery_agents.answers import Answer
from delivery_agents.backend import Backend, TlsMode, parse_place
from delivery_agents.breaker import Breaker
from delivery_agents.connection import Connection
from delivery_agents.failures import Failure
from delivery_agents.lmtp_delivery import LmtpDelivery, Path, Stage, Terms
from delivery_agents.pool import Pool
from smtpd import trace
from smtpd.delivery import DeliveryAgent
from smtpd.metrics import Counter, Gauge
from smtpd.model import Recipient, Transaction
from smtpd.options import AgentOptions, Seconds
from smtpd.services import Services

FAILURES = 5  # in a row, until nobody waits any more
PAUSE = 5.0  # seconds between attempts then
STOP_SECONDS = 5.0  # for what is still under way when the server stops

CONNECTIONS = Gauge("smtpd_lmtp_connections", "Open connections to the store.", ("agent",))
CIRCUIT_OPEN = Gauge(
    "smtpd_lmtp_circuit_open", "1 while mail is put off at once because the store has failed too often.", ("agent",)
)
ANSWERS = Counter(
    "smtpd_lmtp_answers_total",
    "What the store answered for recipients. at is rcpt or content; class is 2xx, 4xx, 5xx or none.",
    ("agent", "at", "class"),
)

_FIELD_NAME = re.compile(r"[!-9;-~]{1,70}")  # RFC 5322 §3.6.8
_DETAIL = re.compile(r"[A-Za-z0-9!#$%&'*/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*/=?^_`{|}~-]+)*")  # RFC 5321 §4.1.2
_SMTP_PORT = 25


def _check_address(text: str) -> str:
    if parse_place(text).port == _SMTP_PORT:
        raise ValueError("LMTP must not be spoken on port 25, that is for SMTP")  # RFC 2033 §5
    return text


def _check_details(details: dict[str, str]) -> dict[str, str]:
    for detail in details.values():
        if _DETAIL.fullmatch(detail) is None:
            raise ValueError('a detail is made of what needs no quotes in an address: no blanks, no "@"')
    return details


def _check_field(name: str) -> str:
    if name and _FIELD_NAME.fullmatch(name) is None:
        raise ValueError("is no name of a header field")
    return name


class LmtpOptions(AgentOptions):
    """Options of `lmtp`."""

    address: Annotated[str, AfterValidator(_check_address)]
    """Where the store listens: "unix:PATH", "host:port" or "[v6 address]:port"."""
    tls: TlsMode = "off"
    """Whether TLS begins by STARTTLS, or "implicit" with the connection; the certificate must be good for the host."""
    ca_file: str | None = None
    """Authorities that may have signed the store's certificate, PEM; unset: those of the system."""
    connections: Annotated[int, Field(ge=1)] = 20
    """Most connections to the store at a time; keep below what it allows."""
    connect_timeout: Annotated[Seconds, Field(gt=0, le=20)] = 5.0
    """Longest time until a new connection is ready for mail."""
    reply_timeout: Annotated[Seconds, Field(gt=0, lt=30)] = 25.0
    """Longest time for the answer about a recipient, with the wait for a connection; below 30 s, our own limit."""
    delivery_timeout: Annotated[Seconds, Field(gt=0)] = 300.0
    """Longest time from the first octet of the content to the last answer; senders wait ten minutes."""
    idle_timeout: Annotated[Seconds, Field(gt=0)] = 60.0
    """How long a connection is kept that nobody uses."""
    chunking: bool = True
    """Whether content is sent by BDAT if the store offers CHUNKING, which saves a round trip."""
    details: Annotated[dict[str, str], AfterValidator(_check_details)] = {}
    """Detail of recipients for messages with a label, such as { junk = "Junk" }; the first label that fits counts."""
    separator: Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[!#$%&'*+./=?^_`{|}~-]$")] = "+"
    """Character between user and detail, as the store wants it."""
    labels_field: Annotated[str, AfterValidator(_check_field)] = ""
    """Name of a header field that tells the store the labels; empty: none is added."""

    @model_validator(mode="after")
    def _tls_has_a_name_to_check(self) -> Self:
        if self.tls != "off" and self.address.startswith("unix:"):
            raise ValueError("tls needs an address with a host, whose name the certificate must have")
        return self


class Lmtp(DeliveryAgent):
    """The agent: its connections, and what is counted and logged of them."""

    Options = LmtpOptions
    options: LmtpOptions

    def __init__(self, name: str, options: LmtpOptions, services: Services) -> None:
        super().__init__(name, options, services)
        self.options = options
        self.carries_utf8 = False  # until the store has said so
        self._pool: Pool | None = None
        self._problem = ""
        self._terms = Terms(
            reply_timeout=options.reply_timeout,
            delivery_timeout=options.delivery_timeout,
            chunking=options.chunking,
            path=self._path,
            header=self._header,
        )
        self._answers = services.metrics.counter(ANSWERS)
        self._circuit_open = services.metrics.gauge(CIRCUIT_OPEN).labels(name)

    async def start(self) -> None:
        """Look at the store, which may come up later than we do; ValueError when `ca_file` cannot be used."""
        options = self.options
        backend = Backend(
            address=options.address,
            hello="LHLO",
            hostname=self.services.hostname,
            tls=options.tls,
            context=self._context(),
            timeout=options.connect_timeout,
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
            gauge=self.services.metrics.gauge(CONNECTIONS).labels(self.name),
        )
        if problem := await self._pool.problem():
            self.services.log.warning("backend-failed", agent=self.name, problem=problem)

    async def stop(self) -> None:
        """Let what is under way come to its end, then hang up."""
        if self._pool is not None:
            await self._pool.close(STOP_SECONDS)

    async def health(self) -> str | None:
        """Whether there is a connection to the store, or one can be had."""
        return await self._connections.problem()

    def open(self, mail: Transaction) -> LmtpDelivery:
        """Begin a transaction."""
        return LmtpDelivery(self, mail, self._connections, self._terms, self)

    def answered(self, at: Stage, answer: Answer) -> None:
        """Count what the store said about a recipient."""
        self._answers.labels(self.name, at, f"{answer.code // 100}xx").inc()

    def failed(self, at: Stage, failure: Failure, mail: Transaction) -> None:
        """Count and log that it said nothing of use; while it is down one line has been enough."""
        self._answers.labels(self.name, at, "none").inc()
        if not self._breaker.is_open:
            self.services.log.warning("backend-failed", agent=self.name, trace=mail.id, problem=str(failure))

    @property
    def _connections(self) -> Pool:
        assert self._pool is not None, "start() comes first"
        return self._pool

    def _greeted(self, connection: Connection) -> None:
        self.carries_utf8 = "SMTPUTF8" in connection.extensions

    def _circuit_changed(self, is_open: bool) -> None:
        self._circuit_open.set(int(is_open))
        if is_open:
            self.services.log.warning("backend-down", agent=self.name, problem=self._connections.last_problem)
        else:
            self.services.log.info("backend-up", agent=self.name)

    def _context(self) -> ssl.SSLContext | None:
        if self.options.tls == "off":
            return None
        try:
            return ssl.create_default_context(cafile=self.options.ca_file)
        except OSError as error:
            raise ValueError(f"agent {self.name}: ca_file cannot be used: {error}") from error

    def _path(self, mail: Transaction, recipient: Recipient) -> Path:
        path, detail = recipient.destination.text, recipient.folder
        if self.options.details:
            labels = mail.labels_for(recipient)
            detail = next((found for label, found in self.options.details.items() if label in labels), detail)
        return _with_detail(path, self.options.separator, detail) if detail else path

    def _header(self, mail: Transaction) -> bytes:
        name = self.options.labels_field
        if not name:
            return b""
        shared = frozenset.intersection(*map(mail.labels_for, mail.recipients))
        return trace.field(name, ", ".join(sorted(shared)) or "none")


def _with_detail(path: Path, separator: str, detail: str) -> Path:
    """Put the detail into user@domain, in the place of one that is there."""
    local, _, domain = path.rpartition("@")
    name = local[1:-1] if local.startswith('"') else local
    user = name.partition(separator)[0] or name
    quote = "" if name is local and _DETAIL.fullmatch(detail) else '"'
    return f"{quote}{user}{separator}{detail}{quote}@{domain}"
