"""Every dialog file: whole and byte by byte in memory, and over TCP and TLS, with the real server and with a
controller of aiosmtpd."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import bridge
import dialogue
import pytest
from dialogue import Dialog, Mailboxes

from smtpd.config import from_tables
from smtpd.server import Server
from smtpd.service import Service

DIALOGS = dialogue.every_dialog()
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def each(dialogs: list[Dialog]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("dialog", [pytest.param(dialog, id=dialog.path.stem) for dialog in dialogs])


@asynccontextmanager
async def at_work(tables: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Service]]:
    """The services of a server that listens nowhere."""
    server = Server(from_tables(tables))
    made = await server.start_quietly()
    try:
        yield {
            name: replace(service, can_start_tls=service.switches.tls == "starttls")
            for name, service in made.services.items()
        }
    finally:
        await server.stop()


@each([dialog for dialog in DIALOGS if dialog.tls != "starts"])
@pytest.mark.parametrize("piece", [pytest.param(0, id="whole"), pytest.param(1, id="bytes")])
async def test_dialog_in_memory(dialog: Dialog, piece: int, tables: Callable[..., Any], directory: Path) -> None:
    wanted = {"listeners": dialogue.listeners(), **dialogue.CONFIG, **dialog.tables, "log": {"to": "stderr"}}
    async with at_work(tables(wanted)) as services:
        said = await dialogue.play_in_memory(dialog, services[dialog.listener], piece=piece)
    Mailboxes(directory / "mail").check(dialog, said)


@pytest.fixture
def trust(certificates: Any) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca_file)


@pytest.fixture
def real(serve_all: Callable[..., Any]) -> Callable[[Dialog, str], Any]:
    def start(dialog: Dialog, loop: str) -> Any:
        config = {"listeners": dialogue.listeners(), **dialogue.CONFIG, **dialog.tables, "event_loop": loop}
        server = serve_all({"smtpd": config})
        Mailboxes(server.config.parent / "mail").clear()
        return server

    return start


@LOOPS
@each([dialog for dialog in DIALOGS if dialog.tls != "yes"])
def test_dialog_over_tcp(dialog: Dialog, loop: str, real: Callable[..., Any], trust: ssl.SSLContext) -> None:
    server = real(dialog, loop)
    said = dialogue.play_over_socket(dialog, server.port(dialog.listener), trust, tls=False)
    Mailboxes(server.config.parent / "mail").check(dialog, said)
    assert not server.events("our-fault")


@LOOPS
@each([dialog for dialog in DIALOGS if dialog.tls in ("either", "yes")])
def test_dialog_over_tls(dialog: Dialog, loop: str, real: Callable[..., Any], trust: ssl.SSLContext) -> None:
    server = real(dialog, loop)
    said = dialogue.play_over_socket(dialog, server.port(dialog.twin), trust, tls=True)
    Mailboxes(server.config.parent / "mail").check(dialog, said)
    assert not server.events("our-fault")


@pytest.fixture(scope="module")
def bridges(certificates: Any) -> Iterator[bridge.Bridges]:
    with bridge.Bridges(certificates) as started:
        yield started


@each([dialog for dialog in DIALOGS if dialog.tls != "yes"])
def test_dialog_over_controller(dialog: Dialog, bridges: bridge.Bridges, trust: ssl.SSLContext) -> None:
    port, mailboxes = bridges.start(dialog)
    said = dialogue.play_over_socket(dialog, port, trust, tls=False)
    mailboxes.check(dialog, said)


@each([dialog for dialog in DIALOGS if dialog.tls in ("either", "yes")])
def test_dialog_over_controller_with_tls(dialog: Dialog, bridges: bridge.Bridges, trust: ssl.SSLContext) -> None:
    port, mailboxes = bridges.start(dialog, tls=True)
    said = dialogue.play_over_socket(dialog, port, trust, tls=True)
    mailboxes.check(dialog, said)
