"""The command `smtpd user`: logins in a file. A password is asked for or read from a pipe, never an argument."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from smtpd import users
from smtpd.users import UserFileError

MAX_PASSWORD_LINE = 4096  # octets
DEVELOPER_FILE = Path("var", "users")


@dataclass(frozen=True, slots=True)
class _Place:
    """Which file is meant, and what its new hashes may cost."""

    path: Path
    cost: users.Cost


@click.group()
def user() -> None:
    """Manage the logins of the `file` provider.

    The server reads the file again at the next login; nothing needs a restart.
    """


def _place_options[Command: Callable[..., None]](command: Command) -> Command:
    file = click.option(
        "--file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The users file."
    )
    config = click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Configuration that names the users file; without it that of the developer set-up, ./var/users.",
    )
    return file(config(command))


_password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of standard input."
)


@user.command()
@_place_options
@_password_stdin
@click.argument("login")
def add(file: Path | None, config: Path | None, password_stdin: bool, login: str) -> None:
    """Add LOGIN; the file is made when there is none."""
    place = _find(file, config)
    password = _new_password(password_stdin)
    with _told():
        if place.path == DEVELOPER_FILE:
            place.path.parent.mkdir(exist_ok=True)
        name = users.add(place.path, login, password, place.cost)
    click.echo(f"added {name} to {place.path}")


@user.command()
@_place_options
@_password_stdin
@click.argument("login")
def passwd(file: Path | None, config: Path | None, password_stdin: bool, login: str) -> None:
    """Change the password of LOGIN."""
    place = _find(file, config)
    password = _new_password(password_stdin)
    with _told():
        name = users.set_password(place.path, login, password, place.cost)
    click.echo(f"changed the password of {name} in {place.path}")


@user.command()
@_place_options
@click.argument("login")
def remove(file: Path | None, config: Path | None, login: str) -> None:
    """Remove LOGIN."""
    place = _find(file, config)
    with _told():
        name = users.remove(place.path, login)
    click.echo(f"removed {name} from {place.path}")


@user.command("list")
@_place_options
def list_(file: Path | None, config: Path | None) -> None:
    """List all logins, sorted, one per line."""
    place = _find(file, config)
    with _told():
        known = users.load(place.path)
    for login in sorted(known.hashes):
        click.echo(login)


@user.command()
@_place_options
@_password_stdin
@click.argument("login", required=False)
def check(file: Path | None, config: Path | None, password_stdin: bool, login: str | None) -> None:
    """Check the file, or with LOGIN whether a password is right; exit status 1 when it is not."""
    place = _find(file, config)
    with _told():
        known = users.load(place.path)
        for problem in known.problems:
            click.echo(f"{place.path}: {problem}", err=True)
        if login is None:
            click.echo(f"{place.path}: {len(known.hashes)} good, {len(known.problems)} bad")
            sys.exit(1 if known.problems else 0)
        password = _read_password() if password_stdin else click.prompt("Password", hide_input=True)
        right = users.check_password(place.path, login, password)
    click.echo("right" if right else "wrong: no such login, or another password")
    sys.exit(0 if right else 1)


def _find(file: Path | None, config: Path | None) -> _Place:
    if file is not None and config is not None:
        raise click.UsageError("give --file or --config, not both")
    if config is not None:
        return _configured(config)
    return _Place(file or DEVELOPER_FILE, users.DEFAULT_COST)


def _configured(path: Path) -> _Place:
    from smtpd.config import ConfigError, load

    try:
        auth = load(path, os.environ).auth
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    for name in auth.providers:
        options = auth.tables.get(name)
        if isinstance(options, users.Options):
            return _Place(Path(options.path), options.cost)
    raise click.ClickException("[smtpd.auth] names no provider of type file; say --file FILE")


def _new_password(from_stdin: bool) -> str:
    if from_stdin:
        return _read_password()
    password: str = click.prompt("Password", hide_input=True, confirmation_prompt="Once more")
    return password


def _read_password() -> str:
    line = sys.stdin.buffer.readline(MAX_PASSWORD_LINE)
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise click.ClickException("the password is not UTF-8") from None


@contextmanager
def _told() -> Iterator[None]:
    """Expected mistakes become one line on standard error and exit status 1."""
    try:
        yield
    except (UserFileError, OSError) as error:
        raise click.ClickException(str(error)) from None
