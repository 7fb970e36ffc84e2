import pytest
from patients import only, patient

from smtpd.dns import Resolver
from smtpd.doctor.mta_sts import check_mta_sts
from smtpd.doctor.policy_file import PolicyError

NAME = "_mta-sts.example.com"
RECORD = {NAME: {"TXT": ["v=STSv1; id=20260101;"]}, "example.com": {"MX": ["10 mx.example.com"]}}


def policy(mode: str, *hosts: str) -> str:
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {host}" for host in hosts), "max_age: 604800"]
    return "\r\n".join(lines) + "\r\n"


@pytest.mark.parametrize(
    ("texts", "level", "said"),
    [
        ([], "info", "There is none"),
        (["something else"], "info", "There is none"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], "problem", "2 records"),
        (["v=STSv1;"], "problem", "It is wrong"),
        ([b"v=STSv1; id=\xff;"], "problem", "It is wrong"),
        ("tempfail: timeout", "warning", "(timeout)"),
        (["v=STSv1; id=20260101;"], "info", "was not fetched"),
    ],
)
async def test_the_record_is_judged(texts: object, level: str, said: str) -> None:
    finding = only(await check_mta_sts(patient({NAME: {"TXT": texts}}), "example.com"))
    assert finding.level == level
    assert said in finding.meaning


@pytest.mark.parametrize(
    ("served", "level", "said"),
    [
        (policy("enforce", "mx.example.com"), "ok", "fits"),
        (policy("enforce", "*.EXAMPLE.com"), "ok", "fits"),
        (policy("testing", "mx.example.com"), "info", "only tested"),
        (policy("none"), "info", "asks for nothing"),
        (policy("enforce", "other.example"), "problem", "does not name mx.example.com"),
        (policy("enforce", "*.com"), "problem", "does not name mx.example.com"),
        (policy("testing", "other.example"), "warning", "does not name mx.example.com"),
        ("<html>", "problem", "cannot be read"),
        ("", "problem", "cannot be read"),
    ],
)
async def test_the_policy_is_held_against_the_mx_records(served: str, level: str, said: str) -> None:
    async def fetch(resolver: Resolver, domain: str) -> str:
        return served

    finding = only(await check_mta_sts(patient(RECORD, fetch=fetch), "example.com"))
    assert finding.level == level
    assert said in finding.meaning


async def test_a_policy_that_cannot_be_fetched_is_a_problem() -> None:
    async def fetch(resolver: Resolver, domain: str) -> str:
        raise PolicyError("nobody is there")

    finding = only(await check_mta_sts(patient(RECORD, fetch=fetch), "example.com"))
    assert (finding.level, "nobody is there" in finding.meaning) == ("problem", True)


async def test_nothing_is_fetched_for_a_domain_without_a_record() -> None:
    async def fetch(resolver: Resolver, domain: str) -> str:
        raise AssertionError

    assert only(await check_mta_sts(patient({}, fetch=fetch), "example.com")).level == "info"
