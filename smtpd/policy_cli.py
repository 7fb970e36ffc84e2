"""`smtpd test`: policy tests, for CI. Each case is played as by `smtpd explain`, and compared with what it expects."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.rehearsal import Performance
    from smtpd.rehearsal.cases import Case, PolicyFile
    from smtpd.rehearsal.comparison import Difference
    from smtpd.zone import Zone

PASSED, FAILED, WRONG = 0, 1, 2

BARE: dict[str, object] = {
    "hostname": "mx.example.com",
    "postmaster": "postmaster@example.com",
    "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
    "domains": {"example.com": "mailbox"},
    "agents": {"mailbox": {"type": "discard", "allow_discard": True}},
}
"""What a test without a configuration file starts from."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--config", "config", type=click.Path(path_type=Path), metavar="FILE", help="For files that name none.")
@click.option("--only", default="", metavar="TEXT", help="Only cases with this text in their name.")
@click.option("--explain", "explains", is_flag=True, help="Show every step of cases that fail.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def test(files: tuple[Path, ...], config: Path | None, only: str, explains: bool, as_json: bool) -> None:
    """Run policy tests: what must become of which message, see docs/testing-policy.md.

    The exit status is 0 when all cases pass, 1 when one fails, and 2 when a file or a case cannot be used.
    """
    from smtpd.config import ConfigError
    from smtpd.rehearsal.cases import read_tests

    problems: list[str] = []
    told: list[dict[str, object]] = []
    for path in files:
        try:
            tests = read_tests(path)
            for case, performance, differences in _played(tests, config, only, problems):
                told.append({"file": str(path), "case": case.name, "differences": list(map(asdict, differences))})
                if not as_json:
                    name = case.name if len(files) == 1 else f"{path}: {case.name}"
                    _print(name, performance if explains else None, differences)
        except ConfigError as error:
            problems.append(str(error))
    failed = sum(bool(one["differences"]) for one in told)
    if as_json:
        click.echo(json.dumps({"passed": len(told) - failed, "failed": failed, "cases": told}, indent=1))
    else:
        click.echo(f"{len(told) - failed} passed, {failed} failed")
    for problem in problems:
        click.echo(problem, err=True)
    if not told and not problems:
        click.echo("there is no such case", err=True)
    sys.exit(WRONG if problems or not told else FAILED if failed else PASSED)


def _played(
    tests: PolicyFile, config: Path | None, only: str, problems: list[str]
) -> Iterator[tuple[Case, Performance, list[Difference]]]:
    """Cases that cannot be played are `problems`, one for all that share it."""
    from smtpd.config import ConfigError
    from smtpd.rehearsal.comparison import compare

    for number, case in enumerate(tests.cases):
        if only in case.name:
            try:
                performance = _play(tests, number, case, config)
            except ConfigError as error:
                problems += [] if str(error) in problems else [str(error)]
            else:
                yield case, performance, compare(case.expect, performance)


def _play(tests: PolicyFile, number: int, case: Case, file: Path | None) -> Performance:
    """ConfigError names the case."""
    from smtpd.config import ConfigError, LogOptions
    from smtpd.log import Log
    from smtpd.rehearsal import Envelope, RehearsalError, ScriptError, rehearse, resolver_of
    from smtpd.rehearsal.cases import client_of

    config = _config(tests, number, case, file)
    zone = _zone(tests, number, case)
    log = Log(LogOptions(to="stderr", level="error", format="console"))
    key = "client"
    try:
        client = client_of(case)
        key = "message_file"
        content = _content(tests, case)
        key = "rcpt"
        envelope = Envelope(case.mail_from, case.rcpt, content)
        resolver = resolver_of(zone, config.dns, log)
        work = rehearse(config, client, envelope, resolver=resolver, now=_clock(case.time), listener=case.listener)
        performance = asyncio.run(work)
    except ScriptError as error:
        raise ConfigError([tests.problem(number, key, str(error))]) from None
    except RehearsalError as error:
        key = "listener" if case.listener and case.listener not in config.listeners else "config"
        raise ConfigError([tests.problem(number, key, str(error))]) from None
    finally:
        log.close()
    if problems := tests.label_problems(number, performance.known_labels):
        raise ConfigError(problems)
    return performance


def _config(tests: PolicyFile, number: int, case: Case, file: Path | None) -> Config:
    from smtpd.config import ConfigError, from_tables, load

    path = tests.path.parent / case.config_file if case.config_file is not None else file
    try:
        if path is None:
            return from_tables(BARE, over=dict(case.config), files=False)
        return load(path, {}, over=dict(case.config), files=False)  # the environment is another one in every CI
    except ConfigError as error:
        key = "config" if case.config or path is None else "config_file"
        raise ConfigError([tests.problem(number, key, str(problem)) for problem in error.problems]) from None


def _zone(tests: PolicyFile, number: int, case: Case) -> Zone:
    from smtpd.config import ConfigError
    from smtpd.zone import Zone, ZoneError

    try:
        zone = Zone() if case.zone_file is None else _zone_file(tests.path.parent / case.zone_file)
    except ZoneError as error:
        raise ConfigError([tests.problem(number, "zone_file", str(error))]) from None
    try:
        for name, table in case.zone.items():
            zone.put(name, **table)
    except ZoneError as error:
        raise ConfigError([tests.problem(number, "zone", str(error))]) from None
    return zone


def _zone_file(path: Path) -> Zone:
    """ZoneError names it."""
    from smtpd.zone import Zone, ZoneError

    try:
        return Zone.load(path)
    except ZoneError as error:
        raise ZoneError(f"{path}: {error}") from None
    except OSError as error:
        raise ZoneError(f"{path}: cannot be read: {error.strerror}") from None


def _content(tests: PolicyFile, case: Case) -> bytes:
    from smtpd.rehearsal import read_message
    from smtpd.rehearsal.script import with_line_ends

    if case.message_file is not None:
        return read_message(tests.path.parent / case.message_file)
    return with_line_ends((case.message or "").encode())


def _clock(moment: float | None) -> Callable[[], float]:
    return time.time if moment is None else lambda: moment


def _print(name: str, performance: Performance | None, differences: list[Difference]) -> None:
    from smtpd.rehearsal.page import differences_page, page, printable

    click.echo(f"{'FAIL' if differences else 'ok  '}  {printable(name)}")
    if differences:
        click.echo(differences_page(differences))
    if differences and performance is not None:
        click.echo("\n".join(f"      {line}".rstrip() for line in page(performance).split("\n")))
