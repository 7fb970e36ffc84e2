"""The server as a process: it drains, reloads, listens on every kind of address, and gives up root."""

import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dialogue import Client

PATIENCE = 10.0
ENVELOPE = b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\nDATA\r\n"
CONTENT = b"From: joe@client.test\r\n\r\nHi\r\n.\r\n"
BROKEN = "[smtpd]\nhostname = 5\n"

Serve = Callable[..., Any]


Connect = Callable[[int], Client]


@pytest.fixture
def greeted() -> Iterator[Connect]:
    """Connect to a port and hear the banner; hung up on at the end."""
    with ExitStack() as stack:

        def connect(port: int) -> Client:
            client = Client(port, None)
            stack.callback(client.close)
            assert client.line() == "220 mx.test ESMTP"
            return client

        yield connect


@pytest.fixture
def in_transaction(greeted: Connect) -> Connect:
    """The same, and content may follow."""

    def connect(port: int) -> Client:
        client = greeted(port)
        client.say(ENVELOPE)
        for _ in range(4):
            client.reply()
        assert client.said.endswith("354 Send the message, end with <CRLF>.<CRLF>\r\n")
        return client

    return connect


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_stopping_finishes_what_is_in_flight(
    serve: Serve, loop: str, number: signal.Signals, greeted: Connect, in_transaction: Connect
) -> None:
    server = serve({"smtpd": {"event_loop": loop}})
    idle, busy = greeted(server.port("smtp")), in_transaction(server.port("smtp"))
    server.process.send_signal(number)
    assert re.fullmatch(r"421 4\.3\.2 mx\.test is shutting down.* \[\w+\]", idle.line())
    assert idle.rest() == b""
    busy.say(CONTENT)
    assert busy.line().startswith("250 2.0.0 ")
    assert busy.line().startswith("421 4.3.2 ")
    assert server.process.wait(PATIENCE) == 0
    assert len(server.mailbox("ann")) == 1


def test_stopping_takes_no_new_connections(serve: Serve, in_transaction: Connect) -> None:
    server = serve()
    busy, port = in_transaction(server.port("smtp")), server.port("smtp")
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("draining")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE)
    busy.close()
    assert server.process.wait(PATIENCE) == 0


def test_stopping_does_not_wait_for_ever(serve: Serve, in_transaction: Connect) -> None:
    server = serve({"smtpd": {"drain_timeout": 0.2}})
    stuck = in_transaction(server.port("smtp"))
    server.process.send_signal(signal.SIGTERM)
    assert stuck.line().startswith("421 4.3.2 ")
    assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_stopping_ends_handshakes_without_noise(serve: Serve, greeted: Connect, loop: str) -> None:
    server = serve({"smtpd": {"drain_timeout": 0.2, "event_loop": loop}})
    shaking = greeted(server.port("smtp"))
    shaking.say(b"EHLO client.test\r\nSTARTTLS\r\n")
    shaking.reply()
    assert shaking.line().startswith("220 ")
    assert server.stop() == 0
    assert shaking.rest() == b""
    assert [entry["event"] for entry in server.log if entry["level"] in ("warning", "error")] == ["still-busy"]


def test_second_signal_waits_for_nobody(serve: Serve, in_transaction: Connect) -> None:
    server = serve({"smtpd": {"drain_timeout": 600}})
    stuck = in_transaction(server.port("smtp"))
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("draining")
    server.process.send_signal(signal.SIGTERM)
    assert stuck.line().startswith("421 4.3.2 ")
    assert server.process.wait(PATIENCE) == 0


def recipients_taken(client: Client) -> int:
    client.say(
        b"RSET\r\nEHLO c.test\r\nMAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<u%d@example.test>\r\n" % n for n in range(3))
    )
    for _ in range(6):
        client.reply()
    return re.findall(r"(250 2\.1\.5|452 4\.5\.3)", client.said)[-3:].count("250 2.1.5")


def test_hangup_reloads_for_new_sessions(serve: Serve, greeted: Connect) -> None:
    server = serve({"smtpd": {"max_recipients": 2}})
    old = greeted(server.port("smtp"))
    assert recipients_taken(old) == 2
    server.config.write_text(server.config.read_text().replace('"max_recipients" = 2', '"max_recipients" = 1'))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    assert recipients_taken(greeted(server.port("smtp"))) == 1
    assert recipients_taken(old) == 2
    old.close()
    assert server.stop() == 0


def test_hangup_keeps_the_old_configuration_when_the_new_one_is_wrong(serve: Serve, greeted: Connect) -> None:
    server = serve({"smtpd": {"max_recipients": 2}})
    server.config.write_text(BROKEN)
    server.process.send_signal(signal.SIGHUP)
    assert "hostname" in server.wait_for("reload-refused")["problem"]
    assert recipients_taken(greeted(server.port("smtp"))) == 2


