"""What our domains publish for others to go by: the records that `smtpd check` reads."""

from __future__ import annotations

from itertools import batched
from typing import TYPE_CHECKING

from smtpd.dns import RecordingResolver
from smtpd.doctor.examination import DomainCheck, Examination, about, quiet_resolver, run
from smtpd.doctor.finding import Finding
from smtpd.doctor.own_domains import own_domains
from smtpd.doctor.records import check_dmarc, check_spf, check_tlsrpt

if TYPE_CHECKING:
    from smtpd.config import Config
    from smtpd.dns import Resolver
    from smtpd.zone import Zone

RECORD_CHECKS: tuple[tuple[str, DomainCheck], ...] = (
    ("SPF", check_spf),
    ("DMARC", check_dmarc),
    ("TLSRPT", check_tlsrpt),
)
AT_ONCE = 20  # domains; each check has a limit of time, and hundreds at the same time would not keep it
_MAX_NAMES = 5


async def read_records(config: Config, zone: Zone | None = None) -> list[Finding]:
    """What is found in the records of our domains; with a `zone` nobody else is asked."""
    domains = own_domains(config.domains, from_file=zone is not None)
    if zone is not None:
        recording = RecordingResolver(zone)
        return [*await _read(config, recording, domains), *_unknown(recording)]
    async with quiet_resolver(config) as resolver:
        return await _read(config, resolver, domains)


async def _read(config: Config, resolver: Resolver, domains: tuple[str, ...]) -> list[Finding]:
    examination = Examination(config=config, resolver=resolver)
    findings: list[Finding] = []
    for some in batched(domains, AT_ONCE):
        checks = [(f"{name} of {domain}", about(domain, check)) for domain in some for name, check in RECORD_CHECKS]
        findings += await run(examination, checks)
    return findings


def _unknown(recording: RecordingResolver) -> list[Finding]:
    """A file holds what somebody thought of: which names were wanted that are not in it."""
    answers = recording.answers.items()
    names = list(dict.fromkeys(name for (name, _), answer in answers if answer.status == "nxdomain"))
    names = [name for name in names if not name.startswith(("_dmarc.", "_smtp._tls."))]  # what is missing there is told
    if not names:
        return []
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    text = f"By this file there is no {', '.join(names[:_MAX_NAMES])}{more}."
    return [Finding("info", "zone file", text, "Add what the DNS has of that, to have it looked at, too.")]
