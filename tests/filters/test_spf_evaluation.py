import asyncio
import gc
from ipaddress import ip_address
from typing import get_args

import pytest
from greenlet import greenlet
from hypothesis import given
from hypothesis import strategies as st
from resolvers import SlowAbout
from spf_house import NAME, Asked, Tables, check, client, elsewhere, record
from spf_suite import DEFAULT_EXPLANATION, Case, Scenario, scenarios

from filters.spf_evaluation import Client, Evaluation, evaluate, is_domain, library_values
from smtpd.authentication_results import SpfResult
from smtpd.dns import Answer, LimitedResolver, Mx, Record, Txt, Type
from smtpd.zone import Zone

EVIL = SlowAbout.slow
CASES = [pytest.param(scenario, case, id=case.name) for scenario in scenarios() for case in scenario.cases]


def test_suite_is_whole() -> None:
    assert len(CASES) == 203


@pytest.mark.parametrize(("scenario", "case"), CASES)
async def test_suite_of_rfc_7208_passes(scenario: Scenario, case: Case) -> None:
    local, domain = case.identity
    found = await evaluate(Client(ip_address(case.host), case.helo, "mx.test"), local, domain, scenario.zone())
    assert found.result in case.results, found
    assert found.failure is None
    if case.explanation is not None:
        assert found.explanation == case.explanation.replace(DEFAULT_EXPLANATION, "")


@pytest.mark.parametrize("domain", ["example", "", "a..b.example", "a" * 64 + ".example", "[192.0.2.1]", "192.0.2.1"])
async def test_what_is_no_domain_has_no_record_and_is_not_looked_up(domain: str) -> None:
    assert not is_domain(domain)
    found, resolver = await check({}, domain=domain)
    assert found.result == "none"
    assert not resolver.questions


async def test_ten_terms_with_lookups_are_allowed() -> None:
    hosts = [f"h{number}.example" for number in range(10)]
    zone = {NAME: record(*(f"a:{host}" for host in hosts), "-all"), **elsewhere(hosts)}
    found, resolver = await check(zone)
    assert found == Evaluation("fail", "-all matches", "-all")
    assert resolver.kinds == {"TXT": 1, "A": 10}


async def test_eleventh_term_with_a_lookup_is_an_error_and_not_looked_up() -> None:
    hosts = [f"h{number}.example" for number in range(11)]
    zone = {NAME: record(*(f"a:{host}" for host in hosts), "-all"), **elsewhere(hosts)}
    found, resolver = await check(zone)
    assert (found.result, found.reason) == ("permerror", "Too many DNS lookups")
    assert resolver.kinds == {"TXT": 1, "A": 10}


async def test_third_lookup_that_finds_nothing_is_an_error() -> None:
    hosts = [f"gone{number}.example" for number in range(5)]
    found, resolver = await check({NAME: record(*(f"a:{host}" for host in hosts), "-all")})
    assert (found.result, found.reason) == ("permerror", "Void lookup limit of 2 exceeded")
    assert resolver.kinds == {"TXT": 1, "A": 3}


async def test_ten_hosts_of_mx_are_looked_up_and_eleven_none() -> None:
    def zone(count: int) -> Tables:
        hosts = [f"h{number}.example" for number in range(count)]
        mx = [f"{number} {host}" for number, host in enumerate(hosts)]
        return {NAME: record("mx", "-all", MX=mx), **elsewhere(hosts)}

    found, resolver = await check(zone(10))
    assert found.result == "fail"
    assert resolver.kinds == {"TXT": 1, "MX": 1, "A": 10}
    found, resolver = await check(zone(11))
    assert found.result == "permerror"
    assert resolver.kinds == {"TXT": 1, "MX": 1}


async def test_of_the_names_of_a_client_ten_are_looked_up() -> None:
    names = [f"h{number}.{NAME}" for number in range(12)]
    zone: Tables = {
        NAME: record("ptr", "-all"),
        "1.2.0.192.in-addr.arpa": {"PTR": names},
        **elsewhere(names),
    }
    zone[names[11]] = {"A": ["192.0.2.1"]}
    found, resolver = await check(zone)
    assert found.result == "fail", "the only name that leads back is the twelfth"
    assert resolver.kinds == {"TXT": 1, "PTR": 1, "A": 10}


@pytest.mark.parametrize("term", ["ptr", "exists:%{p}.ok.example"])
async def test_names_of_a_client_that_cannot_be_looked_up_make_no_error(term: str) -> None:
    zone: Tables = {
        NAME: record(term, "?all"),
        "1.2.0.192.in-addr.arpa": {"PTR": ["broken.example", f"mail.{NAME}"]},
        "broken.example": {"tempfail": True},
        f"mail.{NAME}": {"A": ["192.0.2.1"]},
        f"mail.{NAME}.ok.example": {"A": ["127.0.0.2"]},
    }
    assert (await check(zone))[0].result == "pass"
    zone["1.2.0.192.in-addr.arpa"] = {"tempfail": True}
    assert (await check(zone))[0].result == "neutral"


