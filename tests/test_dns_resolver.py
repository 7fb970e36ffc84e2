"""The cache in front of the nameservers: asked by dnspython, which keeps nothing itself, with a clock set by hand."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from dns_server import Nameserver, running_nameserver
from log_lines import Lines
from manual_clock import ManualClock

from smtpd.config import LogOptions
from smtpd.dns import INVALID, Answer, CachingResolver, DnsOptions, LimitedResolver, RecordingResolver, Type
from smtpd.dns.backend import Backend
from smtpd.dns.choice import make_backend
from smtpd.dns.options import split_nameserver
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.zone import Zone


class Bench:
    """A resolver with its surroundings."""

    def __init__(self, nameserver: Nameserver) -> None:
        self.nameserver = nameserver
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.lines = Lines()
        self.log = Log(LogOptions(), sink=self.lines)
        self.made: list[CachingResolver] = []

    def resolver(self, **options: object) -> CachingResolver:
        table = self.nameserver.options(**{"backend": "dnspython", "timeout": 30, "tries": 1, **options})
        self.made.append(CachingResolver(table, self.metrics, self.log, clock=self.clock))
        return self.made[-1]

    def count(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    def asked(self, name: str) -> int:
        return self.nameserver.asked[name, "A"]


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with running_nameserver() as running:
        running.add("a.example. 60 IN A 192.0.2.1")
        yield running


@pytest.fixture
async def bench(nameserver: Nameserver) -> AsyncIterator[Bench]:
    bench = Bench(nameserver)
    yield bench
    for resolver in bench.made:
        await resolver.stop()
    bench.log.close()


async def test_second_lookup_asks_nobody_until_the_time_is_over(bench: Bench) -> None:
    resolver = bench.resolver()
    first = await resolver.resolve("a.example", "A")
    bench.clock.now += 59
    assert await resolver.resolve("A.EXAMPLE.", "A") is first
    assert bench.asked("a.example") == 1
    bench.clock.now += 1
    assert await resolver.resolve("a.example", "A") == first
    assert bench.asked("a.example") == 2


async def test_peek_gives_only_what_is_known_and_asks_nobody(bench: Bench) -> None:
    resolver = bench.resolver()
    assert resolver.peek("a.example", "A") is None
    answer = await resolver.resolve("a.example", "A")
    assert resolver.peek("a.example", "A") is answer
    assert resolver.peek("A.Example.", "A") is answer
    assert resolver.peek("a.example", "MX") is None
    assert bench.asked("a.example") == 1


@pytest.mark.parametrize(
    ("options", "ttl", "kept"),
    [
        ({}, 0, 5),
        ({"min_ttl": 0}, 0, 0),
        ({"min_ttl": "2m"}, 60, 120),
        ({}, 2000000, 86400),
        ({"max_ttl": 30}, 60, 30),
        ({}, 60, 60),
    ],
)
async def test_records_are_kept_within_the_limits(
    bench: Bench, nameserver: Nameserver, options: dict[str, object], ttl: int, kept: float
) -> None:
    nameserver.add(f"b.example. {ttl} IN A 192.0.2.2")
    assert (await bench.resolver(**options).resolve("b.example", "A")).ttl == kept


@pytest.mark.parametrize(("negative_ttl", "kept"), [(3600, 7), (3, 3)])
async def test_absence_is_kept_as_long_as_the_zone_says_within_a_limit(
    bench: Bench, negative_ttl: float, kept: float
) -> None:
    resolver = bench.resolver(negative_ttl=negative_ttl)
    assert (await resolver.resolve("none.example", "A")).ttl == kept
    assert (await resolver.resolve("a.example", "MX")).ttl == kept
    bench.clock.now += kept
    assert resolver.peek("none.example", "A") is None


async def test_failure_is_kept_for_a_second(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.fail("a.example", "SERVFAIL")
    resolver = bench.resolver()
    assert (await resolver.resolve("a.example", "A")).failed
    nameserver.fail("a.example", "")
    bench.clock.now += 0.9
    assert (await resolver.resolve("a.example", "A")).failed
    bench.clock.now += 0.2
    assert (await resolver.resolve("a.example", "A")).found


@pytest.mark.parametrize("name", ["a..example", "", "x" * 64 + ".example", "a\tb.example", "bücher.example"])
async def test_what_cannot_be_a_name_does_not_exist_and_nobody_is_asked(bench: Bench, name: str) -> None:
    resolver = bench.resolver()
    assert await resolver.resolve(name, "A") is INVALID
    assert not bench.nameserver.asked
    assert bench.count("smtpd_dns_lookups_total", result="invalid") == 1


async def test_those_who_ask_for_the_same_share_one_question(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.hold("a.example")
    resolver = bench.resolver()
    lookups = [asyncio.create_task(resolver.resolve("a.example", "A")) for _ in range(50)]
    await nameserver.arrived("a.example")
    nameserver.release()
    assert {answer.texts for answer in await asyncio.gather(*lookups)} == {("192.0.2.1",)}
    assert bench.asked("a.example") == 1
    assert bench.count("smtpd_dns_lookups_total", result="miss") == 1
    assert bench.count("smtpd_dns_lookups_total", result="joined") == 49


async def test_one_that_goes_away_does_not_take_the_question_along(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.hold("a.example")
    resolver = bench.resolver()
    first = asyncio.create_task(resolver.resolve("a.example", "A"))
    await nameserver.arrived("a.example")
    second = asyncio.create_task(resolver.resolve("a.example", "A"))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    nameserver.release()
    assert (await second).found
    assert bench.asked("a.example") == 1


async def test_each_has_a_deadline_of_its_own_and_the_answer_is_kept_for_all(
    bench: Bench, nameserver: Nameserver
) -> None:
    nameserver.hold("a.example")
    resolver = bench.resolver()
    patient = asyncio.create_task(resolver.resolve("a.example", "A"))
    await nameserver.arrived("a.example")
    hurried = await resolver.resolve("a.example", "A", timeout=0.01)
    assert (hurried.status, hurried.reason) == ("tempfail", "timeout")
    nameserver.release()
    answer = await patient
    assert answer.found
    assert resolver.peek("a.example", "A") is answer
    assert bench.asked("a.example") == 1


async def test_answer_nobody_waited_for_any_more_is_kept(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.hold("a.example")
    resolver = bench.resolver()
    assert (await resolver.resolve("a.example", "A", timeout=0.01)).failed
    nameserver.release()
    assert (await resolver.resolve("a.example", "A")).found
    assert bench.asked("a.example") == 1


async def test_old_answer_is_served_when_nobody_answers_and_asked_for_again_later(
    bench: Bench, nameserver: Nameserver
) -> None:
    resolver = bench.resolver(serve_stale="1h")
    await resolver.resolve("a.example", "A")
    nameserver.fail("a.example", "SERVFAIL")
    bench.clock.now += 61
    for _ in range(2):
        answer = await resolver.resolve("a.example", "A")
        assert (answer.texts, answer.stale) == (("192.0.2.1",), True)
    assert bench.asked("a.example") == 2
    assert bench.count("smtpd_dns_lookups_total", result="stale") == 1
    nameserver.fail("a.example", "")
    bench.clock.now += 31
    answer = await resolver.resolve("a.example", "A")
    assert (answer.texts, answer.stale) == (("192.0.2.1",), False)


async def test_old_answer_is_served_to_who_cannot_wait(bench: Bench, nameserver: Nameserver) -> None:
    resolver = bench.resolver(serve_stale="1h")
    await resolver.resolve("a.example", "A")
    nameserver.hold("a.example")
    bench.clock.now += 61
    assert (await resolver.resolve("a.example", "A", timeout=0.01)).stale


async def test_no_old_answer_is_served_unless_it_is_asked_for(bench: Bench, nameserver: Nameserver) -> None:
    resolver = bench.resolver()
    await resolver.resolve("a.example", "A")
    nameserver.fail("a.example", "SERVFAIL")
    bench.clock.now += 61
    assert (await resolver.resolve("a.example", "A")).failed


async def test_flush_forgets_what_is_kept_and_what_is_on_its_way(bench: Bench, nameserver: Nameserver) -> None:
    resolver = bench.resolver()
    await resolver.resolve("a.example", "A")
    assert resolver.flush("no name") == 0
    assert resolver.flush("A.Example.") == 1
    nameserver.hold("a.example")
    old = asyncio.create_task(resolver.resolve("a.example", "A"))
    await nameserver.arrived("a.example")
    resolver.flush("a.example")
    nameserver.release()
    assert (await old).found
    assert resolver.peek("a.example", "A") is None


async def test_questions_are_counted_by_type_and_outcome(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.fail("broken.example", "SERVFAIL")
    resolver = bench.resolver()
    for name in ("a.example", "a.example", "none.example", "broken.example"):
        await resolver.resolve(name, "A")
    await resolver.resolve("a.example", "MX")
    found = {
        (kind, status): bench.count("smtpd_dns_queries_total", type=kind, status=status)
        for kind in ("A", "MX")
        for status in ("ok", "nodata", "nxdomain", "tempfail")
    }
    assert {key for key, count in found.items() if count == 1} == {
        ("A", "ok"), ("A", "nxdomain"), ("A", "tempfail"), ("MX", "nodata"),
    }  # fmt: skip
    assert bench.count("smtpd_dns_lookups_total", result="hit") == 1
    assert bench.count("smtpd_dns_lookups_total", result="miss") == 4
    assert bench.count("smtpd_dns_duration_seconds_count") == 4
    assert bench.count("smtpd_dns_cache_entries") == 4


async def test_resolver_is_ill_only_when_no_nameserver_answers_anything(bench: Bench, nameserver: Nameserver) -> None:
    resolver = bench.resolver(timeout=0.2)
    assert await resolver.health() is None
    nameserver.drop("dead.example")
    assert (await resolver.resolve("dead.example", "A")).reason == "timeout"
    assert await resolver.health() is None
    nameserver.drop("")
    assert (await resolver.resolve("dead.example", "MX")).reason == "timeout"
    assert await resolver.health() == "no nameserver answers (timeout)"


async def test_mistake_in_a_backend_is_logged_and_not_an_answer(bench: Bench) -> None:
    def make(options: DnsOptions, log: Log) -> Backend:
        backend = make_backend(options, log)
        raise ZeroDivisionError(repr(backend))

    resolver = CachingResolver(bench.nameserver.options(), bench.metrics, bench.log, make=make)
    with pytest.raises(ZeroDivisionError):
        await resolver.resolve("a.example", "A")
    await resolver.stop()
    assert b'"dns-failed"' in bench.lines.octets


async def test_lookups_over_the_limit_of_a_message_fail_and_what_is_known_is_free(bench: Bench) -> None:
    resolver = bench.resolver()
    await resolver.resolve("a.example", "A")
    limited = LimitedResolver(resolver, 2, bench.metrics)
    names = ("a.example", "one.example", "a.example", "two.example", "a..b", "one.example", "three.example")
    answers = [(await limited.resolve(name, "A")).status for name in names]
    assert answers == ["ok", "nxdomain", "ok", "nxdomain", "nxdomain", "nxdomain", "tempfail"]
    assert (await limited.resolve("three.example", "A")).reason == "limit"
    assert bench.asked("three.example") == 0
    assert limited.peek("a.example", "A") is resolver.peek("a.example", "A")
    assert bench.count("smtpd_dns_lookups_total", result="limit") == 2
    assert (await LimitedResolver(resolver, 1).resolve("three.example", "A")).status == "nxdomain"


async def test_limit_of_zero_is_none(bench: Bench) -> None:
    limited = LimitedResolver(bench.resolver(), 0)
    assert [(await limited.resolve(f"{number}.example", "A")).status for number in range(3)] == ["nxdomain"] * 3


async def test_recorded_lookups_give_the_same_answers_without_a_network(bench: Bench, nameserver: Nameserver) -> None:
    nameserver.add("b.example. 60 IN CNAME a.example.\na.example. 60 IN MX 10 mx.example.")
    nameserver.add_text("a.example", b"v=spf1 ", b"\xff")
    nameserver.fail("broken.example", "SERVFAIL")
    recorder = RecordingResolver(bench.resolver())
    asked: list[tuple[str, Type]] = [
        ("a.example", "A"), ("A.example.", "MX"), ("a.example", "TXT"), ("b.example", "A"), ("b.example", "CNAME"),
        ("a.example", "NS"), ("none.example", "A"), ("broken.example", "A"), ("a..b", "A"),
    ]  # fmt: skip
    answers = [await recorder.resolve(name, kind) for name, kind in asked]
    zone = Zone.parse(Zone.from_answers(recorder.answers).to_toml())
    assert [_shown(await zone.resolve(name, kind)) for name, kind in asked] == [_shown(answer) for answer in answers]
    assert list(recorder.answers)[:2] == [("a.example", "A"), ("a.example", "MX")]
    assert recorder.peek("none.example", "A") is answers[6]


def _shown(answer: Answer) -> tuple[object, ...]:
    return answer.status, answer.records, answer.reason


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("127.0.0.1", ("127.0.0.1", 53)),
        ("127.0.0.1:5353", ("127.0.0.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_nameserver_has_a_port_or_53(text: str, server: tuple[str, int]) -> None:
    assert split_nameserver(text) == server


@pytest.mark.parametrize(
    "text",
    ["", "dns.example", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "[::1", "[::1]53", "[::1]:",
     "fe80::1%eth0", "127.0.0.1:-1", "127.0.0.1:٣"],
)  # fmt: skip
def test_nameserver_that_is_no_address_is_a_mistake(text: str) -> None:
    with pytest.raises(ValueError):
        split_nameserver(text)
    with pytest.raises(ValueError, match="nameservers"):
        DnsOptions.model_validate({"nameservers": [text]})


def test_aiodns_alone_cannot_ask_nameservers_on_different_ports() -> None:
    servers = ["127.0.0.1:53", "127.0.0.2:5353"]
    assert DnsOptions.model_validate({"nameservers": servers}).servers == [("127.0.0.1", 53), ("127.0.0.2", 5353)]
    with pytest.raises(ValueError, match="same port"):
        DnsOptions.model_validate({"nameservers": servers, "backend": "aiodns"})
