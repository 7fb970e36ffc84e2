"""A whole server inside the test: one listener, filters of the test's own, an agent that keeps what it is given.

async with Stage(filters={"slow": Slow}) as server:
    talk = server.talk()                    # in memory
    async with Stage(listens=True) ...      # server.port: on a real socket
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from log_lines import Lines

from smtpd import replies
from smtpd.config import Config, LogOptions
from smtpd.delivery import AgentAnswer, DeliveryAgent
from smtpd.log import Log
from smtpd.memory import Talk
from smtpd.model import Message, TlsInfo, Transaction
from smtpd.options import AgentOptions
from smtpd.policy import Filter
from smtpd.server import Server
from smtpd.service import Service

Table = Mapping[str, Any]
Answer = Callable[[Transaction, Message], Awaitable[AgentAnswer]]

GREETING = b"220 mx.test ESMTP\r\n"
ENVELOPE = b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\n"
CONTENT = b"From: joe@client.test\r\n\r\nHi\r\n"


@dataclass(frozen=True)
class Kept:
    """One message as the agent got it."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    received: bytes
    """The content without our own fields."""
    spilled: bool


class Stage:
    """`listener` and `tables` are laid over the defaults; the agent says what `answer` says."""

    def __init__(
        self,
        *,
        listener: Table | None = None,
        tables: Table | None = None,
        filters: Mapping[str, type[Filter]] | None = None,
        answer: Answer | None = None,
        listens: bool = False,
    ) -> None:
        self.kept: list[Kept] = []
        self._lines = Lines()
        self._log = Log(LogOptions(connections=True), sink=self._lines)
        self._listens = listens
        self._services: Mapping[str, Service] = {}
        self._tables = {
            "hostname": "mx.test",
            "drain_timeout": 5.0,
            "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off", **(listener or {})}},
            "domains": {"example.test": "keeper"},
            "agents": {"keeper": AgentOptions(type="keeper")},
            "filters": {name: kind.Options() for name, kind in (filters or {}).items()},
            "metrics": {"enabled": False},
        }
        config = Config.model_validate({**self._tables, **(tables or {})})
        self.server = Server(config, agents={"keeper": self._keeper(answer)}, filters=filters or {}, log=self._log)

    async def __aenter__(self) -> Self:
        if self._listens:
            await self.server.start()
        else:
            self._services = (await self.server.start_quietly()).services
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.server.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.addresses["smtp"][0].rpartition(":")[2])

    @property
    def service(self) -> Service:
        """The one service, as if there were a certificate."""
        service = self._services["smtp"]
        return replace(service, can_start_tls=service.switches.tls == "starttls")

    async def reload(self, tables: Table) -> None:
        """Go on with other tables; conversations that have begun keep theirs."""
        await self.server.reload(Config.model_validate({**self._tables, **tables}))
        generation = self.server._generation
        assert generation is not None
        self._services = generation.services

    def talk(self, *, ip: str = "192.0.2.1", tls: TlsInfo | None = None, **parts: Any) -> Talk:
        """A client in memory; `parts` take the place of parts of the service."""
        return Talk(replace(self.service, **parts), ip=ip, tls=tls)

    async def ready(self, *, ip: str = "192.0.2.1") -> Talk:
        """A client in memory whose MAIL and RCPT were accepted."""
        talk = self.talk(ip=ip)
        assert b"\r\n250 2.1.5 " in await talk.say(ENVELOPE)
        return talk

    def events(self, event: str) -> list[dict[str, Any]]:
        """Log lines with this event."""
        self._log.flush()
        return [entry for entry in self._lines.entries if entry["event"] == event]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All log lines."""
        self._log.flush()
        return self._lines.entries

    def count(self, metric: str, **labels: str) -> float:
        """What a scrape would show."""
        return self.server.metrics.registry.get_sample_value(metric, labels) or 0.0

    def _keeper(self, answer: Answer | None) -> type[DeliveryAgent]:
        kept = self.kept

        class Keeper(DeliveryAgent):
            async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
                reply: AgentAnswer = replies.ACCEPTED if answer is None else await answer(mail, message)
                recipients = tuple(recipient.address.text for recipient in mail.recipients)
                spilled = bool(getattr(message.content, "spilled", False))
                received = b"".join(message.content.chunks())
                kept.append(Kept(mail.sender.text, recipients, bytes(message), received, spilled))
                return reply

        return Keeper


def codes(said: bytes) -> list[str]:
    """The code of every reply, without the lines that continue one."""
    return re.findall(r"^(\d\d\d) ", said.decode(), re.MULTILINE)
