import asyncio

import dns.resolver
import pytest
from patients import CountingZone

from smtpd.doctor.bridge import MAX_LOOKUPS, BridgedResolver
from smtpd.zone import Zone

ZONE: dict[str, dict[str, object]] = {
    "example.com": {
        "A": ["192.0.2.1"], "AAAA": ["2001:db8::1"], "MX": ["10 mx.example.com", "20 ."],
        "TXT": [["one ", 'two "x"'], b"\xff" * 300],
    },
    "alias.example": {"CNAME": ["example.com"]},
    "down.example": {"tempfail": True},
}  # fmt: skip


def bridge(zone: Zone, seconds: float = 30.0) -> BridgedResolver:
    return BridgedResolver(zone, asyncio.get_running_loop(), seconds)


@pytest.mark.parametrize(
    ("kind", "records"),
    [
        ("A", ["192.0.2.1"]),
        ("AAAA", ["2001:db8::1"]),
        ("MX", ["10 mx.example.com.", "20 ."]),
    ],
)
async def test_dnspython_gets_what_our_resolver_knows(kind: str, records: list[str]) -> None:
    answer = await asyncio.to_thread(bridge(Zone(ZONE)).resolve, "example.com", kind)
    assert [record.to_text() for record in answer] == records


async def test_texts_keep_their_octets() -> None:
    answer = await asyncio.to_thread(bridge(Zone(ZONE)).resolve, "example.com", "TXT")
    assert [b"".join(record.strings) for record in answer] == [b'one two "x"', b"\xff" * 300]


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("none.example", "A", dns.resolver.NXDOMAIN),
        ("example.com", "NS", dns.resolver.NoAnswer),
        ("example.com", "CAA", dns.resolver.NoAnswer),
        ("down.example", "A", dns.resolver.LifetimeTimeout),
    ],
)
async def test_what_is_not_there_is_said_as_dnspython_says_it(name: str, kind: str, error: type[Exception]) -> None:
    bridged = bridge(Zone(ZONE))
    with pytest.raises(error):
        await asyncio.to_thread(bridged.resolve, name, kind)
    assert bridged.failures == (["down.example A"] if name == "down.example" else [])


async def test_after_its_time_nothing_is_asked_any_more() -> None:
    zone = CountingZone(ZONE)
    with pytest.raises(dns.resolver.LifetimeTimeout):
        await asyncio.to_thread(bridge(zone, 0.0).resolve, "example.com", "A")
    assert zone.asked == 0


async def test_the_number_of_questions_is_limited() -> None:
    zone = CountingZone(ZONE)
    bridged = bridge(zone)

    def ask_often() -> int:
        for number in range(MAX_LOOKUPS + 100):
            try:
                bridged.resolve("example.com", "A")
            except dns.resolver.LifetimeTimeout:
                return number
        return -1

    assert await asyncio.to_thread(ask_often) == MAX_LOOKUPS == zone.asked
