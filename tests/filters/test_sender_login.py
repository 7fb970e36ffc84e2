"""As whom a user who logged in may send; the whole server."""

from __future__ import annotations

from typing import Any

import pytest

from filters.sender_login import SenderLogin, SenderLoginOptions
from smtpd.memory import MemoryServer, make_services
from smtpd.model import Transaction
from smtpd.policy import Verdict

ME = "joe@example.test"
BOSS = "boss@example.test"
REFUSED = "550 5.7.1 Your login does not let you "
UNCLEAR = "550 5.7.1 The From field has to say clearly that the message is from you, but "


def letter(author: str = ME, *more: str) -> str:
    return "\n".join([f"From: {author}", *more, "Subject: Hi", "", "Hello", ""])


class House:
    """A server with the filter, and what became of one message."""

    def __init__(self, tables: dict[str, object] | None = None, **options: object) -> None:
        self.server = MemoryServer(filters={"sender_login": (SenderLogin, options)}, tables=tables)

    async def send(
        self, content: str | bytes = letter(), *,
        sender: str = ME, login: str | None = ME, to: str = "ann@example.test", **call: Any,
    ) -> str:  # fmt: skip
        """The last answer; MAIL is always answered 250."""
        async with self.server as server:
            talk = await server.connect(login=login, **call)
            answers = await talk.send(content, sender=sender, recipients=(to,))
        assert answers[0].startswith("250 2.1.0 ")
        self.spoken = len(answers)
        self.labels = self.server.delivered[0].labels if self.server.delivered else None
        return answers[-1]

    def count(self, part: str, result: str) -> float:
        return self.server.count("smtpd_sender_login_checks_total", part=part, result=result)


async def says(house: House, path: str, *, login: str = ME) -> str:
    """The answer at RCPT to a sender that may be beyond ASCII."""
    async with house.server as server:
        talk = await server.connect(login=login)
        answer = await talk.say(f"MAIL FROM:{path} SMTPUTF8\r\n".encode())
        assert answer.startswith(b"250 "), answer
        return (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).decode()


async def test_own_address_passes_in_both_places() -> None:
    house = House()
    assert (await house.send()).startswith("250 ")
    assert (house.count("envelope", "pass"), house.count("header", "pass"), house.labels) == (1, 1, frozenset())


async def test_strangers_are_none_of_its_business() -> None:
    house = House()
    assert (await house.send(letter(BOSS), sender=BOSS, login=None)).startswith("250 ")
    assert house.count("envelope", "fail") == house.count("header", "fail") == 0
    assert (await House().send("no From at all", login=None)).startswith("250 ")


async def test_somebody_elses_sender_is_refused_when_the_recipient_is_named() -> None:
    house = House()
    answer = await house.send(sender=BOSS)
    assert answer.startswith(f"{REFUSED}send as boss@example.test [sender_login ")
    assert house.spoken == 2
    assert "joe" not in answer
    assert house.count("envelope", "fail") == 1


async def test_somebody_elses_from_is_refused_with_the_message() -> None:
    house = House()
    answer = await house.send(letter(f"The Boss <{BOSS}>"))
    assert answer.startswith(f"{REFUSED}put boss@example.test into the From field [sender_login ")
    assert "joe" not in answer
    assert (house.count("header", "fail"), house.server.delivered) == (1, [])


async def test_empty_sender_is_everybodys_but_from_is_not() -> None:
    house = House()
    assert (await house.send(sender="")).startswith("250 ")
    assert house.count("envelope", "empty") == 1
    assert (await House().send(letter(BOSS), sender="")).startswith(REFUSED)


@pytest.mark.parametrize("part", ["envelope", "header"])
@pytest.mark.parametrize(("action", "labels"), [("tag", {"sender-mismatch"}), ("pass", frozenset())])
async def test_each_part_has_its_switch(part: str, action: str, labels: frozenset[str]) -> None:
    wrong: dict[str, Any] = {"sender": BOSS} if part == "envelope" else {"content": letter(BOSS)}
    other: dict[str, Any] = {"content": letter(BOSS)} if part == "envelope" else {"sender": BOSS}
    house = House(**{part: action})
    assert (await house.send(**wrong)).startswith("250 ")
    assert (house.labels, house.count(part, "fail")) == (labels, 1)
    assert (await House(**{part: action}).send(**other)).startswith(REFUSED)


@pytest.mark.parametrize("table", [{"envelope": "tag", "header": "pass"}, {}])
def test_filter_that_only_marks_is_not_waited_for(table: dict[str, Any]) -> None:
    assert SenderLogin("sender_login", SenderLoginOptions(**table), make_services()).can_refuse() == (not table)


