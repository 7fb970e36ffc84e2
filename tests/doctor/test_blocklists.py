import pytest
from patients import only, patient

from smtpd.doctor.blocklists import check_blocklists

GOOD = {"2.0.0.127.bl.example": {"A": ["127.0.0.2"]}, "bl.example": {}}


@pytest.mark.parametrize(
    ("zone", "level", "said"),
    [
        (GOOD, "ok", "a list of addresses"),
        ({"test.bl.example": {"A": ["127.0.1.2"]}}, "ok", "a list of names"),
        ({"*.bl.example": {"A": ["127.255.255.254"]}}, "problem", "refuses to answer (127.255.255.254)"),
        ({**GOOD, "1.0.0.127.bl.example": {"A": ["127.0.0.2"]}}, "problem", "lists everybody"),
        ({"test.bl.example": {"A": ["127.0.1.2"]}, "invalid.bl.example": {"A": ["127.0.1.2"]}}, "problem", "everybody"),
        ({"*.bl.example": {"A": ["203.0.113.9"]}}, "problem", "lists everybody"),
        ({"2.0.0.127.bl.example": {"A": ["203.0.113.9"]}}, "problem", "not listed but 203.0.113.9"),
        ({}, "problem", "it is dead, or is no list"),
        ({"*.bl.example": {"A": "tempfail: timeout"}}, "warning", "does not answer"),
        ({**GOOD, "1.0.0.127.bl.example": {"A": "tempfail: servfail"}}, "warning", "(servfail)"),
    ],
)
async def test_a_list_is_judged_by_its_test_points(zone: dict[str, dict[str, object]], level: str, said: str) -> None:
    finding = only(await check_blocklists(patient(zone, blocklists=("bl.example",))))
    assert (finding.level, finding.subject) == (level, "blocklist bl.example")
    assert said in finding.meaning


async def test_without_lists_none_is_asked() -> None:
    assert only(await check_blocklists(patient())).level == "info"
