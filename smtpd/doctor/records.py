"""What the zone of a domain says about mail from it: SPF, DMARC and TLSRPT, as checkdmarc reads them.

checkdmarc is stricter than receivers may be. That is what one wants of one's own records.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import dns.exception

from smtpd.dns import Answer
from smtpd.doctor.examination import Examination
from smtpd.doctor.finding import Finding

_AGAIN = "Try again; then ask who runs the zone."
_MAX_WARNINGS = 10  # of one record; a record full of mistakes is one to write anew

Parse = Callable[[str, Any], dict[str, Any]]
"""Takes a record and a resolver of dnspython; gives what checkdmarc gives, with a list of `warnings`."""


async def check_spf(examination: Examination, domain: str) -> list[Finding]:
    """Whether others can tell who may send for the domain."""
    subject = f"SPF of {domain}"
    answer = await examination.resolver.resolve(domain, "TXT")
    # RFC 7208 §4.5: the version is followed by a space or by nothing.
    records = [text for text in answer.txt if text.lower().partition(b" ")[0] == b"v=spf1"]
    if answer.failed or len(records) != 1:
        advice = "Publish one TXT record, such as v=spf1 mx -all."
        return [_missing(subject, answer, records, "anybody can send in its name", advice)]

    def parse(record: str, resolver: Any) -> dict[str, Any]:
        from checkdmarc.spf import SPFError, parse_spf_record  # type: ignore[import-untyped]

        return _read(parse_spf_record, SPFError, record, domain, resolver=resolver, retries=0)

    found, findings = await _parsed(examination, subject, records[0], parse)
    if not found:
        return findings
    last = found["parsed"]["all"]
    if last in ("pass", "neutral") and not found["parsed"].get("redirect"):
        text = "It ends without refusing anybody, so whoever is not named in it may send as well."
        findings.append(Finding("problem" if last == "pass" else "warning", subject, text, "End it with -all or ~all."))
    text = f"It can be read; evaluating it takes up to {found['dns_lookups']} of 10 lookups."
    return findings or [Finding("ok", subject, text)]


async def check_dmarc(examination: Examination, domain: str) -> list[Finding]:
    """Whether receivers are told what to do with forged mail."""
    subject = f"DMARC of {domain}"
    answer = await examination.resolver.resolve(f"_dmarc.{domain}", "TXT")
    records = _of_version(answer, b"v=DMARC1")
    if answer.failed or len(records) > 1:
        return [_missing(subject, answer, records, "", "Keep one.")]
    if not records:
        return [await _inherited(examination, domain)]

    def parse(record: str, resolver: Any) -> dict[str, Any]:
        from checkdmarc.dmarc import DMARCError, parse_dmarc_record  # type: ignore[import-untyped]

        return _read(parse_dmarc_record, DMARCError, record, domain, resolver=resolver, retries=0)

    found, findings = await _parsed(examination, subject, records[0], parse)
    if not found:
        return findings
    tags: dict[str, dict[str, Any]] = found["tags"]
    policy = tags["p"]["value"]
    if "t" in tags and tags["t"]["value"] == "y" and policy != "none":
        text = f"It is only tried (t=y): mail that fails is treated one level more mildly than {policy}."
        findings.append(Finding("warning", subject, text, "Take t=y out when the reports look right."))
    return findings or [Finding("ok", subject, f"Mail that fails is to be treated as {policy}.")]


async def check_tlsrpt(examination: Examination, domain: str) -> list[Finding]:
    """Whether senders know where to report trouble with TLS."""
    subject = f"TLSRPT of {domain}"
    answer = await examination.resolver.resolve(f"_smtp._tls.{domain}", "TXT")
    records = _of_version(answer, b"v=TLSRPTv1")
    if not answer.failed and not records:
        text = "There is none: nobody tells you when sending servers cannot encrypt."
        advice = f"Publish TXT _smtp._tls.{domain}: v=TLSRPTv1; rua=mailto:you@{domain}"
        return [Finding("info", subject, text, advice)]
    if answer.failed or len(records) > 1:
        return [_missing(subject, answer, records, "", "Keep one.")]

    def parse(record: str, _: Any) -> dict[str, Any]:
        from checkdmarc.smtp_tls_reporting import SMTPTLSReportingError, parse_smtp_tls_reporting_record  # type: ignore[import-untyped]

        return _read(parse_smtp_tls_reporting_record, SMTPTLSReportingError, record)

    _, findings = await _parsed(examination, subject, records[0], parse)
    return findings or [Finding("ok", subject, "Senders know where to report trouble with TLS.")]


async def _inherited(examination: Examination, domain: str) -> Finding:
    from checkdmarc.utils import get_base_domain  # type: ignore[import-untyped]

    subject = f"DMARC of {domain}"
    parent = await asyncio.to_thread(get_base_domain, domain)
    if parent and parent != domain:
        answer = await examination.resolver.resolve(f"_dmarc.{parent}", "TXT")
        if answer.failed:
            return Finding("warning", subject, f"The DNS does not say now ({answer.reason}).", _AGAIN)
        if _of_version(answer, b"v=DMARC1"):
            return Finding("ok", subject, f"It has none of its own; that of {parent} holds.")
    text = "There is none: receivers take forged mail in its name as they please."
    return Finding("warning", subject, text, f"Publish TXT _dmarc.{domain}: v=DMARC1; p=quarantine")


def _of_version(answer: Answer, version: bytes) -> list[bytes]:
    return [text for text in answer.txt if text.partition(b";")[0].strip().lower() == version.lower()]


def _missing(subject: str, answer: Answer, records: list[bytes], harm: str, advice: str) -> Finding:
    if answer.failed:
        return Finding("warning", subject, f"The DNS does not say now ({answer.reason}).", _AGAIN)
    if records:
        text = f"There are {len(records)} records, and then none of them counts."
        return Finding("problem", subject, text, advice if advice.startswith("Keep") else "Make one of them.")
    return Finding("warning", subject, f"There is none, so {harm}.", advice)


class _UnreadableError(Exception):
    """checkdmarc cannot read a record; the text says why."""


def _read(parse: Callable[..., Any], error: type[Exception], *given: Any, **more: Any) -> dict[str, Any]:
    from checkdmarc.utils import DNSException

    try:
        found: dict[str, Any] = parse(*given, **more)
    except (error, DNSException, dns.exception.DNSException) as mistake:
        raise _UnreadableError(str(mistake)) from mistake
    return found


async def _parsed(
    examination: Examination, subject: str, record: bytes, parse: Parse
) -> tuple[dict[str, Any], list[Finding]]:
    """What a record says, and what is wrong with it; either is empty."""
    from smtpd.doctor.bridge import BridgedResolver

    logging.getLogger("checkdmarc").addHandler(logging.NullHandler())
    bridge = BridgedResolver(examination.resolver, asyncio.get_running_loop(), examination.timeout)
    try:
        found = await asyncio.to_thread(_parse_anew, parse, record.decode("utf-8", "backslashreplace"), bridge)
    except _UnreadableError as mistake:
        if bridge.failures:
            return {}, [_unanswered(subject, bridge.failures)]
        return {}, [Finding("problem", subject, f"It is wrong: {mistake}", "Correct the record.")]
    warnings = [str(warning) for warning in found["warnings"][:_MAX_WARNINGS]]
    if bridge.failures:
        return found, [_unanswered(subject, bridge.failures)]
    return found, [Finding("warning", subject, warning, "Look at the record.") for warning in warnings]


def _parse_anew(parse: Parse, record: str, bridge: Any) -> dict[str, Any]:
    from checkdmarc.utils import DNS_CACHE

    DNS_CACHE.clear()  # of the whole process, whoever was asked: our resolver has a cache of its own
    return parse(record, bridge)


def _unanswered(subject: str, failures: list[str]) -> Finding:
    text = f"It could not be checked to the end: nobody answers about {', '.join(failures[:3])}."
    return Finding("warning", subject, text, _AGAIN)
