"""The nouns of one SMTP conversation: Session, Transaction, Recipient, Message, Facts.

State dies, it is not cleared: a Session lives as long as the connection, a Transaction as long as
the message. What belongs to a message never sits on the session.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Protocol

from smtpd.addresses import Address
from smtpd.header_fields import all_values_of
from smtpd.octets import Octets

if TYPE_CHECKING:
    from smtpd.commands import MailCommand
    from smtpd.policy import Decision, Held, Lookup

IPAddress = IPv4Address | IPv6Address

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_UNFOLDED_LINE_END = re.compile(rb"\r\n(?![ \t])")  # RFC 5322 §2.2.3
_FIELD_NAME = re.compile(rb"([!-9;-~]++)[ \t]*+:")  # RFC 5322 §3.6.8; blanks before the colon: §4.5


def plain_ip(ip: IPAddress) -> IPAddress:
    """An IPv4 address in the notation of IPv6 (::ffff:192.0.2.1, RFC 4291 §2.5.5.2) as the IPv4 address it is."""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip


def new_id() -> str:
    """Make a trace id: 16 characters of Crockford's base 32, the first 10 are the time, so ids sort by age."""
    moment, beginning = _latest
    now = time.time_ns() // 1_000_000
    return (beginning if now == moment else _beginning(now)) + next(_endings)


def _beginning(moment: int) -> str:
    """Write a time down, and remember it: whoever is busy makes many ids in a millisecond."""
    global _latest
    pairs = _PAIRS
    beginning = (
        f"{pairs[moment >> 40 & 1023]}{pairs[moment >> 30 & 1023]}{pairs[moment >> 20 & 1023]}"
        f"{pairs[moment >> 10 & 1023]}{pairs[moment & 1023]}"
    )
    _latest = moment, beginning  # one tuple, so no thread sees half of it
    return beginning


def _count_for_ever() -> Iterator[str]:
    """All of six characters in turn, from anywhere on, again and again; all in C, so threads may share it."""
    starts = [int.from_bytes(os.urandom(2)) % len(_PAIRS) for _ in range(3)]
    places = [_PAIRS[start:] + _PAIRS[:start] for start in starts]
    rounds = itertools.starmap(itertools.product, itertools.repeat(places))
    return map("".join, itertools.chain.from_iterable(rounds))


_latest = 0, ""  # milliseconds, and the beginning of all ids of that time
_endings = _count_for_ever()


class Facts:
    """Typed findings that one filter leaves for another, at most one per type.

    A transaction's facts see through to those of its session.
    """

    __slots__ = ("_found", "_parent")

    def __init__(self, parent: Facts | None = None) -> None:
        self._found: dict[type, object] | None = None
        self._parent = parent

    def add(self, fact: object) -> None:
        """Leave a finding; a second one of the same type replaces the first."""
        if self._found is None:
            self._found = {}
        self._found[type(fact)] = fact

    def get[T](self, kind: type[T]) -> T | None:
        """The finding of this type, or None."""
        if self._found is not None and kind in self._found:
            found = self._found[kind]
            assert isinstance(found, kind)
            return found
        return self._parent.get(kind) if self._parent is not None else None

    def discard(self, kind: type) -> None:
        """Forget the finding of this type, if there is one here."""
        if self._found is not None:
            self._found.pop(kind, None)

    def __iter__(self) -> Iterator[object]:
        yield from (self._found or {}).values()


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """What was negotiated: version as in "TLSv1.3", cipher name, key bits, the client certificate's subject."""

    version: str
    cipher: str
    bits: int
    server_name: str = ""
    client_subject: str = ""


@dataclass(slots=True)
class Session:
    """One connection. What we observed stays; what the client claimed is forgotten at STARTTLS."""

    id: str
    listener: str
    """Name of the listener's table in the configuration."""
    ip: IPAddress
    """The client's address (behind a proxy: the inner one); 127.0.0.1 for a unix socket."""
    ip_text: str = ""
    """`ip` as text."""
    port: int = 0
    local_ip: str = ""
    local_port: int = 0
    helo: str = ""
    """The argument of EHLO or HELO as received, printable ASCII; empty before it."""
    esmtp: bool = False
    lmtp: bool = False
    """The client speaks LMTP (RFC 2033), so each recipient hears its own reply to the data."""
    tls: TlsInfo | None = None
    login: str | None = None
    """The authenticated user, None before AUTH."""
    mechanism: str = ""
    trusted: bool = False
    """The address is in `[smtpd] trusted_networks`."""
    facts: Facts = field(default_factory=Facts)
    labels: frozenset[str] = frozenset()
    held: list[Held] | None = None
    """Refusals decided but not yet spoken; owned by `policy`, like the two below."""
    pending: list[Lookup] | None = None
    """Questions to filters that are not answered yet."""
    trace: list[Decision] | None = None
    """What filters decided about the connection, oldest first; for the log."""
    errors: int = 0
    auth_failures: int = 0
    messages: int = 0
    transactions: int = 0
    early: bool = False
    """The client spoke before it was its turn: before the banner, or behind a command that ends a group."""

    def __post_init__(self) -> None:
        self.ip_text = self.ip_text or str(self.ip)

    def forget_claims(self) -> None:
        """RFC 3207 §4.2: after the handshake nothing the client said before counts."""
        self.helo = ""
        self.esmtp = False
        self.login = None
        self.mechanism = ""

    @property
    def authenticated(self) -> bool:
        """Whether AUTH succeeded on this connection."""
        return self.login is not None


