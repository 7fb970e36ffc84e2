"""Whose mail from our own domains is taken, refused or marked; real SPF and DKIM, the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from filters.dkim import Dkim
from filters.own_domain import OwnDomain, OwnDomains
from filters.spf import Spf
from filters.trusted_forwarders import TrustedForwarders
from smtpd.dns import Resolver
from smtpd.findings import ArcResult, DkimResults, DkimSignature
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.zone import Zone

OURS = b"From: Boss <boss@example.test>\r\nSubject: Hi\r\n\r\nHello\r\n"
THEIRS = OURS.replace(b"example.test", b"other.example")
REFUSED = "550 5.7.1 Mail from example.test needs a login here, or SPF or DKIM that shows that example.test sent it ["
DEFERRED = "451 4.7.1 Whether example.test sent this cannot be found out now, please try again later [own_domain "
HOST = "192.0.2.1"
OUTSIDE = "joe@other.example"
INSIDE = "boss@example.test"
ARC = ArcResult("pass", 1, trusted_by="list.example", passed_upstream=True)


@cache
def key() -> tuple[bytes, str]:
    """A private key, and the record of its public half."""
    made = generate_private_key(65537, 2048)
    public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode().splitlines()[1:-1]
    private = made.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return private, f"v=DKIM1; p={''.join(public)}"


def signed(message: bytes = OURS, domain: str = "example.test") -> bytes:
    field: bytes = dkimpy.sign(message, b"s", domain.encode(), key()[0], include_headers=[b"from", b"subject"])
    return field + message


def zone(spf: Mapping[str, str] | None = None, *, cached: bool = True, **tables: Mapping[str, object]) -> Zone:
    """The DNS: SPF of other domains refuses nobody, ours only who is not `HOST2`; keys for every domain."""
    policies = {"example.test": "v=spf1 ip4:192.0.2.2 -all", "other.example": "v=spf1 +all", **(spf or {})}
    found: dict[str, Mapping[str, object]] = {name: {"TXT": [policy]} for name, policy in policies.items()}
    for domain in ("example.test", "news.example.test", "other.example"):
        found[f"s._domainkey.{domain}"] = {"TXT": [key()[1]]}
    return Zone({**found, **tables}, cached=cached)


class GivenArc(Filter):
    """As if a chain had been checked."""

    gives = (ArcResult,)
    result = ARC

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        mail.facts.add(self.result)
        return PASS


def arc(result: ArcResult) -> type[Filter]:
    return type("Arc", (GivenArc,), {"result": result})


class House:
    """A server, and what became of one message."""

    def __init__(
        self, resolver: Resolver | None = None, filters: Mapping[str, Any] | None = None,
        tables: Mapping[str, object] | None = None, **options: object,
    ) -> None:  # fmt: skip
        chain: dict[str, Any] = {"spf": Spf, "dkim": Dkim, "own_domain": (OwnDomain, options), **(filters or {})}
        self.server = MemoryServer(filters=chain, resolver=resolver or zone(), tables=tables)

    async def send(
        self, content: bytes = OURS, *, sender: str = OUTSIDE, recipients: tuple[str, ...] = ("alice@example.test",),
        **call: Any,
    ) -> str:  # fmt: skip
        """The last answer."""
        async with self.server as server:
            answers = await (await server.connect(**call)).send(content, sender=sender, recipients=recipients)
        self.labels = self.server.delivered[0].labels if self.server.delivered else None
        return answers[-1]

    def count(self, part: str, result: str) -> float:
        return self.server.count("smtpd_own_domain_checks_total", part=part, result=result)


async def test_mail_of_other_domains_is_left_alone() -> None:
    house = House()
    assert (await house.send(THEIRS)).startswith("250 ")
    assert house.labels == {"dkim-none"}


async def test_author_of_ours_without_proof_is_refused() -> None:
    house = House()
    assert (await house.send()).startswith(REFUSED)
    assert house.count("header", "fail") == 1


@pytest.mark.parametrize("author", [b"ceo.@example.test", b"ceo@example.test.", b"c\xe9o@example.test"])
async def test_what_is_not_quite_an_address_of_ours_is_refused_also_beside_another_author(author: bytes) -> None:
    for authors in (author, author + b", eve@other.example"):
        assert (await House().send(b"From: " + authors + b"\r\n\r\nHello\r\n")).startswith(REFUSED)


async def test_sender_of_ours_without_proof_is_refused() -> None:
    house = House()
    assert (await house.send(THEIRS, sender=INSIDE)).startswith(REFUSED)
    assert house.count("envelope", "fail") == 1


async def test_spf_of_the_same_domain_proves_both() -> None:
    house = House()
    assert (await house.send(sender=INSIDE, ip="192.0.2.2")).startswith("250 ")
    assert (house.count("header", "pass"), house.count("envelope", "pass")) == (1, 1)


async def test_signature_of_ours_proves_both() -> None:
    assert (await House().send(signed())).startswith("250 ")
    house = House()
    assert (await house.send(signed(), sender=INSIDE)).startswith("250 ")
    assert house.labels == {"spf-fail", "dkim-pass"}


async def test_what_others_prove_about_themselves_proves_nothing() -> None:
    assert (await House().send(signed(OURS, "other.example"))).startswith(REFUSED)


async def test_broken_signature_proves_nothing() -> None:
    assert (await House().send(signed().replace(b"Hello", b"Hallo"))).startswith(REFUSED)


@pytest.mark.parametrize("record", ["v=spf1 ~all", "v=spf1 ?all", "v=spf1 nonsense", ""])
async def test_only_a_pass_of_spf_counts(record: str) -> None:
    assert (await House(zone({"example.test": record})).send(sender=INSIDE)).startswith(REFUSED)


async def test_empty_sender_is_proven_by_the_name_in_helo() -> None:
    resolver = zone({"mx.example.test": "v=spf1 +all"})
    assert (await House(resolver).send(sender="", helo="mx.example.test")).startswith("250 ")
    assert (await House(resolver).send(sender="", helo="other.example")).startswith(REFUSED)


@pytest.mark.parametrize(
    ("switches", "answers"),
    [
        ({"header": "tag"}, ("250 ", "550 ")), ({"envelope": "tag"}, ("550 ", "250 ")),
        ({"header": "pass"}, ("250 ", "550 ")), ({"envelope": "pass"}, ("550 ", "250 ")),
    ],
)  # fmt: skip
async def test_each_part_has_its_switch(switches: dict[str, str], answers: tuple[str, str]) -> None:
    (action,) = switches.values()
    for answer, parts in zip(answers, ((OURS, OUTSIDE), (THEIRS, INSIDE)), strict=True):
        house = House(**switches)
        assert (await house.send(parts[0], sender=parts[1])).startswith(answer)
        if answer == "250 ":
            assert house.labels is not None
            assert ("own-domain" in house.labels) == (action == "tag")


async def test_users_who_logged_in_and_trusted_networks_are_not_looked_at() -> None:
    for call in ({"login": INSIDE}, {"ip": "198.51.100.1"}):
        house = House(tables={"trusted_networks": ["198.51.100.0/24"]})
        assert (await house.send(sender=INSIDE, **call)).startswith("250 ")
        assert house.count("header", "fail") == 0


async def test_forwarder_brings_our_own_mail_back_to_those_it_forwards_to() -> None:
    entry = {"name": "uni", "networks": [HOST], "domains": ["example.test"]}
    tables = {"domains": {"example.test": "kept", "other.test": "kept"}}
    both = ("alice@example.test", "carol@other.test")
    filters = {"trusted_forwarders": (TrustedForwarders, {"entries": [entry]})}
    house = House(filters=filters, tables=tables)
    await house.send(sender=INSIDE, recipients=both)
    assert [one.recipients for one in house.server.delivered] == [("alice@example.test",)]


@pytest.mark.parametrize("sender", [OUTSIDE, INSIDE])
async def test_trusted_sealer_vouches_for_the_author(sender: str) -> None:
    house = House(filters={"arc": arc(ARC)})
    assert (await house.send(sender=sender)).startswith("250 ")
    assert house.count("header", "arc") == 1


async def test_trusted_sealer_does_not_vouch_for_a_sender_who_is_not_the_author() -> None:
    assert (await House(filters={"arc": arc(ARC)}).send(THEIRS, sender=INSIDE)).startswith(REFUSED)


@pytest.mark.parametrize(
    "chain",
    [
        ArcResult("pass", 1, trusted_by="", passed_upstream=True), ArcResult("pass", 1, trusted_by="list.example"),
        ArcResult("fail", 1, trusted_by="list.example", passed_upstream=True), ArcResult("none"),
    ],
)  # fmt: skip
async def test_chain_that_proves_nothing_is_no_excuse(chain: ArcResult) -> None:
    assert (await House(filters={"arc": arc(chain)}).send()).startswith(REFUSED)


async def test_sealers_are_not_asked_when_the_operator_does_not_want_it() -> None:
    assert (await House(filters={"arc": arc(ARC)}, trust_arc=False).send()).startswith(REFUSED)


async def test_seal_that_cannot_be_checked_now_is_tried_again() -> None:
    house = House(filters={"arc": arc(ArcResult("temperror", 1))})
    assert (await house.send()).startswith(DEFERRED)
    assert house.count("header", "temperror") == 1


SPF_DOWN = {"example.test": {"tempfail": True}}
KEY_DOWN = {"s._domainkey.example.test": {"tempfail": True}}


@pytest.mark.parametrize(
    ("down", "sender"), [(SPF_DOWN, INSIDE), (KEY_DOWN, OUTSIDE), (KEY_DOWN, INSIDE)]
)  # fmt: skip
async def test_what_could_be_a_proof_when_dns_answers_is_not_refused(
    down: dict[str, dict[str, object]], sender: str
) -> None:
    content = signed() if down is KEY_DOWN else OURS
    house = House(zone(**down))
    assert (await house.send(content, sender=sender)).startswith("250 ")
    assert house.labels is not None
    assert "own-domain-temperror" in house.labels
    assert (await House(zone(**down), on_tempfail="defer").send(content, sender=sender)).startswith(DEFERRED)


async def test_who_keeps_us_from_reading_a_body_is_not_taken() -> None:
    class Given(Dkim):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            mail.facts.add(DkimResults((DkimSignature("temperror", "example.test", "s", unread=True),)))
            return PASS

    assert (await House(filters={"dkim": Given}).send()).startswith(DEFERRED)
    assert (await House(filters={"dkim": Given}, header="tag").send()).startswith("250 ")


@pytest.mark.parametrize(("mode", "answer"), [("enforce", DEFERRED), ("observe", REFUSED)])
async def test_who_may_be_a_forwarder_is_not_refused_for_good(mode: str, answer: str) -> None:
    entry = {"name": "uni", "reverse_names": ["*.uni.test"]}
    filters = {"trusted_forwarders": (TrustedForwarders, {"entries": [entry], "mode": mode})}
    down = zone(**{"1.2.0.192.in-addr.arpa": {"tempfail": True}})
    house = House(down, filters=filters)
    assert (await house.send(ip=HOST)).startswith(answer)
    assert (await House(down, filters=filters, unless=["authenticated"]).send(ip=HOST)).startswith(REFUSED)
    known = zone(**{"1.2.0.192.in-addr.arpa": {"PTR": ["mx.other.example"]}})
    assert (await House(known, filters=filters).send(ip=HOST)).startswith(REFUSED)


async def test_refusal_of_the_sender_beats_a_deferral_of_the_author() -> None:
    house = House(zone(**KEY_DOWN), on_tempfail="defer", domains=["example.test", "our.test"])
    assert (await house.send(signed(), sender="boss@our.test")).startswith("550 5.7.1 Mail from our.test needs ")


async def test_trouble_with_somebody_elses_dns_is_no_excuse() -> None:
    down = {"s._domainkey.other.example": {"tempfail": True}, "other.example": {"tempfail": True}}
    assert (await House(zone(**down)).send(signed(OURS, "other.example"))).startswith(REFUSED)


async def fall_over(*_: object) -> Verdict:
    raise RuntimeError("broken")


async def hang(*_: object) -> Verdict:
    await asyncio.Event().wait()
    return PASS


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize(("kind", "hook"), [(Spf, "on_mail"), (Dkim, "on_message"), (OwnDomain, "on_message")])
@pytest.mark.parametrize(("trouble", "event"), [(fall_over, "filter-failed"), (hang, "filter-timed-out")])
async def test_nobody_is_refused_when_something_crashes_or_is_late(
    kind: type[Filter], hook: str, mode: str, trouble: object, event: str
) -> None:
    broken = type("Broken", (kind,), {hook: trouble})
    house = House(mode=mode, filters={kind.name: (broken, {"mode": mode, "timeout": "10ms"})})
    async with house.server as server:
        answers = await (await server.connect()).send(OURS, sender=INSIDE)
        assert answers[-1].startswith("250 ")
        server.forget(event)


async def test_observing_refuses_nobody_and_counts() -> None:
    house = House(mode="observe")
    assert (await house.send()).startswith("250 ")
    assert house.server.count("smtpd_filter_would_reject_total", filter="own_domain") == 1
    assert house.labels == {"dkim-none"}


@pytest.mark.parametrize(
    "head",
    [
        b"From: joe@other.example\r\nFrom: boss@example.test\r\n", b"From: joe@other.example, boss@EXAMPLE.test\r\n",
        b"from : \"boss@other.example\" (x) < boss@Example.Test >\r\n", b"From: A: boss@example.test;\r\n",
    ],
)  # fmt: skip
async def test_author_of_ours_is_found_wherever_it_stands(head: bytes) -> None:
    assert (await House().send(head + b"\r\nHello\r\n")).startswith("550 5.7.1 Mail from example.test ")


@pytest.mark.parametrize(
    "head", [b"", b"From:\r\n", b"From: nobody\r\n", b"From: " + b"a," * 20000 + b"\r\n", b"From: \xff@\xfe\r\n"]
)
async def test_from_that_cannot_be_read_is_for_others_to_refuse(head: bytes) -> None:
    assert (await House().send(head + b"Subject: Hi\r\n\r\nHello\r\n")).startswith("250 ")


async def test_domains_can_be_listed_and_then_no_others_count() -> None:
    assert (await House(domains=["other.example"]).send()).startswith("250 ")
    assert (await House(domains=["Example.TEST"]).send()).startswith(REFUSED)


@pytest.mark.parametrize(("subdomains", "answer"), [(False, "250 "), (True, "550 5.7.1 Mail from news.example.test ")])
async def test_names_below_are_ours_when_the_operator_says_so(subdomains: bool, answer: str) -> None:
    content = OURS.replace(b"example.test", b"news.example.test")
    assert (await House(subdomains=subdomains).send(content)).startswith(answer)


@pytest.mark.parametrize(("alignment", "answer"), [("relaxed", "250 "), ("strict", REFUSED)])
async def test_proof_of_a_name_below_counts_unless_alignment_is_strict(alignment: str, answer: str) -> None:
    assert (await House(alignment=alignment).send(signed(OURS, "news.example.test"))).startswith(answer)


def ours(*keys: str, subdomains: bool = False, strict: bool = False) -> OwnDomains:
    return OwnDomains(keys, subdomains=subdomains, strict=strict)


def test_catch_all_makes_nobody_ours() -> None:
    assert "a.example" not in ours("*")
    assert "a.example" not in ours("*", subdomains=True)
    assert "" not in ours("*", "*.example")


def test_wildcard_holds_the_names_below_and_not_the_name_itself() -> None:
    domains = ours("*.a.example")
    assert [name in domains for name in ("x.a.example", "y.x.a.example", "a.example", "xa.example")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_address_literal_is_ours_only_by_itself() -> None:
    domains = ours("[192.0.2.1]", "*.1]", subdomains=True)
    assert "[192.0.2.1]" in domains
    assert "[198.51.100.1]" not in domains


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.example", "a.example", True), ("x.a.example", "a.example", True), ("a.example", "x.a.example", True),
        ("x.a.example", "y.a.example", True), ("b.example", "a.example", False), ("example", "a.example", False),
        ("x.a.example", "b.example", False), ("xa.example", "a.example", False), ("c.test", "d.test", False),
    ],
)  # fmt: skip
def test_domains_are_aligned_below_one_of_ours(one: str, other: str, expected: bool) -> None:
    assert ours("a.example", "b.example").are_aligned(one, other) == expected
    assert ours("a.example", "b.example", strict=True).are_aligned(one, other) == (one == other)
