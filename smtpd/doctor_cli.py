"""`smtpd doctor`: look at everything around the server that can keep mail from coming."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.doctor import Finding

NO_PROBLEM, PROBLEMS, WRONG = 0, 1, 2

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
    from smtpd.doctor import own_domains, worst
    from smtpd.doctor.report import for_eyes, for_machines

    selectors = _names(selectors, "--selector", MAX_NAMES)
    blocklists = _names(blocklists, "--blocklist", MAX_NAMES)
    try:
        config = load(file, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(WRONG)
    chosen = _names(domains or own_domains(config.domains), "DOMAIN", MAX_DOMAINS)
    findings = asyncio.run(_examine(config, chosen, selectors, blocklists, timeout, with_https=not no_https))
    click.echo(for_machines(findings) if as_json else for_eyes(findings))
    sys.exit(PROBLEMS if worst(findings) == "problem" else NO_PROBLEM)


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
        if name is None or name == "." or " " in name or "@" in name or name.replace(".", "").isdigit():
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
    from smtpd.doctor import Examination, examine, fetch_policy, quiet_resolver, system_nameservers

    async with quiet_resolver(config) as resolver:
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
        return await examine(examination)