@pytest.mark.parametrize(
    "terms", [("ptr",), ("exists:%{p}.ok.example",), tuple(f"ptr:host{number}.example" for number in range(8))]
)
async def test_slow_names_of_a_client_do_not_use_up_the_time_of_the_check(terms: tuple[str, ...]) -> None:
    slow = SlowAbout(
        {NAME: record(*terms, "-all"), "1.2.0.192.in-addr.arpa": {"PTR": [f"h{n}.{EVIL}" for n in range(10)]}}
    )
    found = await evaluate(client(), "joe", NAME, slow, longest=0.6)
    assert found.result == "fail"


async def test_records_of_includes_that_are_too_long_together_are_an_error() -> None:
    filling = ["ip4:198.51.100.0/24"] * 350
    zone = {NAME: record("include:b.example", "-all"), "b.example": record(*filling, "include:c.example", "?all")}
    zone["c.example"] = record(*filling, "+all")
    assert (await check(zone))[0].result == "pass", "14 KiB"
    zone["c.example"] = record(*filling, "include:d.example", "?all")
    zone["d.example"] = record(*filling, "+all")
    found, resolver = await check(zone)
    assert (found.result, found.reason) == ("permerror", "The record is too long")
    assert resolver.kinds == {"TXT": 4}


@pytest.mark.parametrize(
    "terms",
    [
        ["ip4:198.51.100.0/24"] * 500,
        ["a:x." + "a" * 600 + ".example"],
        ["m=%{d}%{d}%{d}%{d}%{d}"] * 11,
    ],
)
async def test_record_that_would_take_long_to_read_is_an_error(terms: list[str]) -> None:
    found, _ = await check({NAME: record(*terms, "+all")})
    assert found.result == "permerror"
    assert found.reason in ("The record is too long", "The record has too many macros")


async def test_of_the_addresses_of_a_host_the_first_hundred_count() -> None:
    others = [f"198.51.100.{number}" for number in range(99)]
    zone: Tables = {NAME: record("a", "-all", A=[*others, "192.0.2.1"])}
    assert (await check(zone))[0].result == "pass"
    zone[NAME] = record("a", "-all", A=[*others, "198.51.100.200", "192.0.2.1"])
    assert (await check(zone))[0].result == "fail"


async def test_hundred_addresses_count_of_each_host_of_mx() -> None:
    hosts = [f"h{number}.example" for number in range(10)]
    zone: Tables = {NAME: record("mx", "-all", MX=[f"10 {host}" for host in hosts])}
    zone |= {host: {"A": [f"198.51.100.{number}" for number in range(50)]} for host in hosts}
    zone[hosts[-1]] = {"A": ["192.0.2.1"]}
    assert (await check(zone))[0].result == "pass"


@pytest.mark.parametrize(("kind", "most"), [("A", 100), ("AAAA", 100), ("PTR", 100), ("MX", 11)])
def test_library_gets_no_more_records_than_can_count(kind: Type, most: int) -> None:
    records: tuple[Record, ...] = tuple(Mx(10, "") if kind == "MX" else "" for _ in range(4000))
    assert len(library_values(Answer("ok", records), kind)) == most


@pytest.mark.parametrize(
    ("term", "ip", "result"),
    [
        ("ip4:192.0.2.0/24", "192.0.2.255", "pass"),
        ("ip4:192.0.2.0/24", "192.0.3.0", "fail"),
        ("ip4:192.0.2.0/24", "::ffff:192.0.2.1", "pass"),
        ("ip4:0.0.0.0/0", "203.0.113.1", "pass"),
        ("ip4:0.0.0.0/0", "2001:db8::1", "fail"),
        ("ip6:::/0", "192.0.2.1", "fail"),
        ("ip6:2001:db8::/32", "2001:db8:ffff::1", "pass"),
        ("ip6:2001:db8::/33", "2001:db8:ffff::1", "fail"),
        ("ip6:::ffff:192.0.2.0/120", "::ffff:192.0.2.1", "fail"),
        ("a:h.example/31", "192.0.2.2", "fail"),
        ("a:h.example/31", "192.0.2.1", "pass"),
        ("a:h.example//64", "2001:db8::ff", "pass"),
        ("a:h.example/31", "2001:db8::ff", "fail"),
    ],
)
async def test_network_is_compared_with_clients_of_its_own_kind(term: str, ip: str, result: str) -> None:
    zone: Tables = {
        NAME: record(term, "-all"),
        "h.example": {"A": ["192.0.2.0"], "AAAA": ["2001:db8::1"]},
    }
    assert (await check(zone, ip=ip))[0].result == result


