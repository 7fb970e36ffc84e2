"""A private HAProxy in TCP mode: one port for each listener of our servers, and one that believes in PROXY headers."""

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.conftest import PATIENCE, Server
from tests.interop.dovecot import free_port
from tests.interop.programs import Daemon

SETTINGS = """\
global
  stats socket {home}/stats mode 600
defaults
  mode tcp
  balance roundrobin
  retries 3
  option redispatch
  timeout connect 5s
  timeout check 5s
  timeout client 60s
  timeout server 60s
"""
LISTENER = """\
frontend {name}
  bind 127.0.0.1:{port}
  bind 127.0.0.1:{believing} accept-proxy
  default_backend {name}
backend {name}
  {check}
"""
SERVER = "  server {node} 127.0.0.1:{port} send-proxy-v2 check check-send-proxy {more} inter 100ms fall 1 rise 1\n"
SMTP = "option smtpchk EHLO balancer.test"

type Check = tuple[str, str]
"""How servers are checked: a line of the backend, and words for each server; both may be empty."""


class Haproxy:
    """In front of several servers of ours; `checks` names their listeners that are reached through it."""

    def __init__(self, program: str, home: Path, nodes: Mapping[str, Server], checks: Mapping[str, Check]) -> None:
        home.mkdir()
        self._home = home
        self._ports = {name: (free_port(), free_port()) for name in checks}
        text = SETTINGS.format(home=home)
        for name, (check, more) in checks.items():
            port, believing = self._ports[name]
            text += LISTENER.format(name=name, port=port, believing=believing, check=check)
            lines = (SERVER.format(node=node, port=server.port(name), more=more) for node, server in nodes.items())
            text += "".join(lines)
        (home / "haproxy.cfg").write_text(text, encoding="ascii")
        self.daemon = Daemon(program, "-db", "-f", home / "haproxy.cfg")
        self.wait_until({(name, node): "UP" for name in checks for node in nodes})

    def port(self, listener: str, *, believing: bool = False) -> int:
        """Where clients connect; with `believing` they begin with a PROXY header of their own."""
        return self._ports[listener][believing]

    def wait_until(self, wanted: Mapping[tuple[str, str], str]) -> None:
        """Wait until it has checked servers, and thinks so of each (listener, node)."""
        end = time.monotonic() + PATIENCE
        while not wanted.items() <= (known := self._known()).items():
            assert self.daemon.process.poll() is None, "".join(self.daemon.lines)
            assert time.monotonic() < end, known

    def _known(self) -> dict[tuple[str, str], str]:
        """Whether servers are "UP" or "DOWN", as soon as they have been checked."""
        text = b""
        with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._home / "stats"))
            control.sendall(b"show stat\n")
            while octets := control.recv(65536):
                text += octets
        names, *rows = [line.split(",") for line in text.decode().splitlines() if line] or [["# pxname"]]
        table = [dict(zip(names, row, strict=False)) for row in rows]
        checked = [row for row in table if row["check_status"].startswith("L")]  # as in "L4OK", "L6OK", "L7STS"
        return {(row["# pxname"], row["svname"]): row["status"] for row in checked}
