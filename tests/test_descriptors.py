"""What the process does for the descriptors it needs, and without them."""

import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Server, python_behind

Serve = Callable[..., Server]


def python_with(limit: str, directory: Path) -> str:
    """A Python whose descriptors are limited, as arguments of the shell's `ulimit` say."""
    return python_behind(f"ulimit {limit}", directory)


def soft_limit(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("Max open files")).split()[3])


def test_server_takes_the_descriptors_its_connections_can_need(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 100}}}, python=python_with("-S -n 300", directory))
    assert soft_limit(server) == 700
    assert server.events("few-descriptors") == []


def test_server_that_cannot_have_enough_descriptors_says_so(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 100}}}, python=python_with("-n 600", directory))
    (line,) = server.events("few-descriptors")
    assert (line["limit"], line["wanted"], soft_limit(server)) == (600, 700, 600)


def test_reload_takes_the_descriptors_that_more_connections_can_need(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 100}}}, python=python_with("-S -n 300", directory))
    text = server.config.read_text()
    server.config.write_text(text.replace('"connections" = 100', '"connections" = 200'))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    assert soft_limit(server) == 900
    server.config.write_text(text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded", 2)
    assert soft_limit(server) == 900  # there may be more than 100 connections yet


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_server_without_a_descriptor_left_says_so(serve: Serve, directory: Path, loop: str) -> None:
    table = {"event_loop": loop, "limits": {"connections_per_ip": 0}}
    server = serve({"smtpd": table}, python=python_with("-n 64", directory))
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port("smtp"))))
        assert server.wait_for("no-descriptors")["problem"] == "Too many open files"


def test_limit_that_is_enough_stays(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 10}}}, python=python_with("-S -n 800", directory))
    assert soft_limit(server) == 800


def test_connections_without_limit_get_more_descriptors_than_limited_ones(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 0}}}, python=python_with("-S -n 300", directory))
    hard = int(Path(f"/proc/{server.process.pid}/limits").read_text().partition("Max open files")[2].split()[1])
    assert soft_limit(server) == min(hard, 60_500)
    assert server.events("few-descriptors") == []