@dataclass(slots=True, eq=False)
class Recipient:
    """One accepted (or just asked for) recipient; compared and hashed by identity."""

    address: Address
    agent: str = ""
    """Name of the delivery agent's table in the configuration."""
    mailbox: Address | None = None
    """Where the agent is to put it, when the recipient map says another address; None: `address`."""
    labels: frozenset[str] = frozenset()
    exempt: bool = False
    """Postmaster: no filter may refuse it (RFC 5321 §4.5.1)."""
    folder: str = ""
    """Folder of the mailbox, "/" between levels, ASCII letters, digits, blanks and "_+=-" only; "": the inbox."""

    @property
    def destination(self) -> Address:
        """The mailbox to deliver to."""
        return self.mailbox or self.address


@dataclass(slots=True, eq=False)
class Transaction:
    """One message's envelope, from MAIL to the reply after its data."""

    id: str
    session: Session
    sender: Address
    """`Address.null` when the reverse-path is <>."""
    size: int | None = None
    """The client's SIZE= (RFC 1870), bytes."""
    body: str = "7BIT"
    smtputf8: bool = False
    prdr: bool = False
    auth: str | None = None
    """AUTH= (RFC 4954 §5), decoded; "" stands for <>."""
    recipients: list[Recipient] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    labels: frozenset[str] = frozenset()
    held: list[Held] | None = None
    """Like the session's, and the two below."""
    pending: list[Lookup] | None = None
    trace: list[Decision] | None = None

    @classmethod
    def begin(cls, command: MailCommand, session: Session) -> Transaction:
        """Open a transaction as MAIL asks for it."""
        auth = command.auth
        if auth and session.login is None and not session.trusted:
            auth = ""  # RFC 4954 §5: who may not name the author names nobody
        # By position, as each message comes by here: names would take twice as long.
        return cls(
            new_id(), session, command.sender, command.size, command.body, command.smtputf8, command.prdr, auth,
            [], Facts(session.facts),
        )  # fmt: skip

    @property
    def all_labels(self) -> frozenset[str]:
        """Labels of the message and of its session."""
        of_session = self.session.labels
        return self.labels | of_session if of_session else self.labels

    @property
    def shared_labels(self) -> frozenset[str]:
        """Labels that hold for every recipient, so they may stand in the message."""
        recipients = self.recipients
        if not recipients or not recipients[0].labels:  # most have none
            return self.all_labels
        return self.all_labels.union(frozenset.intersection(*(recipient.labels for recipient in recipients)))

    def labels_for(self, recipient: Recipient) -> frozenset[str]:
        """Labels that hold for one recipient."""
        return self.labels | self.session.labels | recipient.labels


class ContentSource(Protocol):
    """The received octets, in memory or spilled to a file: what `content.py` makes."""

    @property
    def size(self) -> int:
        """Number of octets."""

    def chunks(self) -> Iterable[bytes]:
        """The octets in order, in pieces of at most about 1 MiB."""

    def head(self) -> bytes:
        """The header section including the empty line that ends it, at most 1 MiB."""

    def close(self) -> None:
        """Give memory and file back."""


class Message:
    """What was received, with our own header fields on top.

    `content` are the received octets after dot transparency, CRLF line ends. `added` are complete
    header fields of ours (each ends in CRLF), topmost first.
    """

    __slots__ = ("_fields", "added", "content")

    def __init__(self, content: ContentSource) -> None:
        self.content = content
        self.added: list[bytes] = []
        self._fields: list[tuple[str, bytes]] | None = None

    @property
    def size(self) -> int:
        """Octets that an agent will write: our header fields and the content."""
        return sum(map(len, self.added)) + self.content.size

    def chunks(self) -> Iterator[bytes]:
        """The message to deliver, in order: our fields, then what was received."""
        if self.added:
            yield b"".join(self.added)
        yield from self.content.chunks()

    def __bytes__(self) -> bytes:
        """The whole message in one piece; for agents that cannot stream."""
        return b"".join(self.chunks())

    @property
    def fields(self) -> list[tuple[str, bytes]]:
        """Received header fields in order: (lower-case name, raw value with its folding, without last CRLF).

        A line that is no field (no colon, bad name) comes as ("", line).
        """
        if self._fields is None:
            self._fields = list(_split_fields(self.content.head()))
        return self._fields

    def field_values(self, name: str) -> list[bytes]:
        """All raw values of one field, top to bottom; `name` in lower case."""
        if self._fields is None:  # to split the section for one name would take ten times as long
            return all_values_of(self.content.head(), name)
        return [value for found, value in self.fields if found == name]

    def replace_content(self, content: ContentSource | bytes) -> None:
        """Put another content in the place of the received one; only filters with `changes = True` may.

        ValueError for octets that hold a lone CR or LF.
        """
        if isinstance(content, bytes):
            content = Octets(content)
        if content is not self.content:
            self.content.close()
        self.content = content
        self._fields = None


def _split_fields(head: bytes) -> Iterator[tuple[str, bytes]]:
    for line in _UNFOLDED_LINE_END.split(head):
        if not line:
            return
        match = _FIELD_NAME.match(line)
        if match is not None:
            yield match[1].decode("ascii").lower(), line[match.end() :]
        else:
            yield "", line
