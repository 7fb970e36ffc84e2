"""Connections: how many, from whom, how they become encrypted, and how they end."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from stage import CONTENT, ENVELOPE, GREETING, Stage, codes

from smtpd import channel, replies, tls, wire
from smtpd.model import Message, Transaction
from smtpd.replies import Reply

PATIENCE = 10.0
DROPPED = "smtpd_dropped_total"


class Client:
    """One end of a connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def hear(self) -> bytes:
        """One reply."""
        said = b""
        async with asyncio.timeout(PATIENCE):
            while not said or said.splitlines()[-1][3:4] == b"-":
                line = await self.reader.readline()
                assert line, f"the connection ended behind {said!r}"
                said += line
        return said

    async def ask(self, line: bytes) -> bytes:
        """Say one line, hear one reply."""
        self.writer.write(line + b"\r\n")
        return await self.hear()

    async def rest(self) -> bytes:
        """Everything until the server hangs up; a reset is an end like any other."""
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands."""
        await self.writer.start_tls(context, server_hostname="mx.test")

    def reset(self) -> None:
        """Vanish without a word."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def client(server: Stage, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    name = "mx.test" if tls is not None else None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls, server_hostname=name)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def settled(server: Stage) -> None:
    """Wait until the server has noticed that everybody is gone."""
    async with asyncio.timeout(PATIENCE):
        while server.count("smtpd_connections_active", listener="smtp"):  # noqa: ASYNC110 - the kernel tells it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("limit", "reply", "reason"),
    [
        ("connections_per_ip", b"421 4.7.0 mx.test Too many", "too-many-connections-from-address"),
        ("connections", b"421 4.3.2 mx.test ", "too-many-connections"),
    ],
)
async def test_connections_over_the_limit_are_put_off(limit: str, reply: bytes, reason: str) -> None:
    async with Stage(listens=True, tables={"limits": {limit: 2}}) as server:
        async with client(server) as first, client(server) as second:
            assert await first.hear() == await second.hear() == GREETING
            async with client(server) as third:
                said = await third.rest()
                assert said.startswith(reply)
        (line,) = server.events("refused")
        assert said.decode().endswith(f" [{line['trace']}]\r\n"), "every 421 can be found in the log"
        assert (line["at"], line["reason"]) == ("CONNECT", reason)
        await settled(server)
        async with client(server) as again:
            assert await again.hear() == GREETING


async def test_handshake_that_fails_ends_the_connection_and_frees_its_place(tls_tables: dict[str, Any]) -> None:
    """RFC 3207 §4: there is no way back to plain text."""
    tables = {**tls_tables, "limits": {"connections_per_ip": 1}}
    async with Stage(listens=True, listener={"tls": "starttls"}, tables=tables) as server:
        for _ in range(3):
            async with client(server) as garbage:
                assert await garbage.hear() == GREETING
                assert (await garbage.ask(b"STARTTLS")).startswith(b"220 2.0.0 ")
                garbage.writer.write(b"EHLO client.test\r\n" * 10)
                assert b"250" not in await garbage.rest()
            await settled(server)
        assert server.count(DROPPED, reason="tls-handshake") == 3


async def test_implicit_handshake_that_fails_frees_its_place(tls_tables: dict[str, Any]) -> None:
    tables = {**tls_tables, "limits": {"connections_per_ip": 1}}
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tables) as server:
        for _ in range(3):
            async with client(server) as garbage:
                garbage.writer.write(b"EHLO client.test\r\n" * 10)
                assert b"220" not in await garbage.rest()
            await settled(server)


async def test_client_that_hangs_up_before_the_handshake_is_no_fault_of_ours(tls_tables: dict[str, Any]) -> None:
    """Whoever looks whether the port is open, such as a load balancer."""
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port)):
                pass
        while server.count(DROPPED, reason="tls-handshake") + len(server.events("our-fault")) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await settled(server)
        assert not server.events("our-fault")


async def test_handshake_has_a_time_limit(tls_tables: dict[str, Any]) -> None:
    tables = {**tls_tables, "timeouts": {"tls_handshake": 0.05}}
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tables) as server:
        async with client(server) as silent:
            assert await silent.rest() == b""
        await settled(server)


