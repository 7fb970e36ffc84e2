"""XCLIENT on a connection: whose it is, changes; the filters see a client come and another one go."""

import asyncio
import socket
import struct
from typing import Any

import pytest
from bare import V1, client, settled, until
from stage import CONTENT, ENVELOPE, GREETING, Stage

from smtpd import replies
from smtpd.model import Message, Session, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

FRONTED = {"xclient": ["127.0.0.1"]}
CONNECTIONS = "smtpd_connections_total"


async def test_connection_counts_for_the_client_that_is_named() -> None:
    tables = {"limits": {"connections_per_ip": 1}}
    async with Stage(listens=True, listener=FRONTED, tables=tables) as server:
        async with client(server) as first:
            assert await first.hear() == GREETING
            assert await first.ask(b"XCLIENT ADDR=203.0.113.9") == GREETING
            async with client(server) as second:
                assert await second.hear() == GREETING, "the program in front of us has its place again"
                said = await second.ask(b"XCLIENT ADDR=203.0.113.9")
                assert said.startswith(b"421 4.7.0 mx.test Too many connections from 203.0.113.9 [")
                assert await second.rest() == b""
        await settled(server)
        async with client(server) as third:
            await third.hear()
            assert await third.ask(b"XCLIENT ADDR=203.0.113.9") == GREETING
        assert server.count(CONNECTIONS, listener="smtp", ip="203.0.113.9") == 2
        assert server.count("smtpd_connections_refused_total", listener="smtp", reason="address") == 1
        assert server.server._limits.active <= 1
        await settled(server)


async def test_log_tells_of_both_clients() -> None:
    async with Stage(listens=True, listener=FRONTED) as server:
        async with client(server) as proxy:
            await proxy.hear()
            await proxy.ask(b"XCLIENT ADDR=203.0.113.9")
        await settled(server)
        for event in ("connected", "disconnected"):
            assert [line["ip"] for line in server.events(event)] == ["127.0.0.1", "203.0.113.9"]
        sessions = [line["session"] for line in server.events("disconnected")]
        assert sessions == [line["session"] for line in server.events("connected")]
        assert len(set(sessions)) == 2


async def test_permission_belongs_to_the_one_who_connected() -> None:
    """Neither does a client gain it by being named, nor does the program in front lose it."""
    async with Stage(listens=True, listener=FRONTED) as server, client(server) as proxy:
        await proxy.hear()
        for number in (b"1", b"2"):
            assert await proxy.ask(b"XCLIENT ADDR=203.0.113." + number) == GREETING
    async with Stage(listens=True, listener={"xclient": ["203.0.113.9"]}) as server, client(server) as other:
        await other.hear()
        assert (await other.ask(b"XCLIENT ADDR=203.0.113.9")).startswith(b"550 5.7.0 ")


@pytest.mark.parametrize(("networks", "code"), [(["203.0.113.0/24"], b"220"), (["127.0.0.1"], b"550")])
async def test_behind_a_balancer_the_inner_address_may(networks: list[str], code: bytes) -> None:
    listener: dict[str, Any] = {"proxy_protocol": ["127.0.0.1"], "xclient": networks}
    async with Stage(listens=True, listener=listener) as server, client(server, V1) as proxy:
        await proxy.hear()
        assert (await proxy.ask(b"XCLIENT ADDR=192.0.2.9")).startswith(code)


async def test_trust_is_looked_up_for_the_client_that_is_named() -> None:
    seen: list[tuple[str, bool]] = []

    class Watch(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            seen.append((session.ip_text, session.trusted))
            return PASS

    tables = {"trusted_networks": ["192.0.2.1"]}
    listener = {"xclient": ["192.0.2.1"]}
    async with Stage(listener=listener, tables=tables, filters={"watch": Watch}) as server:
        talk = server.talk(ip="192.0.2.1")
        await talk.hear()
        await talk.say(b"XCLIENT ADDR=203.0.113.9\r\nXCLIENT ADDR=192.0.2.1\r\n")
        await talk.hang_up()
    assert seen == [("192.0.2.1", True), ("203.0.113.9", False), ("192.0.2.1", True)]


async def test_every_client_is_seen_to_come_and_to_go() -> None:
    seen: list[str] = []

    class Watch(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            seen.append(f"+{session.ip_text}")
            return PASS

        async def on_close(self, session: Session) -> None:
            seen.append(f"-{session.ip_text}")

    async with Stage(listener={"xclient": ["192.0.2.1"]}, filters={"watch": Watch}) as server:
        talk = server.talk(ip="192.0.2.1")
        await talk.say(b"XCLIENT ADDR=203.0.113.9\r\nQUIT\r\n")
    assert sorted(seen) == ["+192.0.2.1", "+203.0.113.9", "-192.0.2.1", "-203.0.113.9"]


async def test_name_that_a_filter_wants_to_judge_at_helo_has_to_be_said_there() -> None:
    """MAIL could follow at once otherwise, and the filter would never have seen it."""

    class Judge(Filter):
        async def on_helo(self, session: Session) -> Verdict:
            return Verdict(replies.DENIED_HELO(helo=session.helo)) if session.helo == "bad.test" else PASS

    async with Stage(listener={"xclient": ["192.0.2.1"]}, filters={"judge": Judge}) as server:
        talk = server.talk(ip="192.0.2.1")
        await talk.say(b"XCLIENT ADDR=203.0.113.9 HELO=bad.test PROTO=ESMTP\r\n")
        assert (await talk.say(b"MAIL FROM:<joe@client.test>\r\n")).startswith(b"503 5.5.1 ")
        await talk.say(b"EHLO bad.test\r\nMAIL FROM:<joe@client.test>\r\n")
        assert (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).startswith(b"550 5.7.1 ")
        await talk.hang_up()


async def test_client_lost_during_delivery_is_nobody_else_any_more() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(mail: Transaction, message: Message) -> Reply:
        begun.set()
        await go_on.wait()
        return replies.ACCEPTED

    async with Stage(listens=True, listener=FRONTED, answer=slowly) as server:
        async with client(server) as proxy:
            await proxy.hear()
            await proxy.say(ENVELOPE + b"DATA\r\n" + CONTENT + b".\r\nXCLIENT ADDR=203.0.113.9\r\n")
            await begun.wait()
            proxy.bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await settled(server)
        go_on.set()
        await until(lambda: server.events("disconnected"))
        assert len(server.kept) == 1
        assert not server.events("our-fault")
