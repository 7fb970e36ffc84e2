"""Controllers of aiosmtpd with our conversation: their life, and what becomes of TLS and of handlers."""

import asyncio
import re
import smtplib
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from inspect import getsource, signature
from pathlib import Path
from typing import Any

import aiosmtpd
import pytest
import uvloop
from aiosmtpd import controller as theirs
from bridge import HERE, MAIL, PATIENCE, Keeper, port_of, running, send
from log_lines import Lines

from smtpd import PASS, Config, ConfigError, DeliveryAgent, Filter, Log, Message, Reply, Transaction, Verdict
from smtpd.aiosmtpd import Controller, UnixSocketController, UnixSocketUnthreadedController, UnthreadedController
from smtpd.config import from_tables
from smtpd.replies import ACCEPTED

CONFIG: dict[str, Any] = {"hostname": "mx.test", "metrics": {"enabled": False}, "log": {"level": "error"}}


@pytest.fixture
def context(certificates: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificates.cert_file, certificates.key_file)
    return made


@pytest.fixture
def trust(certificates: Any) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca_file)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_handler_gets_mail_in_the_thread_of_the_controller(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    keeper = Keeper()
    controller = Controller(keeper, HERE, 0, loop(), server_hostname="mx.test")
    with running(controller) as port:
        send(port)
        assert keeper.threads == [controller._thread]
    ((session, envelope),) = keeper.kept
    assert session.peer[0] == HERE
    assert (envelope.mail_from, envelope.rcpt_tos) == ("bob@sender.test", ["ann@example.test"])
    assert envelope.content.endswith(MAIL.encode())


def test_hostname_is_said() -> None:
    with running(Controller(Keeper(), HERE, 0, server_hostname="mx.test")) as port, smtplib.SMTP() as client:
        assert client.connect(HERE, port)[1].startswith(b"mx.test ")


def test_own_tls_context_is_for_starttls_and_can_be_required(context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    keeper = Keeper()
    controller = Controller(
        keeper, HERE, 0, server_hostname="mx.test", tls_context=context, require_starttls=True, data_size_limit=5000
    )
    with running(controller) as port, smtplib.SMTP(HERE, port, "client.test", PATIENCE) as client:
        client.ehlo()
        assert client.esmtp_features["size"] == "5000"
        assert client.mail("bob@sender.test")[0] == 530
        client.starttls(context=trust)
        client.sendmail("bob@sender.test", ["ann@example.test"], MAIL)
    assert keeper.kept[0][0].ssl["cipher"][1] == "TLSv1.3"


@pytest.fixture
def config(tables: Callable[..., Any]) -> Config:
    """Users, a certificate, and the handler; no listener."""
    made = from_tables(tables({"listeners": None, "metrics": {"enabled": False}}))
    return made.model_copy(update={"domains": {"example.test": "handler"}})


def test_tls_of_the_controller_counts_without_a_second_handshake(
    context: ssl.SSLContext, trust: ssl.SSLContext, config: Config
) -> None:
    keeper = Keeper()
    controller = Controller(keeper, HERE, 0, config=config, ssl_context=context)
    with running(controller) as port:
        with smtplib.SMTP_SSL(HERE, port, timeout=PATIENCE, context=trust) as client:
            client.ehlo()
            assert client.has_extn("auth")
            assert not client.has_extn("starttls")
            client.login("alice@example.test", "correct horse")
            client.sendmail("bob@sender.test", ["ann@example.test"], MAIL)
        value = controller.mail_server.metrics.registry.get_sample_value
        assert value("smtpd_tls_connections_total", {"listener": "smtp", "version": "TLSv1.3"}) == 1
    ((session, envelope),) = keeper.kept
    assert session.ssl["cipher"][1] == "TLSv1.3"
    assert session.auth_data.login == b"alice@example.test"
    assert b"ESMTPSA" in envelope.content


def test_connection_refused_inside_tls_hears_why(context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    config = Config.model_validate({**CONFIG, "limits": {"connections_per_ip": 1}})
    with running(Controller(Keeper(), HERE, 0, config=config, ssl_context=context)) as port:
        first = smtplib.SMTP_SSL(HERE, port, timeout=PATIENCE, context=trust)
        with pytest.raises(smtplib.SMTPConnectError, match=r"b'4\.7\.0"):
            smtplib.SMTP_SSL(HERE, port, timeout=PATIENCE, context=trust)
        first.close()


class Slow(Keeper):
    """Says when it has begun, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self._may = asyncio.Event()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.begun.set()
        await self._may.wait()
        return await super().handle_DATA(server, session, envelope)

    def go_on(self, controller: Controller) -> None:
        controller.loop.call_soon_threadsafe(self._may.set)


def test_stop_tells_idle_clients_and_waits_for_deliveries() -> None:
    slow = Slow()
    controller = Controller(slow, HERE, 0, server_hostname="mx.test")
    controller.start()
    port = port_of(controller)
    with socket.create_connection((HERE, port), PATIENCE) as idle, idle.makefile("rb") as heard:
        assert heard.readline().startswith(b"220 ")
        sender = smtplib.SMTP(HERE, port, timeout=PATIENCE)
        sending = threading.Thread(target=sender.sendmail, args=("bob@sender.test", ["ann@example.test"], MAIL))
        sending.start()
        assert slow.begun.wait(PATIENCE)
        stopping = threading.Thread(target=controller.stop)
        stopping.start()
        assert heard.readline().startswith(b"421 ")
        assert slow.kept == []
        assert stopping.is_alive()
        slow.go_on(controller)
        stopping.join(PATIENCE)
        sending.join(PATIENCE)
        sender.close()
    assert len(slow.kept) == 1
    assert controller.loop.is_closed()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio cannot abort the clients of a server")
def test_client_that_does_not_say_goodbye_does_not_hold_the_stop_up(
    context: ssl.SSLContext, trust: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncio.constants.SSL_SHUTDOWN_TIMEOUT", 10 * PATIENCE)
    controller = Controller(Keeper(), HERE, 0, server_hostname="mx.test", ssl_context=context)
    controller.start()
    with socket.create_connection((HERE, port_of(controller)), PATIENCE) as plain:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trust.wrap_bio(incoming, outgoing, server_hostname="mx.test")
        greeting = b""
        while not greeting:
            try:
                greeting = client.read()
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        stopping = threading.Thread(target=controller.stop, daemon=True)
        stopping.start()
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


class Failing(DeliveryAgent):
    async def start(self) -> None:
        raise OSError("no mailstore")


def failing(agent: type[DeliveryAgent], **more: Any) -> Controller:
    config = Config.model_validate({**CONFIG, "domains": {"example.test": "inbox"}})
    return Controller(hostname=HERE, port=0, config=config, agents={"inbox": agent}, **more)


def nothing_is_left(controller: Controller) -> bool:
    return controller._thread is None and controller.server is None and controller.loop.is_closed()


def test_agent_that_cannot_start_is_raised_and_leaves_nothing_behind() -> None:
    controller = failing(Failing, ready_timeout=10 * PATIENCE)
    with pytest.raises(OSError, match="no mailstore"):
        controller.start()
    assert nothing_is_left(controller)
    controller.stop(no_assert=True)


def test_mistake_in_the_configuration_is_raised() -> None:
    controller = Controller(hostname=HERE, port=0, config=Config.model_validate({**CONFIG, "domains": {"a.test": "x"}}))
    with pytest.raises(ConfigError, match='there is no agent "x"'):
        controller.start()
    assert nothing_is_left(controller)


def test_port_that_is_taken_is_raised_and_leaves_nothing_behind() -> None:
    stopped = []

    class Inbox(DeliveryAgent):
        async def stop(self) -> None:
            stopped.append(self)

    with socket.create_server((HERE, 0)) as taken:
        controller = failing(Inbox)
        controller.port = taken.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            controller.start()
    assert nothing_is_left(controller)
    assert len(stopped) == 1


def test_start_that_takes_too_long_is_given_up() -> None:
    cancelled = []

    class Endless(DeliveryAgent):
        async def start(self) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(self)
                raise

    controller = failing(Endless, ready_timeout=0.05)
    with pytest.raises(TimeoutError):
        controller.start()
    assert nothing_is_left(controller)
    assert len(cancelled) == 1


def test_second_start_is_a_mistake_and_harms_nobody() -> None:
    keeper = Keeper()
    controller = Controller(keeper, HERE, 0, server_hostname="mx.test")
    with running(controller) as port:
        with pytest.raises(AssertionError, match="already running"):
            controller.start()
        send(port)
    assert len(keeper.kept) == 1


def test_unix_socket_counts_as_this_machine(directory: Path) -> None:
    keeper = Keeper()
    controller = UnixSocketController(keeper, directory / "socket", server_hostname="mx.test")
    controller.start()
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(directory / "socket"))
        client = smtplib.SMTP()
        client.sock, client.file = plain, None
        assert client.getreply()[0] == 220
        client.sendmail("bob@sender.test", ["ann@example.test"], MAIL)
        client.quit()
    controller.stop()
    assert keeper.kept[0][0].peer == (HERE, 0)


@pytest.mark.parametrize("kind", [UnthreadedController, UnixSocketUnthreadedController])
def test_unthreaded_controller_works_in_a_loop_of_the_program(kind: Any, directory: Path) -> None:
    place = (HERE, 0) if kind is UnthreadedController else (directory / "socket",)
    loop = asyncio.new_event_loop()
    controller = kind(Keeper(), *place, loop=loop, server_hostname="mx.test")

    async def listen() -> bytes:
        name = controller.server.sockets[0].getsockname()
        opening = asyncio.open_unix_connection(name) if isinstance(name, str) else asyncio.open_connection(*name)
        reader, writer = await opening
        greeting = await reader.readline()
        controller.end()
        rest = await reader.read()
        writer.close()
        await writer.wait_closed()
        await asyncio.to_thread(controller.ended.wait, PATIENCE)
        return greeting + rest

    controller.begin()
    said = loop.run_until_complete(listen())
    assert re.fullmatch(rb"220 mx\.test ESMTP\r\n421 4\.3\.2 [^\r\n]*\r\n", said)
    assert controller.server is None
    loop.close()


def test_agents_filters_and_log_of_the_program_are_used() -> None:
    lines, got = Lines(), []

    class Inbox(DeliveryAgent):
        async def deliver(self, mail: Transaction, message: Message) -> Reply:
            got.append(bytes(message))
            return ACCEPTED

    class Seen(Filter):
        name = "seen"

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            got.append(b"seen")
            return PASS

    config = Config.model_validate({**CONFIG, "log": {"level": "info"}, "domains": {"example.test": "inbox"}})
    log = Log(config.log, sink=lines)
    own: dict[str, Any] = {"agents": {"inbox": Inbox}, "filters": {"seen": Seen}, "log": log}
    with running(Controller(hostname=HERE, port=0, config=config, **own)) as port:
        send(port)
    log.close()
    assert got[0] == b"seen"
    assert got[1].endswith(MAIL.encode())
    assert [line["event"] for line in lines.entries] == ["ready", "message", "stopped"]


def test_option_that_would_be_ignored_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="ident means nothing here"):
        Controller(Keeper(), HERE, 0, ident="ACME")
    with pytest.raises(TypeError, match="list has no handle_DATA"):
        Controller([], HERE, 0)
    with pytest.raises(TypeError, match="no option 'port'"):
        UnixSocketController(Keeper(), "/nowhere", port=25)


def test_default_of_aiosmtpd_for_smtputf8_does_not_overrule_the_configuration() -> None:
    listener = {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off", "smtputf8": False}
    config = Config.model_validate({**CONFIG, "listeners": {"one": listener}})
    controllers = [Controller(Keeper(), config=config), Controller(Keeper(), config=config, enable_SMTPUTF8=True)]
    for controller, wanted in zip(controllers, (False, True), strict=True):
        assert controller.mail_server.config.listeners["one"].smtputf8 is wanted
        controller.loop.close()


def test_what_we_rely_on_in_aiosmtpd_is_still_there() -> None:
    assert aiosmtpd.__version__.startswith("1.4.")
    run = getsource(theirs.BaseThreadedController._run)
    assert "self._create_server()" in run
    assert "self._thread_exception = error\n            return\n" in run
    assert "self.loop.close()" in run
    start = getsource(theirs.BaseThreadedController.start)
    assert (
        start.index("ready_event.wait") < start.index("self._trigger_server()") < start.index("_factory_invoked.wait")
    )
    assert list(signature(theirs.BaseThreadedController.stop).parameters) == ["self", "no_assert"]
    assert "self.factory()" in getsource(theirs.BaseController._factory_invoker)
    for mixin in (theirs.InetMixin, theirs.UnixSocketMixin):
        assert re.search(r"self\._factory_invoker,.*ssl=self\.ssl_context", getsource(mixin._create_server), re.DOTALL)
    for part in ("self.SMTP_kwargs", "self.ssl_context", '"enable_SMTPUTF8", True', '"server_kwargs"'):
        assert part in getsource(theirs.BaseController.__init__)
    assert "self.ended.set()" in getsource(theirs.BaseUnthreadedController.finalize)
