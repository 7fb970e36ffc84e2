import pytest
from patients import CountingZone, configuration, levels, patient

from smtpd.doctor.own_name import check_own_name

PTR = "1.2.0.192.in-addr.arpa"
HOST = {"mx.example.com": {"A": ["192.0.2.1"]}}


async def test_a_name_that_leads_to_its_address_and_back_is_good() -> None:
    zone = {"mx.example.com": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}, PTR: {"PTR": ["mx.example.com"]}}
    zone["1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"] = {"PTR": ["MX.example.com"]}
    findings = await check_own_name(patient(zone))
    assert levels(findings) == ["ok", "ok", "ok"]
    assert [finding.subject for finding in findings[1:]] == ["address 192.0.2.1", "address 2001:db8::1"]


@pytest.mark.parametrize(
    ("zone", "level", "said"),
    [
        ({}, "warning", "has no name (PTR)"),
        ({PTR: {"PTR": "tempfail: timeout"}}, "warning", "(timeout)"),
        ({PTR: {"PTR": ["other.example"]}}, "warning", "does not lead back"),
        ({PTR: {"PTR": ["other.example"]}, "other.example": {"A": ["192.0.2.9"]}}, "warning", "does not lead back"),
        ({PTR: {"PTR": ["other.example"]}, "other.example": {"A": ["192.0.2.1"]}}, "info", "not mx.example.com"),
    ],
)
async def test_an_address_without_our_name_is_told_about(
    zone: dict[str, dict[str, object]], level: str, said: str
) -> None:
    findings = await check_own_name(patient({**HOST, **zone}))
    assert levels(findings) == ["ok", level]
    assert said in findings[1].meaning


@pytest.mark.parametrize(
    ("zone", "hostname", "level"),
    [
        ({}, "mx.example.com", "problem"),
        ({"mx.example.com": {"A": [], "AAAA": "tempfail: servfail"}}, "mx.example.com", "warning"),
        ({}, "localhost", "info"),
    ],
)
async def test_a_hostname_nobody_can_look_up_is_told_about(
    zone: dict[str, dict[str, object]], hostname: str, level: str
) -> None:
    assert levels(await check_own_name(patient(zone, config=configuration(hostname=hostname)))) == [level]


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.1.1", "192.168.0.1"])
async def test_an_address_for_the_inside_is_told_about(address: str) -> None:
    findings = await check_own_name(patient({"mx.example.com": {"A": [address]}}))
    assert levels(findings) == ["ok", "warning"]
    assert "inside only" in findings[1].meaning


async def test_however_many_names_an_address_has_few_are_looked_up() -> None:
    zone = CountingZone({**HOST, PTR: {"PTR": [f"n{number}.example" for number in range(500)]}})
    await check_own_name(patient(zone))
    assert zone.asked == 2 + 1 + 2 * 10
