"""Whatever breaks, nobody is refused by accident; and what a sender can break does not get it past a policy."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from resolvers import Broken, Silent, SlowAbout
from signer import Signer

from filters.dkim import Dkim
from filters.dmarc_outcome import Sampler
from filters.spf import Spf
from smtpd.content import Content
from smtpd.dns import Answer
from smtpd.dns.answer import Type
from smtpd.findings import ArcResult, DkimResults, DkimSignature, SpfResults, TrustedForwarder
from smtpd.limits import ContentBudget
from smtpd.model import Message, Transaction
from smtpd.plugins import BrokenPlugin
from smtpd.policy import Filter, Verdict
from smtpd.zone import Zone
from tests.filters.dmarc_bench import BANK, FORGED, REFUSED, UNSIGNED, Bench, dkim, given, spf
from tests.filters.dmarc_case import DOWN, zone_of

LATER = "451 4.7.1 DMARC of bank.example cannot be decided now, please try again later [dmarc "


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_a_crash_lets_mail_pass(mode: str) -> None:
    async with Bench(resolver=Broken(), mode=mode) as bench:
        assert (await bench.send()).startswith("250 ")
        bench.server.forget("filter-failed")
    async with Bench(resolver=Broken(), mode="enforce", on_error="defer") as bench:
        assert (await bench.send()).startswith("451 4.3.0")
        bench.server.forget("filter-failed")


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_dns_that_never_answers_lets_mail_pass(mode: str) -> None:
    async with Bench(resolver=Silent(), mode=mode, timeout=0.9) as bench:
        assert (await bench.send()).startswith("250 ")
        assert (bench.finding.status, bench.finding.reason) == ("temperror", "DNS takes too long")


class SilentAbout(Zone):
    """A resolver that never answers about slow.example."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        if name.endswith("slow.example"):
            await asyncio.Event().wait()
        return await super().resolve(name, kind, timeout)


async def test_an_author_whose_dns_is_slow_does_not_hide_the_policy_of_another_one() -> None:
    zone = SilentAbout({"_dmarc.bank.example": {"TXT": ["v=DMARC1; p=reject"]}}, cached=False)
    async with Bench(resolver=zone, timeout=0.9) as bench:
        assert (await bench.send("From: eve@slow.example, boss@bank.example\n\nHello\n")).startswith(REFUSED)


@pytest.mark.parametrize("forged", ["boss.@bank.example", "boss@bank.example.", "<boss\0@bank.example>"])
async def test_an_address_that_is_not_quite_one_does_not_get_past_its_policy(forged: str) -> None:
    proven = (spf("pass", "evil.example"), dkim("pass", "evil.example"))
    async with Bench(proven) as bench:
        assert (await bench.send(f"From: {forged}, eve@evil.example\n\nHello\n")).startswith(REFUSED)
    async with Bench((spf("pass", "bank.example"), UNSIGNED)) as bench:
        assert (await bench.send(f"From: {forged}\n\nHello\n")).startswith("250 ")


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("on_tempfail", ["tag", "defer"])
async def test_dns_that_is_down_defers_at_most(mode: str, on_tempfail: str) -> None:
    async with Bench(records={"bank.example": DOWN}, mode=mode, on_tempfail=on_tempfail) as bench:
        answer = await bench.send()
        if (mode, on_tempfail) == ("enforce", "defer"):
            assert answer.startswith(LATER)
        else:
            assert answer.startswith("250 ")
            assert bench.labels == ({"dmarc-temperror"} if mode == "enforce" else frozenset())
        assert bench.finding.status == "temperror"
        assert bench.count("temperror") == 1


async def test_observing_refuses_nothing_and_says_what_it_would() -> None:
    async with Bench(mode="observe") as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == frozenset()
        assert (bench.finding.policy, bench.finding.disposition) == ("reject", "none")
        assert (bench.finding.override, bench.finding.reason) == ("local_policy", "only observed here")
        assert bench.server.count("smtpd_filter_would_reject_total", filter="dmarc") == 1


