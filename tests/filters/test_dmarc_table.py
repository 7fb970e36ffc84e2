"""DMARC as RFC 9989 has it, line by line; the notation is explained in dmarc_case.py."""

import pytest

from filters.dmarc_assessment import assess
from filters.dmarc_discovery import MAX_QUESTIONS
from smtpd.dns import RecordingResolver
from tests.filters.dmarc_case import DOWN, EXISTS, Line, discovery_of, evidence_of, names, outcome_of, zone_of

REJECT = "p=reject"
DEEP = "a.b.c.d.e.f.g.h.i.j.mail.example.com"

# Whose record it is: the author's, that of its organisation, that of the public suffix.
DISCOVERY: list[Line] = [
    ("§4.10.1", {"example.com": REJECT}, "example.com", "", "reject by p of example.com"),
    ("§4.10.1", {"a.example.com": "p=none", "example.com": REJECT}, "a.example.com", "", "none by p of a.example.com"),
    ("§4.10.1", {"example.com": REJECT}, "a.b.example.com", "", "reject by p of example.com"),
    ("§4.10.1", {}, "example.com", "", "none"),
    ("§4.10.1", {}, "example.com", "spf=example.com dkim=example.com", "none"),
    ("§4.10.1", {"com": "p=reject; psd=y"}, "example.com", "", "reject by p of com"),
    ("§4.10.1", {"com": "p=none; psd=y", "example.com": REJECT}, "a.example.com", "", "reject by p of example.com"),
    # The record between author and organisation speaks for itself alone.
    ("§4.10.1", {"b.example.com": "p=none", "example.com": REJECT}, "a.b.example.com", "",
     "reject by p of example.com"),
    ("§4.10.1", {"b.example.com": "p=none; psd=n", "example.com": REJECT}, "a.b.example.com", "",
     "none by p of b.example.com"),
    # psd=y is at com, example.com is the organisation and silent: mail.example.com does not speak for it.
    ("§4.10.1", {"com": "p=reject; psd=y", "mail.example.com": "p=none"}, "a.mail.example.com", "",
     "reject by p of com"),
    # A record at the public suffix without psd makes the suffix the organisation (§11.8 warns of it).
    ("§11.8", {"com": REJECT}, "example.com", "", "reject by p of com"),
    ("§11.8", {"com": REJECT, "example.com": "p=none; psd=n"}, "a.example.com", "", "none by p of example.com"),
    ("§4.10.1", {"bank.example": "p=reject; psd=y"}, "bank.example", "", "reject by p of bank.example"),
    ("§4.10.1", {"bank.example": "p=reject; sp=none; psd=y"}, "bank.example", "", "reject by p of bank.example"),
    ("§4.10", {"example.com": REJECT}, DEEP, "", "reject by p of example.com"),
    ("§4.10", {DEEP: REJECT}, DEEP, "", "reject by p of " + DEEP),
    # §5.1.8: the walk from nine labels goes to seven, the zone cut between is never seen.
    ("§5.1.8", {"b.c.d.e.f.g.example.com": "p=none; psd=n", "example.com": REJECT}, "mail.a.b.c.d.e.f.g.example.com",
     "",
     "reject by p of example.com"),
    ("§5.1.8", {"c.d.e.f.g.example.com": "p=none; psd=n", "example.com": REJECT}, "mail.a.b.c.d.e.f.g.example.com", "",
     "none by p of c.d.e.f.g.example.com"),
    ("§4.10.1", {"localhost": REJECT}, "localhost", "", "reject by p of localhost"),
]  # fmt: skip

