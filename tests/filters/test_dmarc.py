"""What mail hears when DMARC has looked at it, through the whole server."""

from pathlib import Path

import pytest

from filters.dkim import Dkim
from filters.spf import Spf
from smtpd import replies
from smtpd.delivery import DeliveryAgent
from smtpd.findings import ArcResult, DkimResults, DmarcResult, SpfCheck, SpfResults, TrustedForwarder
from smtpd.model import Message, Transaction
from smtpd.replies import Reply
from tests.filters.dmarc_bench import BANK, REFUSED, UNSIGNED, Bench, dkim, spf
from tests.filters.dmarc_case import zone_of


async def test_forged_mail_of_a_domain_that_wants_it_refused_is_refused_by_default() -> None:
    async with Bench() as bench:
        assert (await bench.send()).startswith(REFUSED)
        assert bench.server.delivered == []
        assert bench.count("fail") == 1
        assert bench.finding == DmarcResult("fail", "bank.example", "", "bank.example", "reject", "reject")


async def test_refusal_names_the_tag_and_where_it_was_found() -> None:
    async with Bench(records={"bank.example": "p=none; sp=reject"}) as bench:
        answer = await bench.send("From: boss@mail.bank.example\n\nHello\n")
        assert answer.startswith("550 5.7.1 Rejected by the DMARC policy of bank.example (sp=reject): neither SPF nor ")
        assert "shows that mail.bank.example sent it" in answer


@pytest.mark.parametrize(
    "facts",
    [
        (spf("pass", "bank.example"), UNSIGNED), (spf("pass", "news.bank.example"), UNSIGNED),
        (spf(), dkim("pass", "bank.example")), (spf("pass", "BANK.example."), dkim()),
    ],
)  # fmt: skip
async def test_proven_mail_passes_with_a_label(facts: tuple[object, ...]) -> None:
    async with Bench(facts) as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == {"dmarc-pass"}
        assert bench.finding.status == "pass"
        assert bench.count("pass") == 1


@pytest.mark.parametrize("result", ["fail", "softfail", "neutral", "none", "permerror"])
async def test_spf_counts_only_when_it_passes(result: str) -> None:
    async with Bench((spf(result, "bank.example"), UNSIGNED)) as bench:
        assert (await bench.send()).startswith(REFUSED)


@pytest.mark.parametrize("signature", [dkim("pass", "bank.example", counts=False), dkim("fail", "bank.example")])
async def test_dkim_counts_only_when_it_covers_the_message(signature: DkimResults) -> None:
    async with Bench((spf(), signature)) as bench:
        assert (await bench.send()).startswith(REFUSED)


async def test_only_mail_from_counts_for_spf_and_helo_stands_in_for_no_sender() -> None:
    helo = SpfCheck("pass", "helo", "bank.example", "bank.example")
    async with Bench((SpfResults(spf().mailfrom, helo), UNSIGNED)) as bench:
        assert (await bench.send()).startswith(REFUSED)
    async with Bench((SpfResults(helo), UNSIGNED)) as bench:
        assert (await bench.send(sender="")).startswith("250 ")


async def test_quarantine_is_a_label_and_never_a_refusal() -> None:
    async with Bench(records={"bank.example": "p=quarantine"}) as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == {"quarantine", "dmarc-fail"}


async def test_a_policy_of_none_changes_nothing_but_the_label() -> None:
    async with Bench(records={"bank.example": "p=none"}) as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == {"dmarc-fail"}


async def test_without_a_policy_there_is_nothing_to_tell() -> None:
    async with Bench(records={}) as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == frozenset()
        assert bench.count("none") == 1


async def test_result_stands_in_authentication_results_of_what_is_delivered() -> None:
    async with Bench(records={"bank.example": "p=quarantine"}) as bench:
        await bench.send()
        head = bench.server.delivered[0].content.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")
        assert b"dmarc=fail" in head
        assert b"(p=quarantine dis=quarantine)" in head
        assert b"header.from=bank.example policy.dmarc=quarantine" in head.replace(b"\t", b" ").replace(b"  ", b" ")


