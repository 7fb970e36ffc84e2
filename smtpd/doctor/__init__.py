"""`smtpd doctor`: what is wrong around the server. Each check is a small function that returns findings."""

from __future__ import annotations

from smtpd.doctor.agents import check_agents
from smtpd.doctor.blocklists import check_blocklists
from smtpd.doctor.certificate import check_certificates
from smtpd.doctor.clock import check_clock
from smtpd.doctor.dkim_key import check_dkim
from smtpd.doctor.examination import Check, DomainCheck, Examination, about, quiet_resolver, run
from smtpd.doctor.finding import Finding, Level, worst
from smtpd.doctor.kernel_clock import ClockState
from smtpd.doctor.mail_exchanger import check_mx
from smtpd.doctor.mta_sts import check_mta_sts
from smtpd.doctor.nameservers import check_nameservers, system_nameservers
from smtpd.doctor.own_domains import left_out, own_domains
from smtpd.doctor.own_name import check_own_name
from smtpd.doctor.policy_file import PolicyError, fetch_policy
from smtpd.doctor.published import read_records
from smtpd.doctor.records import check_dmarc, check_spf, check_tlsrpt

__all__ = [
    "CHECKS",
    "DOMAIN_CHECKS",
    "ClockState",
    "Examination",
    "Finding",
    "Level",
    "PolicyError",
    "examine",
    "fetch_policy",
    "left_out",
    "own_domains",
    "quiet_resolver",
    "read_records",
    "system_nameservers",
    "worst",
]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("nameservers", check_nameservers),
    ("blocklists", check_blocklists),
    ("clock", check_clock),
    ("hostname", check_own_name),
    ("certificate", check_certificates),
    ("agents", check_agents),
)
"""Checks of the machine, in the order in which they are told."""
DOMAIN_CHECKS: tuple[tuple[str, DomainCheck], ...] = (
    ("MX", check_mx),
    ("SPF", check_spf),
    ("DKIM", check_dkim),
    ("DMARC", check_dmarc),
    ("MTA-STS", check_mta_sts),
    ("TLSRPT", check_tlsrpt),
)
"""Checks of each domain."""


async def examine(examination: Examination) -> list[Finding]:
    """Run all checks at the same time; the findings, in the order of the tables above."""
    checks = list(CHECKS)
    for domain in examination.domains:
        checks += [(f"{name} of {domain}", about(domain, check)) for name, check in DOMAIN_CHECKS]
    return await run(examination, checks)
