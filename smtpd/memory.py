"""The server without a socket: the same core over lists of octets. The test kit of filters and agents.

    async with MemoryServer(filters={"subject": (Subject, {"words": ["lottery"]})}) as server:
        talk = await server.connect(ip="192.0.2.1")
        await talk.say(b"NOOP\\r\\n")                             # b"250 2.0.0 Ok\\r\\n"
        await talk.send("Subject: The LOTTERY\\n\\nYou won!\\n")   # ["250 ...", "250 ...", "550 5.6.0 ..."]

`Talk` alone speaks to one service of any server that was started: `server.start_quietly()` gives them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from smtpd import replies
from smtpd.channel import Channel
from smtpd.config import Config, LogOptions
from smtpd.conversation import Conversation
from smtpd.delivery import DeliveryAgent
from smtpd.dns import Resolver
from smtpd.endings import Disconnected
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.model import Message, Session, TlsInfo, Transaction, new_id
from smtpd.options import AgentOptions, FilterOptions
from smtpd.policy import Filter
from smtpd.replies import Reply
from smtpd.server import Server
from smtpd.service import Service
from smtpd.services import Services
from smtpd.zone import Zone

type Table = Mapping[str, object]
type Plug[Kind] = type[Kind] | tuple[type[Kind], Table]
"""A class, or a class and what would stand in its table of the configuration."""

_WELCOME = str(replies.GREETING.code).encode()


class MemoryTransport:
    """Collects what is said; every write is an item of `writes`."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_closed = False
        self.is_paused = False

    def write(self, data: bytes) -> None:
        """Keep octets."""
        if not self.is_closed:
            self.writes.append(data)

    def pause_reading(self) -> None:
        """Remember that no input is wanted now."""
        self.is_paused = True

    def resume_reading(self) -> None:
        """Remember that input is wanted again."""
        self.is_paused = False

    def close(self) -> None:
        """End the connection."""
        self.is_closed = True

    def abort(self) -> None:
        """End the connection."""
        self.is_closed = True

    async def start_tls(self) -> TlsInfo:
        """There is nothing to encrypt here."""
        raise Disconnected

    def readdress(self, ip: str) -> Reply | None:
        """There is no limit here."""
        return None


