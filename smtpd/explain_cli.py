"""`smtpd explain`: what would happen to a message, step by step, and why; nothing is sent, stored or remembered."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.rehearsal import Client, Envelope, Line, Performance

ACCEPTED, REFUSED, WRONG = 0, 1, 2

_FILE = click.Path(path_type=Path)


def parse_time(text: str) -> float:
    """Seconds since 1970 from such a number or a time as in 2026-11-21T10:00:00Z (UTC unless it says otherwise)."""
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= seconds < 253_402_300_800:  # the year 10000
        raise ValueError("is no time between 1970 and 9999")
    return seconds


@click.command()
@click.argument("message", type=_FILE, required=False)
@click.option("--config", "file", type=_FILE, metavar="FILE", help="Configuration file; default: the developer set-up.")
@click.option("--listener", default="", metavar="NAME", help="Listener whose rules hold; the first one by default.")
@click.option("--ip", default="192.0.2.1", metavar="ADDRESS", help="Address the client comes from.")
@click.option("--helo", default=None, metavar="NAME", help="What it calls itself; default: client.example.")
@click.option("--from", "sender", default=None, metavar="ADDRESS", help="Sender in MAIL; empty for <>.")
@click.option("--to", "recipients", multiple=True, metavar="ADDRESS", help="Recipient in RCPT; may be repeated.")
@click.option("--tls", is_flag=True, help="As if the connection were encrypted.")
@click.option("--login", default=None, metavar="USER", help="As if this user had logged in.")
@click.option("--session", "dialog", type=_FILE, metavar="FILE", help="Replay the client's side of a dialog instead.")
@click.option("--zone", "zone_file", type=_FILE, metavar="FILE", help="Answer the DNS from this file.")
@click.option("--record", "record_file", type=_FILE, metavar="FILE", help="Write what the DNS said as such a file.")
@click.option("--time", "moment", default=None, metavar="TIME", help="Time filters see, as in 2026-11-21T10:00:00Z.")
@click.option("--ask-agents", is_flag=True, help="Ask the delivery agents about recipients; they get no message.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def explain(
    message: Path | None,
    file: Path | None,
    listener: str,
    ip: str,
    helo: str | None,
    sender: str | None,
    recipients: tuple[str, ...],
    tls: bool,
    login: str | None,
    dialog: Path | None,
    zone_file: Path | None,
    record_file: Path | None,
    moment: str | None,
    ask_agents: bool,
    as_json: bool,
) -> None:
    """Say what would happen to MESSAGE, command by command: what filters looked at, found and said, and the replies.

    MESSAGE is a file, or - for standard input.

    Nothing is delivered, stored or remembered. The exit status is 0 when the message is accepted for all recipients,
    1 when it is refused or put off for any (or a dialog holds none), and 2 when the configuration, a file or an option
    is wrong.
    """
    from smtpd.config import ConfigError, load
    from smtpd.rehearsal import RehearsalError, ScriptError
    from smtpd.zone import ZoneError

    try:
        now = _clock(moment)
        client = _client(ip, "client.example" if helo is None else helo, tls, login)
        script = _script(message, dialog, helo, sender, recipients)
        config = load(file, os.environ, files=False)
        performance, zone = asyncio.run(
            _play(config, client, script, now, listener=listener, zone_file=zone_file, ask_agents=ask_agents)
        )
    except (ConfigError, RehearsalError, ScriptError) as error:
        _stop(str(error))
    except ZoneError as error:
        _stop(f"{zone_file}: {error}")
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}")
    _print(performance, as_json)
    if record_file is not None:
        _record(record_file, zone)
    sys.exit(ACCEPTED if performance.ending == "accepted" else REFUSED)


def _clock(moment: str | None) -> Callable[[], float]:
    if moment is None:
        return time.time
    try:
        seconds = parse_time(moment)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--time") from None
    return lambda: seconds


def _client(ip: str, helo: str, tls: bool, login: str | None) -> Client:
    from smtpd.model import plain_ip
    from smtpd.rehearsal import Client

    try:
        address = plain_ip(ip_address(ip))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ip") from None
    return Client(address, helo, tls, login)


def _script(
    message: Path | None, dialog: Path | None, helo: str | None, sender: str | None, recipients: tuple[str, ...]
) -> Envelope | list[Line]:
    from smtpd.rehearsal import Envelope, read_dialog, read_message
    from smtpd.rehearsal.script import read_standard_input

    if dialog is not None:
        if message is not None or helo is not None or sender is not None or recipients:
            raise click.UsageError("--session brings its own greeting, envelope and message")
        return read_dialog(dialog)
    if message is None or sender is None or not recipients:
        raise click.UsageError("MESSAGE, --from and --to are needed, or --session")
    content = read_standard_input() if message == Path("-") else read_message(message)
    return Envelope(sender, recipients, content)


async def _play(
    config: Config,
    client: Client,
    script: Envelope | list[Line],
    now: Callable[[], float],
    *,
    listener: str,
    zone_file: Path | None,
    ask_agents: bool,
) -> tuple[Performance, str]:
    """What happened, and the zone of all that the DNS said."""
    from smtpd.config import LogOptions
    from smtpd.dns import RecordingResolver, make_resolver
    from smtpd.log import Log
    from smtpd.metrics import Metrics
    from smtpd.rehearsal import rehearse, resolver_of
    from smtpd.zone import Zone

    zone = Zone.load(zone_file) if zone_file is not None else None
    log = Log(LogOptions(to="stderr", level="error", format="console"))
    recording = RecordingResolver(
        make_resolver(config.dns, Metrics(), log) if zone is None else resolver_of(zone, config.dns, log)
    )
    try:
        performance = await rehearse(
            config, client, script, resolver=recording, now=now, listener=listener, ask_agents=ask_agents
        )
    finally:
        log.close()
    return performance, Zone.from_answers(recording.answers).to_toml()


def _print(performance: Performance, as_json: bool) -> None:
    from smtpd.rehearsal import tell
    from smtpd.rehearsal.page import page

    click.echo(json.dumps(tell(performance), indent=1) if as_json else page(performance))


def _record(file: Path, zone: str) -> None:
    try:
        file.write_text(zone, encoding="utf-8")
    except OSError as error:
        _stop(f"{file}: {error.strerror}")


def _stop(problem: str) -> None:
    click.echo(problem, err=True)
    sys.exit(WRONG)
