"""Read, override, validate and cross-check: from a file and the environment to a `Config`, or to every mistake."""

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

from smtpd.config.checks import find_mistakes, find_oddities
from smtpd.config.environment import apply_environment, read_secrets
from smtpd.config.lines import key_lines
from smtpd.config.models import Config
from smtpd.config.problems import ConfigError, Finding, Origins, Path, Problem
from smtpd.config.schema import Tree
from smtpd.config.validation import validate

MAX_FILE = 4 << 20  # bytes; our own choice, a big recipient map is a few hundred KiB

_SYNTAX_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Report:
    """What reading gave: a configuration (None when there are problems), mistakes, and mere oddities."""

    config: Config | None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    draft: Config | None = None
    """What could be read in spite of the mistakes."""


def load(path: FilePath | None, environ: Mapping[str, str], *, over: Tree | None = None, files: bool = True) -> Config:
    """Read the file (None: the developer set-up below the current directory) and what overrides it.

    `over` is laid over the tables of the file, table by table. `files=False`: certificates, files with secrets and the
    like need not be there, as nothing will be served. Raises ConfigError with every mistake at once.
    """
    report, _ = _read_and_build(path, environ, over=over, files=files)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def check(path: FilePath | None, environ: Mapping[str, str]) -> Report:
    """As `load`, but mistakes are returned, and warnings with them; what is found only at start-up as well."""
    from smtpd.config.fitting import find_loopholes, find_misfits, find_slips  # they import half of the server
    from smtpd.config.surroundings import find_gaps, find_trouble_ahead

    report, origins = _read_and_build(path, environ)
    found: list[Finding] = []
    warnings = report.warnings
    if report.draft is not None and path is not None:
        found += find_gaps(report.draft, is_whole=report.config is not None)
        warnings = [*warnings, *_placed(list(find_trouble_ahead(report.draft, path, origins.secrets)), origins)]
    if report.config is not None:
        found += find_misfits(report.config)
        warnings = [*warnings, *_placed([*find_loopholes(report.config), *find_slips(report.config)], origins)]
    if not found:
        return replace(report, warnings=warnings)
    problems = sorted([*report.problems, *_placed(found, origins)], key=lambda problem: problem.line or 0)
    return Report(None, problems, warnings)


def _read_and_build(
    path: FilePath | None, environ: Mapping[str, str], *, over: Tree | None = None, files: bool = True
) -> tuple[Report, Origins]:
    origins = Origins("developer set-up" if path is None else str(path), {})
    if path is None:
        return _build(_laid_over(developer_tables(FilePath.cwd()), over), origins, environ, files=False), origins
    try:
        text = _read(path)
        document = tomllib.loads(text)
    except OSError as error:
        return Report(None, [Problem(str(path), None, "", f"cannot be read: {error.strerror}")]), origins
    except tomllib.TOMLDecodeError as error:
        return Report(None, [_syntax_problem(path, text, error)]), origins
    except (ValueError, RecursionError) as error:
        return Report(None, [Problem(str(path), None, "", f"cannot be read: {error}")]), origins
    origins = Origins(str(path), key_lines(text))
    tree = document.get("smtpd")
    if not isinstance(tree, dict):
        return Report(None, [Problem(str(path), None, "smtpd", "there is no table [smtpd]")]), origins
    return _build(_laid_over(tree, over), origins, environ, files=files, secrets=files), origins


def _laid_over(tables: Tree, over: Tree | None) -> Tree:
    result = dict(tables)
    for key, value in (over or {}).items():
        below = result.get(key)
        result[key] = (
            _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else deepcopy(value)
        )
    return result


def from_tables(tables: Mapping[str, object], *, over: Tree | None = None, files: bool = True) -> Config:
    """Make a configuration from plain tables, as they would stand below `[smtpd]`; for embedding and tests.

    `over` and `files` as in `load`. Raises ConfigError.
    """
    report = _build(deepcopy(_laid_over(dict(tables), over)), Origins("configuration", {}), {}, files=files)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def developer_config(directory: FilePath, environ: Mapping[str, str] | None = None) -> Config:
    """The set-up that needs no root, no certificate and no other server; its files are made below `directory`/var.

    Raises ConfigError when a variable in `environ` is wrong.
    """
    origins = Origins("developer set-up", {})
    report = _build(developer_tables(directory), origins, environ or {}, files=False)
    if report.config is None:
        raise ConfigError(report.problems)
    return report.config


def developer_tables(directory: FilePath) -> Tree:
    """The tables of the developer set-up, without anything that needs DNS."""
    var = directory / "var"
    return {
        "hostname": "localhost",
        "postmaster": "postmaster@localhost",
        "spool": None,
        "drain_timeout": "5s",
        "listeners": {
            "alt": {"address": "127.0.0.1:2525", "mode": "alt"},
            "submission": {"address": "127.0.0.1:2587", "mode": "submission"},
            "smtps": {"address": "127.0.0.1:2465", "mode": "smtps"},
        },
        "tls": {"cert_file": str(var / "tls" / "dev.crt"), "key_file": str(var / "tls" / "dev.key")},
        "domains": {"example.test": "mailbox", "localhost": "mailbox"},
        "agents": {"mailbox": {"type": "maildir", "path": str(var / "mail"), "recipients": "any"}},
        "filters": {"access": {}, "headers": {}},
        "auth": {"providers": ["users"], "users": {"type": "file", "path": str(var / "users")}},
        "metrics": {"address": "127.0.0.1:9100"},
        "log": {"format": "console"},
    }


def _read(path: FilePath) -> str:
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ValueError(f"it is bigger than {MAX_FILE} bytes")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")  # Windows puts a byte order mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text") from None


def _syntax_problem(path: FilePath, text: str, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    place = _SYNTAX_PLACE.search(message)
    if place is None:
        return Problem(str(path), None, "", message)
    sentence = message[: place.start()]
    if place[1] is None:
        return Problem(str(path), text.count("\n") + 1, "", f"{sentence} at the end of the file")
    return Problem(str(path), int(place[1]), "", f"{sentence}, column {place[2]}")


def _build(tree: Tree, origins: Origins, environ: Mapping[str, str], *, files: bool, secrets: bool = True) -> Report:
    findings = list(apply_environment(environ, tree, origins))
    unread = list(read_secrets(tree, origins))
    findings += unread if secrets else []
    draft = validate(tree)
    findings += draft.findings
    warnings: list[Finding] = []
    if draft.config is not None:
        findings += find_mistakes(draft.config, draft, files=files)
        warnings += find_oddities(draft.config, draft)
    problems = _placed(findings, origins)
    return Report(None if problems else draft.config, problems, _placed(warnings, origins), draft.config)


def _placed(findings: list[Finding], origins: Origins) -> list[Problem]:
    seen: dict[tuple[Path, str], Problem] = {}
    for finding in findings:
        seen.setdefault((finding.path, finding.message), origins.problem(finding))
    return sorted(seen.values(), key=lambda problem: problem.line or 0)
