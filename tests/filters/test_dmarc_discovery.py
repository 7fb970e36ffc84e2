"""Who is asked about which domain, and what organisation a name belongs to that nobody could register."""

import pytest

from filters.dmarc_discovery import Records, SuffixList, Undecided, steps
from smtpd.dns import Answer, LimitedResolver, Type
from smtpd.zone import Zone

RECORD = {"TXT": ["v=DMARC1; p=reject"]}


class Noting(Zone):
    """Notes who is asked for."""

    def __init__(self) -> None:
        super().__init__({"_dmarc.a.test": RECORD, "_dmarc.b.test": RECORD}, cached=False)
        self.asked: list[str] = []

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        self.asked.append(name)
        return await super().resolve(name, kind, timeout)


async def test_sender_cannot_use_up_the_questions_about_the_author() -> None:
    records = Records(Noting(), LimitedResolver(Noting(), 1))
    assert await records.at("c.test", is_author=False) is None
    with pytest.raises(Undecided):
        await records.at("b.test", is_author=False)
    assert await records.at("a.test") is not None
    assert not await records.exists("none.test")


async def test_without_a_limit_all_questions_go_the_same_way() -> None:
    zone = Noting()
    records = Records(zone)
    assert await records.at("a.test") is not None
    assert await records.at("b.test", is_author=False) is not None
    assert zone.asked == ["_dmarc.a.test", "_dmarc.b.test"]


class NoSuffixes:
    """A list in which every domain is a public suffix."""

    def privatesuffix(self, domain: str) -> str | None:
        return None


async def test_public_suffix_is_an_organisation_of_its_own() -> None:
    found = SuffixList(Records(Noting()), NoSuffixes())
    assert await found.organization_of("a.test") == found.known_organization("a.test") == "a.test"
    published = await found.policy_of("a.test")
    assert published is not None
    assert published.domain == "a.test"


@pytest.mark.parametrize(
    ("domain", "asked"),
    [
        ("test", ["test"]),
        ("a.test", ["a.test", "test"]),
        ("1.2.3.4.5.6.7.8.9", ["1.2.3.4.5.6.7.8.9", *("3456789"[start:] for start in range(7))]),
    ],
)
def test_a_walk_asks_about_each_domain_once(domain: str, asked: list[str]) -> None:
    assert [step.replace(".", "") for step in steps(domain)] == [one.replace(".", "") for one in asked]
