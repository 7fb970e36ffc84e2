"""The command `smtpd`. Start-up stays quick: each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config

_ELSEWHERE = {
    "doctor": "smtpd.doctor_cli:doctor",
    "user": "smtpd.users_cli:user",
    "session": "smtpd.session_cli:session",
    "explain": "smtpd.explain_cli:explain",
    "test": "smtpd.policy_cli:test",
}
"""Commands with a file of their own."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, those with a file of their own included."""
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command at its first use."""
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command


_config = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file; without it the developer set-up below the current directory is used.",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="smtpd", message="%(prog)s %(version)s")
def main() -> None:
    """Receive mail by SMTP and judge it while the sender is still on the line."""


@main.command()
@_config
def serve(file: Path | None) -> None:
    """Run the server until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    from smtpd.config import ConfigError, load
    from smtpd.process import run

    try:
        config = load(file, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    sys.exit(run(config, path=file, environ=os.environ))


@main.command()
@_config
@click.option("--route", "address", metavar="ADDRESS", help="Say where mail for this recipient goes, and why.")
@click.option("--authenticated", is_flag=True, help="With --route: for a client that has logged in.")
@click.option("--json", "as_json", is_flag=True, help="With --route: for machines.")
def check(file: Path | None, address: str | None, authenticated: bool, as_json: bool) -> None:
    """Read the configuration and say everything that is wrong with it; exit status 1 then.

    With --route the exit status is 0 when the recipient is taken, 1 when it is refused, and 2 when the
    configuration is wrong.
    """
    if address is not None:
        from smtpd.route_cli import show_route

        sys.exit(show_route(file, address, authenticated=authenticated, as_json=as_json))
    if authenticated or as_json:
        raise click.UsageError("--authenticated and --json need --route")
    from smtpd import config

    report = config.check(file, os.environ)
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    for problem in report.problems:
        click.echo(str(problem), err=True)
    if report.config is None:
        sys.exit(1)
    click.echo(f"ok: {_summary(report.config)}")


def _summary(config: Config) -> str:
    counts = {
        "listener": len(config.listeners),
        "domain": len(config.domains),
        "agent": len(config.agents),
        "filter": len(config.filters),
    }
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
