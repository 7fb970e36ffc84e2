from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from smtpd import zone as zone_module
from smtpd.dns import INVALID, NODATA, NXDOMAIN, Answer, Mx, Record, Soa, Tlsa, Txt, Type, tempfail
from smtpd.zone import Zone, ZoneError

TEXT = """
["Example.org."]
MX = ["10 mx.example.org.", "0 ."]
TXT = ["v=spf1 mx -all", "grün", ["two ", "strings"], {hex = "ff00"}]
A = []
PTR = "nxdomain"
["mx.example.org"]
A = "192.0.2.1"
AAAA = "tempfail: timeout"
ttl = 60
authentic = true
["www.example.org"]
CNAME = ["example.org"]
A = ["192.0.2.80"]
["loop.example"]
CNAME = ["pool.example"]
["pool.example"]
CNAME = ["loop.example"]
["dangling.example"]
CNAME = ["nowhere.example"]
["*.bl.example"]
A = ["127.0.0.2"]
["clean.bl.example"]
["deep.sub.bl.example"]
["gone.example"]
nxdomain = true
TXT = ["still here"]
["down.example"]
tempfail = true
["a.b.c.example"]
A = ["192.0.2.3"]
"""


@pytest.mark.parametrize(
    ("name", "kind", "status", "records"),
    [
        ("example.org", "MX", "ok", (Mx(10, "mx.example.org"), Mx(0, ""))),
        ("EXAMPLE.ORG.", "TXT", "ok", (
            Txt((b"v=spf1 mx -all",)), Txt(("grün".encode(),)), Txt((b"two ", b"strings")), Txt((b"\xff\0",)))),
        ("example.org", "A", "nodata", ()),
        ("example.org", "AAAA", "nodata", ()),
        ("example.org", "PTR", "nxdomain", ()),
        ("mx.example.org", "A", "ok", ("192.0.2.1",)),
        ("mx.example.org", "AAAA", "tempfail", ()),
        ("www.example.org", "A", "ok", ("192.0.2.80",)),
        ("www.example.org", "MX", "ok", (Mx(10, "mx.example.org"), Mx(0, ""))),
        ("www.example.org", "CNAME", "ok", ("example.org",)),
        ("loop.example", "A", "tempfail", ()),
        ("dangling.example", "A", "nxdomain", ()),
        ("2.0.0.127.bl.example", "A", "ok", ("127.0.0.2",)),
        ("2.0.0.127.bl.example", "TXT", "nodata", ()),
        ("clean.bl.example", "A", "nodata", ()),
        ("x.clean.bl.example", "A", "nxdomain", ()),
        ("x.sub.bl.example", "A", "nxdomain", ()),
        ("sub.bl.example", "A", "nodata", ()),
        ("bl.example", "A", "nodata", ()),
        ("gone.example", "A", "nxdomain", ()),
        ("gone.example", "TXT", "ok", (Txt((b"still here",)),)),
        ("down.example", "MX", "tempfail", ()),
        ("b.c.example", "A", "nodata", ()),
        ("x.b.c.example", "A", "nxdomain", ()),
        ("elsewhere.example", "A", "nxdomain", ()),
    ],
)  # fmt: skip
def test_zone_answers_like_a_nameserver(name: str, kind: Type, status: str, records: tuple[Record, ...]) -> None:
    for zone in (Zone.parse(TEXT), Zone.parse(Zone.parse(TEXT).to_toml())):
        answer = zone.ask(name, kind)
        assert (answer.status, answer.records) == (status, records)


def test_failure_says_why() -> None:
    zone = Zone.parse(TEXT)
    assert zone.ask("mx.example.org", "AAAA").reason == "timeout"
    assert zone.ask("loop.example", "A").reason == "cname loop"
    assert Zone({"a.example": {"tempfail": True}}).ask("a.example", "A").reason == "no answer"
    assert Zone({"a.example": {"A": "tempfail"}}).ask("a.example", "A").reason == "no answer"


def test_time_and_authenticity_hold_for_all_records_of_a_name() -> None:
    zone = Zone.parse(TEXT)
    assert (zone.ask("mx.example.org", "A").ttl, zone.ask("mx.example.org", "A").authentic) == (60, True)
    assert (zone.ask("example.org", "MX").ttl, zone.ask("example.org", "MX").authentic) == (300, False)


def test_what_cannot_be_a_name_is_not_there() -> None:
    assert Zone.parse(TEXT).ask("a..b", "A") is INVALID


async def test_zone_knows_everything_at_once_or_nothing() -> None:
    tables = {"a.example": {"A": ["192.0.2.1"]}}
    assert Zone(tables).peek("a.example", "A") == await Zone(tables).resolve("a.example", "A")
    fresh = Zone(tables, cached=False)
    assert fresh.peek("a.example", "A") is None
    assert (await fresh.resolve("a.example", "A")).texts == ("192.0.2.1",)


