import pytest
from patients import CountingZone, levels, patient

from smtpd.doctor.mail_exchanger import MAX_HOSTS, check_mx

OURS = {"mx.example.com": {"A": ["192.0.2.1"]}}


@pytest.mark.parametrize(
    ("zone", "expected", "said"),
    [
        ({"example.com": {"MX": ["10 mx.example.com"]}}, ["ok"], "names us"),
        ({"example.com": {"MX": ["10 in.other.example"]}, "in.other.example": {"A": ["192.0.2.1"]}}, ["ok"], "at our"),
        ({"example.com": {"MX": ["10 in.other.example"]}, "in.other.example": {"A": ["192.0.2.9"]}}, ["warning"], "us"),
        ({"example.com": {"MX": ["0 ."]}}, ["problem"], "takes no mail"),
        ({"example.com": {"MX": "tempfail: timeout"}}, ["warning"], "(timeout)"),
        ({"example.com": {"A": ["192.0.2.1"]}}, ["warning"], "the domain itself"),
        ({"example.com": {"TXT": ["x"]}}, ["problem"], "nobody can send"),
        ({"example.com": {"A": "tempfail: timeout"}}, ["warning"], "(timeout)"),
        ({"mx.example.com": {"CNAME": ["host.example"]}, "host.example": {"A": ["192.0.2.1"]},
          "example.com": {"MX": ["10 mx.example.com"]}}, ["ok", "warning"], "alias"),
        ({"example.com": {"MX": ["10 mx.example.com", "20 old.example.com"]}}, ["ok", "problem"], "has no address"),
        ({"example.com": {"MX": ["10 mx.example.com", "20 b.example.com"]}, "b.example.com": {"tempfail": True}},
         ["ok", "warning"], "does not say now where"),
    ],
)  # fmt: skip
async def test_where_mail_for_a_domain_goes(zone: dict[str, dict[str, object]], expected: list[str], said: str) -> None:
    findings = await check_mx(patient({**OURS, **zone}), "example.com")
    assert levels(findings) == expected
    assert said in findings[-1].meaning


async def test_a_domain_that_does_not_exist_is_a_problem() -> None:
    findings = await check_mx(patient({}), "example.com")
    assert (levels(findings), "no such domain" in findings[0].meaning) == (["problem"], True)


async def test_however_many_hosts_there_are_few_are_looked_up() -> None:
    zone = CountingZone({"example.com": {"MX": [f"10 h{number}.example.com" for number in range(500)]}})
    findings = await check_mx(patient(zone), "example.com")
    assert len(findings) == 1 + MAX_HOSTS
    assert zone.asked <= 1 + 2 + 5 * MAX_HOSTS