class Talk:
    """One client in memory. `ip` is the address it seems to come from; `tls` makes it look encrypted."""

    def __init__(
        self,
        service: Service,
        *,
        ip: str = "192.0.2.1",
        tls: TlsInfo | None = None,
        transport: MemoryTransport | None = None,
    ) -> None:
        self.transport = transport or MemoryTransport()
        self._channel = Channel(self.transport, asyncio.get_running_loop())
        self._over = asyncio.Event()
        self._channel.on_finished = self._over.set
        address = ip_address(ip)
        self.session = Session(
            id=new_id(), listener=service.listener, ip=address, tls=tls, trusted=service.trusts(address)
        )
        self.last = b""
        """What was heard last."""
        self._channel.start(Conversation(self._channel, self.session, service).run())

    @property
    def is_over(self) -> bool:
        """Whether the server has hung up."""
        return self._over.is_set()

    async def hear(self) -> bytes:
        """Everything said since the last call, as soon as the server waits for the client again."""
        while not self._channel.is_listening and not self.is_over:  # noqa: ASYNC110 - a turn of the loop, no more
            await asyncio.sleep(0)
        self.last = b"".join(self.transport.writes)
        self.transport.writes.clear()
        return self.last

    async def say(self, octets: bytes, *, piece: int = 0) -> bytes:
        """Send octets, in pieces of that many if `piece` is given, and hear the answer."""
        step = piece or max(len(octets), 1)
        for start in range(0, len(octets), step):
            if self.is_over:
                break
            self._channel.feed(octets[start : start + step])
        return await self.hear()

    async def send(
        self,
        content: str | bytes,
        *,
        sender: str = "bob@sender.test",
        recipients: Sequence[str] = ("alice@example.test",),
    ) -> list[str]:
        """Send one message; the answers to MAIL, to each RCPT, and, if one was taken, to the content.

        Line breaks of a `str` become CRLF; `bytes` are sent as they are, by BDAT.
        """
        octets = "\r\n".join(content.split("\n")).encode() if isinstance(content, str) else content
        answers = [await self._answer(f"MAIL FROM:<{sender}>")]
        answers += [await self._answer(f"RCPT TO:<{recipient}>") for recipient in recipients]
        if any(answer.startswith("2") for answer in answers[1:]):
            answers.append((await self.say(b"BDAT %d LAST\r\n%b" % (len(octets), octets))).decode().rstrip())
        elif not self.is_over:
            await self.say(b"RSET\r\n")
        return answers

    async def _answer(self, command: str) -> str:
        return (await self.say(f"{command}\r\n".encode())).decode().rstrip()

    async def hang_up(self, *, politely: bool = False) -> bytes:
        """Vanish, or close only the sending side; what the server still says, after all is over."""
        if politely:
            self._channel.feed_eof()
        else:
            self._channel.lost()
        await self._over.wait()
        return await self.hear()


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the agent of a MemoryServer was given."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    """Our header fields included."""
    labels: frozenset[str]


class MemoryServer:
    """A whole server with one listener and no sockets. What is wrong with a plug-in is an error when it ends.

    `filters` and `agents` are by the name of their table. Mail to example.test goes to the first agent, or
    without any into `delivered`. `tables` are other tables of `[smtpd]`, as in `{"max_recipients": 1}`. Lookups are
    answered by `resolver`, an empty `Zone` unless given.
    """

    def __init__(
        self,
        *,
        filters: Mapping[str, Plug[Filter]] | None = None,
        agents: Mapping[str, Plug[DeliveryAgent]] | None = None,
        tables: Table | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.delivered: list[Delivered] = []
        self._lines = LogEntries()
        self._log = Log(LogOptions(), sink=self._lines)
        self._talks: list[Talk] = []
        own_filters = {name: _unplug(plug) for name, plug in (filters or {}).items()}
        own_agents = {name: _unplug(plug) for name, plug in (agents or {"kept": self._keeper()}).items()}
        config = Config.model_validate({
            "hostname": "mx.example.test",
            "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
            "domains": {"example.test": next(iter(own_agents))},
            "filters": {name: _options(kind.Options, name, table) for name, (kind, table) in own_filters.items()},
            "agents": {name: _options(kind.Options, name, table) for name, (kind, table) in own_agents.items()},
            "metrics": {"enabled": False},
            **(tables or {}),
        })  # fmt: skip
        self._server = Server(
            config,
            agents={name: kind for name, (kind, _) in own_agents.items()},
            filters={name: kind for name, (kind, _) in own_filters.items()},
            log=self._log,
            resolver=resolver or Zone(),
        )
        self.agents: Mapping[str, DeliveryAgent] = {}
        """The agents that were made, by name; the filters likewise."""
        self.filters: Mapping[str, Filter] = {}

    async def __aenter__(self) -> Self:
        generation = await self._server.start_quietly()
        self._service = next(iter(generation.services.values()))
        self.agents, self.filters = generation.agents, generation.filters
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for talk in self._talks:
            await talk.hang_up()
        await self._server.stop()
        failures = [line for line in self.log if line["level"] == "error"]
        self._log.close()
        if failures and error is None:
            raise AssertionError("\n".join(f"{line['event']}: {line.get('exception', line)}" for line in failures))

    @property
    def log(self) -> list[dict[str, object]]:
        """The lines of the log so far. Take away an error that a test expects: `server.forget("filter-failed")`."""
        self._log.flush()
        return self._lines.entries

    def forget(self, event: str) -> None:
        """Take all lines with this event away; AssertionError when there is none."""
        kept = [line for line in self.log if line["event"] != event]
        if len(kept) == len(self._lines.entries):
            raise AssertionError(f"no {event} in the log")
        self._lines.entries = kept

    async def connect(
        self,
        *,
        ip: str = "192.0.2.1",
        helo: str = "client.example",
        login: str | None = None,
        tls: TlsInfo | None = None,
    ) -> Talk:
        """A client that was welcome and has said EHLO (not with `helo=""`); its `last` is what it heard last.

        `login`: as if AUTH had succeeded.
        """
        talk = Talk(self._service, ip=ip, tls=tls)
        self._talks.append(talk)
        banner = await talk.hear()
        talk.session.login = login
        if helo and banner.startswith(_WELCOME):
            await talk.say(f"EHLO {helo}\r\n".encode())
        return talk

    def count(self, metric: str, **labels: str) -> float:
        """What a scrape would show; 0 for a series that is not there."""
        return self._server.metrics.registry.get_sample_value(metric, labels) or 0.0

    def _keeper(self) -> type[DeliveryAgent]:
        delivered = self.delivered

        class Keeper(DeliveryAgent):
            async def deliver(self, mail: Transaction, message: Message) -> Reply:
                recipients = tuple(recipient.address.text for recipient in mail.recipients)
                delivered.append(Delivered(mail.sender.text, recipients, bytes(message), mail.all_labels))
                return replies.ACCEPTED

        return Keeper


def make_services(resolver: Resolver | None = None) -> Services:
    """What a plug-in is given, for tests that make one without a server: no log is written, lookups as above."""
    return Services("mx.example.test", Log(LogOptions(), sink=LogEntries()), Metrics(), resolver=resolver or Zone())


class LogEntries:
    """A sink of log lines, as JSON."""

    def __init__(self) -> None:
        self.entries: list[dict[str, object]] = []

    def write(self, data: bytes) -> int:
        """Keep whole lines."""
        self.entries += map(json.loads, data.splitlines())
        return len(data)

    def reopen(self) -> None:
        """There is no file."""

    def close(self) -> None:
        """There is no file."""


def _unplug[Kind](plug: Plug[Kind]) -> tuple[type[Kind], Table]:
    return plug if isinstance(plug, tuple) else (plug, {})


def _options[Kind: (AgentOptions, FilterOptions)](kind: type[Kind], name: str, table: Table) -> Kind:
    return kind.model_validate({"type": name, **table})
