"""A mailstore that speaks LMTP as its script says: well by default, or early, late, wrong, cut, or not at all.

To who says EHLO it is a smarthost, which speaks SMTP: one answer to the content, or with PRDR one for each recipient
and a last one; AUTH PLAIN and LOGIN.

async with LmtpStore() as store: ...                          # store.address
store.say["RCPT"] = lambda line: b"550 5.1.1 Nobody\\r\\n"      # bytes, HANG, CLOSE, or a function that gives one
"""

import asyncio
import ssl
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HANG = b"(nothing, ever)"
CLOSE = b"(nothing, and good-bye)"
ENOUGH = ("PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "CHUNKING")


async def until(happened: Callable[[], object]) -> None:
    """Let the event loop turn until something is so."""
    while not happened():  # noqa: ASYNC110 - turns of the loop, no more
        await asyncio.sleep(0)


Say = bytes | Callable[[bytes], bytes]


@dataclass
class Stored:
    """One message."""

    mail: bytes
    recipients: list[bytes]
    content: bytes


@dataclass
class Visit:
    """One connection: the commands that were said to the store."""

    commands: list[bytes] = field(default_factory=list)
    credentials: list[bytes] = field(default_factory=list)
    """What was said to AUTH, decoded."""
    unheard: bytes = b""
    """The first four octets that came while the store hung."""

    @property
    def verbs(self) -> list[str]:
        """The first words."""
        return [command.split(b" ")[0].split(b"\r")[0].decode() for command in self.commands]


class LmtpStore:
    """Listens on a free port, or on `path`. `tls` is a server's context, for STARTTLS or `implicit`."""

    def __init__(
        self,
        *,
        offers: tuple[str, ...] = ENOUGH,
        host: str = "127.0.0.1",
        path: Path | None = None,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
    ) -> None:
        self.offers = offers
        self.say: dict[str, Say] = {}
        self.visits: list[Visit] = []
        self.messages: list[Stored] = []
        self.twist: Callable[[str, bytes], bytes] | None = None
        """Makes something else of every answer; what ends in CLOSE is said before the good-bye."""
        self.piece = 0
        """Octets said at a time."""
        self.may_read: asyncio.Event | None = None
        """Content is read only once this is set."""
        self.on_piece: Callable[[], None] | None = None
        """Called for every 64 KiB or less of a chunk that were read."""
        self._host = host
        self._path = path
        self._tls = tls
        self._implicit = implicit
        self._server: asyncio.Server | None = None
        self._writers: dict[asyncio.StreamWriter, asyncio.Task[Any]] = {}
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """As an agent wants it."""
        return f"unix:{self._path}" if self._path else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen, the second time on the same port."""
        context = self._tls if self._implicit else None
        if self._path:
            self._server = await asyncio.start_unix_server(self._serve, self._path, ssl=context)
        else:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, ssl=context)
            self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and hang up on everybody."""
        assert self._server is not None
        self._server.close()
        if self.may_read is not None:
            self.may_read.set()
        for writer, task in list(self._writers.items()):
            writer.transport.abort()
            task.cancel()
        while self._writers:  # noqa: ASYNC110 - turns of the loop, no more
            await asyncio.sleep(0)

    def shout(self, octets: bytes) -> None:
        """Say something unasked on every connection."""
        for writer in self._writers:
            writer.write(octets)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._writers[writer] = task
        visit = Visit()
        self.visits.append(visit)
        try:
            await _Talk(self, visit, reader, writer, can_start_tls=self._tls is not None and not self._implicit).run()
        except _GoodBye:
            await asyncio.sleep(0)
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()
            del self._writers[writer]

    @property
    def tls_context(self) -> ssl.SSLContext:
        """For STARTTLS."""
        assert self._tls is not None
        return self._tls


class _GoodBye(Exception):  # noqa: N818 - the script says so
    pass


class _Talk:
    def __init__(
        self,
        store: LmtpStore,
        visit: Visit,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        can_start_tls: bool,
    ) -> None:
        self.store = store
        self.visit = visit
        self.reader = reader
        self.writer = writer
        self.can_start_tls = can_start_tls
        self.mail = b""
        self.recipients: list[bytes] = []
        self.is_smarthost = False

    async def run(self) -> None:
        await self.answer("greeting", b"", b"220 store LMTP\r\n")
        while line := await self.reader.readline():
            self.visit.commands.append(line)
            verb = line[:4].upper().decode("latin-1")
            if verb == "QUIT":
                await self.answer("QUIT", line, b"221 2.0.0 Bye\r\n")
                return
            await self.obey(verb, line)

    async def obey(self, verb: str, line: bytes) -> None:
        if verb in ("LHLO", "EHLO"):
            self.is_smarthost = verb == "EHLO"
            offers = (*self.store.offers, "STARTTLS") if self.can_start_tls else self.store.offers
            lines = ["store", *offers]
            text = "".join(f"250{'-' if n < len(lines) else ' '}{each}\r\n" for n, each in enumerate(lines, 1))
            await self.answer(verb, line, text.encode())
        elif verb == "AUTH":
            await self.log_in(line.split())
        elif verb == "STAR":
            await self.answer("STARTTLS", line, b"220 2.0.0 Go on\r\n")
            await self.writer.start_tls(self.store.tls_context)
            self.can_start_tls = False
        elif verb == "MAIL":
            self.mail, self.recipients = line, []
            await self.answer("MAIL", line, b"250 2.1.0 Sender ok\r\n")
        elif verb == "RCPT":
            said = await self.answer("RCPT", line, b"250 2.1.5 Recipient ok\r\n")
            if said.startswith(b"250"):
                self.recipients.append(line)
        elif verb == "DATA":
            said = await self.answer("DATA", line, b"354 Go on\r\n")
            if said.startswith(b"354"):
                await self.take(await self.data())
        elif verb == "BDAT":
            await self.take(await self.chunk(int(line.split()[1])))
        else:
            self.mail, self.recipients = b"", []
            await self.answer(verb, line, b"250 2.0.0 Ok\r\n")

    async def log_in(self, words: list[bytes]) -> None:
        wanted = 2 if words[1] == b"LOGIN" else 1
        self.visit.credentials += map(b64decode, words[2:])
        while len(self.visit.credentials) < wanted:
            if not (await self.answer("prompt", b"", b"334 VXNlcm5hbWU6\r\n")).startswith(b"334"):
                return
            self.visit.credentials.append(b64decode(await self.reader.readline()))
        await self.answer("AUTH", b" ".join(words), b"235 2.7.0 Welcome\r\n")

    async def data(self) -> bytes:
        await self.wait_for_leave()
        lines = []
        while (line := await self.reader.readline()) != b".\r\n":
            if not line.endswith(b"\r\n"):
                raise ConnectionResetError
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    async def chunk(self, octets: int) -> bytes:
        await self.wait_for_leave()
        if self.store.on_piece is None:
            return await self.reader.readexactly(octets)
        content = bytearray()
        while len(content) < octets:
            content += await self.reader.readexactly(min(octets - len(content), 1 << 16))
            self.store.on_piece()
        return bytes(content)

    async def wait_for_leave(self) -> None:
        if self.store.may_read is not None:
            await self.store.may_read.wait()

    async def take(self, content: bytes) -> None:
        recipients, self.recipients = self.recipients, []
        self.store.messages.append(Stored(self.mail, recipients, content))
        saved = b"250 2.0.0 Saved %d\r\n" % len(self.store.messages)
        if self.is_smarthost and (b" PRDR" not in self.mail or len(recipients) < 2):
            await self.answer("content", b"", saved)
            return
        if self.is_smarthost:
            await self.answer("each", b"", b"353 One by one\r\n")
        for recipient in recipients:
            await self.answer("content", recipient, saved)
        if self.is_smarthost:
            await self.answer("last", b"", saved)

    async def answer(self, key: str, line: bytes, usual: bytes) -> bytes:
        say = self.store.say.get(key, usual)
        said = say if isinstance(say, bytes) else say(line)
        if self.store.twist is not None:
            said = self.store.twist(key, said)
        if said == HANG:
            self.visit.unheard = await self.reader.read(4)
            await self.reader.read()
            raise ConnectionResetError
        words = said.removesuffix(CLOSE)
        step = self.store.piece or max(len(words), 1)
        for start in range(0, len(words), step):
            self.writer.write(words[start : start + step])
            await self.writer.drain()
            await asyncio.sleep(0)
        if said.endswith(CLOSE):
            raise _GoodBye
        return said
