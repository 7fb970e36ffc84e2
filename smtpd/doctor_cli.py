"""`smtpd doctor`: look at everything around the server that can keep mail from coming."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.doctor import Finding

NO_PROBLEM, PROBLEMS, WRONG = 0, 1, 2

WIDTH = 100  # columns
MAX_DOMAINS = 50
MAX_NAMES = 20  # selectors, and blocklists

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("domains", nargs=-1, metavar="[DOMAIN]...")
@click.option("--config", "file", type=_FILE, metavar="FILE", help="Configuration file; default: the developer set-up.")
@click.option("--selector", "selectors", multiple=True, metavar="NAME", help="DKIM selector; may be repeated.")
@click.option("--blocklist", "blocklists", multiple=True, metavar="ZONE", help="Zone of a DNS list; may be repeated.")
@click.option("--timeout", default=20.0, show_default=True, type=click.FloatRange(1, 300), help="Of each check, s.")
@click.option("--no-https", is_flag=True, help="Do not fetch MTA-STS policies.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(
    domains: tuple[str, ...],
    file: Path | None,
    selectors: tuple[str, ...],
    blocklists: tuple[str, ...],
    timeout: float,
    no_https: bool,
    as_json: bool,
) -> None:
    """Look at what is around the server, and at the zones of DOMAINs (those of the configuration by default).

    Nameservers, blocklists, clock, our own name, certificate and agents; MX, SPF, DKIM, DMARC, MTA-STS and TLSRPT.
    Each line says what was found and what it means, and what to do if something should be done. Agents are started and
    asked, but get no message. The exit status is 0 when there is no problem (warnings are none), 1 when there is one,
    and 2 when the configuration or an option is wrong.
    """
    from smtpd.config import ConfigError, load
    from smtpd.doctor import worst

    selectors = _names(selectors, "--selector", MAX_NAMES)
    blocklists = _names(blocklists, "--blocklist", MAX_NAMES)
    try:
        config = load(file, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(WRONG)
    chosen = _names(domains or _own_domains(config), "DOMAIN", MAX_DOMAINS)
    findings = asyncio.run(_examine(config, chosen, selectors, blocklists, timeout, with_https=not no_https))
    click.echo(_for_machines(findings) if as_json else _for_eyes(findings))
    sys.exit(PROBLEMS if worst(findings) == "problem" else NO_PROBLEM)


def _own_domains(config: Config) -> tuple[str, ...]:
    # A pattern has no zone of its own, and names without dots or below "test" are not in the DNS (RFC 6761 §6.2).
    return tuple(name for name in config.domains if "*" not in name and "." in name and not name.endswith(".test"))


def _names(words: tuple[str, ...], where: str, most: int) -> tuple[str, ...]:
    """Names as the DNS has them, each once."""
    import idna

    from smtpd.dns import normal_name

    names: dict[str, None] = {}
    for word in words:
        try:
            text = word if word.isascii() else idna.encode(word, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise click.BadParameter(f"{word}: {error}", param_hint=where) from None
        name = normal_name(text)
        if name is None or name == "." or " " in name:
            raise click.BadParameter(f"{word} is no name", param_hint=where)
        names[name] = None
    if len(names) > most:
        raise click.BadParameter(f"more than {most} at once; run this several times", param_hint=where)
    return tuple(names)


async def _examine(
    config: Config,
    domains: tuple[str, ...],
    selectors: tuple[str, ...],
    blocklists: tuple[str, ...],
    timeout: float,
    *,
    with_https: bool,
) -> list[Finding]:
    from smtpd.config import LogOptions
    from smtpd.dns import make_resolver
    from smtpd.doctor import Examination, examine, fetch_policy, system_nameservers
    from smtpd.log import Log
    from smtpd.metrics import Metrics

    log = Log(LogOptions(to="stderr", level="error", format="console"))
    resolver = make_resolver(config.dns, Metrics(), log)
    examination = Examination(
        config=config,
        resolver=resolver,
        nameservers=tuple(address for address, _ in config.dns.servers) or system_nameservers(),
        domains=domains,
        selectors=selectors,
        blocklists=blocklists,
        fetch=fetch_policy if with_https else None,
        timeout=timeout,
    )
    try:
        return await examine(examination)
    finally:
        await resolver.stop()
        log.close()


def _for_machines(findings: list[Finding]) -> str:
    from dataclasses import asdict

    from smtpd.doctor import worst

    return json.dumps({"worst": worst(findings), "findings": [asdict(finding) for finding in findings]}, indent=1)


def _for_eyes(findings: list[Finding]) -> str:
    lines: list[str] = []
    for finding in findings:
        lines += _folded(f"{finding.level:<8}", f"{finding.subject}: {finding.meaning}")
        if finding.advice:
            lines += _folded(" " * 8 + "-> ", finding.advice)
    counts = [(level, sum(finding.level == level for finding in findings)) for level in ("problem", "warning")]
    lines += ["", ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts)]
    return "\n".join(lines)


def _folded(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)
