"""Where a mail server behind us is, and how a connection to it begins: TCP or unix socket, TLS, greeting, offers."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from delivery_agents.answers import CLOSING, Answer
from delivery_agents.connection import Connection
from delivery_agents.failures import Crowded, Failure, TimedOut, Unreachable
from delivery_agents.login import Login

type TlsMode = Literal["off", "starttls", "implicit"]

MAX_ADDRESSES = 8  # of one host that are tried
MAX_PATH = 107  # octets of a unix socket's path, sun_path in unix(7)

_PERHAPS_IMPLICIT = '; where TLS begins with the connection, as on port 465, tls has to be "implicit"'
_PERHAPS_LATER = '; where TLS begins later, as on port 587, tls has to be "starttls"'

_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):([0-9]{1,5})")


class Place(NamedTuple):
    """An address taken apart: a unix socket's `path`, or `host` and `port`."""

    path: str
    host: str
    port: int


def parse_place(text: str) -> Place:
    """Read "unix:PATH", "host:port" or "[v6]:port"; ValueError for anything else."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path or len(path.encode()) > MAX_PATH:
            raise ValueError(f'"unix:" needs a path of at most {MAX_PATH} octets, such as "unix:/run/dovecot/lmtp"')
        return Place(path, "", 0)
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ValueError('must look like "unix:/run/dovecot/lmtp", "192.0.2.1:24", "[2001:db8::1]:24" or "host:24"')
    return Place("", match[1] or match[2], int(match[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A server and how to talk to it. `hello` is LHLO or EHLO, `hostname` our own name."""

    address: str
    hello: Literal["LHLO", "EHLO"]
    hostname: str
    tls: TlsMode
    context: ssl.SSLContext | None
    timeout: float
    """Seconds for all that comes before the first MAIL."""
    login: Login | None = None
    """Who we are to the server; None: it does not ask."""

    async def connect(self) -> Connection:
        """A connection that is ready for MAIL; Unreachable, Crowded or TimedOut when there is none to be had."""
        loop = asyncio.get_running_loop()
        connection = Connection(loop)
        connection.wait_until(loop.time() + self.timeout)
        silence = "does not answer"
        try:
            async with asyncio.timeout(self.timeout):
                await self._open(connection, loop)
                silence = "does not greet" if self.tls == "implicit" else f"does not greet{_PERHAPS_IMPLICIT}"
                await self._hear_greeting(connection)
                silence = "does not answer"
                await self._introduce(connection, loop)
        except (TimeoutError, TimedOut) as error:
            connection.abort()
            raise TimedOut(f"{self.address} {silence}") from error
        except Crowded as error:
            connection.abort()
            raise Crowded(f"{self.address}: {error}") from error
        except (OSError, UnicodeError, Failure) as error:
            connection.abort()
            raise Unreachable(f"{self.address}{self._explain(error)}") from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def _explain(self, error: Exception) -> str:
        text = f": {error}" if str(error) else " hung up"  # asyncio has no words for an end during the handshake
        has_no_tls = getattr(error, "reason", "") == "WRONG_VERSION_NUMBER" or not str(error)
        return text + _PERHAPS_LATER if self.tls == "implicit" and has_no_tls else text

    async def _open(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        place = parse_place(self.address)
        if place.path:
            await loop.create_unix_connection(lambda: connection, place.path)
            return
        reached = await _reach(place, loop, loop.time() + self.timeout)
        try:
            if self.tls == "implicit":
                context, host = self.context, place.host
                await loop.create_connection(lambda: connection, sock=reached, ssl=context, server_hostname=host)
            else:
                await loop.create_connection(lambda: connection, sock=reached)
        except BaseException:
            reached.close()
            raise

    async def _hear_greeting(self, connection: Connection) -> None:
        greeting = await connection.answer()
        if greeting.code == CLOSING:
            raise Crowded(f"it greets with {greeting}")
        if greeting.code != 220:
            raise Unreachable(f"it greets with {greeting}")

    async def _introduce(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        await self._ask_for_offers(connection)
        if self.tls == "starttls":
            await self._begin_tls(connection, loop)
        if self.login is not None:
            await self.login.perform(connection)

    async def _begin_tls(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        if "STARTTLS" not in connection.extensions:
            raise Unreachable("it does not offer STARTTLS")
        connection.send(b"STARTTLS\r\n", 1)
        answer = await connection.answer()
        if answer.code != 220:
            raise Unreachable(f"it answers STARTTLS with {answer}")
        await self._start_tls(connection, loop)
        await self._ask_for_offers(connection)  # RFC 3207 §4.2: what was offered before does not count

    async def _start_tls(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        assert self.context is not None
        context, host = self.context, parse_place(self.address).host

        def upgrade(transport: asyncio.Transport) -> Awaitable[asyncio.Transport | None]:
            return loop.start_tls(transport, connection, context, server_hostname=host)

        await connection.start_tls(upgrade)

    async def _ask_for_offers(self, connection: Connection) -> None:
        connection.send(f"{self.hello} {self.hostname}\r\n".encode("ascii"), 1)
        answer = await connection.answer()
        if answer.code != 250:
            raise Unreachable(f"it answers {self.hello} with {answer}")
        connection.extensions = _extensions(answer)


async def _reach(place: Place, loop: asyncio.AbstractEventLoop, deadline: float) -> socket.socket:
    """A socket connected to one of the host's addresses; they share the time, as the first may never answer."""
    found = (await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM))[:MAX_ADDRESSES]
    problem = OSError(f"{place.host} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        try:
            reached = socket.socket(family, kind, protocol)
        except OSError as error:  # such as IPv6 that is switched off
            problem = error
            continue
        try:
            reached.setblocking(False)
            reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout((deadline - loop.time()) / (len(found) - number)):
                await loop.sock_connect(reached, address)
        except OSError as error:  # TimeoutError is one
            reached.close()
            problem = error
        except BaseException:
            reached.close()
            raise
        else:
            return reached
    raise problem


def _extensions(answer: Answer) -> dict[str, str]:
    """Keyword, in capitals, to parameters (RFC 5321 §4.1.1.1); the first line is the server's name."""
    found = {}
    for line in answer.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        found[keyword.upper()] = parameters.strip()
    return found
