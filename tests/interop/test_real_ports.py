"""The real ports with the config.toml of the repository, started as root; only names and places are overridden."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from dns_server import Nameserver, running_nameserver

from tests.conftest import PATIENCE, TOP, Certificates, Server
from tests.interop.conftest import LETTER, Peer, Ran, Serve, metrics, need_ports, read, run

PORTS = {"smtp": 25, "smtps": 465, "submission": 587, "alt": 2525}
USER = "nobody"
CONFIG = TOP / "config.toml"
BY_LOGIN = ("--auth", "PLAIN", "--auth-user", Server.login, "--auth-password", Server.password)


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with running_nameserver() as server:
        server.add("sender.test. 60 IN MX 10 mx.sender.test.")  # nobody else is in this world
        server.add("mx.sender.test. 60 IN A 192.0.2.1")
        yield server


@pytest.fixture
def overrides(directory: Path, certificates: Certificates, nameserver: Nameserver) -> dict[str, str]:
    """What is different here from the machine that config.toml describes: certificates, users, mailboxes, addresses."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    places = {
        "TLS__CERT_FILE": shutil.copy(certificates.cert_file, directory),
        "TLS__KEY_FILE": shutil.copy(certificates.key_file, directory),
        "AUTH__USERS__PATH": str(directory / "logins"),
        "AGENTS__MAILSTORE__PATH": str(directory / "mail"),
        "METRICS__ADDRESS": "127.0.0.1:0",
        "STATE__URL": f"sqlite:{directory / 'state.db'}",
        "DNS__NAMESERVERS": json.dumps([nameserver.address]),
        "USER": USER,
        **{f"LISTENERS__{name.upper()}__ADDRESS": f"127.0.0.1:{port}" for name, port in PORTS.items()},
    }
    environment = {f"SMTPD__{name}": value for name, value in places.items()}
    for user in ("bob", "carol", "postmaster"):
        (directory / "mail" / "example.com" / user).mkdir(parents=True)
    add = (sys.executable, "-m", "smtpd", "user", "add", "--password-stdin", "--config", CONFIG, Server.login)
    run(*add, letter=f"{Server.password}\n".encode(), env={**os.environ, **environment})
    run("chown", "-R", USER, directory)
    return environment


@pytest.fixture
def server(serve: Serve, overrides: Mapping[str, str]) -> Server:
    need_ports(*PORTS.values())
    return serve(CONFIG.read_text(encoding="utf-8"), environment=overrides)


@pytest.fixture
def swaks(peer: Peer) -> Callable[..., Ran]:
    program = peer("swaks")

    def send(listener: str, *words: str, to: str = "bob@example.com", expect: int = 0) -> Ran:
        envelope = ("--ehlo", "client.test", "--from", "eve@sender.test", "--to", to)
        data = ("--data", LETTER.decode().replace("\r\n", "\n").rstrip("\n"))
        where = ("--server", "127.0.0.1", "--port", PORTS[listener])
        return run(program, *where, *envelope, *data, *words, expect=expect)

    return send


Swaks = Callable[..., Ran]


def test_mail_comes_in_by_all_four_ports(server: Server, swaks: Swaks) -> None:
    swaks("smtp")
    swaks("smtp", "--tls", "--pipeline")
    swaks("alt")
    swaks("submission", "--tls", *BY_LOGIN)
    swaks("smtps", "--tls-on-connect", *BY_LOGIN)
    mails = [read(mail) for mail in server.mailbox("bob", "example.com")]
    assert [mail.content for mail in mails] == [LETTER] * 5
    assert [mail.protocol for mail in mails] == ["ESMTP", "ESMTPS", "ESMTP", "ESMTPSA", "ESMTPSA"]
    assert all(" by mail.example.com (smtpd) with " in mail.received for mail in mails)
    counted = metrics(server)
    for listener, count in {"smtp": 2, "alt": 1, "submission": 1, "smtps": 1}.items():
        labels = f'listener="{listener}",recipient_domain="example.com"'
        assert counted[f"smtpd_messages_received_total{{{labels}}}"] == count


def test_root_is_given_up_for_good(server: Server, swaks: Swaks, directory: Path) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    ids = {line.split()[0]: set(line.split()[1:]) for line in status.splitlines() if line.startswith(("Uid", "Gid"))}
    owner = (directory / "mail").owner()
    assert owner == USER
    assert "0" not in ids["Uid:"] | ids["Gid:"]
    swaks("smtp")
    assert {path.owner() for path in (directory / "mail").rglob("new/*")} == {USER}


def test_unknown_users_relaying_and_missing_logins_are_refused(server: Server, swaks: Swaks) -> None:
    assert "550 5.1.1 No mailbox here" in swaks("smtp", to="nobody@example.com", expect=24).output
    assert "550 5.7.1" in swaks("smtp", to="bob@elsewhere.test", expect=24).output
    assert "530 5.7.0 Say STARTTLS first" in swaks("submission", expect=23).output
    assert "530 5.7.0 Log in with AUTH first" in swaks("smtps", "--tls-on-connect", expect=23).output
    server.wait_for("refused", 2)
    reasons = [entry["reason"] for entry in server.events("refused")]
    assert reasons[:2] == ["no-such-user", "relay-denied"]
    assert not server.mailbox("bob", "example.com")


def test_postmaster_is_always_reached(server: Server, swaks: Swaks) -> None:
    swaks("smtp", to="Postmaster")
    swaks("smtp", to="PostMaster@Example.COM")
    assert len(server.mailbox("postmaster", "example.com")) == 2


def test_configuration_passes_its_own_check(overrides: Mapping[str, str]) -> None:
    check = (sys.executable, "-m", "smtpd", "check", "--config", CONFIG)
    assert run(*check, env={**os.environ, **overrides}).output.startswith("ok: 4 listeners, 1 domain, 1 agent")
    plain = run(*check, expect=1).output
    assert all(line.startswith(f"{CONFIG}:") for line in plain.splitlines())
    assert "smtpd.tls.cert_file: there is no such file" in plain
    assert "Traceback" not in plain


@pytest.mark.parametrize(
    ("forgotten", "said"),
    [
        ({"SMTPD__USER": "nobody-of-this-name"}, "user and group to become: name not found: 'nobody-of-this-name'"),
        ({"SMTPD__AUTH__USERS__PATH": "/nonexistent/users"}, "/nonexistent/users: No such file or directory"),
        ({"SMTPD__LISTENERS__SMTP__ADDRESS": "192.0.2.1:25"}, "192.0.2.1:25"),
    ],
)
def test_what_the_operator_forgot_is_said_in_one_line(
    serve: Serve, overrides: Mapping[str, str], forgotten: Mapping[str, str], said: str
) -> None:
    anywhere = {f"SMTPD__LISTENERS__{name.upper()}__ADDRESS": "127.0.0.1:0" for name in PORTS}
    server = serve(CONFIG.read_text(encoding="utf-8"), environment={**overrides, **anywhere, **forgotten}, wait=False)
    problem = server.wait_for("cannot-start")
    assert said in problem["problem"]
    assert "exception" not in problem
    assert server.process.wait(PATIENCE) == 1
