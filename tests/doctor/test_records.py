from collections.abc import Mapping

import pytest
from patients import levels, only, patient

from smtpd.doctor.records import check_dmarc, check_spf, check_tlsrpt

Tables = Mapping[str, Mapping[str, object]]
DOMAIN = "example.com"


def loop_of_includes(count: int) -> Tables:
    zone = {f"i{number}.example": {"TXT": ["v=spf1 a:mx.example.com -all"]} for number in range(count)}
    words = " ".join(f"include:{name}" for name in zone)
    return {**zone, DOMAIN: {"TXT": [f"v=spf1 {words} -all"]}, "mx.example.com": {"A": ["192.0.2.1"]}}


@pytest.mark.parametrize(
    ("zone", "level", "said"),
    [
        ({DOMAIN: {"TXT": ["google-site-verification=x", "v=spf1 ip4:192.0.2.1 -all"]}}, "ok", "0 of 10 lookups"),
        (loop_of_includes(2), "ok", "4 of 10 lookups"),
        (loop_of_includes(8), "problem", "It is wrong"),
        ({DOMAIN: {"TXT": ["v=spf1 ip4:192.0.2.1 +all"]}}, "problem", "without refusing anybody"),
        ({DOMAIN: {"TXT": ["v=spf1 ip4:192.0.2.1 ?all"]}}, "warning", "without refusing anybody"),
        ({DOMAIN: {"TXT": ["v=spf1 ip4:192.0.2.300 -all"]}}, "problem", "It is wrong"),
        ({DOMAIN: {"TXT": ["v=spf1 -all", "v=spf1 mx -all"]}}, "problem", "2 records"),
        ({DOMAIN: {"TXT": ["v=spf10 -all"]}}, "warning", "There is none"),
        ({DOMAIN: {"TXT": "tempfail: timeout"}}, "warning", "(timeout)"),
        ({DOMAIN: {"TXT": ["v=spf1 include:far.example -all"]}, "far.example": {"TXT": "tempfail: timeout"}},
         "warning", "nobody answers about far.example TXT"),
        ({DOMAIN: {"TXT": ["v=spf1 a:far.example -all"]}, "far.example": {"A": "tempfail: timeout"}},
         "warning", "nobody answers about far.example A"),
        ({DOMAIN: {"TXT": [b"v=spf1 \xff\x00 -all"]}}, "problem", "It is wrong"),
    ],
)  # fmt: skip
async def test_an_spf_record_is_judged(zone: Tables, level: str, said: str) -> None:
    findings = await check_spf(patient(zone), DOMAIN)
    assert set(levels(findings)) == {level}
    assert said in findings[0].meaning


async def test_a_record_that_lets_everybody_send_is_a_problem_whatever_else_is_odd_about_it() -> None:
    findings = await check_spf(patient({DOMAIN: {"TXT": ["v=spf1 a:none.example +all"]}}), DOMAIN)
    assert levels(findings) == ["warning", "problem"]
    assert "without refusing anybody" in findings[1].meaning


async def test_a_later_look_sees_what_the_dns_says_then() -> None:
    zone = {DOMAIN: {"TXT": ["v=spf1 include:other.example -all"]}}
    findings = await check_spf(patient({**zone, "other.example": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]}}), DOMAIN)
    assert levels(findings) == ["ok"]
    findings = await check_spf(patient({**zone, "other.example": {"TXT": ["v=spf1 ip4:nonsense -all"]}}), DOMAIN)
    assert levels(findings) == ["problem"]


DMARC = f"_dmarc.{DOMAIN}"


@pytest.mark.parametrize(
    ("zone", "level", "said"),
    [
        ({DMARC: {"TXT": ["v=DMARC1; p=reject; rua=mailto:d@example.com"]}, DOMAIN: {"MX": ["1 mx.example.com"]},
          "mx.example.com": {"A": ["192.0.2.1"]}}, "ok", "treated as reject"),
        ({DMARC: {"TXT": ["v=DMARC1; p=none; rua=mailto:d@example.com"]}, DOMAIN: {"MX": ["1 mx.example.com"]},
          "mx.example.com": {"A": ["192.0.2.1"]}}, "warning", "unenforced"),
        ({DMARC: {"TXT": ["v=DMARC1; p=reject; t=y; rua=mailto:d@example.com"]}, DOMAIN: {"MX": ["1 mx.example.com"]},
          "mx.example.com": {"A": ["192.0.2.1"]}}, "warning", "one level more mildly than reject"),
        ({DMARC: {"TXT": ["v=DMARC1; p=quarantine; t=y"]}}, "warning", "one level more mildly than quarantine"),
        ({DMARC: {"TXT": ["v=DMARC1; p=reject; t=n; rua=mailto:d@example.com"]}, DOMAIN: {"MX": ["1 mx.example.com"]},
          "mx.example.com": {"A": ["192.0.2.1"]}}, "ok", "treated as reject"),
        ({DMARC: {"TXT": ["v=DMARC1; p=rejekt"]}}, "problem", "It is wrong"),
        ({DMARC: {"TXT": ["v=DMARC1; p=none", "v=DMARC1; p=reject"]}}, "problem", "2 records"),
        ({DMARC: {"TXT": "tempfail: timeout"}}, "warning", "(timeout)"),
        ({DMARC: {"TXT": ["v=spf1 -all"]}}, "warning", "There is none"),
        ({}, "warning", "There is none"),
    ],
)  # fmt: skip
async def test_a_dmarc_record_is_judged(zone: Tables, level: str, said: str) -> None:
    findings = await check_dmarc(patient(zone), DOMAIN)
    assert set(levels(findings)) == {level}
    assert any(said in finding.meaning for finding in findings)


@pytest.mark.parametrize(
    ("record", "level", "said"),
    [
        (["v=DMARC1; p=reject"], "ok", "that of example.com holds"),
        ([], "warning", "There is none"),
        ("tempfail: timeout", "warning", "(timeout)"),
    ],
)
async def test_a_subdomain_without_dmarc_has_that_of_its_domain(record: object, level: str, said: str) -> None:
    finding = only(await check_dmarc(patient({DMARC: {"TXT": record}}), "lists.example.com"))
    assert finding.level == level
    assert said in finding.meaning


@pytest.mark.parametrize(
    ("record", "level", "said"),
    [
        (["v=TLSRPTv1; rua=mailto:t@example.com"], "ok", "know where to report"),
        (["v=TLSRPTv1; rua=nobody"], "problem", "It is wrong"),
        (["v=TLSRPTv1; rua=mailto:a@b.example", "v=TLSRPTv1; rua=mailto:t@example.com"], "problem", "2 records"),
        ([], "info", "There is none"),
        ("tempfail: timeout", "warning", "(timeout)"),
    ],
)
async def test_a_tlsrpt_record_is_judged(record: object, level: str, said: str) -> None:
    finding = only(await check_tlsrpt(patient({f"_smtp._tls.{DOMAIN}": {"TXT": record}}), DOMAIN))
    assert finding.level == level
    assert said in finding.meaning