def test_names_come_and_go() -> None:
    zone = Zone()
    zone.put("a.b.example", A=["192.0.2.1"])
    zone.put("A.B.example", MX=["10 mx.example"])
    assert zone.ask("a.b.example", "A") is NODATA
    assert zone.ask("b.example", "A") is NODATA
    zone.remove("a.B.example.")
    zone.remove("never.example")
    assert zone.ask("a.b.example", "MX") is NXDOMAIN
    assert zone.ask("b.example", "A") is NXDOMAIN


def test_zone_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zone.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert Zone.load(path).ask("example.org", "MX").found
    monkeypatch.setattr(zone_module, "MAX_FILE", 10)
    with pytest.raises(ZoneError, match="larger than 10"):
        Zone.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ZoneError, match="UTF-8"):
        Zone.load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "TOML"),
        ('"a.example" = 1', "a.example: must be a table"),
        ('["a..b"]', "'a..b': is no name"),
        ('["a.example"]\nA = ["mx.example"]', "a.example: A "),
        ('["a.example"]\nMX = ["mx.example"]', "a.example: MX is no MX record"),
        ('["a.example"]\nMX = [10]', "a.example: MX must be a list of text"),
        ('["a.example"]\nTXT = [10]', "a.example: TXT must be text"),
        ('["a.example"]\nTXT = [{hex = "xx"}]', "a.example: TXT "),
        ('["a.example"]\nTXT = [{hex = "ff", more = 1}]', "a.example: TXT must be text"),
        ('["a.example"]\nSPF = ["x"]', "a.example: knows no 'SPF'"),
        ('["a.example"]\nttl = "1h"', "a.example: ttl must be"),
        ('["a.example"]\nttl = true', "a.example: ttl must be"),
        ('["a.example"]\nauthentic = 1', "a.example: authentic must be"),
        ('["a.example"]\nnxdomain = false', "a.example: nxdomain must be true"),
    ],
)
def test_mistake_is_said_with_its_name(text: str, said: str) -> None:
    with pytest.raises(ZoneError) as caught:
        Zone.parse(text)
    assert said in str(caught.value)


NAMES = some.lists(some.text("abcxyz0_-\\+\"'", min_size=1, max_size=8), min_size=1, max_size=4).map(".".join)
HOSTS = some.one_of(NAMES, some.just(""))
WORDS = some.integers(0, 0xFFFFFFFF)
OCTETS = some.integers(0, 255)
RECORDS: dict[Type, some.SearchStrategy[Record]] = {
    "A": some.ip_addresses(v=4).map(str),
    "AAAA": some.ip_addresses(v=6).map(str),
    "MX": some.builds(Mx, some.integers(0, 0xFFFF), HOSTS),
    "TXT": some.lists(some.binary(max_size=300), min_size=1, max_size=3).map(tuple).map(Txt),
    "PTR": NAMES,
    "SOA": some.builds(Soa, HOSTS, HOSTS, WORDS, WORDS, WORDS, WORDS, WORDS),
    "TLSA": some.builds(Tlsa, OCTETS, OCTETS, OCTETS, some.binary(min_size=1, max_size=64)),
}
REASONS = some.sampled_from(["timeout", "servfail", "limit", 'odd " reason \x7f\n é'])


@some.composite
def questions(draw: some.DrawFn) -> dict[tuple[str, Type], Answer]:
    answers: dict[tuple[str, Type], Answer] = {}
    for name, kind in draw(some.lists(some.tuples(NAMES, some.sampled_from(sorted(RECORDS))), max_size=8)):
        found = some.lists(RECORDS[kind], min_size=1, max_size=3).map(
            lambda records: Answer("ok", tuple(records), 300.0)
        )
        absent = some.one_of(some.sampled_from([NODATA, NXDOMAIN]), REASONS.map(tempfail))
        answers[name, kind] = draw(some.one_of(found, absent))
    return answers


@given(questions())
def test_what_was_answered_is_replayed(answers: dict[tuple[str, Type], Answer]) -> None:
    zone = Zone.parse(Zone.from_answers(answers).to_toml())
    for (name, kind), answer in answers.items():
        assert zone.ask(name, kind) == answer


@given(some.text())
def test_any_text_is_a_zone_or_an_error_of_ours(text: str) -> None:
    with suppress(ZoneError):
        zone = Zone.parse(f'["a.example"]\nTXT = [{text}]\n')
        assert Zone.parse(zone.to_toml()).ask("a.example", "TXT") == zone.ask("a.example", "TXT")