async def test_explanation_is_looked_up_after_a_fail_only() -> None:
    zone: Tables = {
        NAME: record("ip4:192.0.2.1", "-all", "exp=why.example"),
        "why.example": {"TXT": ["Ask %{o} about %{i}"]},
    }
    found, resolver = await check(zone)
    assert (found.result, found.explanation) == ("pass", "")
    assert resolver.kinds == {"TXT": 1}
    found, resolver = await check(zone, ip="192.0.2.2")
    assert (found.result, found.explanation) == ("fail", "Ask a.example about 192.0.2.2")
    assert resolver.kinds == {"TXT": 2}


async def test_explanation_is_one_short_line_of_plain_characters() -> None:
    zone: Tables = {
        NAME: record("-all", "exp=why.example"),
        "why.example": {"TXT": ["No.\r\n250 2.0.0 Ok\x00\x1b[2J %{h}" + " and. so on" * 25]},
    }
    found = await evaluate(client(helo="h\tx.example"), "joe", NAME, Zone(zone))
    assert found.explanation.startswith("No.?250 2.0.0 Ok?[2J h?x.example and. so on and. so on")
    assert len(found.explanation) == 200
    assert found.explanation.isascii()
    assert found.explanation.isprintable()


@pytest.mark.parametrize(
    "texts",
    [[], ["one", "two"], ["gr\u00fcn"], ["%{x}"], ["x" * 600], ["%{c"]],
    ids=["none", "two", "not ascii", "no macro", "too long", "open macro"],
)
async def test_explanation_with_anything_wrong_is_none(texts: list[str]) -> None:
    zone: Tables = {NAME: record("-all", "exp=why.example"), "why.example": {"TXT": texts}}
    assert (await check(zone))[0] == Evaluation("fail", "-all matches", "-all")


@pytest.mark.parametrize("macro", ["%{d", "%{d0}", "%{d2x}", "%{d:}", "%{}", "%{rd}", "%{d-2}"])
async def test_macro_that_is_none_is_an_error(macro: str) -> None:
    found, resolver = await check({NAME: record(f"a:{macro}.example", "+all")})
    assert (found.result, found.reason) == ("permerror", "Invalid macro")
    assert resolver.kinds == {"TXT": 1}


async def test_name_too_long_for_the_dns_loses_labels_from_the_left() -> None:
    long = ".".join(["x" * 40] * 6)
    zone: Tables = {NAME: record("exists:%{l}.%{l}.example", "-all")}
    _, resolver = await check(zone, local=long)
    (name,) = (name for name, kind in resolver.questions if kind == "A")
    assert name == f"{long}.example"


async def test_local_part_may_hold_an_at_sign() -> None:
    zone: Tables = {
        NAME: record("exists:%{l}.%{o}.list.example", "-all"),
        "evil.example": record("+all"),
        "joe@evil.example.a.example.list.example": {"A": ["127.0.0.2"]},
    }
    assert (await check(zone, local="joe@evil.example"))[0].result == "pass"
    del zone["joe@evil.example.a.example.list.example"]
    found, resolver = await check(zone, local="joe@evil.example")
    assert found.result == "fail"
    assert ("evil.example", "TXT") not in resolver.questions


async def test_text_without_strings_is_no_record() -> None:
    zone = Zone.from_answers({(NAME, "TXT"): Answer("ok", (Txt(()), Txt((b"v=spf1 ", b"+all"))))})
    assert (await evaluate(client(), "joe", NAME, zone)).result == "pass"


async def test_dns_that_is_down_is_a_temporary_error() -> None:
    found, _ = await check({NAME: {"TXT": "tempfail: servfail"}})
    assert found == Evaluation("temperror", "DNS: servfail for TXT of a.example")


@pytest.mark.parametrize(
    ("term", "answer", "reason"),
    [
        ("exists:%{l}.list.example", "servfail", "DNS: servfail for A of %{l}.list.example"),
        ("exists:%{l1r-}.list.example", "servfail", "DNS: servfail for A of %{l1r-}.list.example"),
        ("redirect=%{l}.list.example", "nxdomain", "redirect domain has no SPF record"),
        ("include:%{L}.list.example", "nxdomain", "No valid SPF record for included domain: %{L}.list.example"),
    ],
)
async def test_reason_tells_nobody_the_local_part(term: str, answer: str, reason: str) -> None:
    zone: Tables = {NAME: record(term, "-all") if "=" not in term else record(term)}
    if answer == "servfail":
        zone |= {f"{name}.list.example": {"A": "tempfail: servfail"} for name in ("Joe-Doe", "Joe")}
    found, _ = await check(zone, local="Joe-Doe")
    assert found.reason.startswith(reason)
    assert "joe" not in found.reason.lower()


