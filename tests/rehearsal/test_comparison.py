import re
from dataclasses import replace
from typing import Any

import pytest
from rehearsals import LETTER, play

from smtpd import replies
from smtpd.config.listeners import Listener
from smtpd.findings import SpfCheck, SpfResults
from smtpd.model import Recipient, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.rehearsal.cases import Expectation
from smtpd.rehearsal.comparison import NEVER, compare, matches


class Judge(Filter):
    gives = (SpfResults,)

    async def on_mail(self, mail: Transaction) -> Verdict:
        helo = SpfCheck("none", "helo", "pc.test", "pc.test")
        mail.facts.add(SpfResults(SpfCheck("fail", "mailfrom", "client.test", mail.sender.text, "not listed"), helo))
        return Verdict(labels=frozenset(("forged",)), headers=(("X-Note", "one two"),))

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return Verdict(replies.DENIED_SENDER(address=mail.sender)) if recipient.address.local == "bob" else PASS


class Watcher(Filter):
    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(replies.DENIED_SENDER(address=mail.sender))


SCRIPT = replace(LETTER, recipients=("ann@example.test", "bob@example.test"))
RIGHT: dict[str, Any] = {
    "outcome": "partly accepted",
    "connect": "220 mx.test",
    "helo": "250",
    "mail": "250 2.1.0",
    "rcpt": ["250", "550 5.7.1 ... joe"],
    "data": "250 2.0.0",
    "headers": ["X-Note: one", "x-note: one", "Received: from ... by mx.test", "!X-Note: two", "!Subject:"],
    "results": {"spf": "fail"},
    "labels": ["forged", "!junk"],
    "filters": {
        "judge": ["pass", "mail +forged", "rcpt refused denied-sender"],
        "watcher": "observed",
        "silent": "not asked",
    },
}


async def differences(expected: dict[str, Any]) -> list[tuple[str, str, str]]:
    filters = {"judge": Judge, "watcher": Watcher, "silent": Filter}
    done = await play(SCRIPT, filters=filters, rules={"watcher": {"mode": "observe"}})
    found = compare(Expectation.model_validate(expected), done)
    return [(one.what, one.expected, one.was.partition(" [")[0]) for one in found]


async def test_what_is_as_expected_is_no_difference() -> None:
    assert await differences(RIGHT) == []
    assert await differences({}) == []
    assert await differences({"results": {"spf": ["none", "fail"]}}) == []


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        (
            {"outcome": "accepted"},
            ("outcome", "accepted", "partly accepted: 550 5.7.1 Mail from joe@client.test is not accepted here"),
        ),
        ({"connect": "554"}, ("connect", "554", "220 mx.test ESMTP")),
        ({"helo": "25"}, ("helo", "25", "250 LIMITS RCPTMAX=100 MAILMAX=1000")),
        ({"mail": "250 2.1.5"}, ("mail", "250 2.1.5", "250 2.1.0 Sender ok")),
        ({"rcpt": "250"}, ("rcpt[1]", "250", "550 5.7.1 Mail from joe@client.test is not accepted here")),
        ({"rcpt": ["550", "550"]}, ("rcpt[0]", "550", "250 2.1.5 Recipient ok")),
        ({"data": "451"}, ("data", "451", "250 2.0.0 Ok, delivered")),
        ({"data": ["250", "250"]}, ("data[1]", "250", NEVER)),
        ({"results": {"spf": "pass"}}, ("results.spf", "pass", "fail (not listed), none")),
        ({"results": {"spf": ["fail", "fail"]}}, ("results.spf", "fail, fail", "fail (not listed), none")),
        ({"results": {"dkim": "pass"}}, ("results.dkim", "pass", "none")),
        ({"labels": ["junk"]}, ("labels", "junk", "forged")),
        ({"labels": ["!forged"]}, ("labels", "!forged", "forged")),
        ({"filters": {"watcher": "refused"}}, ("filters.watcher", "refused", "mail observed denied-sender")),
        ({"filters": {"watcher": "mail held"}}, ("filters.watcher", "mail held", "mail observed denied-sender")),
        ({"filters": {"watcher": "not asked"}}, ("filters.watcher", "not asked", "mail observed denied-sender")),
        (
            {"filters": {"spf": "not asked"}},
            ("filters.spf", "not asked", "no such filter; there is judge, watcher, silent"),
        ),
        ({"filters": {"silent": "pass"}}, ("filters.silent", "pass", "not asked")),
    ],
)
async def test_every_kind_of_difference_is_found(expected: dict[str, Any], difference: tuple[str, str, str]) -> None:
    assert await differences(expected) == [difference]


@pytest.mark.parametrize("pattern", ["X-Note: two", "x-note: two", "!X-Note:"])
async def test_a_header_that_is_other_or_too_much_is_shown(pattern: str) -> None:
    assert await differences({"headers": [pattern]}) == [("headers", pattern, "X-Note: one two")]


async def test_where_a_header_is_missing_all_are_shown() -> None:
    ((what, expected, was),) = await differences({"headers": ["Subject:"]})
    assert (what, expected) == ("headers", "Subject:")
    assert re.fullmatch(r".*X-Note: one two / .*Received: from .*", was)


async def test_a_command_that_never_came_is_a_difference() -> None:
    done = await play(filters={"watcher": Watcher}, rules={"watcher": {"act_at": "mail"}})
    found = compare(Expectation.model_validate({"rcpt": "250", "data": "250", "headers": ["A:"]}), done)
    assert [(one.what, one.was) for one in found] == [("rcpt", NEVER), ("data", NEVER), ("headers", NEVER)]


async def test_lmtp_has_a_reply_for_each_recipient() -> None:
    listener = Listener(address=("127.0.0.1:0",), mode="lmtp")
    done = await play(SCRIPT, tables={"listeners": {"smtp": listener}})
    assert compare(Expectation.model_validate({"data": "250"}), done) == []
    assert compare(Expectation.model_validate({"data": ["250", "250"]}), done) == []
    found = compare(Expectation.model_validate({"data": ["250", "250", "250"]}), done)
    assert [(one.what, one.was) for one in found] == [("data[2]", NEVER)]
    three = replace(SCRIPT, recipients=(*SCRIPT.recipients, "joe@example.test"))
    done = await play(three, tables={"listeners": {"smtp": listener}})
    (one,) = compare(Expectation.model_validate({"data": ["250", "250"]}), done)
    assert (one.what, one.expected) == ("data", "2 replies")


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("550", "550 5.7.1 No", True),
        ("550 5.7.1", "550 5.7.1 No", True),
        ("550 5.7.1", "550 5.7.10 No", False),
        ("550 ... No", "550 5.7.1 No", True),
        ("550 ... No", "550 5.7.1 Now", False),
        ("5.7.1", "550 5.7.1 No", False),
        ("550...", "5501", True),
        ("550  5.7.1\tNo", "550 5.7.1 No", True),
        ("550 5.7.1 ...  mail", "550 5.7.1 No mail", True),
        ("550 5.7.1No", "550 5.7.1 No", False),
        ("X-A: b c", "X-A: b  c", True),
        ("X-A:", "X-A: b", True),
        ("spf=fail (a", "spf=fail (a)", True),
    ],
)
def test_patterns_are_first_words_with_gaps(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits
