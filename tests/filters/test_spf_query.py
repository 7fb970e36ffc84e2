import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import spf
from spf_house import NAME, Asked, Tables, check, client, record

from filters import spf_query
from filters.spf_evaluation import Evaluation, evaluate
from smtpd.zone import Zone

TOP = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def library() -> Iterator[None]:
    """The way pyspf asks, put back afterwards."""
    kept = spf.DNSLookup
    yield
    spf.DNSLookup = kept


def test_library_is_imported_where_warnings_are_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-c", "import filters.spf_query"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.usefixtures("library")
def test_others_in_this_process_use_pyspf_as_before() -> None:
    asked = []

    def own(name: str, kind: str, strict: bool = True, timeout: float = 20) -> list[object]:
        asked.append((name, kind, strict, timeout))
        return [((name, kind), (b"v=spf1 +all",))]

    spf.DNSLookup = own
    spf_query.use(lambda name, kind, seconds: [] if name == "ours.example" else None)
    assert spf.check2("192.0.2.1", "joe@other.example", "host.example")[0] == "pass"
    assert spf.check2("192.0.2.1", "joe@ours.example", "host.example")[0] == "none"
    assert asked == [("other.example", "TXT", True, 20)]


def test_query_outside_of_a_check_asks_the_library() -> None:
    program = (
        "import spf; spf.DNSLookup = lambda *rest: [((rest[0], rest[1]), (b'v=spf1 -all',))]; "
        "import filters.spf; print(spf.check2('192.0.2.1', 'joe@a.example', 'host.example')[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "fail\n", done.stderr


# Local parts that are not ASCII (RFC 8616 §4)


@pytest.mark.parametrize("macro", ["%{l}", "%{L}", "%{s}", "%{S1}", "%{l1r-}", "%%%{l}", "%{p}.%{l}"])
@pytest.mark.parametrize("mechanism", ["exists", "include", "a", "mx", "ptr"])
async def test_term_with_a_local_part_beyond_ascii_matches_nothing_and_is_not_looked_up(
    mechanism: str, macro: str
) -> None:
    terms = [f"-{mechanism}:{macro}.list.example"] * 4
    found, resolver = await check({NAME: record(*terms, "?all")}, local="jos\u00e9")
    assert found == Evaluation("neutral", "?all matches", "?all")
    assert resolver.kinds == {"TXT": 1}


@pytest.mark.parametrize("terms", [("redirect=%{l}.list.example",), ("redirect=%{S}.list.example", "ip4:198.51.100.1")])
async def test_redirect_with_a_local_part_beyond_ascii_is_as_good_as_none(terms: tuple[str, ...]) -> None:
    zone: Tables = {NAME: record(*terms, "exp=%{l}.why.example"), "list.example": record("-all")}
    found, resolver = await check(zone, local="jos\u00e9")
    assert found == Evaluation("neutral", "no mechanism matches")
    assert resolver.kinds == {"TXT": 1}


async def test_explanation_with_a_local_part_beyond_ascii_is_none() -> None:
    found, resolver = await check({NAME: record("-all", "exp=%{l}.why.example")}, local="jos\u00e9")
    assert found == Evaluation("fail", "-all matches", "-all")
    assert resolver.kinds == {"TXT": 1}


async def test_local_part_beyond_ascii_is_no_matter_where_no_macro_asks_for_it() -> None:
    zone: Tables = {
        NAME: record("-exists:%{o}.%%{l}.example", "include:%{d}.list.example", "-all"),
        f"{NAME}.list.example": record("-exists:%{p}.%{l}.example", "exists:%{p}.ok.example"),
        "mail.example.ok.example": {"A": ["127.0.0.2"]},
        "1.2.0.192.in-addr.arpa": {"PTR": ["mail.example"]},
        "mail.example": {"A": ["192.0.2.1"]},
    }
    assert (await check(zone, local="jos\u00e9"))[0].result == "pass"
    zone["a.example.%{l}.example"] = {"A": ["127.0.0.2"]}
    assert (await check(zone, local="jos\u00e9"))[0].result == "fail"


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (["exists:%{l}.%{c}.example"], "c,r,t macros allowed in exp= text only"),
        (["include:%{l}.example/24"], "CIDR not allowed"),
        (["a:%{l}.1"], "Invalid domain found (use FQDN)"),
        (["redirect=%{l0}.example"], "Invalid macro"),
        (["redirect=%{l}.example", "redirect=%{l}.example"], "redirect= MUST appear at most once"),
        (["include:%{l}.example"] * 11, "Too many DNS lookups"),
    ],
)
async def test_record_with_an_error_is_broken_for_a_local_part_beyond_ascii_too(terms: list[str], reason: str) -> None:
    found, _ = await check({NAME: record(*terms)}, local="jos\u00e9")
    assert (found.result, found.reason) == ("permerror", reason)


@pytest.mark.parametrize("local", ["...", "joe"])
@pytest.mark.parametrize("term", ["include:%{l}", "redirect=%{l}"])
async def test_record_that_is_not_there_for_a_local_part_of_ascii_is_an_error(term: str, local: str) -> None:
    assert (await check({NAME: record(term)}, local=local))[0].result == "permerror"


async def test_name_in_ehlo_beyond_ascii_is_not_looked_up() -> None:
    resolver = Asked(Zone({NAME: record("-exists:%{h}.list.example", "?all")}))
    assert (await evaluate(client(helo="jos\u00e9.example"), "joe", NAME, resolver)).result == "neutral"
    assert resolver.kinds == {"TXT": 1}
