import json
from dataclasses import replace
from typing import Any

import pytest
from rehearsals import LETTER, play, said

from filters.access import Access
from smtpd import replies
from smtpd.findings import SpfCheck, SpfResults
from smtpd.model import Message, Recipient, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.rehearsal import Client, tell
from smtpd.rehearsal.comparison import Difference
from smtpd.rehearsal.page import MAX_LEFT_OUT, MAX_LINE, WIDTH, differences_page, page
from smtpd.zone import Zone

EVIL = "\x1b[31mred\x07 \u202eback"


class Judge(Filter):
    """Looks something up, finds something, and refuses."""

    gives = (SpfResults,)
    labels = frozenset(("forged",))

    async def on_mail(self, mail: Transaction) -> Verdict:
        await self.services.lookups(mail).resolve("client.test", "TXT")
        mail.facts.add(SpfResults(SpfCheck("fail", "mailfrom", "client.test", mail.sender.text, "not listed")))
        return Verdict(replies.SPF_FAIL(ip=mail.session.ip, domain="client.test"), labels=frozenset(("forged",)))


class Reader(Filter):
    needs = (SpfResults,)
    gives = (dict,)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        mail.facts.add({"note": EVIL})
        return Verdict(score=1.5, headers=(("X-Note", "read"),))


class Broken(Filter):
    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        raise RuntimeError(EVIL)


ZONE = Zone({"client.test": {"TXT": ["v=spf1 -all"]}})
OBSERVED = {"judge": {"mode": "observe"}}


async def shown(**options: Any) -> list[str]:
    return page(await play(**options)).split("\n")


async def test_a_step_shows_inputs_dns_findings_result_action_and_reply() -> None:
    lines = await shown(filters={"judge": Judge}, zone=ZONE)
    start = lines.index("C: MAIL FROM:<joe@client.test> SIZE=29")
    assert lines[start + 1 : start + 8] == [
        "   judge",
        "      inputs  ip 192.0.2.1, helo client.example, sender <joe@client.test>",
        '      dns     client.test TXT: "v=spf1 -all"',
        "      found   spf=fail (not listed) smtp.mailfrom=joe@client.test",
        "      result  550 5.7.23 SPF says 192.0.2.1 may not send for client.test +forged",
        "      action  refuses, but the refusal is held until a later command [spf-fail]",
        "S: 250 2.1.0 Sender ok",
    ]
    assert lines[start + 9 : start + 12] == [
        "C: RCPT TO:<ann@example.test>",
        "   judge",
        "      action  refused [spf-fail] (asked before)",
    ]
    assert lines[-1].startswith("refused: 550 5.7.23 SPF says")


async def test_what_would_be_written_is_shown_of_a_refused_message() -> None:
    lines = await shown(filters={"judge": Judge}, zone=ZONE)
    assert "   labels  forged" in lines
    (field,) = [line for line in lines if "Authentication-Results" in line]
    assert field.startswith("   would be Authentication-Results: mx.test; spf=fail")


async def test_what_is_written_is_shown_of_an_accepted_one() -> None:
    lines = await shown(filters={"judge": Judge, "reader": Reader}, rules=OBSERVED, zone=ZONE)
    assert "   judge (observes)" in lines
    assert "      action  would have refused, but only observes [spf-fail]" in lines
    assert "      result  pass score 1.5 adds X-Note" in lines
    assert "   X-Note: read" in lines
    assert "   agent store would get it for ann@example.test" in lines
    assert [line for line in lines if line.startswith("   Authentication-Results: mx.test; spf=fail")]
    assert lines[-1] == "accepted"


FORGED = b"Authentication-Results: MX.test;\r\n spf=pass\r\nX-Smtpd-Labels: \x1b[1m\r\nX-Other: 1\r\n"


async def test_fields_that_pretend_to_be_ours_are_shown_as_left_out() -> None:
    done = await play(replace(LETTER, content=FORGED + LETTER.content))
    (letter,) = done.letters
    assert letter.left_out == ["Authentication-Results: MX.test; spf=pass", "X-Smtpd-Labels: \x1b[1m"]
    assert tell(done)["messages"][0]["left_out"] == letter.left_out  # type: ignore[call-overload, index]
    shown = [line for line in page(done).split("\n") if "left out" in line]
    assert shown == [
        "   left out, as it pretends to be ours: Authentication-Results: MX.test; spf=pass",
        "   left out, as it pretends to be ours: X-Smtpd-Labels: \\x1b[1m",
    ]


async def test_of_many_fields_left_out_only_some_are_shown() -> None:
    done = await play(replace(LETTER, content=b"X-Smtpd-A: 1\r\n" * (MAX_LEFT_OUT + 7) + LETTER.content))
    shown = [line for line in page(done).split("\n") if "left out" in line]
    assert (len(shown), shown[-1]) == (MAX_LEFT_OUT + 1, "   left out as well: 7 more")


async def test_a_refusal_of_earlier_is_told_apart_from_what_its_filter_says_now() -> None:
    lines = await shown(filters={"access": Access}, rules={"access": {"deny_senders": ("@client.test",)}})
    at_recipient = lines[lines.index("C: RCPT TO:<ann@example.test>") :]
    assert [line for line in at_recipient if "action" in line] == [
        "      action  goes on",
        "      action  refused [denied-sender] (asked before)",
    ]


async def test_facts_that_a_filter_reads_are_named() -> None:
    done = await play(filters={"judge": Judge, "reader": Reader}, rules=OBSERVED, zone=ZONE)
    (opinion,) = done.steps[-1].opinions
    assert opinion.inputs["facts"] == "SpfResults"