@pytest.mark.parametrize(
    ("facts", "policy", "code"),
    [
        ((spf("temperror", "bank.example"), UNSIGNED), "reject", "451"),
        ((spf(), dkim("temperror", "bank.example")), "reject", "451"),
        ((spf("temperror", "bank.example"), UNSIGNED), "quarantine", "250"),
        ((spf("temperror", "bank.example"), UNSIGNED), "reject; t=y", "250"),
        ((spf("temperror", "bank.example"), dkim("pass", "bank.example")), "reject", "250"),
        ((spf("temperror", "bank.example"), UNSIGNED, TrustedForwarder("u", frozenset())), "reject", "250"),
        ((spf("temperror", "bank.example"), UNSIGNED, ArcResult("pass", 1, trusted_by="l", passed_upstream=True)),
         "reject", "250"),
        # Trouble with a stranger's records is no excuse.
        ((spf("temperror"), dkim("temperror")), "reject", "550"),
    ],
)  # fmt: skip
async def test_mail_is_put_off_only_when_it_might_have_to_be_refused(
    facts: tuple[object, ...], policy: str, code: str
) -> None:
    async with Bench(facts, records={"bank.example": f"p={policy}"}, on_tempfail="defer") as bench:
        assert (await bench.send())[:3] == code


async def test_of_several_authors_a_refusal_beats_trouble_and_trouble_beats_a_label() -> None:
    records = {**BANK, "shop.example": "p=quarantine", "down.example": DOWN}
    async with Bench(records=records, on_tempfail="defer") as bench:
        assert (await bench.send("From: a@down.example, b@bank.example\n\nHello\n"))[:3] == "550"
        assert (await bench.send("From: a@shop.example, b@down.example\n\nHello\n"))[:3] == "451"


@pytest.mark.parametrize("broken", [SpfResults, DkimResults])
async def test_a_broken_filter_before_it_is_no_failure_of_the_sender(broken: type) -> None:
    facts = [fact for fact in (spf(), UNSIGNED) if not isinstance(fact, broken)]

    class Crashing(Filter):
        gives = (broken,)

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            raise RuntimeError("bug")

    for option, start in (("tag", "250 "), ("defer", LATER)):
        filters: dict[str, Any] = {"given": given(*facts), "crashing": Crashing}
        async with Bench(filters=filters, on_tempfail=option) as bench:
            assert (await bench.send()).startswith(start)
            bench.server.forget("filter-failed")


async def test_a_costly_spf_record_of_the_sender_does_not_hide_somebody_elses_policy() -> None:
    zone = zone_of(BANK, cached=False)
    zone.put("evil.example", TXT=["v=spf1 mx:a.evil.example mx:b.evil.example ?all"])
    zone.put("a.evil.example", MX=["1 x.evil.example"])
    filters = {"spf": Spf, "facts": given(UNSIGNED)}
    tables = {"dns": {"lookups_per_message": 1}}
    async with Bench(filters=filters, resolver=zone, tables=tables) as bench:
        assert (await bench.send(sender="eve@evil.example")).startswith(REFUSED)


async def test_a_slow_dns_of_the_sender_does_not_hide_somebody_elses_policy() -> None:
    zone = SlowAbout({"_dmarc.bank.example": {"TXT": ["v=DMARC1; p=reject"]}})
    filters = {"spf": (Spf, {"timeout": 0.9}), "dkim": (Dkim, {"timeout": 0.9})}
    async with Bench(filters=filters, resolver=zone) as bench:
        signed = Signer("evil.example").sign(FORGED.replace("\n", "\r\n").encode())
        assert (await bench.send(signed, sender="eve@evil.example")).startswith(REFUSED)


async def test_a_costly_spf_record_of_the_sender_does_not_make_a_forged_signature_a_doubt() -> None:
    zone = zone_of(BANK, cached=False)
    zone.put("evil.example", TXT=["v=spf1 mx:a.evil.example mx:b.evil.example ?all"])
    tables = {"dns": {"lookups_per_message": 1}}
    async with Bench(filters={"spf": Spf, "dkim": Dkim}, resolver=zone, tables=tables) as bench:
        forged = Signer("bank.example").sign(FORGED.replace("\n", "\r\n").encode())
        assert (await bench.send(forged, sender="eve@evil.example")).startswith(REFUSED)


