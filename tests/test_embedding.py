"""The programs in docs/embedding.md, run as they stand there; and what an embedding program may rely on."""

import asyncio
import gc
import logging
import os
import re
import signal
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvloop
from pages import Page

from smtpd import Config, ConfigError, DeliveryAgent, Log, Message, Reply, Server, Transaction
from smtpd.replies import ACCEPTED

PAGE = Page("embedding.md")
INBOX, RUN, SMALL, LOGGING, METRICS = range(5)
MAIL = "From: <bob@sender.test>\r\nSubject: Hello\r\n\r\nHello.\r\n"
PATIENCE = 30.0  # seconds

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def program(tmp_path: Path) -> Callable[[int], ModuleType]:
    """The n-th program of the page as a module."""
    return partial(PAGE.program, directory=tmp_path)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Run a coroutine in an event loop of its own, and see that nothing is left running in it."""

    def run_whole(main: Main) -> None:
        async def watched() -> None:
            async with asyncio.timeout(PATIENCE):
                await main()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, left

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(watched())
        gc.collect()  # what was not closed is a warning, and a warning is an error

    return run_whole


def simple_config(agent: str = "inbox", **more: Any) -> Config:
    tables: dict[str, Any] = {
        "hostname": "mx.example.test",
        "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
        "domains": {"example.test": agent},
        "metrics": {"enabled": False},
        "log": {"to": "stderr", "level": "error"},
    }
    return Config(**{**tables, **more})


class Inbox(DeliveryAgent):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.started = self.stopped = 0

    async def start(self) -> None:
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    async def deliver(self, mail: Transaction, message: Message) -> Reply:
        return ACCEPTED


def send(port: int, content: str = MAIL) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
        client.sendmail("bob@sender.test", ["alice@example.test"], content)


def test_first_program_receives_a_mail(program: Callable[[int], ModuleType], run: Callable[[Main], None]) -> None:
    module = program(INBOX)

    async def main() -> None:
        said: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        vars(module)["print"] = lambda *words: said.put_nowait(words)
        running = asyncio.create_task(module.main())
        port = (await said.get())[-1]
        await asyncio.to_thread(send, port)
        assert (await said.get())[:2] == ("bob@sender.test", "sent")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run(main)


def test_two_servers_work_in_one_loop_and_start_again(
    program: Callable[[int], ModuleType], run: Callable[[Main], None]
) -> None:
    module = program(INBOX)

    async def main() -> None:
        queues: list[asyncio.Queue[tuple[str, bytes]]] = [asyncio.Queue(), asyncio.Queue()]
        one, two = map(module.make_server, queues)
        for _ in range(2):
            async with one, two:
                assert one.port("smtp") != two.port("smtp")
                await asyncio.to_thread(send, one.port("smtp"), MAIL + "one")
                await asyncio.to_thread(send, two.port("smtp"), MAIL + "two")
            assert one.addresses == two.addresses == {}
            for queue, end in zip(queues, (b"one\r\n", b"two\r\n"), strict=True):
                sender, content = queue.get_nowait()
                assert sender == "bob@sender.test"
                assert content.endswith(end)
                assert queue.empty()
        accepted = "smtpd_connections_total", {"listener": "smtp", "ip": "127.0.0.1"}
        assert one.metrics.registry.get_sample_value(*accepted) == 2

    run(main)


def test_signal_ends_the_second_program(program: Callable[[int], ModuleType], run: Callable[[Main], None]) -> None:
    module = program(RUN)

    async def main() -> None:
        config = simple_config(log={"to": "stderr", "level": "info"})
        lines = Lines()
        log = Log(config.log, sink=lines)
        server = Server(config, agents={"inbox": Inbox}, log=log)
        running = asyncio.create_task(module.run(server))
        await lines.until("ready")
        os.kill(os.getpid(), signal.SIGTERM)
        await running
        await lines.until("stopped")
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        log.close()

    run(main)


class Lines:
    """A sink that can be waited at."""

    def __init__(self) -> None:
        self.text = ""
        self._more = asyncio.Event()

    def write(self, data: bytes) -> int:
        self.text += bytes(data).decode()
        self._more.set()
        return len(data)

    def reopen(self) -> None:
        self.text = ""

    def close(self) -> None:
        self.text += "closed"

    async def until(self, event: str) -> None:
        while f'"event":"{event}"' not in self.text:
            self._more.clear()
            await self._more.wait()


def test_filter_without_an_entry_point_judges_by_its_options(
    program: Callable[[int], ModuleType], run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        config = simple_config("store", agents={}, domains={"example.test": "inbox"})
        server = program(SMALL).make_server(config)
        server = Server(server.config, agents={"inbox": Inbox}, filters={"small": program(SMALL).Small})
        async with server:
            await asyncio.to_thread(send, server.port("smtp"))
            with pytest.raises(smtplib.SMTPDataError, match="bigger than 1024"):
                await asyncio.to_thread(send, server.port("smtp"), MAIL + "x" * 2000)

    run(main)


def test_log_joins_the_logging_of_the_program(
    program: Callable[[int], ModuleType], run: Callable[[Main], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        config = simple_config(domains={}, log={"level": "info"})
        server = program(LOGGING).make_server(config)
        async with server:
            assert server.port("smtp")
        server.log.close()

    with caplog.at_level(logging.INFO, "mail"):
        run(main)
    events = [re.findall(r'"event":"([a-z-]+)"', record.getMessage()) for record in caplog.records]
    assert [event for event in events if event] == [["listening"], ["ready"], ["stopped"]]


def test_numbers_are_a_registry_of_the_client_library(
    program: Callable[[int], ModuleType], run: Callable[[Main], None]
) -> None:
    async def main() -> None:
        async with Server(simple_config(), agents={"inbox": Inbox}) as server:
            await asyncio.to_thread(send, server.port("smtp"))
            assert b'smtpd_messages_received_total{listener="smtp"' in program(METRICS).page(server)

    run(main)


def test_close_before_serve_is_not_lost(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        server = Server(simple_config(), agents={"inbox": Inbox})
        await server.start()
        server.close()
        await server.serve()
        assert server.addresses == {}

    run(main)


def test_stop_ends_connections_and_is_done_once(run: Callable[[Main], None]) -> None:
    made: list[Inbox] = []

    def make(*arguments: Any) -> Inbox:
        made.append(Inbox(*arguments))
        return made[-1]

    async def main() -> None:
        async with Server(simple_config(), agents={"inbox": make}) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port("smtp"))
            assert (await reader.readline()).startswith(b"220 ")
            await server.stop()
            assert (await reader.read()).startswith(b"421 ")
            writer.close()
            await writer.wait_closed()
        assert [(inbox.started, inbox.stopped) for inbox in made] == [(1, 1)]

    run(main)


def test_server_with_tls_and_a_client_inside_leaves_nothing_behind(
    run: Callable[[Main], None], certificates: Any
) -> None:
    listeners = {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "implicit"}}
    tls = {"cert_file": certificates.cert_file, "key_file": certificates.key_file}

    async def main() -> None:
        trust = ssl.create_default_context(cafile=certificates.ca_file)
        async with Server(simple_config(listeners=listeners, tls=tls), agents={"inbox": Inbox}) as server:
            address = "127.0.0.1", server.port("smtp")
            reader, writer = await asyncio.open_connection(*address, ssl=trust, server_hostname="mx.test")
            assert (await reader.readline()).startswith(b"220 ")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await reader.read()).startswith(b"421 ")
        writer.close()
        await writer.wait_closed()

    run(main)


def test_stop_waits_until_clients_see_the_end(run: Callable[[Main], None], certificates: Any) -> None:
    listeners = {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "implicit"}}
    tls = {"cert_file": certificates.cert_file, "key_file": certificates.key_file}
    trust = ssl.create_default_context(cafile=certificates.ca_file)
    greeted, heard = threading.Event(), []

    def listen(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
            trust.wrap_socket(plain, server_hostname="mx.test") as client,
            client.makefile("rb") as stream,
        ):
            heard.append(stream.readline())
            greeted.set()
            heard.extend(stream)

    async def main() -> None:
        async with Server(simple_config(listeners=listeners, tls=tls), agents={"inbox": Inbox}) as server:
            client = threading.Thread(target=listen, args=(server.port("smtp"),))
            client.start()
            await asyncio.to_thread(greeted.wait, PATIENCE)
        assert server.metrics.registry.get_sample_value("smtpd_connections_active", {"listener": "smtp"}) == 0
        await asyncio.to_thread(client.join, PATIENCE)

    run(main)
    assert [line[:4] for line in heard] == [b"220 ", b"421 "]


def test_own_log_is_opened_again_with_the_server(run: Callable[[Main], None], tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def main() -> None:
        config = simple_config(log={"to": f"file:{path}", "level": "info"})
        server = Server(config, agents={"inbox": Inbox})
        for _ in range(2):
            async with server:
                assert server.port("smtp")

    run(main)
    assert re.findall(r'"event":"(ready|stopped)"', path.read_text()) == ["ready", "stopped"] * 2


def test_server_that_cannot_start_leaves_nothing_behind(run: Callable[[Main], None]) -> None:
    class Sick(Inbox):
        healthy = False

        async def start(self) -> None:
            if not self.healthy:
                raise OSError("no mailstore")

    async def main() -> None:
        server = Server(simple_config(), agents={"inbox": Sick})
        with pytest.raises(OSError, match="no mailstore"):
            await server.start()
        assert server.addresses == {}
        Sick.healthy = True
        async with server:
            await asyncio.to_thread(send, server.port("smtp"))

    run(main)


def test_mail_to_an_agent_that_nobody_brings_is_a_mistake(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match='there is no agent "inbx"'):
            await Server(simple_config("inbx"), agents={"inbox": Inbox}).start()

    run(main)


def test_every_program_of_the_page_is_run() -> None:
    assert len(PAGE.blocks("python")) == METRICS + 1


async def test_server_that_runs_is_started_by_nobody_else() -> None:
    server = Server(simple_config(), agents={"inbox": Inbox})
    for call in (server.serve, lambda: server.reload(simple_config())):
        with pytest.raises(RuntimeError, match="has not been started"):
            await call()
    async with server:
        with pytest.raises(RuntimeError, match="has been started"):
            await server.start()
        await asyncio.to_thread(send, server.port("smtp"))
    async with server:
        await asyncio.to_thread(send, server.port("smtp"))
