"""DMARC as RFC 7489 had it: `discovery = "psl"` and `pct = "apply"`; the notation is explained in dmarc_case.py.

Only what differs from RFC 9989 stands here, and what must be the same although the way is another.
"""

import pytest

from filters.dmarc import _load_suffixes
from filters.dmarc_assessment import assess
from filters.dmarc_discovery import Suffixes
from smtpd.dns import RecordingResolver
from tests.filters.dmarc_case import DOWN, EXISTS, Line, discovery_of, evidence_of, names, outcome_of, zone_of

REJECT = "p=reject"
QUARANTINE = "p=quarantine"

LINES: list[Line] = [
    ("§6.6.3 1", {"example.com": REJECT}, "example.com", "", "reject by p of example.com"),
    ("§6.6.3 3", {"example.com": REJECT}, "a.b.example.com", "", "reject by p of example.com"),
    ("§6.6.3 3", {"example.co.uk": REJECT}, "a.example.co.uk", "", "reject by p of example.co.uk"),
    # No tree walk: nothing between, nothing above.
    ("§6.6.3 3", {"b.example.com": REJECT}, "a.b.example.com", "", "none"),
    ("§6.6.3 3", {"com": REJECT}, "example.com", "", "none"),
    ("§6.6.3 3", {"co.uk": REJECT}, "example.co.uk", "", "none"),
    ("§6.6.3 3", {"com": REJECT}, "com", "", "reject by p of com"),
    # Two records end the search; with RFC 9989 it goes on.
    ("§6.6.3 5", {"example.com": [REJECT, REJECT]}, "example.com", "", "none"),
    ("§6.6.3 5", {"a.example.com": [REJECT, REJECT], "example.com": REJECT}, "a.example.com", "", "none"),
    ("§6.6.3 2", {"a.example.com": "=v=spf1 -all", "example.com": REJECT}, "a.example.com", "",
     "reject by p of example.com"),
    ("§6.6.3 6", {"example.com": "p=x"}, "example.com", "", "permerror"),
    ("§6.6.3 6", {"example.com": "p=x; rua=mailto:d@example.com!10m"}, "example.com", "", "none by p of example.com"),
    ("§6.6.3 6", {"example.com": "p=reject; sp=x"}, "example.com", "", "permerror"),
    ("§6.3 sp", {"example.com": "p=reject; sp=none"}, "a.example.com", "", "none by sp of example.com"),
    ("§6.3 sp", {"example.com": "p=reject; sp=none"}, "example.com", "", "reject by p of example.com"),
    ("RFC 9091", {"example.com": "p=none; np=reject"}, "gone.example.com", "", "reject by np of example.com"),
    ("RFC 9091", {"example.com": "p=none; np=reject", "a.example.com": EXISTS}, "a.example.com", "",
     "none by p of example.com"),
    ("§3.1.1", {"example.com": REJECT}, "a.example.com", "dkim=b.example.com", "pass"),
    ("§3.1.1", {"example.com": REJECT}, "example.com", "dkim=com", "reject by p of example.com"),
    ("§3.1.2", {"example.com": REJECT}, "example.com", "spf=bounces.example.com", "pass"),
    ("§3.1.2", {"example.com": REJECT}, "example.com", "spf=example.net", "reject by p of example.com"),
    ("§3.2", {"a.co.uk": REJECT}, "a.co.uk", "dkim=b.co.uk", "reject by p of a.co.uk"),
    ("§3.2", {"a.unknowntld": REJECT}, "x.a.unknowntld", "dkim=a.unknowntld", "pass"),
    # psd is unknown here: the list knows.
    ("§3.2", {"example.com": "p=reject; psd=y"}, "example.com", "dkim=a.example.com", "pass"),
    ("§3.2", {"lab.example.com": "p=reject; psd=n"}, "lab.example.com", "dkim=example.com", "pass"),
    ("§6.6.3", {"example.com": DOWN}, "a.example.com", "", "temperror"),
    ("§6.6.3", {"com": DOWN, "example.com": REJECT}, "example.com", "dkim=a.example.com", "pass"),
]  # fmt: skip

SAMPLES: list[Line] = [
    ("§6.6.4", {"example.com": "p=reject; pct=0"}, "example.com", "",
     "quarantine by p of example.com (sampled_out)"),
    ("§6.6.4", {"example.com": "p=quarantine; pct=50"}, "example.com", "", "none by p of example.com (sampled_out)"),
    ("§6.6.4", {"example.com": "p=none; pct=0"}, "example.com", "", "none by p of example.com"),
    ("§6.6.4", {"example.com": "p=none; sp=reject; pct=0"}, "a.example.com", "",
     "quarantine by sp of example.com (sampled_out)"),
    ("§6.6.4", {"example.com": "p=reject; pct=0"}, "example.com", "spf=example.com", "pass"),
    # One level, not two.
    ("§6.6.4", {"example.com": "p=reject; pct=0; t=y"}, "example.com", "",
     "quarantine by p of example.com (policy_test_mode)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def suffixes() -> Suffixes:
    return _load_suffixes("")


@pytest.mark.parametrize("line", LINES, ids=names(LINES))
async def test_line_of_rfc_7489(line: Line, suffixes: Suffixes) -> None:
    assert await outcome_of(line, suffixes=suffixes) == line[4]


@pytest.mark.parametrize("line", SAMPLES, ids=names(SAMPLES))
async def test_message_that_is_left_out_of_the_sample(line: Line) -> None:
    assert await outcome_of(line, sampled_out=True) == line[4]


async def test_the_list_needs_two_questions_at_most(suffixes: Suffixes) -> None:
    recording = RecordingResolver(zone_of({}))
    author = ".".join("a" * 30) + ".example.com"
    await assess(author, discovery_of(recording, suffixes), evidence_of("dkim=x.example.com"))
    assert len(recording.answers) == 2