@pytest.mark.parametrize("reset", [False, True])
async def test_client_that_leaves_during_the_handshake_frees_its_place(reset: bool, tls_tables: dict[str, Any]) -> None:
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        async with client(server) as leaving:
            leaving.writer.write(b"\x16\x03\x01")
            while not server.count("smtpd_connections_active", listener="smtp"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if reset:
                leaving.reset()
        await settled(server)
        assert not server.events("our-fault")


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_mail_comes_encrypted(
    tls: str, version: ssl.TLSVersion, tls_tables: dict[str, Any], trust: ssl.SSLContext
) -> None:
    trust.minimum_version = trust.maximum_version = version
    async with Stage(listens=True, listener={"tls": tls}, tables=tls_tables) as server:
        async with client(server, trust if tls == "implicit" else None) as sender:
            assert await sender.hear() == GREETING
            if tls == "starttls":
                assert b"STARTTLS" in await sender.ask(b"EHLO client.test")
                assert (await sender.ask(b"STARTTLS")).startswith(b"220 2.0.0 ")
                await sender.start_tls(trust)
            assert b"STARTTLS" not in await sender.ask(b"EHLO client.test")
            sender.writer.write(ENVELOPE + b"DATA\r\n")
            assert [codes(await sender.hear()) for _ in range(4)] == [["250"], ["250"], ["250"], ["354"]]
            assert codes(await sender.ask(CONTENT + b".")) == ["250"]
        name = version.name.replace("_", ".")
        assert server.count("smtpd_tls_connections_total", listener="smtp", version=name) == 1
        assert b" with ESMTPS\r\n\t(" + name.encode() + b" " in server.kept[0].content


async def said_to(octets: bytes, eager: Client, trust: ssl.SSLContext) -> bytes:
    """Send the end of the handshake and these octets in one piece; all that is said until QUIT is answered."""
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    encrypted, said = trust.wrap_bio(coming, going, server_hostname="mx.test"), b""
    async with asyncio.timeout(PATIENCE):
        while not said.endswith(b"221 2.0.0 Bye\r\n"):
            try:
                if octets:
                    encrypted.do_handshake()
                    encrypted.write(octets)
                    octets = b""
                while piece := encrypted.read(1 << 16):
                    said += piece
            except ssl.SSLWantReadError:
                eager.writer.write(going.read())
            if not said.endswith(b"221 2.0.0 Bye\r\n"):
                coming.write(await eager.reader.read(1 << 16))
    return said


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_much_that_comes_with_the_end_of_the_handshake_is_answered(
    tls: str, tls_tables: dict[str, Any], trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than is read ahead: the transport below was told to pause, and never to go on."""
    monkeypatch.setattr(channel, "HIGH_WATER", 1 << 12)
    async with Stage(listens=True, listener={"tls": tls}, tables=tls_tables) as server, client(server) as eager:
        if tls == "starttls":
            await eager.hear()
            await eager.ask(b"STARTTLS")
        burst = b"NOOP\r\n" * 60_000
        said = await said_to(burst + b"QUIT\r\n", eager, trust)
        assert said.count(b"250 2.0.0 Ok\r\n") == 60_000


async def test_authorities_that_cannot_be_read_are_noticed_before_the_first_handshake(
    tls_tables: dict[str, Any], trust: ssl.SSLContext, tmp_path: Path
) -> None:
    """Not by every client that comes."""
    garbage = tmp_path / "ca.pem"
    garbage.write_text("garbage")
    listener = {"tls": "implicit", "client_certificates": "optional"}
    tables = {"tls": {**tls_tables["tls"], "client_ca_file": str(garbage)}}
    with pytest.raises(tls.TlsError, match=r"ca\.pem"):
        async with Stage(listens=True, listener=listener, tables=tables):
            pass
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        with pytest.raises(tls.TlsError, match=r"ca\.pem"):
            await server.server.reload(Stage(listener=listener, tables=tables).server.config)
        async with client(server, trust) as other:
            assert await other.hear() == GREETING


async def test_old_tls_is_refused(tls_tables: dict[str, Any], trust: ssl.SSLContext) -> None:
    """RFC 8996."""
    trust.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        trust.minimum_version = trust.maximum_version = ssl.TLSVersion.TLSv1_1
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            async with client(server, trust):
                pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tickets", [False, True])
async def test_tickets_are_given_only_when_they_are_wanted(
    tickets: bool, version: ssl.TLSVersion, tls_tables: dict[str, Any], trust: ssl.SSLContext
) -> None:
    """Some senders fail on them; TLS 1.3 needs another switch than 1.2."""
    trust.minimum_version = trust.maximum_version = version
    listener = {"tls": "implicit", "session_tickets": tickets}
    async with Stage(listens=True, listener=listener, tables=tls_tables) as server, client(server, trust) as sender:
        await sender.hear()
        await sender.ask(b"NOOP")
        session = sender.writer.get_extra_info("ssl_object").session
        assert (session is not None and session.has_ticket) == tickets


async def test_tls_hello_on_a_plain_port_is_dropped_counted_and_logged() -> None:
    async with Stage(listens=True) as server:
        async with client(server) as confused:
            assert await confused.hear() == GREETING
            confused.writer.write(b"\x16\x03\x01\x00\x05hello")
            assert await confused.rest() == b""
        await settled(server)
        assert server.count(DROPPED, reason="tls-on-plain-port") == 1
        (line,) = server.events("dropped")
        assert (line["listener"], line["ip"], line["reason"]) == ("smtp", "127.0.0.1", "tls-on-plain-port")


@pytest.mark.parametrize("behind", [b"x", b"MAIL FROM:<evil@client.test>\r\n", b"\x16\x03\x01"])
async def test_octets_behind_starttls_are_an_attack(behind: bytes, tls_tables: dict[str, Any]) -> None:
    """CVE-2011-0411: no handshake follows."""
    async with Stage(listens=True, listener={"tls": "starttls"}, tables=tls_tables) as server:
        async with client(server) as evil:
            await evil.hear()
            evil.writer.write(b"STARTTLS\r\n" + behind)
            assert (await evil.rest()).startswith(b"554 5.5.1 ")
        await settled(server)
        assert server.count(DROPPED, reason="tls-injection") == 1
        assert not server.count("smtpd_tls_connections_total", listener="smtp", version="TLSv1.3")


async def test_http_is_dropped_and_counted() -> None:
    async with Stage(listens=True) as server:
        async with client(server) as browser:
            await browser.hear()
            browser.writer.write(b"GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n")
            assert await browser.rest() == b""
        assert server.count(DROPPED, reason="http") == 1


async def test_client_that_never_reads_is_not_read_for_ever() -> None:
    async with Stage(listens=True) as server:
        deaf = socket.create_connection(("127.0.0.1", server.port))
        deaf.setblocking(False)
        sent, idle = 0, 0
        while idle < 20:
            try:
                sent += deaf.send(b"HELP\r\n" * 10_000)
                idle = 0
            except BlockingIOError:
                idle += 1
            await asyncio.sleep(0.005)
            assert sent < 64 << 20, "it is read, and so the answers pile up"
        deaf.close()
        await settled(server)


class Deaf(asyncio.Transport):
    """Something is always left to send."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234), "sockname": ("192.0.2.2", 25)})
        self.aborted = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 100

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def abort(self) -> None:
        self.aborted.set()


async def test_client_that_does_not_take_our_last_words_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little it has left unread: it could sit there for ever otherwise."""
    monkeypatch.setattr(wire, "LAST_WORDS", 0.001)
    async with Stage(listens=True, tables={"limits": {"connections_per_ip": 1}}) as server:
        (gate,) = server.server._gates.values()
        for octets in (b"QUIT\r\n", b""):  # the second one is put off at once
            deaf = Deaf()
            connection = wire.Connection(gate, asyncio.get_running_loop())
            connection.connection_made(deaf)
            connection.data_received(octets)
            async with asyncio.timeout(PATIENCE):
                await deaf.aborted.wait()
        gate.limits.release("192.0.2.1")


async def test_client_that_is_reset_during_delivery_gets_its_message_delivered() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(mail: Transaction, message: Message) -> Reply:
        begun.set()
        await go_on.wait()
        return replies.ACCEPTED

    async with Stage(listens=True, answer=slowly) as server:
        async with client(server) as sender:
            sender.writer.write(ENVELOPE + b"DATA\r\n")
            for _ in range(5):
                await sender.hear()
            sender.writer.write(CONTENT + b".\r\n")
            await begun.wait()
            sender.reset()
        await settled(server)
        assert not server.kept
        go_on.set()
    assert len(server.kept) == 1
    assert not server.events("our-fault")


@pytest.mark.parametrize("proxy_protocol", [(), ("192.0.2.0/24",)])
async def test_client_that_vanishes_before_it_is_met_is_taken_for_nobody_else(proxy_protocol: tuple[str, ...]) -> None:
    """Nobody can tell its address any more; it must not pass for that of this very machine, which is trusted."""
    async with Stage(listens=True, listener={"proxy_protocol": proxy_protocol}) as server:
        for _ in range(8):  # all before the event loop has its next turn
            with socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0)) as stranger:
                stranger.sendall(ENVELOPE + b"DATA\r\n" + CONTENT + b".\r\n")
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with client(server) as last:
            assert await last.hear() == GREETING
            assert (await last.ask(b"QUIT")).startswith(b"221 ")
        await settled(server)
        assert not [line for line in server.events("message") if line["ip"] != "127.0.0.2"]
        assert not server.events("our-fault")


async def test_stopping_says_goodbye_to_idle_clients() -> None:
    """RFC 5321 §3.8."""
    async with Stage(listens=True) as server, client(server) as idle:
        await idle.hear()
        ending = asyncio.create_task(server.server.drain())
        assert (await idle.rest()).startswith(b"421 4.3.2 mx.test is shutting down")
        await ending
