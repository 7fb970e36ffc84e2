"""Senders that do not give up: after 4xx or a lost connection the same message comes again, until it is settled.

They note what they hear in every attempt, so that afterwards each copy in a mailbox can be accounted for.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from tests.conftest import PATIENCE

SENDERS = 20
PAUSE = 0.03  # seconds until a sender tries again
SIZES = (200, 2_000, 20_000, 200_000)
PAGE = b"".join(b"%08d %s\r\n" % (number, b"0123456789abcdef" * 4) for number in range(3_000))
UNKNOWN = "451 4.4.2 The mail system did not say"

type Lines = Mapping[str, Mapping[str, Any]]
"""Log lines of messages by their trace ids."""


@dataclass
class Letter:
    """One message: for whom, and what its sender has heard of it."""

    number: int
    users: list[str]
    content: bytes = field(repr=False)
    heard: list[str] = field(default_factory=list)
    """What was said behind the dot, attempt by attempt; "" when the connection was lost before that."""
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fields = b"From: Eve <eve@sender.test>\r\nDate: Sat, 21 Nov 2026 02:00:00 +0000\r\nMessage-ID: <%d@sender.test>"
        self.content = fields % self.number + b"\r\n\r\n" + self.content
        self.digest = sha256(self.content).digest()

    @property
    def end(self) -> str:
        """What was heard last."""
        return self.heard[-1] if self.heard else ""

    @property
    def is_settled(self) -> bool:
        return self.end.startswith(("2", "5"))

    def promised(self) -> set[str]:
        """The users who have the message, by what the sender was told."""
        if self.end.startswith("550 5.0.0 Delivered, but not to "):
            return {user for user in self.users if f"{user}@" not in self.end.partition(": ")[0]}
        return set(self.users) if self.end.startswith("250") else set()

    def interrupted(self, user: str, lines: Lines) -> int:
        """Attempts after which nobody could know whether this user has the message."""
        return sum(not said or (said.startswith("451") and _nobody_knows(said, user, lines)) for said in self.heard)


def _nobody_knows(said: str, user: str, lines: Lines) -> bool:
    line = lines.get(said.rpartition("[")[2].removesuffix("]"))
    if line is None:  # it was not written any more when the server was killed
        return True
    recipients = [address.partition("@")[0] for address in line["recipients"]]
    outcomes: Sequence[str] = line.get("outcomes", [line["reply"]] * len(recipients))
    return outcomes[recipients.index(user)].startswith(UNKNOWN)


class Post:
    """What is sent to one port, whose server may be dead for a while."""

    def __init__(self, users: list[str], port: int) -> None:
        self.letters: list[Letter] = []
        self.refusals: list[str] = []
        """5xx to something else than a message."""
        self.users = users
        self._port = port
        self._is_over = False
        self._settled = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """`SENDERS` at once; at the end every message that was begun is settled."""
        senders = [asyncio.create_task(self._send_many()) for _ in range(SENDERS)]
        try:
            yield
            self._is_over = True
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*senders)
        finally:
            for sender in senders:
                sender.cancel()

    async def progress(self, count: int) -> None:
        """Wait until so many more messages are settled."""
        goal = self._settled + count
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self._settled >= goal)

    @property
    def uncertain(self) -> list[str]:
        """What the senders heard last of messages that were settled, but not simply taken."""
        ends = (letter.end for letter in self.letters if letter.is_settled)
        return [end for end in ends if not end.startswith("250 2.0.0")]

    def unaccounted(self, found: Counter[tuple[str, bytes]], lines: Lines) -> list[str]:
        """What is lost, damaged, or there more often than attempts were interrupted."""
        problems = []
        rest = +found
        for letter in self.letters:
            promised = letter.promised()
            for user in letter.users:
                copies = rest.pop((user, letter.digest), 0)
                if user in promised and not copies:
                    problems.append(f"lost: {user} does not have {letter}")
                if copies > (user in promised) + letter.interrupted(user, lines):
                    problems.append(f"{copies} copies for {user} of {letter}")
        return problems + [f"{copies} of something that was not sent like this to {user}" for user, _ in rest]

    async def _send_many(self) -> None:
        connection: Connection | None = None
        while not self._is_over:
            letter = self._write()
            while not letter.is_settled:
                try:
                    connection = connection or await Connection.open(self._port)
                    await self._attempt(connection, letter)
                except (OSError, asyncio.IncompleteReadError):
                    if connection is not None:
                        connection.abort()
                    connection = None
                if not letter.is_settled:
                    await asyncio.sleep(PAUSE)
            letter.content = b""  # a soak test sends many
            self._settled += 1
            async with self._changed:
                self._changed.notify_all()
        if connection is not None:
            connection.abort()

    def _write(self) -> Letter:
        size = random.choices(SIZES, weights=(50, 30, 18, 2))[0]
        start = random.randrange(len(PAGE) // 75 // 10) * 75
        users = random.sample(self.users, random.choice((1, 1, 1, 2, 3)))
        self.letters.append(Letter(len(self.letters), users, PAGE[start : start + size // 75 * 75]))
        return self.letters[-1]

    async def _attempt(self, connection: Connection, letter: Letter) -> None:
        recipients = [f"RCPT TO:<{user}@example.test>" for user in letter.users]
        answers = [await connection.ask(line) for line in ("MAIL FROM:<eve@sender.test>", *recipients)]
        if all(answer.startswith("250") for answer in answers):
            answers.append(await connection.ask("DATA"))
        if not answers[-1].startswith("354"):
            self.refusals += [answer for answer in answers if answer.startswith("5")]
            await connection.ask("RSET")
            return
        letter.heard.append("")
        letter.heard[-1] = await connection.ask(letter.content + b".")


class Connection:
    """The sender's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        connection = cls(*await asyncio.open_connection("127.0.0.1", port))
        await connection._hear()
        await connection.ask("EHLO sender.test")
        return connection

    async def ask(self, line: str | bytes) -> str:
        """Say a line, or several, and hear the reply; ConnectionAbortedError for 421."""
        self._writer.write((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self._hear()

    def abort(self) -> None:
        """Hang up."""
        self._writer.transport.abort()

    async def _hear(self) -> str:
        while (line := (await self._reader.readuntil(b"\r\n")).decode())[3:4] == "-":
            pass
        if line.startswith("421"):
            raise ConnectionAbortedError(line)
        return line.rstrip()
