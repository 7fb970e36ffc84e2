"""Rehearsals of a small configuration, for the tests of `smtpd.rehearsal`."""

from collections.abc import Iterable, Mapping
from typing import Any

from smtpd.config import Config
from smtpd.dns import Resolver
from smtpd.options import AgentOptions
from smtpd.policy import Filter
from smtpd.rehearsal import Client, Envelope, Line, Performance, rehearse
from smtpd.rehearsal.rehearsal import Step
from smtpd.zone import Zone

NOW = 1_700_000_000.0
TABLES: dict[str, Any] = {
    "hostname": "mx.test",
    "listeners": {"smtp": {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off"}},
    "domains": {"example.test": "store"},
    "agents": {"store": AgentOptions(type="discard")},
}
LETTER = Envelope("joe@client.test", ("ann@example.test",), b"From: joe@client.test\r\n\r\nHi\r\n")


async def play(
    script: Envelope | Iterable[Line] = LETTER,
    *,
    filters: Mapping[str, type[Filter]] | None = None,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
    tables: Mapping[str, Any] | None = None,
    zone: Resolver | None = None,
    client: Client | None = None,
    **options: Any,
) -> Performance:
    """Play a script; `rules` are the tables of the filters, `tables` are laid over `TABLES`."""
    kinds = dict(filters or {})
    options_of = {name: kind.Options(**(rules or {}).get(name, {})) for name, kind in kinds.items()}
    config = Config.model_validate({**TABLES, "filters": options_of, **(tables or {})})
    resolver = zone or Zone()
    return await rehearse(
        config, client or Client(), script, resolver=resolver, now=lambda: NOW, filters=kinds, **options
    )


def step_at(performance: Performance, moment: str) -> Step:
    """The first step at this moment."""
    return next(step for step in performance.steps if step.moment == moment)


def said(*lines: str) -> list[Line]:
    """A dialog."""
    return [Line(line.encode() + b"\r\n") for line in lines]


def replies(performance: Performance) -> list[str]:
    """The last line of every reply, without what differs from run to run."""
    return [step.replies[-1].partition(" [")[0] for step in performance.steps if step.replies]
