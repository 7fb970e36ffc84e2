"""What comes in one piece with the end of a handshake, and what the end of an encrypted connection looks like."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
from letters import Mailboxes
from stage import CONTENT, ENVELOPE, GREETING, Stage

from smtpd import wire
from smtpd.channel import HIGH_WATER

PATIENCE = 10.0


@contextlib.asynccontextmanager
async def shaking_hands(
    server: Stage, trust: ssl.SSLContext
) -> AsyncIterator[tuple[socket.socket, ssl.SSLObject, ssl.MemoryBIO]]:
    """A socket, and what makes octets for it; the last ones of the handshake are not sent yet."""
    loop, incoming, outgoing = asyncio.get_running_loop(), ssl.MemoryBIO(), ssl.MemoryBIO()
    encrypted = trust.wrap_bio(incoming, outgoing, server_hostname="mx.test")
    with socket.create_connection(("127.0.0.1", server.port)) as ours:
        ours.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            encrypted.do_handshake()
        await loop.sock_sendall(ours, outgoing.read())
        while encrypted.version() is None or not outgoing.pending:
            incoming.write(await loop.sock_recv(ours, 1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                encrypted.do_handshake()
        yield ours, encrypted, outgoing


async def test_much_mail_right_behind_the_handshake_is_read_to_its_end(
    tls_tables: dict[str, Any], trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before the loop gives us the encrypted transport, and nobody resumes one that was paused before."""
    monkeypatch.setattr("smtpd.channel.HIGH_WATER", 1 << 14)  # as with a kernel that takes much for us at once
    content = CONTENT + (b"x" * 98 + b"\r\n") * 2000
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        async with shaking_hands(server, trust) as (hasty, encrypted, outgoing), asyncio.timeout(PATIENCE):
            encrypted.write(ENVELOPE + b"DATA\r\n" + content + b".\r\nQUIT\r\n")
            octets = outgoing.read()
            sent = hasty.send(octets[: 1 << 15])  # there before anybody looks
            await asyncio.get_running_loop().sock_sendall(hasty, octets[sent:])
            while not server.kept:  # noqa: ASYNC110 - the kernel tells it
                await asyncio.sleep(0.005)
        assert server.kept[0].received == content


async def test_client_that_leaves_right_behind_the_handshake_is_worth_no_warning(
    tls_tables: dict[str, Any], trust: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"listener": {"tls": "implicit"}, "tables": tls_tables}
    async with Stage(listens=True, **options) as server, shaking_hands(server, trust) as (hasty, encrypted, outgoing):
        with pytest.raises(ssl.SSLWantReadError):
            encrypted.unwrap()
        hasty.send(outgoing.read())
        while not server.events("connected"):  # noqa: ASYNC110 - the kernel tells it
            await asyncio.sleep(0.005)
        assert await asyncio.get_running_loop().sock_recv(hasty, 1 << 16)
    assert not caplog.messages


async def test_hanging_up_on_a_client_that_is_already_gone_is_no_error(
    tls_tables: dict[str, Any], trust: ssl.SSLContext
) -> None:
    """The loop knows that an encrypted connection is lost a turn before we do."""
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust, server_hostname="mx.test")
        with contextlib.closing(writer):
            assert await reader.readline() == GREETING
            (connection,) = (channel._transport for channel in server.server._gates["smtp"].channels)
            assert isinstance(connection, wire.Connection)
            for _ in range(2):
                connection.close()
            assert await reader.read() == b""


async def test_client_that_ends_encryption_without_a_word_while_it_is_not_read_loses_its_place(
    tls_tables: dict[str, Any], trust: ssl.SSLContext
) -> None:
    """The loop looks at the end of a paused connection when it is read again, and at no other time."""
    store = Mailboxes(holds=True)
    options: dict[str, Any] = {"listener": {"tls": "implicit"}, "tables": tls_tables, "answer": store.answer}
    async with Stage(listens=True, **options) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust, server_hostname="mx.test")
        with contextlib.closing(writer):
            writer.write(ENVELOPE + b"DATA\r\n" + CONTENT + b".\r\nQUIT\r\n" + b"x" * 2 * HIGH_WATER)
            await store.begun.wait()
            (channel,) = server.server._gates["smtp"].channels
            while not channel._paused:  # noqa: ASYNC110 - the kernel tells it
                await asyncio.sleep(0.005)
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
                raw.shutdown(socket.SHUT_WR)
            for _ in range(100):  # turns of the loop, to hear of it
                await asyncio.sleep(0)
            store.go_on.set()
            async with asyncio.timeout(PATIENCE):
                while server.count("smtpd_connections_active", listener="smtp"):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