PATIENT_FILTER = """
from pathlib import Path
from smtpd import Filter

class Patient(Filter):
    async def start(self) -> None:
        Path("turn").read_text()
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signal_that_comes_too_early_does_not_end_the_server(
    serve: Serve, directory: Path, greeted: Connect, number: signal.Signals
) -> None:
    (directory / "patient.py").write_text(PATIENT_FILTER)
    (directory / "patient-1.dist-info").mkdir()
    (directory / "patient-1.dist-info" / "entry_points.txt").write_text("[smtpd.filters]\npatient = patient:Patient\n")
    os.mkfifo(directory / "turn")
    environment = {"PYTHONPATH": str(directory)}
    server = serve({"smtpd": {"filters": {"patient": {}}}}, environment=environment, wait=False)
    with (directory / "turn").open("w"):  # opens when the filter starts
        server.config.write_text(BROKEN)
        server.process.send_signal(number)
    server.wait_for("ready")
    if number == signal.SIGHUP:
        server.wait_for("reload-refused")
    greeted(server.port("smtp"))


def test_hangup_brings_the_first_certificate(serve: Serve, certificates: Any, greeted: Connect) -> None:
    plain = {"smtp": {"tls": "off"}, "smtps": None, "submission": None, "alt": None}
    server = serve({"smtpd": {"tls": None, "auth": None, "listeners": plain}})
    files = f'cert_file = "{certificates.cert_file}"\nkey_file = "{certificates.key_file}"\n'
    text = server.config.read_text().replace('"off"', '"starttls"\n"tls_required" = true')
    server.config.write_text(f"{text}\n[smtpd.tls]\n{files}")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded")
    client = greeted(server.port("smtp"))
    client.say(b"EHLO client.test\r\n")
    client.reply()
    assert "STARTTLS" in client.said
    client.say(b"STARTTLS\r\n")
    assert client.line().startswith("220 ")
    client.start_tls(ssl.create_default_context(cafile=certificates.ca_file))
    client.say(ENVELOPE)
    for _ in range(4):
        client.reply()
    client.say(CONTENT)
    assert client.line().startswith("250 2.0.0 ")


def test_every_kind_of_address_is_listened_on(serve: Serve, directory: Path) -> None:
    path = directory / "smtp.sock"
    server = serve({"smtpd": {"listeners": {"smtp": {"address": ["127.0.0.1:0", "[::1]:0", f"unix:{path}"]}}}})
    v4, v6, local = server.addresses("smtp")
    assert (v4[:10], v6[:6], local) == ("127.0.0.1:", "[::1]:", f"unix:{path}")
    with socket.create_connection(("::1", int(v6.rpartition(":")[2])), PATIENCE) as over_v6:
        assert over_v6.recv(100) == b"220 mx.test ESMTP\r\n"
    with socket.socket(socket.AF_UNIX) as over_unix:
        over_unix.connect(str(path))
        assert over_unix.recv(100) == b"220 mx.test ESMTP\r\n"


def test_client_over_ipv6_is_written_as_such(serve: Serve) -> None:
    server = serve({"smtpd": {"listeners": {"smtp": {"address": "[::1]:0"}}}})
    with socket.create_connection(("::1", server.port("smtp")), PATIENCE) as client:
        client.sendall(ENVELOPE)
        client.sendall(CONTENT + b"QUIT\r\n")
        while client.recv(1000):
            continue
    assert b" ([IPv6:::1])\r\n" in server.mailbox("ann")[0]


def test_socket_left_behind_is_taken_over_and_a_living_one_is_not(serve: Serve, directory: Path) -> None:
    path = directory / "smtp.sock"
    table = {"smtpd": {"listeners": {"smtp": {"address": f"unix:{path}"}}}}
    first = serve(table)
    second = serve(table, wait=False)
    assert second.process.wait(PATIENCE) == 1
    assert str(path) in second.wait_for("cannot-start")["problem"]
    first.stop(signal.SIGKILL)
    assert stat.S_ISSOCK(path.stat().st_mode)
    serve(table)


def test_address_in_use_is_said(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = serve({"smtpd": {"listeners": {"smtp": {"address": address}}}}, wait=False)
        assert server.process.wait(PATIENCE) == 1
        assert address in server.wait_for("cannot-start")["problem"]


# sd_listen_fds(3): the sockets are descriptors from 3 on, LISTEN_PID must be the process itself.
ACTIVATE = """
import os, socket, sys
path = {path!r}
listening = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
listening.bind(path or ("127.0.0.1", 0))
listening.listen()
{instead}
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS={count!r}, LISTEN_FDNAMES="mail")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_sockets_of_systemd_are_used(serve: Serve, directory: Path, greeted: Connect) -> None:
    server = serve({"smtpd": {"listeners": {"smtp": {"address": "systemd:mail"}}}}, python=activated(directory))
    greeted(server.port("smtp"))


