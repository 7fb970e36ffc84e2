"""`smtpd session` as a process of its own: over pipes, and over a TCP socket the way inetd starts it."""

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 30.0
COMMAND = (sys.executable, "-m", "smtpd", "session", "--config")
REFUSED = b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@elsewhere.test>\r\nRSET\r\n"
MESSAGE = (
    b"MAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\nDATA\r\n"
    b"From: joe@client.test\r\n\r\nHello\r\n.\r\nQUIT\r\n"
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "smtpd.toml"
    path.write_text(f"""
[smtpd]
hostname = "mx.test"
[smtpd.listeners.smtp]
address = "127.0.0.1:25"
mode = "smtp"
tls = "off"
[smtpd.domains]
"example.test" = "mailstore"
[smtpd.agents.mailstore]
type = "maildir"
path = "{tmp_path}/mail"
recipients = "any"
[smtpd.log]
to = "file:{tmp_path}/log"
""")
    return path


@contextmanager
def started_by_inetd(
    config: Path, client_ip: str = "127.0.0.1"
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The client's end, and the process: its standard input, output and error are the other end."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname(), PATIENCE, source_address=(client_ip, 0))
        ours, _ = door.accept()
    with ours, client, subprocess.Popen((*COMMAND, config), stdin=ours, stdout=ours, stderr=ours) as child:
        ours.close()
        try:
            yield client, child
        finally:
            child.kill()


def everything(client: socket.socket) -> bytes:
    said = b""
    while piece := client.recv(1 << 16):
        said += piece
    return said


def refusals(config: Path) -> list[dict[str, object]]:
    lines = (config.parent / "log").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "refused"]


def test_over_pipes_replies_and_log_are_apart(config: Path) -> None:
    command = (*COMMAND, config, "--ip", "192.0.2.7")
    done = subprocess.run(command, input=REFUSED + MESSAGE, capture_output=True, timeout=PATIENCE, check=True)
    assert [line[:3] for line in done.stdout.splitlines() if line[3:4] == b" "] == [
        b"220", b"250", b"250", b"550", b"250", b"250", b"250", b"354", b"250", b"221",
    ]  # fmt: skip
    [refused] = (line for line in map(json.loads, done.stderr.splitlines()) if line["event"] == "refused")
    assert refused["ip"] == "192.0.2.7"
    [delivered] = (config.parent / "mail/example.test/ann/new").iterdir()
    assert b"([192.0.2.7])" in delivered.read_bytes()


def test_last_lines_of_the_log_are_written_when_nothing_is_left_to_do(config: Path) -> None:
    agent = f'"maildir"\npath = "{config.parent}/mail"\nrecipients = "any"\n[smtpd.log]'
    discard = '"discard"\nallow_discard = true\n[smtpd.log]\nconnections = true'
    config.write_text(config.read_text().replace(agent, discard))
    said = b"EHLO client.test\r\n" + MESSAGE
    done = subprocess.run((*COMMAND, config), input=said, capture_output=True, timeout=PATIENCE, check=True)
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["connected", "message", "disconnected"]


def test_developer_set_up_can_be_spoken_to_before_it_has_ever_been_served(tmp_path: Path) -> None:
    command, said = (sys.executable, "-m", "smtpd", "session"), b"EHLO client.test\r\n" + MESSAGE
    done = subprocess.run(command, input=said, capture_output=True, timeout=PATIENCE, cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert b"\n250 2.0.0 Ok, delivered" in done.stdout
    assert len(list((tmp_path / "var/mail/example.test/ann/new").iterdir())) == 1


def test_listener_that_begins_with_tls_is_refused_in_words(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "smtpd", "session", "--listener", "smtps")
    done = subprocess.run(command, input=b"", capture_output=True, timeout=PATIENCE, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"listener 'smtps' begins with TLS, which is not spoken here" in done.stderr


def test_client_of_inetd_never_sees_the_log(config: Path) -> None:
    with started_by_inetd(config) as (client, child):
        client.sendall(REFUSED + b"QUIT\r\n")
        said = everything(client)
        assert child.wait(PATIENCE) == 0
    assert all(line[:3].isdigit() for line in said.splitlines())
    assert [line["at"] for line in refusals(config)] == ["RCPT"]


def test_log_has_its_place_where_standard_error_is_closed(config: Path) -> None:
    command = ("sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, str(config))
    done = subprocess.run(command, input=REFUSED + b"QUIT\r\n", stdout=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert [line["at"] for line in refusals(config)] == ["RCPT"]


def test_client_of_inetd_is_known_by_its_own_address(config: Path) -> None:
    with started_by_inetd(config, "127.0.0.9") as (client, _):
        client.sendall(REFUSED + b"QUIT\r\n")
        everything(client)
    assert [line["ip"] for line in refusals(config)] == ["127.0.0.9"]


def test_client_of_inetd_never_sees_mistakes_of_the_configuration(config: Path) -> None:
    config.write_text(config.read_text() + "level = 'secret'\n")
    with started_by_inetd(config) as (client, child):
        assert everything(client) == b""
        assert child.wait(PATIENCE) == 1


def test_client_that_resets_the_connection_ends_the_process(config: Path) -> None:
    with started_by_inetd(config) as (client, child):
        assert client.recv(1 << 16).startswith(b"220 ")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert child.wait(PATIENCE) == 0


def test_start_that_fails_behind_inetd_is_told_in_the_log_and_not_to_the_client(config: Path) -> None:
    config.write_text(config.read_text().replace("/mail", "/log/mail"))
    with started_by_inetd(config) as (client, child):
        assert everything(client) == b""
        assert child.wait(PATIENCE) == 1
    [line] = map(json.loads, (config.parent / "log").read_text().splitlines())
    assert line["event"] == "cannot-start"
    assert "log/mail" in line["problem"]
