"""scripts/serve and the commands of the README, as somebody would try them who has just cloned the repository."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TOP, Workshop
from tests.interop.conftest import Daemon, Peer, need_ports, run

PARTS = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts", "smtpd", "filters", "delivery_agents")


def fresh_checkout(workshop: Workshop, folder: Path) -> Path:
    """A copy of everything that serves, with an environment as `scripts/serve` would have made it."""
    workshop.copy(folder, *PARTS)
    workshop.environment(folder / ".venv", "--editable", folder)
    wanted = run("sh", "-c", "cat pyproject.toml constraints.txt | cksum", cwd=folder).output
    (folder / ".venv" / ".installed").write_text(wanted, encoding="ascii")
    return folder


def commands_to_try() -> Iterator[str]:
    """The commands that the README gives for a running server, one by one."""
    part = (TOP / "README.md").read_text(encoding="utf-8").partition("## Try it")[2].partition("\n## ")[0]
    for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL):
        text = re.sub(r"[\\|]\n +", lambda found: found[0][0] * (found[0][0] == "|") + " ", block)
        yield from (line for line in text.splitlines() if line and not line.startswith("scripts/"))


@pytest.fixture(scope="module")
def checkout(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_checkout(workshop, tmp_path_factory.mktemp("fresh") / "smtpd")


@pytest.fixture
def served(checkout: Path, daemon: Callable[..., Daemon]) -> Daemon:
    """`scripts/serve`, as a user who may not bind ports below 1024 or become somebody else."""
    need_ports(2525, 2587, 2465, 9100)
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs") if os.geteuid() == 0 else ()
    running = daemon(*powerless, checkout / "scripts" / "serve", cwd=checkout)
    running.wait_for("ready")
    return running


def test_readme_works_as_it_stands(checkout: Path, served: Daemon, peer: Peer) -> None:
    assert peer("swaks")
    assert peer("curl")
    login = re.search(r"user@example\.test, password (\S+)", "".join(served.lines))
    assert login is not None
    said = []
    for command in commands_to_try():
        words = ("bash", "-c", command.replace("PASSWORD", login[1]))
        said.append(run(*words, cwd=checkout, expect=None).output)
    assert len(said) == 6, "the README has other commands now"
    first, by_curl, submitted, mails, refused, counted = said
    assert "250 2.0.0 Ok, delivered [" in first
    assert "curl: " not in by_curl
    assert "235 2.7.0" in submitted
    assert "250 2.0.0 Ok, delivered [" in submitted
    assert mails.count("Return-Path: ") == 3
    assert "Subject: Hello" in mails
    trace = re.search(r"550 5\.7\.1 .*you@elsewhere\.test \[(\w+)\]", refused)
    assert trace is not None
    assert served.wait_for(f"refused .*trace={trace[1]} .*reason=relay-denied")
    assert re.search(r'rejected_total\{listener="alt",reason="relay-denied",.*\} 1\.0', counted)


def test_second_start_keeps_user_certificate_and_mail_and_ends_cleanly(
    checkout: Path, served: Daemon, daemon: Callable[..., Daemon]
) -> None:
    assert run("curl", "-s", "http://127.0.0.1:9100/readyz").output == "ok\n"
    assert served.stop() == 0
    kept = {path: path.read_bytes() for path in (checkout / "var").rglob("*") if path.is_file()}
    again = daemon(checkout / "scripts" / "serve", cwd=checkout)
    again.wait_for("ready")
    assert again.stop() == 0
    assert not again.found("shown only now")
    assert again.found("smtpd user passwd --file .*/var/users user@example.test")
    assert {path: path.read_bytes() for path in (checkout / "var").rglob("*") if path.is_file()} == kept


def test_port_in_use_is_said_in_one_line(checkout: Path, served: Daemon) -> None:
    second = run(checkout / "scripts" / "serve", cwd=checkout, expect=1)
    assert "127.0.0.1:2525" in second.output
    assert "in use" in second.output
    assert "Traceback" not in second.output
    assert not served.found("error")
