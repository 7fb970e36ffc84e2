"""The command `smtpd`. Start-up stays quick: each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import click

_ELSEWHERE = {
    "check": "smtpd.check_cli:check",
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="smtpd", message="%(prog)s %(version)s")
def main() -> None:
    """Receive mail by SMTP and judge it while the sender is still on the line."""


@main.command()
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file; without it the developer set-up below the current directory is used.",
)
def serve(file: Path | None) -> None:
    """Run the server until SIGTERM or SIGINT; SIGHUP reads the configuration again."""
    from smtpd.signals import EarlySignals
    from smtpd.streams import hold_places

    hold_places()
    with EarlySignals() as signals:
        from smtpd.config import ConfigError, load
        from smtpd.process import run

        try:
            config = load(file, os.environ)
        except ConfigError as error:
            click.echo(str(error), err=True)
            sys.exit(1)
        sys.exit(run(config, path=file, environ=os.environ, signals=signals))
