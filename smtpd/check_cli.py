"""`smtpd check`: what is wrong with the configuration, where an address leads, and our published records."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.zone import Zone

SOUND, MISTAKES, WRONG = 0, 1, 2

_FILE = click.Path(path_type=Path)


@click.command()
@click.option("--config", "file", type=_FILE, metavar="FILE", help="Configuration file; default: the developer set-up.")
@click.option("--route", "address", metavar="ADDRESS", help="Say where mail for this recipient goes, and why.")
@click.option("--authenticated", is_flag=True, help="With --route: for a client that has logged in.")
@click.option("--records", is_flag=True, help="Also read SPF, DMARC and TLSRPT of our domains in the DNS.")
@click.option("--zone", "zone_file", type=_FILE, metavar="FILE", help="The same, from this file and not from the DNS.")
@click.option("--json", "as_json", is_flag=True, help="With --route, --records or --zone: for machines.")
def check(
    file: Path | None,
    address: str | None,
    authenticated: bool,
    records: bool,
    zone_file: Path | None,
    as_json: bool,
) -> None:
    """Read the configuration and say everything that is wrong with it; exit status 1 then. The network is left alone.

    With --records the DNS is asked for what our domains publish. Mistakes in that are told as `smtpd doctor` tells
    them, and the exit status is also 1 when there is a problem (warnings are none). With --zone a file answers in
    place of the DNS, so records can be checked before they are published; the exit status is 2 when it cannot be read.

    With --route the exit status is 0 when the recipient is taken, 1 when it is refused, and 2 when the configuration
    is wrong.
    """
    records = records or zone_file is not None
    _refuse_nonsense(address, authenticated, records, as_json)
    if address is not None:
        from smtpd.route_cli import show_route

        sys.exit(show_route(file, address, authenticated=authenticated, as_json=as_json))
    config = _sound_config(file)
    zone = None if zone_file is None else _zone(zone_file)
    if not as_json:
        click.echo(f"ok: {_summary(config)}")
    if records:
        sys.exit(_show_records(config, zone, as_json))


def _refuse_nonsense(address: str | None, authenticated: bool, records: bool, as_json: bool) -> None:
    if authenticated and address is None:
        raise click.UsageError("--authenticated needs --route")
    if records and address is not None:
        raise click.UsageError("--route goes with neither --records nor --zone")
    if as_json and address is None and not records:
        raise click.UsageError("--json needs --route, --records or --zone")


def _sound_config(file: Path | None) -> Config:
    """The configuration; what is wrong with it is printed, and a mistake is the end."""
    from smtpd import config

    report = config.check(file, os.environ)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    for problem in report.problems:
        click.echo(str(problem), err=True)
    if report.config is None:
        sys.exit(MISTAKES)
    return report.config


def _zone(file: Path) -> Zone:
    from smtpd.zone import Zone, ZoneError

    try:
        return Zone.load(file)
    except ZoneError as error:
        problem = str(error)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    click.echo(f"{file}: {problem}", err=True)
    sys.exit(WRONG)


def _show_records(config: Config, zone: Zone | None, as_json: bool) -> int:
    """Print what is found in the records of our domains; the exit status."""
    import asyncio

    from smtpd.doctor import left_out, read_records, worst
    from smtpd.doctor.report import for_eyes, for_machines

    findings = left_out(config.domains, from_file=zone is not None) + asyncio.run(read_records(config, zone))
    click.echo(for_machines(findings) if as_json else for_eyes(findings))
    return MISTAKES if worst(findings) == "problem" else SOUND


def _summary(config: Config) -> str:
    counts = {
        "listener": len(config.listeners),
        "domain": len(config.domains),
        "agent": len(config.agents),
        "filter": len(config.filters),
    }
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
