"""kill -9 at any moment: what was acknowledged is there, whole and once; what was not is there at most once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Server
from tests.interop.conftest import Serve, read

USERS = [f"user{number}" for number in range(6)]
CLIENTS = 8
LONGEST_ROUND = 0.5  # seconds
SIZES = (200, 2_000, 20_000, 200_000, 1_500_000)  # the last one spills to disk
PAGE = b"".join(b"%08d %s\r\n" % (number, b"0123456789abcdef" * 4) for number in range(25_000))


@dataclass
class Sent:
    """One message: whoever gets it, and whether the server has promised that."""

    number: int
    users: list[str]
    content: bytes
    acknowledged: bool = False
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.content = b"Subject: %d\r\n\r\n" % self.number + self.content
        self.digest = sha256(self.content).digest()

    @property
    def envelope(self) -> bytes:
        recipients = b"".join(b"RCPT TO:<%s@example.test>\r\n" % user.encode() for user in self.users)
        return b"MAIL FROM:<eve@sender.test> SIZE=%d\r\n" % len(self.content) + recipients


class Ledger:
    """Every message that a client has begun to send."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def next(self) -> Sent:
        size = random.choices(SIZES, weights=(40, 30, 20, 9, 1))[0]
        start = random.randrange(len(PAGE) // 75 // 10) * 75
        users = random.sample(USERS, random.choice((1, 1, 1, 2, 5)))
        self.sent.append(Sent(len(self.sent), users, PAGE[start : start + size // 75 * 75]))
        return self.sent[-1]


class Client:
    """A connection to the server that is about to die."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def hear(self, *codes: bytes) -> None:
        """Read so many replies, and insist on their codes."""
        for code in codes:
            while (line := await self._reader.readuntil(b"\r\n"))[3:4] == b"-":
                pass
            if line.startswith(b"421"):
                raise ConnectionAbortedError("the server is going")
            assert line.startswith(code), line

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    async def send_by_data(self, message: Sent) -> None:
        """Envelope and DATA in one burst, then the message."""
        self.say(message.envelope + b"DATA\r\n")
        await self.hear(b"250", *[b"250"] * len(message.users), b"354")
        self.say(message.content + b".\r\n")
        await self.hear(b"250")
        message.acknowledged = True

    async def send_by_bdat(self, message: Sent) -> None:
        """Everything in one burst."""
        self.say(message.envelope + b"BDAT %d LAST\r\n" % len(message.content) + message.content)
        await self.hear(b"250", *[b"250"] * len(message.users), b"250")
        message.acknowledged = True


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        client = Client(reader, writer)
        await client.hear(b"220")
        client.say(b"EHLO client.test\r\n")
        await client.hear(b"250")
        yield client
    finally:
        writer.transport.abort()


async def many_in_a_connection(port: int, ledger: Ledger) -> None:
    async with connected(port) as client:
        while True:
            await random.choice((client.send_by_data, client.send_by_bdat))(ledger.next())


async def a_connection_for_each(port: int, ledger: Ledger) -> None:
    while True:
        async with connected(port) as client:
            message = ledger.next()
            client.say(message.envelope + b"BDAT %d LAST\r\n%bQUIT\r\n" % (len(message.content), message.content))
            await client.hear(b"250", *[b"250"] * len(message.users), b"250")
            message.acknowledged = True


async def until_cut(client: Callable[[int, Ledger], Awaitable[None]], port: int, ledger: Ledger) -> None:
    try:
        await client(port, ledger)
    except (OSError, asyncio.IncompleteReadError):
        return  # the server is dead


def stored(root: Path) -> Counter[tuple[int, str, bytes]]:
    """How often each message lies in each mailbox: (number, user, digest of what arrived)."""
    found: Counter[tuple[int, str, bytes]] = Counter()
    for path in root.rglob("new/*"):
        content = read(path.read_bytes()).content
        number = int(content.partition(b"\r\n")[0].removeprefix(b"Subject: "))
        found[number, path.parent.parent.name, sha256(content).digest()] += 1
    return found


async def load(server: Server, ledger: Ledger, end: Callable[[], object]) -> None:
    """Send from many clients at once, until a random moment at which `end` is called."""
    kinds = [many_in_a_connection] * (CLIENTS - 2) + [a_connection_for_each] * 2
    clients = [asyncio.create_task(until_cut(kind, server.port("smtp"), ledger)) for kind in kinds]
    await asyncio.sleep(random.uniform(0, LONGEST_ROUND))
    await asyncio.to_thread(end)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*clients)


def no_promise_is_broken(ledger: Ledger, found: Counter[tuple[int, str, bytes]]) -> None:
    promised = {(sent.number, user, sent.digest) for sent in ledger.sent for user in sent.users if sent.acknowledged}
    possible = {(sent.number, user, sent.digest) for sent in ledger.sent for user in sent.users}
    assert not promised - found.keys(), "lost"
    assert not found.keys() - possible, "damaged, or in a mailbox that it was not for"
    assert {key: count for key, count in found.items() if count > 1} == {}, "more than once"


@pytest.mark.soak
@pytest.mark.slow
async def test_every_acknowledged_message_is_there_whole_and_once(
    serve: Serve, directory: Path, soak_rounds: int
) -> None:
    ledger = Ledger()
    for _ in range(soak_rounds):
        server = await asyncio.to_thread(serve)
        await load(server, ledger, server.process.kill)
        server.process.wait()
    acknowledged = sum(sent.acknowledged for sent in ledger.sent)
    assert acknowledged > 10 * soak_rounds, "there was hardly any load"
    assert len(ledger.sent) - acknowledged >= soak_rounds, "nothing was cut"
    no_promise_is_broken(ledger, stored(directory / "mail"))


async def test_orderly_stop_under_load_stores_what_it_acknowledged_and_nothing_else(
    serve: Serve, directory: Path
) -> None:
    ledger = Ledger()
    for _ in range(3):
        server = await asyncio.to_thread(serve)
        await load(server, ledger, server.stop)
        assert server.process.returncode == 0
        assert not server.events("our-fault")
    found = stored(directory / "mail")
    no_promise_is_broken(ledger, found)
    acknowledged = {sent.number for sent in ledger.sent if sent.acknowledged}
    assert acknowledged
    assert {number for number, _, _ in found} == acknowledged
