import asyncio

from patients import levels, patient

from smtpd.dns import Answer, Type
from smtpd.doctor import Finding, examine, worst
from smtpd.doctor.examination import Examination, run
from smtpd.zone import Zone


async def fine(examination: Examination) -> list[Finding]:
    return [Finding("ok", "this", "Fine.")]


async def broken(examination: Examination) -> list[Finding]:
    raise ValueError("a\x1b[31mb")


async def endless(examination: Examination) -> list[Finding]:
    await asyncio.Event().wait()
    return []


async def test_a_check_that_breaks_or_hangs_is_a_finding_and_the_others_are_heard() -> None:
    checks = [("first", broken), ("second", endless), ("third", fine)]
    findings = await run(patient(timeout=0.05), checks)
    assert [(finding.level, finding.subject) for finding in findings] == [
        ("warning", "first"),
        ("warning", "second"),
        ("ok", "this"),
    ]
    assert "ValueError: a\\x1b[31mb" in findings[0].meaning


class Tempfail(Zone):
    """A DNS that is down."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        return Answer("tempfail", reason="timeout")


async def test_when_the_dns_is_down_that_is_the_one_problem() -> None:
    findings = await examine(
        patient(Tempfail(), domains=("example.com",), selectors=("s1",), blocklists=("bl.example",))
    )
    assert [finding.subject for finding in findings if finding.level == "problem"] == ["nameservers"]
    assert not [finding for finding in findings if "broke" in finding.meaning]
    unknown = {finding.subject.split()[0] for finding in findings if finding.meaning.endswith("(timeout).")}
    assert unknown == {"hostname", "MX", "SPF", "DKIM", "DMARC", "MTA-STS", "TLSRPT"}


async def test_every_check_has_something_to_say_in_the_order_of_the_table() -> None:
    findings = await examine(patient())
    subjects = [finding.subject.split()[0] for finding in findings]
    assert list(dict.fromkeys(subjects)) == ["nameservers", "blocklists", "clock", "hostname", "certificate", "agent"]


def test_what_strangers_wrote_is_made_harmless_and_short() -> None:
    finding = Finding("info", "a\r\nb", "\x1b[2J\u202e" + "x" * 10_000, "\x00")
    assert (finding.subject, finding.advice) == ("a\\r\\nb", "\\x00")
    assert finding.meaning.startswith("\\x1b[2J\\u202e")
    assert len(finding.meaning) == 600


def test_the_worst_level_counts() -> None:
    findings = [Finding(level, "a", "b") for level in ("ok", "info", "warning", "problem")]
    assert [worst(findings[:count]) for count in range(5)] == ["ok", "ok", "info", "warning", "problem"]
    assert levels(findings) == ["ok", "info", "warning", "problem"]
