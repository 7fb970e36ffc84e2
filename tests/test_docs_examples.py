"""What stands in docs/plugins.md is run, and what stands in docs/operating.md is complete."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from base64 import b64encode
from pathlib import Path

import pytest
import trustme
from pages import Page

from smtpd import users
from smtpd.memory import MemoryServer
from smtpd.model import TlsInfo

TOP = Path(__file__).resolve().parent.parent
DOCS = TOP / "docs"
LEVELS = ("debug", "info", "message", "warning", "error")
CONFIG = """
[smtpd]
hostname = "mx.example.com"
postmaster = "postmaster@example.com"
[smtpd.listeners.smtp]
address = "127.0.0.1:0"
mode = "smtp"
tls = "off"
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A plug-in author's directory: the modules, their entry points as installed, and the tests."""
    tables = [tomllib.loads(block) for block in Page("plugins.md").blocks("toml")]
    points = [table["project"]["entry-points"] for table in tables if "project" in table]
    modules = [point.partition(":")[0] for found in points for group in found.values() for point in group.values()]
    programs = Page("plugins.md").blocks("python")
    for name, program in zip([*modules, *(f"test_{name}" for name in modules)], programs, strict=True):
        (tmp_path / f"{name}.py").write_text(program)
    installed = tmp_path / "examples-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: examples\nVersion: 1.0\n")
    lines = [
        line
        for found in points
        for group, names in found.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()))
    ]
    (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(desk: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{desk}{os.pathsep}{TOP}"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=desk, env=environment, capture_output=True, text=True, timeout=120
    )


def test_tests_of_the_plug_in_page_pass(desk: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function", "-W", "error")
    done = run(desk, "pytest", *options, "--asyncio-mode=auto", "--rootdir", str(desk))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout


def test_first_configuration_has_no_mistake(tmp_path: Path) -> None:
    (text,) = [block for block in Page("operating.md").blocks("toml") if "[smtpd.listeners.smtp]\naddress" in block]
    certificate = trustme.CA().issue_cert("mail.example.com")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "mail.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "mail.key")
    for directory in ("/etc/smtpd/certs", "/var/lib/smtpd"):
        assert directory in text
        text = text.replace(directory, str(tmp_path))
    (tmp_path / "config.toml").write_text(text)
    done = run(tmp_path, "smtpd", "check", "--config", "config.toml")
    assert (done.stdout, done.stderr) == ("ok: 1 listener, 1 domain, 1 agent, 0 filters\n", "")


def test_tables_against_forgers_refuse_them_once_they_are_in_force(tmp_path: Path) -> None:
    (tables,) = [block for block in Page("operating.md").blocks("toml") if "[smtpd.filters.dmarc]" in block]
    (tmp_path / "zone.toml").write_text('["_dmarc.good.example"]\nTXT = ["v=DMARC1; p=reject"]\n')
    (tmp_path / "message.eml").write_text("From: joe@good.example\n\nHi\n")
    words = "explain message.eml --config config.toml --zone zone.toml --from joe@evil.example --to ann@example.com"
    domains = '[smtpd.domains]\n"example.com" = "mailstore"\n'
    (tmp_path / "config.toml").write_text(CONFIG + domains + tables)
    observed = run(tmp_path, "smtpd", *words.split())
    assert "would have refused, but only observes [dmarc-reject]" in observed.stdout
    assert observed.stdout.endswith("\naccepted\n")
    (tmp_path / "config.toml").write_text(CONFIG + domains + tables.replace('mode = "observe"\n', ""))
    enforced = run(tmp_path, "smtpd", *words.split())
    assert "\nrefused: 550 5.7.1 Rejected by the DMARC policy of good.example" in enforced.stdout


def test_tables_of_the_plug_in_page_switch_the_plug_ins_on(desk: Path) -> None:
    tables = [block for block in Page("plugins.md").blocks("toml") if "[smtpd." in block and "[project" not in block]
    config = desk / "config.toml"
    (desk / "passwords").touch()
    config.write_text((CONFIG + "\n".join(tables)).replace("/srv/shop/", f"{desk}/"))
    done = run(desk, "smtpd", "check", "--config", str(config))
    assert (done.returncode, done.stdout) == (0, "ok: 1 listener, 1 domain, 1 agent, 1 filter\n"), done.stderr
    config.write_text(config.read_text().replace("words =", "wrods ="))
    done = run(desk, "smtpd", "check", "--config", str(config))
    assert done.returncode == 1
    assert "words" in done.stderr


@pytest.mark.slow
def test_types_of_the_plug_in_page_are_right(desk: Path) -> None:
    programs = sorted(str(path) for path in desk.glob("*.py"))
    done = run(desk, "mypy", "--strict", "--config-file", str(TOP / "pyproject.toml"), *programs)
    assert done.returncode == 0, done.stdout


def events_in(tree: ast.AST) -> set[str]:
    """Every event that is logged by its name, or through a variable called `event`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            place = {"line": 1}.get(called, 0)
            if called in (*LEVELS, "log", "write", "line"):
                found |= constants(node.args[place : place + 1])
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "event":
            found |= constants([node.value])
    return {name for name in found if re.fullmatch(r"[a-z]+(-[a-z]+)*", name)}


def constants(nodes: list[ast.expr]) -> set[str]:
    branches = [
        part for node in nodes for part in ([node.body, node.orelse] if isinstance(node, ast.IfExp) else [node])
    ]
    return {node.value for node in branches if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize(
    "source",
    [
        "self._log.info('a-b', c=1)",
        "log = x.log.error if y else x.log.info; log('a-b')",
        "event = 'a-b' if x else 'a-b'; self._log.warning(event)",
        "self._lines.line('warning', 'a-b', {})",
    ],
)
def test_logged_events_are_found(source: str) -> None:
    assert events_in(ast.parse(source)) == {"a-b"}


def described_events() -> set[str]:
    table = (DOCS / "operating.md").read_text(encoding="utf-8").partition("| event |")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    return {name for cell in first_cells for name in re.findall(r"`([a-z-]+)`", cell)}


def test_every_event_of_the_log_is_described_and_no_other() -> None:
    files = [path for folder in ("smtpd", "filters", "delivery_agents") for path in (TOP / folder).rglob("*.py")]
    logged = set().union(*(events_in(ast.parse(path.read_text(encoding="utf-8"))) for path in files))
    assert described_events() == logged


def test_metrics_in_alerts_exist() -> None:
    known = (DOCS / "metrics.md").read_text(encoding="utf-8")
    used = re.findall(r"smtpd_[a-z_]+", "".join(Page("operating.md").blocks("yaml")))
    assert used
    assert [name for name in used if f"`{name.removesuffix('_count')}`" not in known] == []


async def test_pattern_for_fail2ban_finds_failed_logins_and_nothing_a_client_says(tmp_path: Path) -> None:
    found = re.search(r"^failregex = (.*)$", "".join(Page("operating.md").blocks("ini")), re.MULTILINE)
    assert found is not None
    pattern = re.compile(found[1].replace("<ADDR>", r"(?P<ip>[0-9a-f.:]+)"))
    users.add(tmp_path / "users", "alice", "right", users.Cost(passes=1, memory=8192))
    tables = {
        "listeners": {"submission": {"address": "127.0.0.1:0", "mode": "submission"}},
        "auth": {"providers": ["users"], "users": users.Options(type="file", path=str(tmp_path / "users"))},
    }
    forged = '","event":"login","session":"","listener":"","ip":"192.0.2.9","result":"failed"}'
    async with MemoryServer(tables=tables) as server:
        for password in ("right", "wrong"):
            tls = TlsInfo("TLSv1.3", "", 256)
            talk = await server.connect(ip="2001:db8::1", tls=tls, helo=forged if password == "right" else "pc")
            await talk.say(b"AUTH PLAIN %b\r\n" % b64encode(f"\0alice\0{password}".encode()))
            await talk.say(f"MAIL FROM:<a@b.test>\r\nRCPT TO:<{forged}@c.test>\r\nQUIT\r\n".encode())
        lines = [json.dumps(line, separators=(",", ":")) for line in server.log]
    assert {re.findall(r'"result":"(\w+)"', line)[0] for line in lines if '"event":"login"' in line} == {"ok", "failed"}
    (match,) = filter(None, map(pattern.search, lines))
    assert match["ip"] == "2001:db8::1"
    assert '"helo":"pc"' in match.string