@pytest.mark.parametrize("count", ["", "x", "-1", "\u0663", "9" * 5000])
def test_number_of_sockets_that_is_none_is_told(serve: Serve, directory: Path, count: str) -> None:
    tables = {"smtpd": {"listeners": {"smtp": {"address": "systemd:mail"}}}}
    server = serve(tables, python=activated(directory, count=count), wait=False)
    assert server.process.wait(PATIENCE) == 1
    line = server.wait_for("cannot-start")
    assert "LISTEN_FDS" in line["problem"]
    assert "exception" not in line


@pytest.mark.parametrize(
    ("address", "instead", "problem"),
    [
        ("systemd:smtp", "", "systemd handed over no socket named \"smtp\", but 'mail' (FileDescriptorName)"),
        ("systemd:mail", "listening = socket.socket(type=socket.SOCK_DGRAM)", "systemd:mail takes no connections: "),
        ("systemd:mail", "listening = socket.socketpair()[0]", "systemd:mail takes no connections: "),
    ],
    ids=["another name", "ListenDatagram=", "Accept=yes"],
)
def test_socket_that_cannot_be_used_is_told(
    serve: Serve, directory: Path, address: str, instead: str, problem: str
) -> None:
    tables = {"smtpd": {"listeners": {"smtp": {"address": address}}}}
    server = serve(tables, python=activated(directory, instead=instead), wait=False)
    line = server.wait_for("cannot-start")
    assert line["problem"].startswith(problem)
    assert "exception" not in line


@pytest.mark.parametrize("event_loop", ["asyncio", "uvloop"])
def test_file_of_a_unix_socket_of_systemd_stays_for_the_next_server(
    serve: Serve, directory: Path, event_loop: str
) -> None:
    path = directory / "mail.sock"
    server = serve(
        {"smtpd": {"event_loop": event_loop, "listeners": {"smtp": {"address": "systemd:mail"}}}},
        python=activated(directory, str(path)),
    )
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert path.is_socket()


def activated(directory: Path, path: str = "", count: str = "1", instead: str = "") -> str:
    """A program that starts Python with a listening socket, as systemd does it."""
    script = directory / "activate"
    script.write_text(f"#!{sys.executable}\n{ACTIVATE.format(path=path, count=count, instead=instead)}")
    script.chmod(0o755)
    return str(script)


def test_systemd_hears_when_we_are_ready_and_when_we_stop(serve: Serve, directory: Path) -> None:
    path = directory / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        server = serve(environment={"NOTIFY_SOCKET": str(path)})
        assert manager.recv(100) == b"READY=1"
        server.process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_root_is_given_up_for_good(serve: Serve, directory: Path, in_transaction: Connect) -> None:
    nobody = pwd.getpwnam("nobody")
    for path in (directory, directory / "mail"):
        path.mkdir(exist_ok=True)
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    (directory / "users").touch()
    os.chown(directory / "users", nobody.pw_uid, nobody.pw_gid)
    server = serve({"smtpd": {"user": "nobody", "auth": None, "tls": None, "listeners": {
        "smtp": {"tls": "off"}, "smtps": None, "submission": None, "alt": None,
    }}})  # fmt: skip
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith(("Uid", "Gid", "Groups")))
    assert set(found["Uid"].split()) == {str(nobody.pw_uid)}
    assert set(found["Gid"].split()) == {str(nobody.pw_gid)}
    assert "0" not in found["Groups"].split()
    client = in_transaction(server.port("smtp"))
    client.say(CONTENT)
    assert client.line().startswith("250 2.0.0 ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_file_that_root_alone_can_read_is_named_with_who_cannot(
    serve: Serve, directory: Path, certificates: Any
) -> None:
    key = shutil.copy(certificates.key_file, directory)
    os.chmod(key, 0o600)
    server = serve({"smtpd": {"user": "nobody", "tls": {"key_file": key}}}, wait=False)
    line = server.wait_for("cannot-start")
    assert (line["run_as"], line["problem"]) == ("nobody", f"{key}: Permission denied")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_log_file_belongs_to_the_user_who_opens_it_again(serve: Serve, directory: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    log, systemd = directory / "log", directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(systemd))
        notified.settimeout(PATIENCE)
        systemd.chmod(0o666)
        serve({"smtpd": {"user": "nobody", "auth": None, "tls": None, "log": {"to": f"file:{log}"}, "listeners": {
            "smtp": {"tls": "off"}, "smtps": None, "submission": None, "alt": None,
        }}}, wait=False, environment={"NOTIFY_SOCKET": str(systemd)})  # fmt: skip
        assert notified.recv(100) == b"READY=1"
    assert log.stat().st_uid == nobody.pw_uid