@pytest.mark.parametrize(
    ("facts", "record", "options", "told"),
    [
        ((spf("pass", "bank.example"), UNSIGNED), "p=none; sp=reject", {}, "none"),
        ((spf("pass", "bank.example"), UNSIGNED), "p=reject", {}, "reject"),
        ((spf(), UNSIGNED), "p=reject; t=y", {}, "quarantine"),
        ((spf(), UNSIGNED), "p=reject; pct=0", {"pct": "apply"}, "quarantine"),
        ((spf(), UNSIGNED), "p=reject; t=y", {"exempt_domains": ["bank.example"]}, "quarantine"),
        ((spf(), UNSIGNED), "p=reject", {"exempt_domains": ["bank.example"]}, "reject"),
        ((spf(), UNSIGNED), "", {}, None),  # no record
    ],
)
async def test_the_registered_property_is_the_policy_before_overrides_of_ours(
    facts: tuple[object, ...], record: str, options: dict[str, object], told: str | None
) -> None:
    async with Bench(facts, records={"bank.example": record}, **options) as bench:
        await bench.send()
        (found,) = bench.finding.results()
    properties = [("header", "from", "bank.example")]
    assert list(found.properties) == properties + ([("policy", "dmarc", told)] if told else [])


async def test_real_spf_and_dkim_filters_give_what_is_needed() -> None:
    zone = zone_of(BANK)
    zone.put("bank.example", TXT=["v=spf1 ip4:192.0.2.1 -all"])
    async with Bench(filters={"spf": (Spf, {"fail": "tag"}), "dkim": Dkim}, resolver=zone) as bench:
        assert (await bench.send(sender="boss@bank.example")).startswith("250 ")
        assert (await bench.send(sender="eve@evil.example")).startswith(REFUSED)


@pytest.mark.parametrize("number", [0, 2, 3])
async def test_not_one_from_field_is_refused(number: int) -> None:
    async with Bench() as bench:
        answer = await bench.send("From: a@free.example\n" * number + "Subject: x\n\nHello\n")
        assert answer.startswith(f"550 5.6.0 A message has exactly one From field, not {number} [dmarc ")
        assert bench.count("malformed") == 1


async def test_nobody_with_a_domain_is_refused_unless_the_operator_lets_it_pass() -> None:
    for option, start in (("reject", "550 5.6.0 The From field has no address with a domain "), ("pass", "250 ")):
        async with Bench(no_author=option) as bench:
            assert (await bench.send("From: undisclosed:;\n\nHello\n")).startswith(start)
    async with Bench(no_author="pass") as bench:
        assert (await bench.send("From: a@b.example\nFrom: a@b.example\n\nHello\n")).startswith("550 5.6.0")


AUTHORS = {"bank.example": "p=reject", "shop.example": "p=quarantine", "club.example": "p=none"}


@pytest.mark.parametrize(
    ("field", "code", "labels"),
    [
        ("a@bank.example, b@bank.example", "550", set()),
        ("a@free.example, b@bank.example", "550", set()),
        ("a@shop.example, b@bank.example, c@club.example", "550", set()),
        ("a@club.example, b@shop.example", "250", {"quarantine", "dmarc-fail"}),
        ("a@free.example, b@club.example", "250", {"dmarc-fail"}),
        ("a@evil.example, b@free.example", "250", set()),
        ("a@evil.example", "250", {"dmarc-pass"}),
        ("a@[192.0.2.1]", "250", set()),
        ("a@[192.0.2.1], b@bank.example", "550", set()),
    ],
)
async def test_of_several_authors_the_strictest_outcome_counts(field: str, code: str, labels: set[str]) -> None:
    async with Bench((spf("pass"), UNSIGNED), records={**AUTHORS, "evil.example": "p=none"}) as bench:
        assert (await bench.send(f"From: {field}\n\nHello\n"))[:3] == code
        if code == "250":
            assert bench.labels == labels


async def test_address_literal_is_never_looked_up() -> None:
    async with Bench(records={"1]": "p=reject"}) as bench:
        assert (await bench.send("From: a@[192.0.2.1]\n\nHello\n")).startswith("250 ")
        assert bench.finding.reason == "an address literal has no policy"


async def test_international_author_is_looked_up_as_a_label() -> None:
    async with Bench(records={"xn--bcher-kva.example": "p=reject"}) as bench:
        assert (await bench.send("From: joe@bücher.example\n\nHello\n")).startswith("550 5.7.1")


async def test_mail_of_users_who_logged_in_is_not_looked_at() -> None:
    async with Bench() as bench:
        assert (await bench.send(login="joe")).startswith("250 ")
        assert bench.found == [None]
    async with Bench(unless=[]) as bench:
        assert (await bench.send(login="joe")).startswith(REFUSED)


FORWARDER = TrustedForwarder("university", frozenset())
SOME = TrustedForwarder("university", frozenset(("example.test",)))
BOTH = {"domains": {"example.test": "kept", "other.test": "kept"}}