async def test_a_costly_spf_record_of_a_helo_name_leaves_lookups_for_the_sender() -> None:
    zone = zone_of(BANK, cached=False)
    zone.put("evil.example", TXT=["v=spf1 a:a.evil.example a:b.evil.example mx:c.evil.example mx:d.evil.example ?all"])
    zone.put("bank.example", TXT=["v=spf1 include:spf.bank.example -all"])
    zone.put("spf.bank.example", TXT=["v=spf1 ip4:203.0.113.1 -all"])
    for host in "ab":
        zone.put(f"{host}.evil.example", A=["203.0.113.9"])
    filters = {"spf": Spf, "facts": given(UNSIGNED)}
    async with Bench(filters=filters, resolver=zone, tables={"dns": {"lookups_per_message": 2}}) as bench:
        answer = await bench.send(sender="boss@bank.example", helo="evil.example")
        assert answer.startswith(REFUSED)


@pytest.mark.parametrize(
    ("policy", "author", "answer"),
    [
        ("reject", "bank.example", LATER), ("reject", "evil.example", REFUSED),
        ("quarantine", "bank.example", "250 "), ("reject; t=y", "bank.example", "250 "),
    ],
)  # fmt: skip
async def test_who_keeps_us_from_reading_a_body_does_not_get_past_a_policy(
    policy: str, author: str, answer: str
) -> None:
    unread = DkimResults((DkimSignature("temperror", author, "s", unread=True),))
    async with Bench((spf(), unread), records={"bank.example": f"p={policy}"}) as bench:
        assert (await bench.send()).startswith(answer)


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n", b"", b"From", b"From:\r\n\r\n", b"From: \xff@\xff\r\n\r\n", b"From: a@" + b"a." * 200 + b"b\r\n\r\n",
        b"From: " + b"(" * 20_000 + b"\r\n\r\n", b"From: " + b"<a@b>" * 5000 + b"\r\n\r\n",
        b"From: a@\0.example\r\n\r\n",
        b"From: a@b\r\n\r\n", b"From: a@" + b"a" * 63 + b".example\r\n\r\n", b"\r\nFrom: a@bank.example\r\n",
    ],
)  # fmt: skip
async def test_odd_input_is_answered_and_breaks_nothing(content: bytes) -> None:
    async with Bench() as bench:
        assert (await bench.send(content))[:9] in ("550 5.6.0", "250 2.0.0")
    async with Bench(mode="observe") as bench:
        assert (await bench.send(content))[:9] == "250 2.0.0"


async def test_a_client_of_the_network_that_is_not_refused_is_told_apart() -> None:
    tables = {"trusted_networks": ["192.0.2.0/24"]}
    async with Bench(unless=["trusted"], tables=tables) as bench:
        assert (await bench.send()).startswith("250 ")
        assert (bench.finding.disposition, bench.finding.reason) == ("none", "exempt client")


def message(number: int) -> Message:
    content = Content(ContentBudget(0), in_memory=1 << 20)
    content.write(b"Message-ID: <%d@bank.example>\r\nFrom: boss@bank.example\r\n\r\n" % number)
    return Message(content)


def test_samples_take_about_their_share_and_the_same_message_always_fares_the_same() -> None:
    sampler, again, other = Sampler(b"one"), Sampler(b"one"), Sampler(b"two")
    messages = [message(number) for number in range(1000)]
    left_out = [sampler.leaves_out(one, 30) for one in messages]
    assert 600 < sum(left_out) < 800
    assert [again.leaves_out(one, 30) for one in messages] == left_out
    assert [other.leaves_out(one, 30) for one in messages] != left_out
    assert not any(sampler.leaves_out(one, 100) for one in messages)
    assert all(sampler.leaves_out(one, 0) for one in messages)


async def test_a_list_of_suffixes_that_is_not_there_keeps_the_server_from_starting() -> None:
    bench = Bench(discovery="psl", psl_file="/nonexistent/list")
    with pytest.raises(Exception, match="nonexistent"):
        await bench.server.__aenter__()


async def test_a_list_of_suffixes_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("x" * 64 + "\u00e4\n")
    bench = Bench(discovery="psl", psl_file=str(tmp_path / "list"))
    with pytest.raises(BrokenPlugin, match=r"filter dmarc: .*/list: no public suffix list: "):
        await bench.server.__aenter__()