# sp and np: subdomains that are there, and that are not.
SUBDOMAINS: list[Line] = [
    ("§4.7 sp", {"example.com": "p=reject; sp=none"}, "example.com", "", "reject by p of example.com"),
    ("§4.7 sp", {"example.com": "p=reject; sp=none", "a.example.com": EXISTS}, "a.example.com", "",
     "none by sp of example.com"),
    ("§4.7 sp", {"example.com": "p=none; sp=reject"}, "a.example.com", "", "reject by sp of example.com"),
    ("§4.7 sp", {"a.example.com": "p=none; sp=reject", "example.com": REJECT}, "a.example.com", "",
     "none by p of a.example.com"),
    ("§4.7 np", {"example.com": "p=none; np=reject"}, "gone.example.com", "", "reject by np of example.com"),
    ("§4.7 np", {"example.com": "p=none; np=reject", "a.example.com": EXISTS}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.7 np", {"example.com": "p=none; sp=quarantine; np=reject"}, "gone.example.com", "",
     "reject by np of example.com"),
    ("§4.7 np", {"example.com": "p=none; sp=quarantine; np=reject", "a.example.com": EXISTS}, "a.example.com", "",
     "quarantine by sp of example.com"),
    ("§4.7 np", {"example.com": "p=reject; np=none"}, "gone.example.com", "", "none by np of example.com"),
    ("§4.7 np", {"example.com": "p=none; np=reject"}, "example.com", "", "none by p of example.com"),
    # RFC 8020: what is above an existing name exists.
    ("§3.2.13", {"example.com": "p=none; np=reject", "x.a.example.com": EXISTS}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"com": "p=none; np=reject; psd=y"}, "gone.com", "", "reject by np of com"),
    ("§4.10.1", {"com": "p=none; np=reject; psd=y", "there.com": EXISTS}, "there.com", "", "none by p of com"),
    ("§4.7 np", {"example.com": "p=none; np=reject"}, "gone.example.com", "dkim=example.com", "pass"),
]  # fmt: skip

# Who may speak for whom.
ALIGNMENT: list[Line] = [
    ("B.1.1 1", {"example.com": REJECT}, "example.com", "spf=example.com", "pass"),
    ("B.1.1 2", {"example.com": REJECT}, "example.com", "spf=child.example.com", "pass"),
    ("B.1.1 3", {"example.com": REJECT}, "child.example.com", "spf=example.net", "reject by p of example.com"),
    ("B.1.2 1", {"example.com": REJECT}, "example.com", "dkim=example.com", "pass"),
    ("B.1.2 2", {"example.com": REJECT}, "child.example.com", "dkim=example.com", "pass"),
    ("B.1.2 3", {"example.com": REJECT}, "child.example.com", "dkim=example.net", "reject by p of example.com"),
    ("§4.4", {"example.com": REJECT}, "news.example.com", "spf=foo.example.com", "pass"),
    ("§4.7 aspf", {"example.com": "p=reject; aspf=s"}, "example.com", "spf=child.example.com",
     "reject by p of example.com"),
    ("§4.7 aspf", {"example.com": "p=reject; aspf=s"}, "example.com", "spf=example.com", "pass"),
    ("§4.7 aspf", {"example.com": "p=reject; aspf=s"}, "example.com", "dkim=child.example.com", "pass"),
    ("§4.7 adkim", {"example.com": "p=reject; adkim=s"}, "example.com", "dkim=child.example.com",
     "reject by p of example.com"),
    ("§4.7 adkim", {"example.com": "p=reject; adkim=s"}, "child.example.com", "dkim=child.example.com", "pass"),
    ("§4.7 adkim", {"example.com": "p=reject; adkim=s"}, "example.com", "spf=child.example.com", "pass"),
    ("§4.4.1", {"example.com": REJECT}, "example.com", "dkim=example.net dkim=example.org dkim=example.com", "pass"),
    ("§5.3.5", {"example.com": REJECT}, "example.com", "spf=example.net dkim=example.com", "pass"),
    ("B.4.1", {"example.com": REJECT, "signing.example.com": "p=none"}, "example.com", "dkim=signing.example.com",
     "pass"),
    ("B.4.2", {"example.com": REJECT, "signing.example.com": "p=none"}, "a.b.c.d.e.f.g.h.i.j.k.example.com",
     "dkim=signing.example.com", "pass"),
    ("B.4.3", {"bank.example": "p=reject; psd=y", "giant.bank.example": "p=quarantine"}, "giant.bank.example",
     "spf=mail.giant.bank.example", "pass"),
    ("B.4.3", {"bank.example": "p=reject; psd=y", "giant.bank.example": "p=quarantine"}, "giant.bank.example",
     "dkim=mail.mega.bank.example", "quarantine by p of giant.bank.example"),
    ("B.4.3", {"bank.example": "p=reject; psd=y"}, "giant.bank.example", "dkim=mega.bank.example",
     "reject by p of bank.example"),
    ("§4.10.2", {"example.com": REJECT}, "a.com", "dkim=b.com", "none"),
    ("§4.10.2", {"a.com": REJECT, "b.com": REJECT}, "a.com", "dkim=b.com", "reject by p of a.com"),
    # Two that end alike, and neither is below the other.
    ("§4.10.2", {"example.com": REJECT}, "example.com", "dkim=badexample.com", "reject by p of example.com"),
    ("§4.10.2", {"example.com": REJECT}, "example.com", "dkim=com", "reject by p of example.com"),
    ("§4.10.2", {"mail.example.com": "p=reject; psd=n", "example.com": "p=none"}, "a.mail.example.com",
     "dkim=example.com",
     "reject by p of mail.example.com"),
    ("§4.10.2", {"mail.example.com": "p=reject; psd=n", "example.com": "p=none"}, "a.mail.example.com",
     "dkim=b.mail.example.com", "pass"),
    # A department of its own does not speak for the house.
    ("§5.1.8", {"example.com": REJECT, "lab.example.com": "p=none; psd=n"}, "example.com", "spf=lab.example.com",
     "reject by p of example.com"),
    ("§11.8", {"com": REJECT}, "a.com", "dkim=b.com", "pass"),
    ("§11.8", {"com": REJECT, "a.com": "p=reject; psd=n"}, "a.com", "dkim=b.com", "reject by p of a.com"),
    ("§4.10.2", {"com": "p=reject; psd=y"}, "mail.example.com", "dkim=example.com", "pass"),
    ("§4.10.2", {"com": "p=reject; psd=y"}, "a.example.com", "dkim=b.example.com", "pass"),
    ("§4.10.2", {"mail.example.com": REJECT}, "mail.example.com", "dkim=example.com",
     "reject by p of mail.example.com"),
    ("§4.10.2", {"bank.example": "p=reject; psd=y"}, "bank.example", "dkim=a.bank.example",
     "reject by p of bank.example"),
]  # fmt: skip

