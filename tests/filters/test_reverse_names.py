"""Names count only when they lead back, and what a stranger can make us ask for has limits."""

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address

import pytest

from filters.reverse_names import MAX_NAMES, confirm_names
from smtpd.dns import Answer, Type, tempfail
from smtpd.findings import IprevResult
from smtpd.zone import Zone

PTR = "9.2.0.192.in-addr.arpa"
V6 = "2001:db8::9"


class Counting(Zone):
    """Counts what is asked."""

    def __init__(self, tables: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__(tables, cached=False)
        self.asked: list[tuple[str, str]] = []

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append((name, kind))
        assert timeout is not None
        assert 0 < timeout <= 4
        return await super().resolve(name, kind, timeout)


async def confirmed(zone: Zone, ip: str = "192.0.2.9") -> IprevResult:
    return await confirm_names(ip_address(ip), zone, 4.0)


async def test_name_that_leads_back_is_confirmed() -> None:
    zone = Zone({PTR: {"PTR": ["MX.Uni.test."]}, "mx.uni.test": {"A": ["192.0.2.7", "192.0.2.9"]}})
    assert await confirmed(zone) == IprevResult("pass", "192.0.2.9", ("mx.uni.test",))


async def test_only_names_that_lead_back_are_confirmed() -> None:
    zone = Zone({
        PTR: {"PTR": ["mx.bank.test", "mx.uni.test"]},
        "mx.bank.test": {"A": ["192.0.2.7"]}, "mx.uni.test": {"A": ["192.0.2.9"]},
    })  # fmt: skip
    assert (await confirmed(zone)).names == ("mx.uni.test",)


async def test_ipv6_has_names_of_its_own() -> None:
    pointer = ip_address(V6).reverse_pointer
    zone = Zone({pointer: {"PTR": ["six.test"]}, "six.test": {"AAAA": ["2001:DB8:0::9"], "A": ["192.0.2.9"]}})
    assert await confirmed(zone, V6) == IprevResult("pass", V6, ("six.test",))


async def test_ipv4_in_the_clothes_of_ipv6_is_ipv4() -> None:
    zone = Zone({PTR: {"PTR": ["mx.uni.test"]}, "mx.uni.test": {"A": ["192.0.2.9"]}})
    assert await confirmed(zone, "::ffff:192.0.2.9") == IprevResult("pass", "192.0.2.9", ("mx.uni.test",))


@pytest.mark.parametrize(
    ("tables", "status"),
    [
        ({}, "permerror"),
        ({PTR: {"PTR": []}}, "permerror"),
        ({PTR: {"tempfail": True}}, "temperror"),
        ({PTR: {"PTR": ["gone.test"]}}, "fail"),
        ({PTR: {"PTR": ["mx.bank.test"]}, "mx.bank.test": {"A": ["192.0.2.7"]}}, "fail"),
        ({PTR: {"PTR": ["mx.bank.test"]}, "mx.bank.test": {"A": []}}, "fail"),
        ({PTR: {"PTR": ["slow.test"]}, "slow.test": {"A": "tempfail: timeout"}}, "temperror"),
    ],
)
async def test_what_is_not_confirmed_says_why(tables: dict[str, dict[str, object]], status: str) -> None:
    found = await confirmed(Zone(tables))
    assert (found.status, found.names) == (status, ())
    assert found.reason


async def test_no_more_than_ten_names_are_looked_up() -> None:
    many = [f"n{number}.test" for number in range(MAX_NAMES + 5)]
    zone = Counting({PTR: {"PTR": many}, many[-1]: {"A": ["192.0.2.9"]}})
    assert (await confirmed(zone)).status == "fail"
    assert zone.asked == [(PTR, "PTR"), *((name, "A") for name in many[:10])]


async def test_no_more_than_ten_addresses_of_a_name_count() -> None:
    many = [f"192.0.3.{number}" for number in range(10)]
    zone = Zone({PTR: {"PTR": ["mx.uni.test"]}, "mx.uni.test": {"A": [*many, "192.0.2.9"]}})
    assert (await confirmed(zone)).status == "fail"
    zone.put("mx.uni.test", A=[*many[:9], "192.0.2.9"])
    assert (await confirmed(zone)).status == "pass"


async def test_same_name_twice_is_asked_once() -> None:
    zone = Counting({PTR: {"PTR": ["mx.uni.test", "MX.uni.test"]}})
    await confirmed(zone)
    assert len(zone.asked) == 2


async def test_one_slow_name_does_not_take_the_others_time() -> None:
    zone = Waiting({PTR: {"PTR": ["slow.test", "mx.uni.test"]}, "mx.uni.test": {"A": ["192.0.2.9"]}})
    found = await confirmed(zone)
    assert found.names == ("mx.uni.test",)


class Waiting(Zone):
    """Is asked for slow.test until somebody has asked for mx.uni.test, too."""

    def __init__(self, tables: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__(tables, cached=False)
        self._other = asyncio.Event()

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        if name == "slow.test":
            await self._other.wait()
            return tempfail("timeout")
        if name == "mx.uni.test":
            self._other.set()
        return await super().resolve(name, kind, timeout)


async def test_nothing_is_asked_when_there_is_no_time_left() -> None:
    zone = Counting({PTR: {"PTR": ["mx.uni.test"]}})
    assert await confirm_names(ip_address("192.0.2.9"), zone, 0.0) == IprevResult(
        "temperror", "192.0.2.9", reason="timeout"
    )
    assert zone.asked == []


def test_evidence_follows_rfc_8601() -> None:
    (result,) = IprevResult("pass", V6, ("six.test", "other.test")).results()
    assert (result.method, result.result, result.comment) == ("iprev", "pass", "six.test")
    assert result.properties == (("policy", "iprev", V6),)
