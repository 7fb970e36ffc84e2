"""Who is behind a load balancer, and that nobody else may speak for others."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import pytest
from bare import BALANCED, DROPPED, HEADERS, INNER, V1, V2, Client, client, listener, settled, turns
from proxy_headers import BAD, GOOD
from stage import CONTENT, ENVELOPE, GREETING, Stage

from smtpd import acceptor
from smtpd.model import Session
from smtpd.policy import PASS, Filter, Verdict
from smtpd.proxy import Origin

each_version = pytest.mark.parametrize("header", [pytest.param(V1, id="v1"), pytest.param(V2, id="v2")])


@pytest.mark.parametrize(("header", "origin"), [pytest.param(*case, id=name) for name, case in GOOD.items()])
async def test_client_behind_the_balancer_is_the_one_that_counts(header: bytes, origin: Origin) -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, header) as balanced:
            assert await balanced.hear() == GREETING
            await balanced.say(ENVELOPE + b"DATA\r\n" + CONTENT + b".\r\nQUIT\r\n")
            assert b"\r\n250 2.0.0 Ok, delivered" in await balanced.rest()
        ip = "127.0.0.1" if origin.source is None else str(origin.source)
        (line,) = server.events("message")
        assert line["ip"] == ip
        shown = f"IPv6:{ip}" if ":" in ip else ip
        assert f"[{shown}]".encode() in server.kept[0].content
        assert server.count(HEADERS, listener="smtp", kind=origin.kind) == 1
        if origin.kind != "local":
            assert server.events("connected")[0]["ip"] == ip
            assert server.count("smtpd_connections_total", listener="smtp", ip=ip) == 1


async def test_both_ends_are_those_that_the_client_sees() -> None:
    seen: list[Session] = []

    class Watch(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            seen.append(session)
            return PASS

    tables = {"trusted_networks": ["127.0.0.0/8", "2001:db8::/64"]}
    async with Stage(listens=True, listener=BALANCED, tables=tables, filters={"watch": Watch}) as server:
        for name in ("v2 inet", "v2 inet6", "v2 unspecified"):
            async with client(server, GOOD[name][0]) as balanced:
                assert await balanced.hear() == GREETING
        port = server.port
    first, second, third = seen
    assert (str(first.ip), first.port, first.local_ip, first.local_port) == (INNER, 4321, "192.0.2.1", 25)
    assert (str(second.ip), second.port, second.local_ip, second.local_port) == (
        "2001:db8::7", 4321, "2001:db8::1", 465,
    )  # fmt: skip
    assert (str(third.ip), third.local_ip, third.local_port) == ("127.0.0.1", "127.0.0.1", port)
    assert [session.trusted for session in seen] == [False, True, True], "a balancer lends nobody its trust"


@pytest.mark.parametrize("header", [pytest.param(octets, id=name) for name, octets in BAD.items()])
async def test_whatever_is_no_header_ends_the_connection(header: bytes) -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, header) as broken:
            assert await broken.rest() == b""
        assert server.count(DROPPED, reason="proxy-malformed") == 1
        (line,) = server.events("dropped")
        assert (line["ip"], line["reason"]) == ("127.0.0.1", "proxy-malformed")
        assert line["problem"]
        assert not server.events("connected")


class Handshake:
    """A TLS client whose octets go where we want them."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._incoming, self._outgoing, server_hostname="mx.test")
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.hello = self._outgoing.read()

    async def read(self, connection: Client) -> bytes:
        """Shake hands, and hear what is said behind."""
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return self._tls.read()
            await connection.say(self._outgoing.read())
            octets = await connection.octets()
            assert octets, "the connection ended"
            self._incoming.write(octets)


@pytest.mark.parametrize("name", ["v1 tcp4", "v1 tcp6", "v1 unknown", "v2 inet", "v2 inet6", "v2 local"])
async def test_handshake_may_begin_in_the_segment_of_the_header(
    name: str, tls_tables: dict[str, Any], trust: ssl.SSLContext
) -> None:
    """Wherever the header is cut, the whole of the handshake is left for TLS."""
    header, origin = GOOD[name]
    async with Stage(listens=True, listener=listener(tls="implicit"), tables=tls_tables) as server:
        for cut in range(len(header) + 1):
            handshake = Handshake(trust)
            said = (header[:cut], header[cut:] + handshake.hello) if cut else (header + handshake.hello,)
            async with client(server, *said) as balanced:
                assert await handshake.read(balanced) == GREETING
        assert server.count(HEADERS, listener="smtp", kind=origin.kind) == len(header) + 1
        assert server.count(DROPPED, reason="proxy-malformed") == 0


