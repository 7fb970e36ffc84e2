import pytest
from patients import levels, only, patient

from smtpd.doctor.nameservers import IMPOSSIBLE, check_nameservers


async def test_nameservers_that_do_not_answer_are_a_problem() -> None:
    finding = only(await check_nameservers(patient({IMPOSSIBLE: {"A": "tempfail: timeout"}}, nameservers=("8.8.8.8",))))
    assert finding.level == "problem"
    assert "(timeout)" in finding.meaning


async def test_an_address_for_a_name_that_cannot_exist_is_a_problem() -> None:
    finding = only(await check_nameservers(patient({IMPOSSIBLE: {"A": ["203.0.113.9"]}})))
    assert finding.level == "problem"
    assert "203.0.113.9" in finding.meaning


@pytest.mark.parametrize(
    ("address", "level"),
    [
        ("127.0.0.1", "ok"),
        ("::1", "ok"),
        ("8.8.8.8", "warning"),
        ("2620:fe:0::fe", "warning"),
        ("10.0.0.53", "info"),
        ("fe80::1%eth0", "info"),
        ("5.9.164.112", "info"),
    ],
)
async def test_a_public_nameserver_is_told_from_one_of_our_own(address: str, level: str) -> None:
    findings = await check_nameservers(patient(nameservers=(address,)))
    assert levels(findings) == ["ok", level]
    assert findings[1].subject == f"nameserver {address}"