@pytest.mark.parametrize(
    ("login", "path"),
    [
        (ME, "<JOE@Example.TEST>"), ("Joe@EXAMPLE.test", "<joe@example.test>"), (ME, '<"joe"@example.test>'),
        (ME, '<"j\\oe"@example.test>'), (ME, "<@relay.test,@b.test:joe@example.test>"), (ME, "<joe+news@example.test>"),
        (ME, "<joe+@example.test>"), ("joe", "<joe+a+b@example.test>"), ("joe+x@b.test", "<joe+x@b.test>"),
        ("joe", "<joe@example.test>"), ("joe", "<joe@deep.below.test>"), ("joe..x@a.test", '<"joe..x"@a.test>'),
        ("joe@[192.0.2.1]", "<joe@[192.0.2.1]>"), ("joe@[IPv6:2001:db8::0:1]", "<joe@[IPv6:2001:DB8::1]>"),
        ("j\u00f6@b\u00fccher.test", "<jo\u0308@xn--bcher-kva.test>"), ("j\u00f6", "<J\u00d6@example.test>"),
        ("jo\u0308@xn--bcher-kva.test", "<j\u00f6@B\u00dcCHER.test>"), ("\uff4a\uff4f\uff45", "<joe@example.test>"),
    ],
)  # fmt: skip
async def test_address_is_his_own_however_it_is_written(login: str, path: str) -> None:
    tables = {"domains": {"example.test": "kept", "*.below.test": "kept", "*": "kept"}}
    assert (await says(House(tables), path, login=login)).startswith("250 ")


@pytest.mark.parametrize(
    ("login", "path"),
    [
        (ME, "<joe@other.test>"), (ME, "<joex@example.test>"), (ME, "<+joe@example.test>"),
        (ME, "<joe-x@example.test>"), (ME, "<joe@mx.example.test>"), (ME, "<joe%example.test@other.test>"),
        (ME, '<"joe@example.test"@other.test>'), ("joe", "<joe@other.test>"),
        ("joe", "<joe@below.test>"), ("joe", "<joe@[192.0.2.1]>"), ("joe+x@b.test", "<joe@b.test>"),
         ("joe@b.test", "<joe@example.test>"), ("boss@", "<boss@example.test>"),
        (ME, "<j\u043ee@example.test>"), ("jo@example.test", "<j\u00f6@example.test>"),
        ("joe@192.0.2.1", "<joe@[192.0.2.1]>"), ("@example.test", "<joe@example.test>"), ("*", "<joe@example.test>"),
    ],
)  # fmt: skip
async def test_address_is_somebody_elses_however_it_looks(login: str, path: str) -> None:
    tables = {"domains": {"example.test": "kept", "*.below.test": "kept", "*": "kept"}}
    assert (await says(House(tables), path, login=login)).startswith(REFUSED)


@pytest.mark.parametrize(
    ("separator", "subaddresses", "answers"),
    [("+", True, "250 550"), ("-", True, "550 250"), ("", True, "550 550"), ("+", False, "550 550")],
)
async def test_detail_stands_behind_the_separator_of_the_server(
    separator: str, subaddresses: bool, answers: str
) -> None:
    heard = [
        (await says(House({"subaddress_separator": separator}, subaddresses=subaddresses), path))[:3]
        for path in ("<joe+x@example.test>", "<joe-x@example.test>")
    ]
    assert heard == answers.split()


SENDERS = {"Joe@example.test": ["info@a.test", "@b.test", "@*.c.test"], "scanner": ["*"], "*": ["all@a.test"]}


@pytest.mark.parametrize(
    ("login", "sender", "answer"),
    [
        (ME, "Info@a.test", "250 "), (ME, "info+7@a.test", "250 "), (ME, "any@b.test", "250 "), (ME, ME, "250 "),
        (ME, "any@x.y.c.test", "250 "), (ME, "any@c.test", REFUSED), (ME, "any@x.b.test", REFUSED),
        (ME, "all@a.test", "250 "), ("eve", "all@a.test", "250 "), ("eve", "info@a.test", REFUSED),
        ("scanner", "who@ever.test", "250 "), ("joe@other.test", "info@a.test", REFUSED),
    ],
)  # fmt: skip
async def test_operator_gives_logins_more(login: str, sender: str, answer: str) -> None:
    house = House(senders=SENDERS)
    assert (await house.send(letter(sender), sender=sender, login=login)).startswith(answer)


async def test_every_login_may_be_given_everything() -> None:
    house = House(senders={"*": ["*"]})
    assert (await house.send(letter("who@ever.test"), sender=BOSS)).startswith("250 ")


async def test_who_may_send_as_anybody_needs_no_from_that_can_be_read() -> None:
    house = House(senders=SENDERS)
    assert (await house.send("Subject: Scan\n\n", login="scanner")).startswith("250 ")