@pytest.mark.parametrize(
    ("rules", "actions"),
    [
        ({}, ["      action  broke; on_error lets it pass"]),
        (
            {"on_error": "defer"},
            ["      action  broke; on_error defers [filter-failed]", "      action  refused [filter-failed]"],
        ),
    ],
)
async def test_a_filter_that_breaks_is_shown_with_what_comes_of_it(rules: dict[str, Any], actions: list[str]) -> None:
    lines = await shown(filters={"broken": Broken}, rules={"broken": rules})
    assert [line for line in lines if line.startswith("      action")] == actions
    assert [line for line in lines if line.startswith("log: error: filter-failed filter=broken")]


async def test_nothing_of_a_stranger_reaches_the_terminal_and_no_line_is_too_wide() -> None:
    zone = Zone({"client.test": {"TXT": ["v=spf1 " + EVIL + "a" * 2000]}})
    letter = replace(LETTER, content=f"From: {EVIL}{'x' * 300}\r\n\r\n".encode())
    filters = {"judge": Judge, "reader": Reader, "broken": Broken}
    texts = [
        page(await play(letter, filters=filters, rules=OBSERVED, zone=zone, client=Client(helo="h" * 250))),
        page(await play(said(f"EHLO {EVIL}", EVIL))),
    ]
    for text in texts:
        assert "\\x1b[31mred\\x07" in text
        assert [line for line in text.split("\n") if not line.isprintable() or len(line) > WIDTH] == []


async def test_machines_are_told_the_same() -> None:
    done = await play(filters={"judge": Judge, "reader": Reader}, rules=OBSERVED, zone=ZONE)
    told = json.loads(json.dumps(tell(done)))
    assert (told["outcome"], told["listener"], told["time"]) == ("accepted", "smtp", "2023-11-14T22:13:20Z")
    mail = next(step for step in told["steps"] if step["stage"] == "mail")
    (judge,) = mail["filters"]
    dns = {"name": "client.test", "type": "TXT", "status": "ok", "reason": "", "records": ['"v=spf1 -all"']}
    assert (judge["filter"], judge["mode"], judge["dns"]) == ("judge", "observe", [dns])
    assert judge["found"]["SpfResults"]["mailfrom"]["reason"] == "not listed"
    assert judge["verdict"]["reason"] == "spf-fail"
    assert mail["decisions"] == [
        {"filter": "judge", "stage": "mail", "result": "observed", "reason": "spf-fail", "labels": ["forged"]}
    ]
    assert told["steps"][-1]["filters"][0]["found"] == {"dict": {"note": EVIL}}
    (message,) = told["messages"]
    assert message["results"] == [{"method": "spf", "result": "fail", "reason": "not listed"}]
    assert message["authentication_results"] == message["headers"][0]
    assert message["delivered"][0]["mailboxes"] == ["ann@example.test"]


async def test_labels_for_the_whole_message_are_shown_beside_those_for_some() -> None:
    class Marking(Filter):
        labels = frozenset(("some", "all"))

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            some = frozenset(mail.recipients[:1])
            return Verdict(labels=frozenset(("some",)), recipients=some, marks=frozenset(("all",)))

    done = await play(filters={"marking": Marking})
    assert "      result  pass +all +some" in page(done).split("\n")
    assert "   labels  all, some" in page(done).split("\n")
    told = json.loads(json.dumps(tell(done)))
    assert told["steps"][-1]["filters"][0]["verdict"]["labels"] == ["all", "some"]


async def test_a_fact_without_an_end_is_cut() -> None:
    class Endless(Filter):
        gives = (list,)

        async def on_mail(self, mail: Transaction) -> Verdict:
            fact: list[object] = []
            fact.append(fact)
            mail.facts.add(fact)
            return PASS

    told = json.dumps(tell(await play(filters={"endless": Endless})))
    assert '{"list": [[[[[["..."]]]]]]}' in told


async def test_a_verdict_that_is_none_is_shown_as_such() -> None:
    class Odd(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return 7  # type: ignore[return-value]

    done = await play(filters={"odd": Odd})
    assert "      result  no verdict: 7" in page(done).split("\n")
    assert json.dumps(tell(done))
    assert done.ending == "accepted"


async def test_the_pass_of_everybody_is_shown() -> None:
    class Silent(Filter):
        async def on_mail(self, mail: Transaction) -> Verdict:
            return PASS

    lines = await shown(filters={"silent": Silent})
    assert lines[lines.index("   silent") + 2 :][:2] == ["      result  pass", "      action  goes on"]


async def test_an_empty_command_is_no_connection() -> None:
    lines = await shown(script=said("", "QUIT"))
    assert lines.count("(connects)") == 1
    assert lines[lines.index("S: 500 5.5.2 Unknown command") - 1] == "C:"


def test_differences_stand_one_above_the_other_and_whatever_is_in_them_fits_a_terminal() -> None:
    long = "550 " + "word " * 40 + "end"
    shown = differences_page([Difference("rcpt[0]", f"550 \u00a0{EVIL}", long), Difference("data", "2", "y" * 9999)])
    lines = shown.split("\n")
    assert lines[0] == r"      rcpt[0]       expected  550 \xa0\x1b[31mred\x07 \u202eback"
    assert lines[1].startswith("                    but was   550 word word")
    assert lines[2].startswith(" " * 30 + "word")
    assert " ".join(" ".join(lines[1:]).partition(" data ")[0].split()) == f"but was {long}"
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].endswith("y...")
    assert shown.count("y") == MAX_LINE - 3
    one, two = differences_page([Difference("filters.reverse", "a", "b"), Difference("data", "a", "b")]).split("\n")[
        ::2
    ]
    assert one.index("expected") == two.index("expected")