# What stands in a record, and what is made of mistakes.
RECORDS: list[Line] = [
    ("§4.7 p", {"example.com": "p=REJECT"}, "example.com", "", "reject by p of example.com"),
    ("§4.8", {"example.com": "=v=DMARC1;p=reject"}, "example.com", "", "reject by p of example.com"),
    ("§4.8", {"example.com": "=V = DMARC1 ; P = reject ;"}, "example.com", "", "reject by p of example.com"),
    ("§4.8", {"example.com": "=v=DMARC1; p=reject;; ;"}, "example.com", "", "reject by p of example.com"),
    ("§4.7", {"example.com": "rua=mailto:d@example.com; p=reject"}, "example.com", "", "reject by p of example.com"),
    ("§4.7 v", {"example.com": "=v=dmarc1; p=reject"}, "example.com", "", "none"),
    ("§4.7 v", {"example.com": "=v=DMARC2; p=reject"}, "example.com", "", "none"),
    ("§4.7 v", {"example.com": "=v=DMARC10; p=reject"}, "example.com", "", "none"),
    ("§4.7 v", {"example.com": "=p=reject; v=DMARC1"}, "example.com", "", "none"),
    ("§4.7 v", {"example.com": "=p=reject"}, "example.com", "", "none"),
    ("§4.7 v", {"example.com": "=v=DMARC1 p=reject"}, "example.com", "", "none"),
    ("§4.10", {"example.com": ["=v=spf1 -all", REJECT]}, "example.com", "", "reject by p of example.com"),
    ("§4.10", {"example.com": [REJECT, REJECT]}, "example.com", "", "none"),
    ("§4.10", {"a.example.com": [REJECT, "p=none"], "example.com": "p=quarantine"}, "a.example.com", "",
     "quarantine by p of example.com"),
    ("§4.10", {"a.example.com": REJECT, "example.com": ["p=none", "p=none"]}, "a.example.com", "dkim=example.com",
     "reject by p of a.example.com"),
    ("§4.7", {"example.com": "p=reject; x=y; sf=; fo=7; z"}, "example.com", "", "reject by p of example.com"),
    ("§4.7", {"example.com": "p=reject; adkim=x; aspf=x; psd=x; t=x"}, "example.com", "dkim=a.example.com", "pass"),
    ("§4.10.1", {"example.com": "p=rejct"}, "example.com", "", "permerror"),
    ("§4.10.1", {"example.com": "p=rejct"}, "example.com", "spf=example.com", "permerror"),
    ("§4.10.1", {"example.com": "p=rejct; rua=mailto:d@example.com"}, "example.com", "", "none by p of example.com"),
    ("§4.10.1", {"example.com": "p=rejct; rua=d@example.com"}, "example.com", "", "permerror"),
    ("§4.10.1", {"example.com": "p=reject; sp=rejct"}, "example.com", "", "permerror"),
    ("§4.10.1", {"example.com": "p=reject; sp=rejct; rua=mailto:d@example.com"}, "example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"example.com": "p=reject; np=rejct; rua=mailto:d@example.com"}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"example.com": "=v=DMARC1"}, "example.com", "", "permerror"),
    ("§4.10.1", {"example.com": "sp=reject; rua=mailto:d@example.com"}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"example.com": "p=reject; sp=reject; np=x; rua=mailto:d@example.com"}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"example.com": "p=x; np=reject; rua=mailto:d@example.com"}, "a.example.com", "",
     "none by p of example.com"),
    ("§4.10.1", {"example.com": "rua=mailto:d@example.com"}, "example.com", "", "none by p of example.com"),
    ("§4.10.1", {"example.com": "rua=mailto:d@example.com"}, "example.com", "spf=example.com", "pass"),
    # Nobody could say which of two is meant.
    ("§4.7", {"example.com": "p=none; p=reject"}, "example.com", "", "permerror"),
    ("§4.7", {"example.com": "p=reject; adkim=s; adkim=s"}, "example.com", "dkim=a.example.com", "pass"),
    ("§4.8", {"example.com": "p=reject\xa0"}, "example.com", "", "permerror"),
]  # fmt: skip