@each_version
async def test_header_may_come_octet_by_octet(header: bytes) -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        pieces = [header[position : position + 1] for position in range(len(header))]
        async with client(server, *pieces) as slow:
            assert await slow.hear() == GREETING
        assert server.events("connected")[0]["ip"] == INNER


@each_version
async def test_pipeline_behind_the_header_is_heard(header: bytes) -> None:
    said = header + b"EHLO client.test\r\nQUIT\r\n"
    async with Stage(listens=True, listener=BALANCED) as server, client(server, said) as hasty:
        assert (await hasty.rest()).endswith(b"221 2.0.0 Bye\r\n")


@pytest.mark.parametrize("said", [b"", b"PROXY TCP4 ", V2[:-1]])
async def test_header_has_a_time_limit(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HEADER_SECONDS", 0.05)
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server) as silent:
            await silent.say(said)
            assert await silent.rest() == b""
        assert server.count(DROPPED, reason="proxy-timeout") == 1
        assert [line["reason"] for line in server.events("dropped")] == ["proxy-timeout"]


async def test_octets_now_and_then_do_not_stretch_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "HEADER_SECONDS", 0.05)
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, b"PROXY UNKNOWN ") as dripping:

            async def drip() -> None:
                for _ in range(90):
                    await dripping.say(b"x")
                    await asyncio.sleep(0.01)

            dropping = asyncio.create_task(drip())
            assert await dripping.rest() == b""
            with pytest.raises(ConnectionError):  # before it came to its end
                await dropping
        assert server.count(DROPPED, reason="proxy-timeout") == 1


async def test_header_that_is_cut_off_by_the_end_is_counted() -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, V1[:20]) as leaving:
            leaving.bare.shutdown(socket.SHUT_WR)
            assert await leaving.rest() == b""
        assert server.count(DROPPED, reason="proxy-malformed") == 1


async def test_who_is_no_balancer_speaks_smtp() -> None:
    async with Stage(listens=True, listener={"proxy_protocol": ["192.0.2.0/24"]}) as server:
        async with client(server) as direct:
            assert await direct.hear() == GREETING
            assert (await direct.ask(b"EHLO client.test")).startswith(b"250")
        assert server.events("connected")[0]["ip"] == "127.0.0.1"


@each_version
@pytest.mark.parametrize("piece", [0, 1])
@pytest.mark.parametrize("networks", [[], ["192.0.2.0/24"]], ids=["nobody", "others"])
async def test_nobody_else_may_speak_for_others(header: bytes, piece: int, networks: list[str]) -> None:
    async with Stage(listens=True, listener={"proxy_protocol": networks}) as server:
        step = piece or len(header)
        pieces = [header[position : position + step] for position in range(0, len(header), step)]
        async with client(server) as forger:
            assert await forger.hear() == GREETING
            with contextlib.suppress(ConnectionError):
                for octets in pieces:
                    await forger.say(octets)
                    await turns()
            assert b"220" not in await forger.rest()
        await settled(server)
        assert server.count(DROPPED, reason="proxy-not-expected") == 1
        assert [line["ip"] for line in server.events("dropped")] == ["127.0.0.1"]


async def test_client_behind_a_balancer_may_not_speak_for_others_either() -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, V1 + GOOD["v1 tcp6"][0] + b"EHLO client.test\r\n") as forger:
            assert b"250" not in await forger.rest()
        await settled(server)
        (line,) = server.events("dropped")
        assert (line["ip"], line["reason"]) == (INNER, "proxy-not-expected")


async def test_forged_header_in_front_of_tls_ends_the_connection(tls_tables: dict[str, Any]) -> None:
    async with Stage(listens=True, listener={"tls": "implicit"}, tables=tls_tables) as server:
        async with client(server, V1) as forger:
            assert b"220" not in await forger.rest()
        await settled(server)
        assert server.count(DROPPED, reason="tls-handshake") == 1


@pytest.mark.parametrize("word", [b"PROXYABLE\r\n", b"PROX\r\n", b"\r\n\r\n", b"PROXY\r\n"])
async def test_what_only_looks_like_a_header_is_an_unknown_command(word: bytes) -> None:
    async with Stage(listens=True) as server:
        async with client(server, word) as confused:
            await confused.say(b"QUIT\r\n")
            assert (await confused.rest()).endswith(b"221 2.0.0 Bye\r\n")
        assert server.count(DROPPED, reason="proxy-not-expected") == 0