async def test_lookups_beyond_the_limit_of_the_message_are_a_temporary_error() -> None:
    hosts = [f"h{number}.example" for number in range(5)]
    zone = {NAME: record(*(f"a:{host}" for host in hosts), "-all"), **elsewhere(hosts)}
    resolver = Asked(Zone(zone))
    found = await evaluate(client(), "joe", NAME, LimitedResolver(resolver, 3))
    assert found.result == "temperror"
    assert resolver.questions.total() == 3


async def test_check_that_takes_too_long_is_a_temporary_error() -> None:
    resolver = Asked(Zone({NAME: record("a:slow.example", "-all")}), holds="slow.example")
    found = await evaluate(client(), "joe", NAME, resolver, longest=0.01)
    assert found == Evaluation("temperror", "not done in 0.01 s")
    assert not parked()


async def test_checks_at_the_same_time_do_not_get_each_others_answers() -> None:
    zone = {f"d{number}.example": record(f"exists:%{{i}}.h{number}.example", "-all") for number in range(20)}
    zone |= {f"192.0.2.{number}.h{number}.example": {"A": ["127.0.0.2"]} for number in range(0, 20, 2)}
    resolvers = [Asked(Zone(zone), holds=f"d{number}.example") for number in range(20)]
    tasks = [
        asyncio.create_task(evaluate(client(f"192.0.2.{number}"), "joe", f"d{number}.example", resolver))
        for number, resolver in enumerate(resolvers)
    ]
    for resolver in resolvers:
        await resolver.held.wait()
    for resolver in reversed(resolvers):
        resolver.released.set()
    results = [found.result for found in await asyncio.gather(*tasks)]
    assert results == ["pass", "fail"] * 10
    assert all(resolver.questions.total() == 2 for resolver in resolvers)


@pytest.mark.parametrize("held", [NAME, "b.example", "why.example"])
async def test_check_that_is_cancelled_leaves_nothing_behind(held: str) -> None:
    zone = {NAME: record("include:b.example", "-all", "exp=why.example"), "b.example": record("-all")}
    resolver = Asked(Zone(zone), holds=held)
    task = asyncio.create_task(evaluate(client(), "joe", NAME, resolver))
    await resolver.held.wait()
    assert len(parked()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not parked()
    asked = resolver.questions.total()
    resolver.released.set()
    await asyncio.sleep(0)
    assert resolver.questions.total() == asked


PIECES = st.sampled_from([
    "v=spf1", " ", "  ", "a", "mx", "ptr", "all", "include", "exists", "redirect=", "exp=", "ip4:", "ip6:", ":", "/",
    "//", "24", "0", "129", "+", "-", "~", "?", "%", "%{", "}", "%{s}", "%{p}", "%{d2r}", "%{I}", "%{l9999999r-}", "%%",
    "%_", "%-", ".", "..", "a.example", "b.example", "192.0.2.1", "2001:db8::1", "::", "=", ",", "x", "\t", "\r\n",
    "\u0663", "\x00",
])  # fmt: skip
RECORDS = st.lists(PIECES, max_size=30).map("".join)


@given(record=RECORDS, included=RECORDS, explanation=RECORDS, local=st.text(max_size=20), helo=RECORDS)
def test_whatever_stands_in_a_record_there_is_a_result(
    record: str, included: str, explanation: str, local: str, helo: str
) -> None:
    zone = Zone({
        NAME: {"TXT": [f"v=spf1 {record}"], "A": ["192.0.2.9"], "MX": ["1 b.example", "0 ."]},
        "b.example": {"TXT": [f"v=spf1 {included}"], "AAAA": ["2001:db8::1"], "PTR": ["a.example"]},
        "x.example": {"TXT": [explanation]},
        "1.2.0.192.in-addr.arpa": {"PTR": ["b.example"]},
    })  # fmt: skip
    found = asyncio.run(evaluate(client(helo=helo), local, NAME, zone))
    assert found.failure is None
    assert found.result in get_args(SpfResult)
    for text in (found.reason, found.mechanism, found.explanation):
        assert len(text) <= 200
        assert text.isascii()
        assert text.isprintable() or not text


class Broken(Asked):
    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        raise ZeroDivisionError


async def test_bug_of_a_resolver_is_no_result() -> None:
    with pytest.raises(ZeroDivisionError):
        await evaluate(client(), "joe", NAME, Broken(Zone()))
    assert not parked()


def parked() -> list[object]:
    """Checks that stand somewhere inside pyspf."""
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, greenlet) and one.parent is not None and not one.dead]