TESTING: list[Line] = [
    ("§4.7 t", {"example.com": "p=reject; t=y"}, "example.com", "",
     "quarantine by p of example.com (policy_test_mode)"),
    ("§4.7 t", {"example.com": "p=quarantine; t=y"}, "example.com", "", "none by p of example.com (policy_test_mode)"),
    ("§4.7 t", {"example.com": "p=none; t=y"}, "example.com", "", "none by p of example.com"),
    ("§4.7 t", {"example.com": "p=reject; t=n"}, "example.com", "", "reject by p of example.com"),
    ("§4.7 t", {"example.com": "p=none; sp=reject; t=y"}, "a.example.com", "",
     "quarantine by sp of example.com (policy_test_mode)"),
    ("§4.7 t", {"example.com": "p=none; np=reject; t=y"}, "a.example.com", "",
     "quarantine by np of example.com (policy_test_mode)"),
    ("§4.7 t", {"example.com": "p=reject; t=y"}, "example.com", "spf=example.com", "pass"),
    ("A.6 pct", {"example.com": "p=reject; pct=0"}, "example.com", "", "reject by p of example.com"),
]  # fmt: skip

# Nobody knows: never "fail" where an answer could have made it a pass, never "pass" without proof.
TROUBLE: list[Line] = [
    ("§5.3.6", {"example.com": DOWN}, "example.com", "spf=example.com", "temperror"),
    ("§5.3.6", {"a.example.com": DOWN, "example.com": REJECT}, "a.example.com", "", "temperror"),
    ("§5.3.6", {"example.com": DOWN}, "a.example.com", "", "temperror"),
    ("§5.3.6", {"example.com": REJECT, "com": DOWN}, "example.com", "spf=example.com", "pass"),
    ("§5.3.6", {"example.com": REJECT, "com": DOWN}, "example.com", "", "reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT, "com": DOWN}, "example.com", "spf=example.net", "reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT, "com": DOWN}, "example.com", "spf=a.example.com",
     "temperror: reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT}, "example.com", "spf?=example.com", "temperror: reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT}, "example.com", "dkim?=a.example.com", "temperror: reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT}, "example.com", "dkim?=example.net", "reject by p of example.com"),
    ("§5.3.6", {"example.com": "p=reject; adkim=s"}, "example.com", "dkim?=a.example.com",
     "reject by p of example.com"),
    ("§5.3.6", {"example.com": REJECT}, "example.com", "spf?=example.com dkim=example.com", "pass"),
    ("§5.3.6", {"example.com": REJECT}, "example.com", "dkim?=example.com spf=example.com", "pass"),
    ("§5.3.6", {"example.com": REJECT, "a.example.com": DOWN}, "example.com", "dkim=a.example.com",
     "temperror: reject by p of example.com"),
    # Not DNS but a filter of ours was down.
    ("ours", {"example.com": REJECT}, "example.com", "spf!", "temperror: reject by p of example.com"),
    ("ours", {"example.com": REJECT}, "example.com", "dkim! spf=example.net", "temperror: reject by p of example.com"),
    ("ours", {"example.com": REJECT}, "example.com", "spf! dkim=example.com", "pass"),
]  # fmt: skip

