"""Which domains can be sent mail, what is asked to find that out, and what a stranger cannot make us ask."""

import asyncio
from collections.abc import Mapping

import pytest
from resolvers import Broken, Silent, Slow

from filters.mail_routes import MAX_HOSTS, MailRoute, find_route
from smtpd.dns import Answer, Resolver, Type, tempfail
from smtpd.zone import Zone

A = {"A": ["192.0.2.1"]}
AAAA = {"AAAA": ["2001:db8::1"]}
FOUND = MailRoute("pass")
NOBODY = MailRoute("unresolvable", "no host of its MX records has an address")
MANY = [f"mx{number:02}.test" for number in range(50)]
MANY_MX = {"MX": [f"{number} {name}" for number, name in enumerate(MANY)]}

Tables = Mapping[str, Mapping[str, object]]


class Counting(Zone):
    """Knows nothing at once, and notes what is asked."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables, cached=False)
        self.asked: list[tuple[str, str]] = []

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append((name, kind))
        await asyncio.sleep(0)
        return await super().resolve(name, kind, timeout)


async def route(resolver: Resolver, domain: str = "a.test", seconds: float = 10.0) -> MailRoute:
    return await find_route(domain, resolver, seconds)


@pytest.mark.parametrize(
    ("tables", "questions"),
    [
        ({"a.test": {"MX": ["10 mx.b.test"]}, "mx.b.test": A}, 2),
        ({"a.test": {"MX": ["10 mx.b.test"]}, "mx.b.test": AAAA}, 3),
        ({"a.test": A}, 2),
        ({"a.test": AAAA}, 3),
        ({"a.test": {"MX": ["20 mx.b.test", "10 gone.test"]}, "mx.b.test": A}, 4),
        ({"a.test": {"CNAME": ["b.test"]}, "b.test": A}, 2),
        ({"a.test": {"MX": ["0 .", "10 mx.b.test"]}, "mx.b.test": A}, 2),
        ({"a.test": {"CNAME": ["b.test"]}, "b.test": {"MX": ["10 mx.b.test"]}, "mx.b.test": A}, 2),
        ({"*.test": {"MX": ["10 a.mx.test"]}, "a.mx.test": A}, 2),
        ({"a.test": {"MX": ["10 192.0.2.1"]}}, 1),
    ],
)
async def test_one_host_with_an_address_is_enough(tables: Tables, questions: int) -> None:
    zone = Counting(tables)
    assert await route(zone) == FOUND
    assert len(zone.asked) == questions


@pytest.mark.parametrize(
    ("tables", "result", "reason"),
    [
        ({}, "unresolvable", "there is no such domain"),
        ({"a.test": {"TXT": ["v=spf1 +all"]}}, "unresolvable", "it has neither MX nor address records"),
        ({"mx.a.test": A}, "unresolvable", "it has neither MX nor address records"),
        ({"a.test": {"MX": ["10 gone.test"]}}, "unresolvable", NOBODY.reason),
        ({"a.test": {"MX": ["10 gone.test", "20 mx.b.test"]}, "mx.b.test": {"A": []}}, "unresolvable", NOBODY.reason),
        ({"a.test": {"MX": ["0 ."]}}, "null-mx", ""),
        ({"a.test": {"MX": ["0 ."], **A}}, "null-mx", ""),
        ({"a.test": {"MX": ["10 ."]}}, "null-mx", ""),
    ],
)
async def test_domain_without_a_way_says_why(tables: Tables, result: str, reason: str) -> None:
    found = await route(Zone(tables))
    assert (found.result, found.reason) == (result, reason)


async def test_addresses_of_the_domain_itself_do_not_count_beside_mx_records() -> None:
    # RFC 5321 §5.1
    assert await route(Zone({"a.test": {"MX": ["10 gone.test"], **A}})) == NOBODY


@pytest.mark.parametrize(
    "tables",
    [
        {"a.test": {"MX": "tempfail: servfail"}},
        {"a.test": {"MX": "tempfail: servfail", **A}},
        {"a.test": {"A": "tempfail: servfail"}},
        {"a.test": {"AAAA": "tempfail: servfail"}},
        {"a.test": {"MX": ["10 gone.test", "20 mx.b.test"]}, "mx.b.test": {"AAAA": "tempfail: servfail"}},
    ],
)
async def test_what_nobody_knows_now_is_no_answer(tables: Tables) -> None:
    assert await route(Zone(tables)) == MailRoute("temperror", "servfail")


async def test_fifty_hosts_without_address_cost_no_more_than_ten() -> None:
    zone = Counting({"a.test": MANY_MX})
    assert await route(zone) == FOUND  # the eleventh might have one
    assert {name for name, _ in zone.asked} == {"a.test", *MANY[:MAX_HOSTS]}
    assert len(zone.asked) == 2 * MAX_HOSTS


async def test_ten_hosts_without_address_are_all_there_is() -> None:
    assert await route(Zone({"a.test": {"MX": MANY_MX["MX"][:MAX_HOSTS]}})) == NOBODY


async def test_of_many_hosts_the_best_is_asked_first_and_alone() -> None:
    zone = Counting({"a.test": MANY_MX, MANY[0]: A})
    assert await route(zone) == FOUND
    assert zone.asked == [("a.test", "MX"), (MANY[0], "A")]


async def test_same_host_twice_is_asked_once() -> None:
    zone = Counting({"a.test": {"MX": ["10 gone.test", "20 GONE.test."]}})
    assert await route(zone) == NOBODY
    assert zone.asked == [("a.test", "MX"), ("gone.test", "A")]


class OneAnswers(Silent):
    """Knows of three hosts, but only the last of them has an answer, and time runs out at once."""

    def __init__(self) -> None:
        super().__init__({"a.test": {"MX": ["1 a.b.test", "2 b.b.test", "3 c.b.test"]}, "c.b.test": A})
        self.asked: list[str] = []
        self.waiting = 0

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append(name)
        if name in ("a.test", "c.b.test"):
            return self.ask(name, kind)
        if timeout is not None:
            return tempfail("timeout")
        self.waiting += 1
        try:
            return await super().resolve(name, kind, timeout)
        finally:
            self.waiting -= 1


async def test_nobody_waits_for_hosts_that_do_not_matter() -> None:
    resolver = OneAnswers()
    assert await route(resolver) == FOUND
    assert resolver.asked == ["a.test", *["a.b.test"] * 3, *["b.b.test"] * 2, *["c.b.test"] * 2]
    assert resolver.waiting == 0


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    resolver = OneAnswers()
    resolver.put("c.b.test")  # now no host answers
    looking = asyncio.create_task(route(resolver))
    while resolver.waiting < 4:  # noqa: ASYNC110 - a turn of the loop, no more
        await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert resolver.waiting == 0


async def test_best_host_may_be_slow() -> None:
    class Slowly(Zone):
        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            return tempfail("timeout") if timeout is not None else self.ask(name, kind)

    assert await route(Slowly({"a.test": {"MX": ["1 a.b.test"]}, "a.b.test": A})) == FOUND


@pytest.mark.parametrize("resolver", [Silent(), Slow()])
async def test_there_is_an_end_to_waiting(resolver: Resolver) -> None:
    assert await route(resolver, seconds=0.01) == MailRoute("temperror", "timeout")


async def test_what_is_broken_is_not_taken_for_an_answer() -> None:
    class BrokenLater(Broken):
        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            if kind == "MX":
                return Zone({"a.test": {"MX": ["1 a.b.test", "2 c.b.test"]}}).ask(name, kind)
            raise TimeoutError("broken")

    with pytest.raises(TimeoutError, match="broken"):
        await route(BrokenLater())


@pytest.mark.parametrize("domain", [f"{'a' * 63}." * 3 + "a" * 62 + ".a", "under_score.test", "xn--bcher-kva.test"])
async def test_odd_names_are_asked_for_as_they_are_if_there_can_be_such(domain: str) -> None:
    zone = Zone({"under_score.test": A, "xn--bcher-kva.test": A})
    assert (await route(zone, domain) == FOUND) == (len(domain) < 254)
