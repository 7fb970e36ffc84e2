"""Listeners for load balancers: their limits, their health checks, and how they start, change and end."""

import asyncio
import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from bare import (
    BALANCED,
    DROPPED,
    HEADERS,
    INNER,
    LOCAL,
    PATIENCE,
    V1,
    V2,
    Client,
    client,
    listener,
    settled,
    turns,
    until,
)  # fmt: skip
from proxy_headers import GOOD
from stage import GREETING, Stage

from smtpd import acceptor


async def test_limits_are_those_of_the_client_behind() -> None:
    others = GOOD["v1 tcp6"][0]
    tables = {"limits": {"connections_per_ip": 1}}
    async with Stage(listens=True, listener=BALANCED, tables=tables) as server:
        async with client(server, V1) as first, client(server, others) as other:
            assert await first.hear() == await other.hear() == GREETING
            async with client(server, V2) as second:
                assert (await second.rest()).startswith(b"421 4.7.0 mx.test Too many connections from 203.0.113.7")
        assert [line["ip"] for line in server.events("refused")] == [INNER]
        await settled(server)
        async with client(server, V2) as again:
            assert await again.hear() == GREETING


@pytest.mark.parametrize("tls", ["off", "implicit"])
async def test_health_checks_leave_no_line_in_the_log(tls: str, tls_tables: dict[str, Any]) -> None:
    """Nor do they count as anything but themselves: they come all the time."""
    async with Stage(listens=True, listener=listener(tls=tls), tables=tls_tables) as server:
        async with client(server, LOCAL):
            pass
        async with client(server):
            pass  # a bare look whether the port is open
        checks = 1
        if tls == "off":
            checks = 2
            async with client(server, LOCAL) as check:
                assert await check.hear() == GREETING
                assert (await check.ask(b"EHLO balancer.test")).startswith(b"250")
                assert (await check.ask(b"QUIT")).startswith(b"221")
                assert await check.rest() == b""
        await until(lambda: server.count(HEADERS, listener="smtp", kind="none") == 1)
        await settled(server)
        assert server.count(HEADERS, listener="smtp", kind="local") == checks
        for reason in ("tls-handshake", "proxy-malformed", "proxy-timeout"):
            assert server.count(DROPPED, reason=reason) == 0
        assert [entry["event"] for entry in server.entries if entry["event"] not in ("listening", "ready")] == []


async def test_balancer_is_not_waited_for_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_WAITING_PER_PEER", 2)
    async with Stage(listens=True, listener=BALANCED) as server, client(server, b"") as first, client(server, b"P"):
        async with client(server) as third:
            assert await third.rest() == b""
        assert server.count(DROPPED, reason="proxy-too-many") == 1
        await first.say(V1)
        assert await first.hear() == GREETING
        async with client(server, V1) as fourth:
            assert await fourth.hear() == GREETING


async def test_all_balancers_together_are_not_waited_for_without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MAX_WAITING", 1)
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, b"P"), client(server) as second:
            assert await second.rest() == b""
        assert server.count(DROPPED, reason="proxy-too-many") == 1


async def test_stopping_hangs_up_on_those_who_have_not_introduced_themselves() -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        port = server.port
        async with client(server, V1[:9]) as half, client(server, V1) as whole:
            assert await whole.hear() == GREETING
            ending = asyncio.create_task(server.server.drain())
            assert await half.rest() == b""
            assert (await whole.rest()).startswith(b"421 4.3.2 mx.test is shutting down")
            await ending
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert not server.events("dropped")


async def test_server_can_be_started_again() -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        async with client(server, b"P"):
            await server.server.stop()
        await server.server.start()
        async with client(server, V1) as balanced:
            assert await balanced.hear() == GREETING


def table(networks: list[str]) -> Any:
    return Stage(listener={"proxy_protocol": networks}).server.config


async def test_other_balancers_need_no_restart() -> None:
    async with Stage(listens=True, listener=BALANCED) as server:
        await server.server.reload(table(["192.0.2.0/24"]))
        async with client(server) as direct:
            assert await direct.hear() == GREETING
        await server.server.reload(table([]))
        async with client(server) as direct:
            assert await direct.hear() == GREETING
        await server.server.reload(table(["127.0.0.1"]))
        async with client(server, V2) as balanced:
            assert await balanced.hear() == GREETING
        assert not server.events("restart-needed")


async def test_first_balancer_needs_a_restart_and_the_log_says_so() -> None:
    async with Stage(listens=True) as server:
        for expected in (1, 2):
            await server.server.reload(table(["127.0.0.1"]))
            assert [line["listener"] for line in server.events("restart-needed")] == ["smtp"] * expected


async def test_listener_that_is_gone_after_a_reload_takes_nobody() -> None:
    both = {"listeners": {name: {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off", **BALANCED} for name in "ab"}}
    async with Stage(tables=both, listens=True) as server:
        port = server.server.port("b")
        await server.server.reload(Stage(tables={"listeners": {"a": both["listeners"]["a"]}}).server.config)
        await turns()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        assert [line["listener"] for line in server.events("listener-closed")] == ["b"]


async def test_reload_that_would_close_every_listener_is_refused() -> None:
    async with Stage(listens=True) as server:
        renamed = {"listeners": {"other": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}}}
        with pytest.raises(OSError, match="all listeners would be closed"):
            await server.server.reload(Stage(tables=renamed).server.config)
        async with client(server) as direct:
            assert await direct.hear() == GREETING


async def test_accepting_goes_on_when_there_are_descriptors_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "PAUSE", 0.01)
    async with Stage(listens=True, listener=BALANCED) as server:
        loop, limits = asyncio.get_running_loop(), resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as bare:
            bare.setblocking(False)
            lowest = os.dup(bare.fileno())
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                await loop.sock_connect(bare, ("127.0.0.1", server.port))
                await until(lambda: server.events("accept-failed"))
                await asyncio.sleep(0.05)  # several attempts
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await loop.sock_sendall(bare, V1)
            assert await Client(bare).hear() == GREETING
        (line,) = server.events("accept-failed")
        assert line["problem"] == "Too many open files"


async def test_unix_socket_may_belong_to_a_balancer(directory: Path) -> None:
    path = directory / "smtp.sock"
    async with Stage(listens=True, listener=listener(address=f"unix:{path}")) as server:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as bare:
            bare.setblocking(False)
            await loop.sock_connect(bare, str(path))
            await loop.sock_sendall(bare, V2)
            assert await Client(bare).hear() == GREETING
        assert server.events("connected")[0]["ip"] == INNER
