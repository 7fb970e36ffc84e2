"""Both backends against a nameserver in this process: every question goes over a socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pycares
import pytest
from dns_server import PATIENCE, Nameserver, running_nameserver
from log_lines import Lines

from smtpd.config import LogOptions
from smtpd.dns import Answer, CachingResolver, Mx, Type, make_resolver
from smtpd.dns.aiodns_backend import AiodnsBackend
from smtpd.dns.choice import make_backend
from smtpd.dns.dnspython_backend import DnspythonBackend
from smtpd.log import Log
from smtpd.metrics import Metrics

RECORDS = """
a.example. 60 IN A 192.0.2.1
a.example. 50 IN A 192.0.2.2
a.example. 60 IN AAAA 2001:db8::1
a.example. 60 IN MX 20 MX2.example.
a.example. 60 IN MX 10 mx1.example.
a.example. 60 IN NS ns1.example.
a.example. 60 IN SOA ns1.example. host.example. 1 2 3 4 5
a.example. 60 IN TXT "other"
null.example. 60 IN MX 0 .
www.example. 60 IN CNAME web.example.
web.example. 60 IN CNAME a.example.
loop.example. 60 IN CNAME pool.example.
pool.example. 60 IN CNAME loop.example.
dangling.example. 60 IN CNAME nowhere.example.
1.2.0.192.in-addr.arpa. 60 IN PTR one.example.
1.2.0.192.in-addr.arpa. 60 IN PTR two.example.
"""
TLSA = "3 1 1 " + "ab" * 32


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> Iterator[Log]:
    log = Log(LogOptions(), sink=lines)
    yield log
    log.close()


@pytest.fixture
def nameserver() -> Iterator[Nameserver]:
    with running_nameserver() as running:
        running.add(RECORDS)
        yield running


Ask = Callable[[str, Type], Awaitable[Answer]]
Open = Callable[..., CachingResolver]


@pytest.fixture
async def resolver_of(log: Log) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def make(nameserver: Nameserver, **options: object) -> CachingResolver:
            resolver = make_resolver(nameserver.options(**options), Metrics(), log)
            stack.push_async_callback(resolver.stop)
            return resolver

        yield make


@pytest.fixture(params=["aiodns", "dnspython"])
def ask(request: pytest.FixtureRequest, nameserver: Nameserver, resolver_of: Open) -> Ask:
    resolver = resolver_of(nameserver, backend=request.param, tries=2)
    return lambda name, kind: resolver.resolve(name, kind)


@pytest.mark.parametrize(
    ("name", "kind", "records"),
    [
        ("a.example", "A", {"192.0.2.1", "192.0.2.2"}),
        ("A.Example.", "AAAA", {"2001:db8::1"}),
        ("a.example", "MX", {Mx(10, "mx1.example"), Mx(20, "mx2.example")}),
        ("null.example", "MX", {Mx(0, "")}),
        ("a.example", "NS", {"ns1.example"}),
        ("a.example", "SOA", {("ns1.example", "host.example", 1, 2, 3, 4, 5)}),
        ("1.2.0.192.in-addr.arpa", "PTR", {"one.example", "two.example"}),
        ("www.example", "CNAME", {"web.example"}),
        ("loop.example", "CNAME", {"pool.example"}),
    ],
)
async def test_records_of_every_type_arrive(ask: Ask, name: str, kind: Type, records: set[object]) -> None:
    answer = await ask(name, kind)
    assert (answer.status, set(answer.records)) == ("ok", records)


async def test_certificate_associations_arrive(ask: Ask, nameserver: Nameserver) -> None:
    nameserver.add(f"_25._tcp.mx.example. 60 IN TLSA {TLSA}")
    assert (await ask("_25._tcp.mx.example", "TLSA")).records == ((3, 1, 1, bytes.fromhex("ab" * 32)),)


@pytest.mark.parametrize("kind", ["A", "MX", "TXT"])
async def test_aliases_are_followed_through_the_whole_chain(ask: Ask, kind: Type) -> None:
    assert set((await ask("www.example", kind)).records) == set((await ask("a.example", kind)).records)


async def test_strings_of_a_text_record_are_one_text_and_any_octets(ask: Ask, nameserver: Nameserver) -> None:
    nameserver.add('spf.example. 60 IN TXT "v=spf1 " "-all"')
    nameserver.add_text("odd.example", b"\xff\xfe\r\n")
    assert (await ask("spf.example", "TXT")).txt == (b"v=spf1 -all",)
    assert (await ask("odd.example", "TXT")).txt == (b"\xff\xfe\r\n",)


async def test_answer_too_big_for_udp_comes_by_tcp(ask: Ask, nameserver: Nameserver) -> None:
    nameserver.add_text("big.example", *[b"x" * 255] * 8)
    assert (await ask("big.example", "TXT")).txt == (b"x" * 2040,)
    assert nameserver.over_tcp == {"big.example"}


async def test_no_such_name_and_no_such_record_are_different(ask: Ask) -> None:
    assert (await ask("none.example", "A")).status == "nxdomain"
    assert (await ask("dangling.example", "A")).status == "nxdomain"
    assert (await ask("a.example", "PTR")).status == "nodata"
    assert (await ask("www.example", "TLSA")).status == "nodata"


@pytest.mark.parametrize(
    ("code", "reason"), [("SERVFAIL", "servfail"), ("REFUSED", "refused"), ("FORMERR", "malformed")]
)
async def test_trouble_of_the_nameserver_is_temporary(ask: Ask, nameserver: Nameserver, code: str, reason: str) -> None:
    nameserver.fail("broken.example", code)
    answer = await ask("broken.example", "TXT")
    assert (answer.status, answer.reason) == ("tempfail", reason)


async def test_loop_of_aliases_ends_without_records(ask: Ask) -> None:
    assert (await ask("loop.example", "A")).status in ("nodata", "tempfail")


@pytest.mark.parametrize(
    "name", ["user+tag._spf.example", "back\\slash.example", "a\\.b.example", "@.example", "\\046.x"]
)
async def test_any_printable_name_is_asked_for_as_it_is(ask: Ask, nameserver: Nameserver, name: str) -> None:
    assert (await ask(name, "A")).status == "nxdomain"
    assert nameserver.labels[-1] == tuple(label.encode() for label in name.split("."))


@pytest.mark.parametrize("backend", ["aiodns", "dnspython"])
async def test_silence_of_the_nameserver_ends_with_our_timeout(
    nameserver: Nameserver, resolver_of: Open, backend: str
) -> None:
    nameserver.hold("slow.example")
    resolver = resolver_of(nameserver, backend=backend, timeout=0.3, tries=1)
    answer = await resolver.resolve("slow.example", "A")
    assert (answer.status, answer.reason) == ("tempfail", "timeout")


async def test_our_timeout_holds_however_often_c_ares_wants_to_try(nameserver: Nameserver, resolver_of: Open) -> None:
    nameserver.drop("dead.example")
    resolver = resolver_of(nameserver, backend="aiodns", timeout=0.3, tries=10)
    async with asyncio.timeout(PATIENCE):
        assert (await resolver.resolve("dead.example", "A")).reason == "timeout"


async def test_c_ares_does_not_give_up_early_after_quick_answers(nameserver: Nameserver) -> None:
    backend = AiodnsBackend(nameserver.options(timeout=5, tries=3))
    for number in range(5):
        await backend.ask(f"quick{number}.example", "A")
    nameserver.drop("a.example", times=3)
    assert (await backend.ask("a.example", "A")).found
    await backend.close()


@pytest.mark.parametrize("make", [AiodnsBackend, DnspythonBackend])
async def test_backend_gives_up_by_itself(
    nameserver: Nameserver, make: type[AiodnsBackend] | type[DnspythonBackend]
) -> None:
    nameserver.drop("dead.example")
    backend = make(nameserver.options(timeout=0.2, tries=1))
    assert (await backend.ask("dead.example", "A")).reason == "timeout"
    await backend.close()


@pytest.mark.parametrize("backend", ["aiodns", "dnspython"])
async def test_second_nameserver_helps_out(nameserver: Nameserver, resolver_of: Open, backend: str) -> None:
    with running_nameserver() as other:
        port = other.port
    options = {"nameservers": [f"127.0.0.1:{port}", nameserver.address], "backend": backend}
    if backend == "aiodns":
        options["nameservers"] = [f"[::1]:{nameserver.port}", nameserver.address]
    assert (await resolver_of(nameserver, **options).resolve("a.example", "A")).found


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("backend", ["aiodns", "dnspython"])
async def test_stopping_ends_lookups_on_their_way(
    nameserver: Nameserver, resolver_of: Open, backend: str, flushed: bool
) -> None:
    nameserver.hold("slow.example")
    resolver = resolver_of(nameserver, backend=backend, timeout=60, tries=1)
    lookup = asyncio.create_task(resolver.resolve("slow.example", "A"))
    await nameserver.arrived("slow.example")
    if flushed:
        resolver.flush()
    await resolver.stop()
    assert (await lookup).reason == "stopped"
    assert (await resolver.resolve("a.example", "A")).reason == "stopped"


async def test_dnspython_has_a_limit_on_open_sockets(nameserver: Nameserver) -> None:
    names = [f"slow{number}.example" for number in range(3)]
    for name in names:
        nameserver.hold(name)
    backend = DnspythonBackend(nameserver.options(timeout=60), at_once=2)
    lookups = [asyncio.create_task(backend.ask(name, "A")) for name in names]
    for name in names[:2]:
        await nameserver.arrived(name)
    assert (await DnspythonBackend(nameserver.options()).ask("a.example", "A")).found  # a third would be there, too
    assert nameserver.asked.total() == 3
    nameserver.release()
    assert [answer.status for answer in await asyncio.gather(*lookups)] == ["nxdomain"] * 3


async def test_dnspython_knows_what_dnssec_said(nameserver: Nameserver, resolver_of: Open) -> None:
    resolver = resolver_of(nameserver, backend="dnspython")
    assert not (await resolver.resolve("a.example", "A")).authentic
    nameserver.checks_dnssec = True
    assert (await resolver.resolve("a.example", "AAAA")).authentic
    assert (await resolver.resolve("none.example", "AAAA")).authentic


async def test_dnspython_keeps_the_strings_of_a_text_record_apart(nameserver: Nameserver, resolver_of: Open) -> None:
    nameserver.add_text("nul.example", b"a\0b", b"c")
    answer = await resolver_of(nameserver, backend="dnspython").resolve("nul.example", "TXT")
    assert answer.records == (((b"a\0b", b"c"),),)


async def test_times_are_those_of_the_zone_where_the_backend_knows_them(
    nameserver: Nameserver, resolver_of: Open
) -> None:
    slow = resolver_of(nameserver, backend="dnspython", negative_ttl=3600)
    assert (await slow.resolve("a.example", "A")).ttl == 50
    assert (await slow.resolve("a.example", "MX")).ttl == 60
    assert (await slow.resolve("none.example", "MX")).ttl == 7  # the last number of the SOA
    quick = resolver_of(nameserver, backend="aiodns", negative_ttl=3600)
    assert (await quick.resolve("a.example", "A")).ttl == 50
    assert (await quick.resolve("none.example", "MX")).ttl == 3600


async def test_flush_reaches_what_c_ares_has_cached(nameserver: Nameserver, resolver_of: Open) -> None:
    resolver = resolver_of(nameserver, backend="aiodns")
    await resolver.resolve("a.example", "A")
    nameserver.clear()
    nameserver.add("a.example. 60 IN A 192.0.2.9")
    assert (await resolver.resolve("a.example", "A")).texts == ("192.0.2.1", "192.0.2.2")
    assert resolver.flush("A.example.") == 1
    assert (await resolver.resolve("a.example", "A")).texts == ("192.0.2.9",)


async def test_c_ares_cache_does_not_grow_for_ever(nameserver: Nameserver) -> None:
    backend = AiodnsBackend(nameserver.options(cache_entries=1))
    for _ in range(1100):
        await backend.ask("a.example", "MX")
    assert nameserver.asked["a.example", "MX"] == 2
    await backend.close()


async def test_question_on_its_way_survives_a_flush(nameserver: Nameserver, resolver_of: Open) -> None:
    nameserver.add("slow.example. 60 IN A 192.0.2.7")
    nameserver.hold("slow.example")
    resolver = resolver_of(nameserver, backend="aiodns", timeout=60, tries=1)
    first = asyncio.create_task(resolver.resolve("slow.example", "A"))
    await nameserver.arrived("slow.example")
    resolver.flush()
    assert (await resolver.resolve("a.example", "A")).found
    nameserver.release()
    assert (await first).texts == ("192.0.2.7",)
    assert (await resolver.resolve("a.example", "AAAA")).found


async def test_auto_takes_aiodns_where_it_can(nameserver: Nameserver, log: Log) -> None:
    same = make_backend(nameserver.options(), log)
    assert isinstance(same, AiodnsBackend)
    await same.close()
    mixed = nameserver.options(nameservers=["127.0.0.1:53", "127.0.0.1:54"])
    assert isinstance(make_backend(mixed, log), DnspythonBackend)


async def test_dnspython_steps_in_where_c_ares_cannot_be_set_up(
    nameserver: Nameserver, resolver_of: Open, lines: Lines, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pycares.AresError("no memory")

    monkeypatch.setattr(pycares, "Channel", fail)
    assert (await resolver_of(nameserver).resolve("a.example", "A")).found
    chosen = resolver_of(nameserver, backend="aiodns")
    assert [(await chosen.resolve(name, "A")).reason for name in ("a.example", "b.example")] == ["backend", "backend"]
    log.flush()
    assert lines.octets.count(b'"dns-fallback"') == 1
    assert lines.octets.count(b'"dns-backend-failed"') == 1