RFC_9989 = [*DISCOVERY, *SUBDOMAINS, *ALIGNMENT, *RECORDS, *TESTING, *TROUBLE]


@pytest.mark.parametrize("line", RFC_9989, ids=names(RFC_9989))
async def test_line_of_rfc_9989(line: Line) -> None:
    assert await outcome_of(line) == line[4]


async def test_whether_an_author_exists_that_nobody_knows_is_trouble_with_the_stricter_policy() -> None:
    zone = zone_of({"example.com": "p=none; np=reject"})
    zone.put("a.example.com", tempfail=True)
    assessment = await assess("a.example.com", discovery_of(zone), evidence_of(""))
    assert (assessment.status, assessment.policy, assessment.tag) == ("temperror", "reject", "np")


async def asked(author: str, proofs: str, zone: dict[str, str]) -> list[str]:
    """The names that DNS was asked for, in order."""
    recording = RecordingResolver(zone_of(zone))
    await assess(author, discovery_of(recording), evidence_of(proofs))
    return [name.removeprefix("_dmarc.") for name, _ in recording.answers]


async def test_a_deep_author_costs_the_eight_questions_of_the_rfc() -> None:
    assert await asked(DEEP, "", {}) == [
        DEEP, "g.h.i.j.mail.example.com", "h.i.j.mail.example.com", "i.j.mail.example.com", "j.mail.example.com",
        "mail.example.com", "example.com", "com",
    ]  # fmt: skip


@pytest.mark.parametrize("labels", [1, 2, 7, 8, 9, 30, 120])
async def test_no_author_costs_more_than_eight_questions(labels: int) -> None:
    names_asked = await asked(".".join("a" * labels), "", {})
    assert len(names_asked) == min(labels, MAX_QUESTIONS)
    assert names_asked[-1] == "a"


async def test_the_walk_stops_at_the_first_that_says_what_it_is() -> None:
    assert await asked("mail.giant.bank.example", "", {"bank.example": "p=none; psd=y"}) == [
        "mail.giant.bank.example", "giant.bank.example", "bank.example",
    ]  # fmt: skip
    assert await asked("a.example.com", "", {"example.com": "p=none; psd=n"}) == ["a.example.com", "example.com"]


@pytest.mark.parametrize("proofs", ["", "spf=example.com", "dkim=example.com spf=example.com", "spf=news.example.net"])
async def test_one_question_is_enough_where_alignment_is_plain(proofs: str) -> None:
    assert await asked("example.com", proofs, {"example.com": "p=reject"}) == ["example.com"]


async def test_strangers_and_strict_alignment_cost_nothing_but_the_author() -> None:
    assert await asked("a.com", "dkim=b.com spf=c.com", {"a.com": "p=reject"}) == ["a.com", "com"]
    assert await asked("a.com", "dkim=ba.com", {"a.com": "p=reject"}) == ["a.com", "com"]
    assert await asked("a.com", "dkim=x.a.com", {"a.com": "p=reject; adkim=s"}) == ["a.com"]


async def test_existence_is_asked_for_only_when_it_makes_a_difference() -> None:
    assert "a.b.com" in await asked("a.b.com", "", {"b.com": "p=none; np=reject"})
    assert "a.b.com" not in (await asked("a.b.com", "", {"b.com": "p=reject; np=reject"}))[1:]
    assert "a.b.com" not in (await asked("a.b.com", "dkim=b.com", {"b.com": "p=none; np=reject"}))[1:]


def test_nothing_waits_when_everything_is_in_the_cache() -> None:
    work = assess(DEEP, discovery_of(zone_of({"example.com": "p=reject; np=none"})), evidence_of("dkim=x.example.com"))
    with pytest.raises(StopIteration) as finished:
        work.send(None)
    assert finished.value.value.status == "pass"
