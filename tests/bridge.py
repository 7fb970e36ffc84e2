"""Controllers of aiosmtpd with our conversation: for dialogs, shared by a whole test run, and one at a time."""

import json
import smtplib
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dialogue
from aiosmtpd.controller import BaseController
from dialogue import Dialog, Mailboxes
from log_lines import Lines

from smtpd.aiosmtpd import Controller
from smtpd.config import from_tables
from smtpd.log import Log
from tests.conftest import Certificates, default_tables, merge, write_users

HERE = "127.0.0.1"
PATIENCE = 30.0  # seconds
MAIL = "From: <bob@sender.test>\r\nSubject: Hello\r\n\r\nHello.\r\n"


class Bridges:
    """Starts controllers, one for all who ask for the same; at the end none may have complained of anything."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._stack = ExitStack()
        self._running: dict[str, tuple[int, Mailboxes]] = {}
        self._lines = Lines()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        assert [line for line in self._lines.entries if line["level"] == "error"] == []

    def start(self, dialog: Dialog, *, tls: bool = False) -> tuple[int, Mailboxes]:
        """A port, and mailboxes that are empty; `tls`: the controller shakes hands, and the listener knows of none."""
        key = json.dumps([dialog.tables, dialog.listener, tls], sort_keys=True)
        if key not in self._running:
            self._running[key] = self._start(dialog, tls=tls)
        self._running[key][1].clear()
        return self._running[key]

    def _start(self, dialog: Dialog, *, tls: bool) -> tuple[int, Mailboxes]:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="t-", dir="/tmp")))
        write_users(directory)
        tables = merge(
            default_tables(directory, self._certificates)["smtpd"],
            {"listeners": dialogue.listeners(), **dialogue.CONFIG, **dialog.tables, "metrics": {"enabled": False}},
        )
        more: dict[str, Any] = {}
        if tls:
            more["ssl_context"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            more["ssl_context"].load_cert_chain(self._certificates.cert_file, self._certificates.key_file)
        config = from_tables(tables)
        log = Log(config.log, sink=self._lines)
        self._stack.callback(log.close)
        controller = Controller(hostname="127.0.0.1", port=0, config=config, listener=dialog.listener, log=log, **more)
        controller.start()
        self._stack.callback(controller.stop)
        return port_of(controller), Mailboxes(directory / "mail")


def port_of(controller: BaseController) -> int:
    """Where it listens, also when it was told port 0."""
    server: Any = controller.server  # uvloop's derives from nothing that has `sockets`
    port: int = server.sockets[0].getsockname()[1]
    return port


class Keeper:
    """A handler that keeps what it is given, and where that happened."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any]] = []
        self.threads: list[threading.Thread] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.kept.append((session, envelope))
        self.threads.append(threading.current_thread())
        return "250 2.0.0 Kept"


@contextmanager
def running(controller: Any) -> Iterator[int]:
    """Start a controller and stop it; its port."""
    controller.start()
    try:
        yield port_of(controller)
    finally:
        controller.stop()
    assert controller.loop.is_closed()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_run)")]


def send(port: int, recipient: str = "ann@example.test") -> None:
    with smtplib.SMTP(HERE, port, timeout=PATIENCE) as client:
        client.sendmail("bob@sender.test", [recipient], MAIL)
