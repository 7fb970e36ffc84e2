"""MTA-STS (RFC 8461): whether senders are told to insist on TLS, and the policy they fetch fits our MX records."""

from __future__ import annotations

import asyncio

from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding
from smtpd.doctor.policy_file import PolicyError

_VERSION = b"v=stsv1"


async def check_mta_sts(examination: Examination, domain: str) -> list[Finding]:
    """One finding about the record, and one about the policy if it may be fetched."""
    subject = f"MTA-STS of {domain}"
    answer = await examination.resolver.resolve(f"_mta-sts.{domain}", "TXT")
    if answer.failed:
        return [Finding("warning", subject, f"The DNS does not say now ({answer.reason}).", "Try again.")]
    records = [text for text in answer.txt if text.partition(b";")[0].strip().lower() == _VERSION]
    if not records:
        text = "There is none: whoever sits in between can talk senders out of TLS."
        advice = f"Publish TXT _mta-sts.{domain} and a policy at https://mta-sts.{domain}/.well-known/mta-sts.txt."
        return [Finding("info", subject, text, advice)]
    if len(records) > 1:
        text = f"There are {len(records)} records, and then none of them counts."
        return [Finding("problem", subject, text, "Keep one.")]
    if mistake := await asyncio.to_thread(_record_mistake, records[0]):
        return [Finding("problem", subject, f"It is wrong: {mistake}", "Correct the record.")]
    if examination.fetch is None:
        return [Finding("info", subject, "The record can be read. The policy was not fetched.")]
    return [await _check_policy(examination, domain)]


async def _check_policy(examination: Examination, domain: str) -> Finding:
    assert examination.fetch is not None
    subject = f"MTA-STS of {domain}"
    try:
        policy = await examination.fetch(examination.resolver, domain)
        mode, patterns = await asyncio.to_thread(_read_policy, policy)
    except PolicyError as error:
        text = f"The record is there, but the policy is not: {error}"
        return Finding("problem", subject, text, "Serve the policy, or take the record away.")
    answer = await examination.resolver.resolve(domain, "MX")
    strangers = [record.host for record in answer.mx if not _fits(record.host, patterns)]
    if mode == "none":
        return Finding("info", subject, "The policy says none: it asks for nothing.")
    if strangers:
        text = f"The policy does not name {', '.join(strangers)}, which MX records name: senders refuse to go there."
        return Finding("problem" if mode == "enforce" else "warning", subject, text, "Add mx lines, raise the id.")
    if answer.failed:
        text = f"The policy can be read; the DNS does not say now which hosts it is about ({answer.reason})."
        return Finding("warning", subject, text, "Try again.")
    if mode == "testing":
        text = "The policy fits the MX records, but is only tested: senders report, and deliver without TLS."
        return Finding("info", subject, text, "Set mode: enforce once the reports are quiet.")
    return Finding("ok", subject, "The policy is enforced, and fits the MX records.")


def _record_mistake(record: bytes) -> str:
    from checkdmarc.mta_sts import MTASTSError, parse_mta_sts_record  # type: ignore[import-untyped]

    try:
        parse_mta_sts_record(record.decode("utf-8", "backslashreplace"))
    except MTASTSError as error:
        return str(error)
    return ""


def _read_policy(policy: str) -> tuple[str, list[str]]:
    from checkdmarc.mta_sts import MTASTSError, parse_mta_sts_policy

    try:
        found = parse_mta_sts_policy(policy)["policy"]
    except MTASTSError as error:
        raise PolicyError(f"it cannot be read: {error}") from error
    return str(found["mode"]), [str(pattern) for pattern in found["mx"]]


def _fits(host: str, patterns: list[str]) -> bool:
    # RFC 8461 §4.1: a wildcard stands for one label, the leftmost.
    names = {pattern.lower().removesuffix(".") for pattern in patterns}
    return host in names or f"*.{host.partition('.')[2]}" in names
