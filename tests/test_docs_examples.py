"""What stands in docs/plugins.md is run, and what stands in docs/operating.md is complete."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A plug-in author's directory: the modules, their entry points as installed, and the tests."""
    tables = [tomllib.loads(block) for block in blocks("plugins.md", "toml")]
    points = [table["project"]["entry-points"] for table in tables if "project" in table]
    modules = [point.partition(":")[0] for found in points for group in found.values() for point in group.values()]
    programs = blocks("plugins.md", "python")
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
    assert "5 passed" in done.stdout


def test_tables_of_the_plug_in_page_switch_the_plug_ins_on(desk: Path) -> None:
    tables = [block for block in blocks("plugins.md", "toml") if "[smtpd." in block and "[project" not in block]
    config = desk / "config.toml"
    config.write_text(CONFIG + "\n".join(tables))
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


def test_logged_events_are_found() -> None:
    found = events_in(ast.parse("self._log.info('ready', a=1); log = x.log.error if y else x.log.info; log('login')"))
    assert found == {"ready", "login"}


def events_in(tree: ast.Module) -> set[str]:
    """First arguments of everything that is called like a method of Log, by whatever name it goes."""
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in (*LEVELS, "log", "write", "line", "_lines")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and re.fullmatch(r"[a-z]+(-[a-z]+)*", node.args[0].value)
    }
