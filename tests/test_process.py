"""What the process does for the server before it starts, and with signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, python_behind, toml_lines
from dialogue import Client

Serve = Callable[..., Server]
BROKEN = "[smtpd]\nhostname = 5\n"
FILTERS = """
import asyncio, atexit, gc, os, signal, weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from smtpd import DeliveryAgent, Filter, leaving

class Blocking(Filter):
    async def start(self):
        Path("turn").read_text()

class Hanging(Filter):
    async def start(self):
        self.services.log.info("hanging")
        await asyncio.Event().wait()

class Stubborn(Filter):
    async def start(self):
        self.services.log.info("hanging")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("not now")

class Late(Filter):
    async def start(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            atexit.register(os.kill, os.getpid(), number)

class Busy(Filter):
    async def start(self):
        ThreadPoolExecutor().submit(Path("turn").read_text)

class Forgetful(Filter):
    async def start(self):
        leaving.LEAVE_SECONDS = 0.1
        asyncio.get_running_loop().run_in_executor(None, Path("turn").read_text)

class Careless(Filter):
    async def start(self):
        leaving.LEAVE_SECONDS = 0.1
        ThreadPoolExecutor().submit(Path("turn").read_text)

class Store(DeliveryAgent):
    async def stop(self):
        self.services.log.info("tidied")

class Lasting(DeliveryAgent):
    alive = weakref.WeakSet()

    async def start(self):
        self.itself = self
        self.alive.add(self)

    async def stop(self):
        self.services.log.info("left", alive=len(self.alive), set_aside=gc.get_freeze_count())

class Slow(DeliveryAgent):
    async def stop(self):
        self.services.log.info("tidying")
        await asyncio.to_thread(Path("turn").read_text)
        self.services.log.info("tidied")
"""
POINTS = """
[smtpd.filters]
blocking = odd:Blocking
hanging = odd:Hanging
stubborn = odd:Stubborn
late = odd:Late
busy = odd:Busy
forgetful = odd:Forgetful
careless = odd:Careless
[smtpd.delivery_agents]
tidy = odd:Store
slow = odd:Slow
lasting = odd:Lasting
"""


@pytest.fixture
def starting(serve: Serve, directory: Path) -> Callable[..., Server]:
    """Start a server whose agent says "tidied" when it stops, with one of the filters above, and do not wait for it."""
    (directory / "odd.py").write_text(FILTERS)
    (directory / "odd-1.dist-info").mkdir()
    (directory / "odd-1.dist-info" / "entry_points.txt").write_text(POINTS)
    os.mkfifo(directory / "turn")
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))

    def start(check: str, *, agent: str = "tidy", mode: str = "enforce", **more: Any) -> Server:
        agents = {"mailstore": None, agent: {"type": agent}}
        table = {"filters": {check: {"mode": mode}}, "agents": agents, "domains": {"example.test": agent}, **more}
        return serve({"smtpd": table}, environment={"PYTHONPATH": path}, wait=False)

    return start


@pytest.fixture
def reading(directory: Path, tables: Callable[..., Any]) -> Iterator[tuple[Server, str]]:
    """A server that is reading its configuration from a pipe, and what should come out of it."""
    path = directory / "config.toml"
    os.mkfifo(path)
    server = Server(path, sys.executable, {})
    yield server, "\n".join(toml_lines({"smtpd": tables({})})) + "\n"
    server.process.kill()
    server.stop()


def until_it_waits(server: Server) -> None:
    """Until its only thread is inside a call that waits: a signal between two calls does not break the second off."""
    stat = Path(f"/proc/{server.process.pid}/stat")
    while stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "S":
        assert server.process.poll() is None


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_connection_takes_the_place_of_a_closed_stream(serve: Serve, directory: Path, loop: str) -> None:
    """uvloop aborts the process when a descriptor below 3 is closed."""
    server = serve({"smtpd": {"event_loop": loop}}, python=python_behind("exec <&- 2>&-", directory))
    assert [os.readlink(f"/proc/{server.process.pid}/fd/{number}") for number in (0, 2)] == ["/dev/null"] * 2
    for _ in range(3):
        assert limit_said(server)
    assert server.stop() == 0


def test_log_that_is_closed_keeps_the_server_from_starting(serve: Serve, directory: Path) -> None:
    server = serve(python=python_behind(f"exec >&- 2>{directory}/said", directory), wait=False)
    assert server.process.wait(60) == 1
    assert (directory / "said").read_text() == "smtpd: the log cannot be opened: [Errno 9] it is closed: 'stdout'\n"


def test_developer_set_up_that_cannot_be_made_is_said_in_one_line(directory: Path) -> None:
    (directory / "var").touch()
    done = subprocess.run(
        [sys.executable, "-m", "smtpd", "serve"], cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"{directory}/var" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_event_loop_that_is_not_installed_is_named(serve: Serve, directory: Path) -> None:
    (directory / "uvloop.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    server = serve({"smtpd": {"event_loop": "uvloop"}}, environment={"PYTHONPATH": path}, wait=False)
    line = server.wait_for("cannot-start")
    assert line["problem"] == 'event_loop = "uvloop": not here'
    assert "exception" not in line
    assert server.process.wait(60) == 1
    server.stop()
    assert len(server.output) == len(server.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_told_to_end_while_it_reads_its_configuration_ends_quietly(
    reading: tuple[Server, str], number: signal.Signals
) -> None:
    server, _ = reading
    with server.config.open("w"):
        until_it_waits(server)
        assert server.stop(number) == 0
    assert server.output == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_another_signal_behind_one_that_ends_the_process_changes_nothing(number: signal.Signals) -> None:
    program = f"""
import os, signal
from smtpd.signals import EarlySignals
try:
    with EarlySignals():
        os.kill(os.getpid(), signal.SIGTERM)
finally:
    os.kill(os.getpid(), {number})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_process_that_was_told_to_end_does_so_quietly_whatever_was_interrupted() -> None:
    program = """
import os, signal
from smtpd.signals import EarlySignals
with EarlySignals():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit as error:
        raise ValueError("error building a model") from error
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_signals_after_the_server_has_stopped_change_nothing(starting: Callable[..., Server], loop: str) -> None:
    server = starting("late", event_loop=loop)
    server.wait_for("ready")
    assert server.stop() == 0
    assert server.output[len(server.log) :] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_that_a_thread_keeps_can_be_ended(starting: Callable[..., Server], number: signal.Signals) -> None:
    server = starting("busy")
    server.wait_for("ready")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("stopped")
    for _ in range(300):  # one that comes before it is over is not heard
        server.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.1)
            break
    assert server.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_wait_until_the_configuration_is_read(
    reading: tuple[Server, str], number: signal.Signals
) -> None:
    server, text = reading
    with server.config.open("w") as pipe:
        server.process.send_signal(number)
        pipe.write(text)
    server.wait_for("ready")
    if number == signal.SIGHUP:
        with server.config.open("w") as pipe:
            pipe.write(BROKEN)
        server.wait_for("reload-refused")
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("check", ["hanging", "stubborn"])
def test_server_that_is_told_to_end_while_it_starts_stops_what_has_started(
    starting: Callable[..., Server], check: str, loop: str, number: signal.Signals
) -> None:
    server = starting(check, event_loop=loop)
    server.wait_for("hanging")
    assert server.stop(number) == 0
    assert len(server.events("tidied")) == 1
    assert server.events("ready") == []
    assert len(server.output) == len(server.log)
    assert [line["event"] for line in server.log if line["level"] == "error"] == ["cannot-start"] * (check != "hanging")


def test_server_that_is_told_to_end_while_it_cannot_listen_does_so_afterwards(
    starting: Callable[..., Server], directory: Path
) -> None:
    server = starting("blocking")
    with (directory / "turn").open("w"):
        server.process.send_signal(signal.SIGTERM)
    assert server.stop() == 0
    assert len(server.events("tidied")) == 1
    assert len(server.output) == len(server.log)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_second_signal_does_not_break_off_what_the_first_one_stops(
    starting: Callable[..., Server], directory: Path, loop: str
) -> None:
    server = starting("hanging", agent="slow", event_loop=loop)
    server.wait_for("hanging")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("tidying")
    server.process.send_signal(signal.SIGTERM)
    with (directory / "turn").open("w"):
        pass
    assert server.stop() == 0
    assert [line["event"] for line in server.log][-2:] == ["tidied", "stopped"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_server_that_is_told_to_end_while_it_reads_a_configuration_again_does_not_wait_for_that(
    starting: Callable[..., Server], loop: str
) -> None:
    server = starting("hanging", mode="off", event_loop=loop)
    server.wait_for("ready")
    server.config.write_text(server.config.read_text().replace('"mode" = "off"', '"mode" = "observe"'))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("hanging")
    assert server.stop() == 0
    assert [line["event"] for line in server.log if line["event"] in ("tidied", "stopped", "reloaded")] == [
        "tidied", "tidied", "stopped"
    ]  # fmt: skip


def test_what_lasts_is_set_aside_until_a_reload_has_taken_its_place(starting: Callable[..., Server]) -> None:
    server = starting("busy", agent="lasting", mode="off")
    server.wait_for("ready")
    for number in (1, 2):
        server.process.send_signal(signal.SIGHUP)
        left = server.wait_for("left", number)
    assert left["set_aside"] > 10_000
    assert server.stop() == 0
    assert server.wait_for("left", 3)["alive"] == 2  # the first one was in a circle, and has been collected


def test_the_last_of_two_hangups_brings_what_was_written_last(serve: Serve, directory: Path) -> None:
    server, line = serve({"smtpd": {"max_recipients": 3}}), '"max_recipients" = '
    texts = [server.config.read_text().replace(f"{line}3", f"{line}{number}") for number in (5, 7)]
    server.config.unlink()
    os.mkfifo(server.config)
    server.process.send_signal(signal.SIGHUP)
    with server.config.open("w") as slow:  # opens when it is read
        (directory / "newer").write_text(texts[1])
        (directory / "newer").rename(server.config)
        server.process.send_signal(signal.SIGHUP)
        for _ in range(50):  # time for it to be read too early
            limit_said(server)
        slow.write(texts[0])
    server.wait_for("reloaded", 2)
    assert limit_said(server) == 7


def limit_said(server: Server) -> int:
    """RFC 9422: what EHLO says of RCPTMAX."""
    client = Client(server.port("smtp"), None)
    client.line()
    client.say(b"EHLO client.test\r\n")
    client.reply()
    client.close()
    (line,) = (line for line in client.said.splitlines() if "RCPTMAX=" in line)
    return int(line.partition("RCPTMAX=")[2].split()[0])


@pytest.mark.parametrize("check", ["forgetful", "careless"])
def test_process_ends_without_what_a_plug_in_left_running(check: str, starting: Callable[..., Server]) -> None:
    server = starting(check)
    server.wait_for("ready")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0
    assert server.stop() == 0
    lines = [line for line in server.output if "left-running" in line or "the end does not wait for" in line]
    assert len(lines) == 1
    assert "read_text" in lines[0]
