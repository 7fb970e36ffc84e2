"""What the process does for the server before it starts."""

import sys
from collections.abc import Callable
from pathlib import Path

from conftest import Server

Serve = Callable[..., Server]


def python_with(limit: str, directory: Path) -> str:
    """A Python whose descriptors are limited, as arguments of the shell's `ulimit` say."""
    wrapper = directory / "python"
    wrapper.write_text(f'#!/bin/sh\nulimit {limit} && exec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return str(wrapper)


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


def test_limit_that_is_enough_stays(serve: Serve, directory: Path) -> None:
    server = serve({"smtpd": {"limits": {"connections": 10}}}, python=python_with("-S -n 800", directory))
    assert soft_limit(server) == 800