async def test_forwarded_mail_is_labelled_and_the_reason_is_told() -> None:
    async with Bench((spf(), UNSIGNED, FORWARDER)) as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == {"dmarc-fail"}
        assert (bench.finding.policy, bench.finding.disposition) == ("reject", "none")
        assert (bench.finding.override, bench.finding.reason) == ("trusted_forwarder", "university")
        assert b"override=trusted_forwarder" in bench.server.delivered[0].content.replace(b"\r\n ", b" ")


async def test_recipients_that_nobody_forwards_for_still_refuse() -> None:
    async with Bench((spf(), UNSIGNED, SOME), tables=BOTH) as bench:
        await bench.send(recipients=["ann@example.test", "bob@other.test"])
        assert [delivered.recipients for delivered in bench.server.delivered] == [("ann@example.test",)]
        assert bench.labels == {"dmarc-fail"}
        assert (await bench.send(recipients=["bob@other.test"])).startswith(REFUSED)


async def test_only_other_recipients_get_forwarded_mail_quarantined() -> None:
    async with Bench((spf(), UNSIGNED, SOME), records={"bank.example": "p=quarantine"}, tables=BOTH) as bench:
        await bench.send(recipients=["ann@example.test"])
        assert bench.labels == {"dmarc-fail"}
        await bench.send(recipients=["bob@other.test"])
        assert bench.labels == {"dmarc-fail", "quarantine"}


async def test_each_recipient_of_one_message_gets_the_labels_that_hold_for_it() -> None:
    seen = {}

    class Store(DeliveryAgent):
        async def deliver(self, mail: Transaction, message: Message) -> Reply:
            seen.update({recipient.address.text: mail.labels_for(recipient) for recipient in mail.recipients})
            return replies.ACCEPTED

    async with Bench(
        (spf(), UNSIGNED, SOME), records={"bank.example": "p=quarantine"}, tables=BOTH, agents={"kept": Store}
    ) as bench:
        assert (await bench.send(recipients=["ann@example.test", "bob@other.test"])).startswith("250 ")
    assert seen == {"ann@example.test": {"dmarc-fail"}, "bob@other.test": {"dmarc-fail", "quarantine"}}


@pytest.mark.parametrize(
    ("arc", "code"),
    [
        (ArcResult("pass", trusted_by="list.example", passed_upstream=True), "250"),
        (ArcResult("pass", trusted_by="list.example"), "550"),
        (ArcResult("pass", passed_upstream=True), "550"),
        (ArcResult("fail", trusted_by="list.example", passed_upstream=True), "550"),
        (ArcResult("none"), "550"),
    ],
)
async def test_only_a_trusted_sealer_who_saw_it_pass_lifts_a_refusal(arc: ArcResult, code: str) -> None:
    async with Bench((spf(), UNSIGNED, arc)) as bench:
        assert (await bench.send())[:3] == code
        if code == "250":
            assert (bench.finding.override, bench.finding.disposition) == ("local_policy", "none")
            assert bench.finding.reason == "arc=pass, sealed by list.example"
    async with Bench((spf(), UNSIGNED, arc), trust_arc=False) as bench:
        assert (await bench.send())[:3] == "550"


async def test_exempt_domain_is_not_obeyed() -> None:
    async with Bench(exempt_domains=["bank.example"]) as bench:
        assert (await bench.send()).startswith("250 ")
        assert (bench.finding.override, bench.finding.reason) == ("local_policy", "exempt here")


async def test_postmaster_reads_what_others_are_refused_and_is_told_so() -> None:
    async with Bench() as bench:
        assert (await bench.send(recipients=("postmaster@example.test",))).startswith("250 ")
        assert (bench.finding.disposition, bench.finding.override) == ("none", "local_policy")


async def test_samples_are_taken_only_when_asked_for() -> None:
    records = {"bank.example": "p=reject; pct=0"}
    async with Bench(records=records) as bench:
        assert (await bench.send()).startswith(REFUSED)
    async with Bench(records=records, pct="apply") as bench:
        assert (await bench.send()).startswith("250 ")
        assert bench.labels == {"quarantine", "dmarc-fail"}
        assert bench.finding.override == "sampled_out"


async def test_public_suffix_list_is_used_when_asked_for(tmp_path: Path) -> None:
    records = {"mail.bank.example": "p=reject", "example": "p=reject"}
    content = "From: boss@a.mail.bank.example\n\nHello\n"
    async with Bench(records=records) as bench:
        assert (await bench.send(content))[:3] == "550"
    async with Bench(records=records, discovery="psl") as bench:
        assert (await bench.send(content))[:3] == "250"
    (tmp_path / "list").write_text("bank.example\n")
    async with Bench(records=records, discovery="psl", psl_file=str(tmp_path / "list")) as bench:
        assert (await bench.send(content))[:3] == "550"