@pytest.mark.parametrize(
    "author",
    [
        f"{ME}, boss@example.test", "A: joe@example.test, boss@example.test;", f"{ME}\nFrom: {BOSS}",
        f"{BOSS}\nFrom: {ME}", f"{ME}\nfrom : {BOSS}",
        f"{ME}\nX: y\n \nFrom: {BOSS}", f"{BOSS}\nSender: {ME}", f"{BOSS}\nResent-From: {ME}",
        f"{BOSS} <{ME}>", f'"x <{BOSS}>" <{ME}>',
    ],
)  # fmt: skip
async def test_all_authors_have_to_be_his_and_sender_is_no_excuse(author: str) -> None:
    assert (await House().send(letter(author))).startswith(f"{REFUSED}put boss@example.test into ")


async def test_several_authors_who_are_all_his_pass_and_who_else_is_named_does_not_count() -> None:
    more = (f"Sender: {BOSS}", f"Reply-To: {BOSS}", f"Resent-From: {BOSS}", "X-From: eve@other.test")
    house = House(senders={ME: ["info@a.test"]})
    assert (await house.send(letter(f"Joe <{ME}>, info@a.test", *more))).startswith("250 ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("Subject: Hi\n\nHello\n", "it is missing"), ("\nFrom: joe@example.test\n", "it is missing"),
        (letter("nobody"), "it has no address that can be read"),
        (letter(ME, *[f"From: {ME}"] * 10), "there is too much of it"),
        (letter(f"{'x' * 9000} <{ME}>"), "there is too much of it"),
        (letter(f"{ME}, boss.@example.test"), "it has something that is almost an address"),
    ],
)  # fmt: skip
async def test_from_that_does_not_say_who_is_meant_is_refused(content: str, problem: str) -> None:
    house = House()
    answer = await house.send(content)
    assert answer.startswith(f"{UNCLEAR}{problem} [sender_login ")
    assert house.count("header", "unclear") == 1


@pytest.mark.parametrize("trick", [b"X: a\rFrom: boss@example.test", b"X: a\nFrom: boss@example.test"])
async def test_lone_line_end_hides_no_author(trick: bytes) -> None:
    listener = {"address": "127.0.0.1:0", "mode": "smtp", "tls": "off", "bare_line_ends": "normalise"}
    house = House({"listeners": {"smtp": listener}})
    answer = await house.send(b"From: joe@example.test\r\n" + trick + b"\r\n\r\nHello\r\n")
    assert answer.startswith(f"{REFUSED}put boss@example.test into ")


async def test_author_beyond_ascii_is_compared_like_the_sender() -> None:
    login = "j\u00f6@b\u00fccher.test"
    assert (await House().send(letter("jo\u0308@xn--bcher-kva.test"), sender="", login=login)).startswith("250 ")
    assert (await House().send(letter("jo@xn--bcher-kva.test"), sender="", login=login)).startswith(REFUSED)


async def test_trusted_networks_can_be_let_by() -> None:
    tables: dict[str, object] = {"trusted_networks": ["198.51.100.0/24"]}
    for unless, answer in ((["trusted"], "250 "), ([], REFUSED)):
        house = House(tables, unless=unless)
        assert (await house.send(letter(BOSS), sender=BOSS, ip="198.51.100.1")).startswith(answer)


@pytest.mark.parametrize("word", ["authenticated", "tls"])
def test_condition_that_would_let_everybody_by_is_a_mistake(word: str) -> None:
    with pytest.raises(ValueError, match="nobody would be refused"):
        SenderLoginOptions(unless=(word,))


@pytest.mark.parametrize("senders", [{"": ["a@b.test"]}, {"a b": []}, {"joe": ["joe"]}, {"joe": ["x*@a.test"]}])
def test_rights_that_make_no_sense_are_a_mistake(senders: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a login has|must look like"):
        SenderLoginOptions(senders=senders)


async def test_observing_refuses_nobody_and_counts() -> None:
    house = House(mode="observe")
    assert (await house.send(letter(BOSS), sender=BOSS)).startswith("250 ")
    assert house.server.count("smtpd_filter_would_reject_total", filter="sender_login") == 2
    assert house.labels == frozenset()


async def test_who_makes_it_break_does_not_get_by() -> None:
    class Broken(SenderLogin):
        async def on_mail(self, mail: Transaction) -> Verdict:
            raise RuntimeError("broken")

    server = MemoryServer(filters={"sender_login": Broken})
    async with server:
        answers = await (await server.connect(login=ME)).send(letter(), sender=ME)
        server.forget("filter-failed")
    assert answers[1].startswith("451 4.3.0 ")


async def test_postmaster_can_be_reached_as_anybody() -> None:
    assert (await House().send(sender=BOSS, to="postmaster@example.test")).startswith("250 ")
    assert (await House().send(letter(BOSS), to="postmaster@example.test")).startswith("250 ")
