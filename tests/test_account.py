"""What is counted and logged of a conversation."""

from base64 import b64encode
from typing import Literal

import pytest
from stage import CONTENT, Answer, Stage

from smtpd import replies
from smtpd.auth import Authenticator
from smtpd.findings import DkimResults, DkimSignature, SpfCheck, SpfResults
from smtpd.model import Message, Recipient, TlsInfo, Transaction
from smtpd.options import FilterOptions
from smtpd.policy import PASS, Filter, Verdict
from smtpd.replies import Reply

DELIVERIES = "smtpd_delivery_duration_seconds_count"


class Refusing(Filter):
    name = "refusing"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        return Verdict(replies.BAD_HEADER(problem="No"))


async def _deferring(mail: Transaction, message: Message) -> Reply:
    return replies.STORE_FAILED


async def test_only_what_an_agent_answered_counts_as_a_delivery() -> None:
    async with Stage(filters={"refusing": Refusing}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        assert (await talk.say(CONTENT + b".\r\n")).startswith(b"550 ")
        assert [server.count(DELIVERIES, result=result) for result in ("accepted", "deferred", "refused")] == [0, 0, 0]


@pytest.mark.parametrize(("answer", "result"), [(None, "accepted"), (_deferring, "deferred")])
async def test_what_an_agent_answered_counts_as_a_delivery(answer: Answer | None, result: str) -> None:
    async with Stage(answer=answer) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        assert server.count(DELIVERIES, result=result) == 1


async def _as_a_store_said(mail: Transaction, message: Message) -> dict[Recipient, Reply]:
    said = [Reply("store-said", 250, "2.0.0", "Saved"), Reply("store-said", 552, "5.2.2", "Full")]
    return dict(zip(mail.recipients, said, strict=True))


@pytest.mark.parametrize(
    ("said", "prdr", "counts"),
    [
        (replies.MAILBOX_FULL_PERMANENTLY, True, (1, {"mailbox-full-permanently": 1})),
        (replies.MAILBOX_FULL, True, (1, {"mailbox-full": 1})),
        (replies.MAILBOX_FULL, False, (0, {"some-deferred": 1})),
        (replies.MAILBOX_FULL_PERMANENTLY, False, (0, {"some-deferred": 1})),
        (replies.STORE_REFUSED, False, (1, {"some-refused": 1})),
    ],
)
async def test_each_refusal_that_was_spoken_is_counted_and_each_message_that_somebody_got(
    said: Reply, prdr: bool, counts: tuple[int, dict[str, int]]
) -> None:
    async def answer(mail: Transaction, message: Message) -> dict[Recipient, Reply]:
        return dict(zip(mail.recipients, [replies.ACCEPTED, said], strict=True))

    async with Stage(answer=answer) as server:
        talk = server.talk()
        await talk.say(b"EHLO client.test\r\nMAIL FROM:<joe@client.test>" + (b" PRDR\r\n" if prdr else b"\r\n"))
        await talk.say(b"RCPT TO:<ann@example.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        where = {"listener": "smtp", "recipient_domain": "example.test"}
        received = server.count("smtpd_messages_received_total", **where)
        keys = (said.key, "some-deferred", "some-refused")
        rejected = {key: server.count("smtpd_messages_rejected_total", reason=key, **where) for key in keys}
        assert (received, {key: count for key, count in rejected.items() if count}) == counts


async def test_different_outcomes_are_logged_also_when_all_are_the_words_of_a_store() -> None:
    async with Stage(answer=_as_a_store_said) as server:
        talk = await server.ready()
        await talk.say(b"RCPT TO:<bob@example.test>\r\nDATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        (line,) = server.events("message")
        assert line["outcomes"] == ["250 2.0.0 Saved", "552 5.2.2 Full"]


class Finding(Filter):
    name = "finding"
    gives = (SpfResults, DkimResults)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        checked = SpfCheck("fail", "mailfrom", "c.test", '"joe b"@c.test', reason="-all matches")
        signed = DkimSignature("fail", "c.test", "s", "rsa-sha256", "joe@c.test", "AbC", reason="the body was changed")
        mail.facts.add(SpfResults(checked))
        mail.facts.add(DkimResults((signed,)))
        return PASS


TOLD = [
    "spf=fail (-all matches) smtp.mailfrom",
    "dkim=fail (the body was changed) header.d=c.test header.s=s header.a=rsa-sha256",
]


class Observed(Refusing):
    class Options(FilterOptions):
        mode: Literal["enforce", "observe", "off"] = "observe"


@pytest.mark.parametrize("refusing", [Refusing, Observed])
async def test_refusal_is_logged_with_what_was_found_out_about_the_sender(refusing: type[Filter]) -> None:
    async with Stage(filters={"finding": Finding, "refusing": refusing}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        (line,) = server.events("message")
        assert line["results"] == TOLD


async def test_message_that_nobody_wanted_refused_carries_its_results_itself() -> None:
    async with Stage(filters={"finding": Finding}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        (line,) = server.events("message")
        assert line["decisions"]
        assert "results" not in line


class Deferring(Filter):
    name = "deferring"
    asked = 0

    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        Deferring.asked += 1
        return Verdict(replies.STORE_FAILED)


async def test_a_client_that_says_rcpt_for_ever_makes_neither_lines_nor_work_pile_up() -> None:
    Deferring.asked = 0
    async with Stage(filters={"deferring": Deferring}, tables={"max_recipients": 20}) as server:
        talk = server.talk()
        await talk.say(b"EHLO c.test\r\nMAIL FROM:<joe@client.test>\r\n")
        said = b"".join([await talk.say(b"RCPT TO:<ann@example.test>\r\n" * 100) for _ in range(3)])
        assert said.count(b"451 4.3.0 ") == Deferring.asked == 200
        assert said.count(b"452 4.5.3 ") == 100
        assert max(len(line.get("decisions", ())) for line in server.events("refused")) == 40


class RefusingSenders(Filter):
    name = "senders"

    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(replies.DENIED_SENDER(address=mail.sender))


@pytest.mark.parametrize(
    ("line", "tables", "reason"),
    [
        (b"MAIL FROM:<joe@client.test>", {}, "denied-sender"),
        (b"MAIL FROM:<joe@client.test> SIZE=2000", {"max_message_size": 1000}, "too-big"),
    ],
)
async def test_a_refusal_of_the_sender_is_logged_with_the_sender(
    line: bytes, tables: dict[str, int], reason: str
) -> None:
    options = {"filters": {"senders": FilterOptions(type="senders", act_at="mail")}}
    async with Stage(filters={"senders": RefusingSenders}, tables={**options, **tables}) as server:
        talk = server.talk()
        said = await talk.say(b"EHLO client.test\r\n" + line + b"\r\n")
        (entry,) = server.events("refused")
        assert (entry["sender"], entry["reason"]) == ("joe@client.test", reason)
        assert f"{entry['trace']}]" in said.decode()
        assert entry["trace"] != entry["session"]
        assert ("decisions" in entry) == (reason == "denied-sender")
        assert (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).startswith(b"503 ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"From: joe@client.test\r\n\r\nHi\nyou\r\n", "bare-line-end"), (b"x" * 2000 + b"\r\n", "too-big")],
)
async def test_content_that_is_not_stored_is_logged_with_its_size(content: bytes, reason: str) -> None:
    async with Stage(tables={"max_message_size": 1000}) as server:
        talk = await server.ready()
        await talk.say(b"DATA\r\n")
        await talk.say(content + b".\r\n")
        (entry,) = server.events("message")
        assert (entry["reason"], entry["size"]) == (reason, len(content))


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_a_failed_login_is_logged_with_the_name_and_without_the_password(mechanism: str) -> None:
    user, password = b"j\xc3\xb6e@example.test\r\n", b"sesame"
    said = b64encode(b"\0%b\0%b" % (user, password)) if mechanism == "PLAIN" else b64encode(user)
    async with Stage() as server:
        authenticator = Authenticator((), log=server.service.log)
        talk = server.talk(authenticator=authenticator, tls=TlsInfo("TLSv1.3", "x", 256))
        await talk.say(b"EHLO client.test\r\nAUTH " + mechanism.encode() + b" " + said + b"\r\n")
        if mechanism == "LOGIN":
            await talk.say(b64encode(password) + b"\r\n")
        (entry,) = server.events("login")
    assert (entry["user"], entry["result"]) == ("j\\xf6e@example.test?", "failed")
    assert "sesame" not in str(entry)


CLIENT = ["session", "listener", "ip", "helo"]
PLAIN = [*CLIENT, "reply", "reason", "trace", "sender", "recipients", "size", "seconds"]
PUT_OFF = [*CLIENT, "trace", "sender", "recipients", "size", "seconds", "reply", "reason"]


class Labelling(Filter):
    name = "labelling"

    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(labels=frozenset({"junk"}))


@pytest.mark.parametrize(
    ("answer", "filters", "more", "fields"),
    [
        (None, {}, b"", PLAIN),
        (None, {}, b"RCPT TO:<bob@example.test>\r\n", PLAIN),
        (None, {"labelling": Labelling}, b"", [*PLAIN, "labels", "decisions"]),
        (_deferring, {}, b"", PUT_OFF),
        (_as_a_store_said, {}, b"RCPT TO:<bob@example.test>\r\n", [*PUT_OFF, "outcomes"]),
    ],
    ids=["one recipient", "two recipients", "a label", "put off", "different outcomes"],
)
async def test_fields_of_a_message_come_in_this_order(
    answer: Answer | None, filters: dict[str, type[Filter]], more: bytes, fields: list[str]
) -> None:
    async with Stage(answer=answer, filters=filters) as server:
        talk = await server.ready()
        await talk.say(more + b"DATA\r\n")
        await talk.say(CONTENT + b".\r\n")
        (line,) = server.events("message")
        assert list(line) == ["time", "level", "event", *fields]


async def test_what_a_client_says_of_itself_anew_is_in_the_lines_that_follow() -> None:
    async with Stage() as server:
        talk = server.talk(tls=TlsInfo("TLSv1.3", "some-cipher", 256))
        for helo in (b"one.test", b"two.test"):
            await talk.say(b"EHLO %b\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\nDATA\r\n" % helo)
            await talk.say(CONTENT + b".\r\n")
        lines = server.events("message")
        assert [line["helo"] for line in lines] == ["one.test", "two.test"]
        assert [(line["tls"], line["cipher"]) for line in lines] == [("TLSv1.3", "some-cipher")] * 2
        assert list(lines[0])[3:9] == [*CLIENT, "tls", "cipher"]


@pytest.mark.parametrize(
    ("recipients", "labels"),
    [
        ((b"ann@example.test",), {"example.test": 1}),
        ((b"ann@EXAMPLE.test",), {"example.test": 1}),
        ((b"ann@a.wild.test",), {"*.wild.test": 1}),
        ((b"ann@example.test", b"bob@example.test", b"ann@b.wild.test"), {"example.test": 1, "*.wild.test": 1}),
    ],
)
async def test_every_message_counts_once_for_each_domain(recipients: tuple[bytes, ...], labels: dict[str, int]) -> None:
    async with Stage(tables={"domains": {"example.test": "keeper", "*.wild.test": "keeper"}}) as server:
        talk = server.talk()
        await talk.say(b"EHLO client.test\r\n")
        for count in (1, 2):
            said = [b"MAIL FROM:<joe@client.test>", *(b"RCPT TO:<%b>" % address for address in recipients), b"DATA\r\n"]
            assert b"\r\n354 " in await talk.say(b"\r\n".join(said))
            assert (await talk.say(CONTENT + b".\r\n")).startswith(b"250 ")
            for label in ("example.test", "*.wild.test", "other"):
                received = server.count("smtpd_messages_received_total", listener="smtp", recipient_domain=label)
                assert received == count * labels.get(label, 0)
            assert server.count("smtpd_messages_size_bytes_count", listener="smtp") == count
            assert server.count("smtpd_messages_size_bytes_sum", listener="smtp") == count * len(CONTENT)


async def test_the_end_of_a_connection_is_logged_with_the_number_of_messages_taken() -> None:
    async with Stage() as server:
        talk = server.talk()
        await talk.say(b"EHLO client.test\r\n")
        for more in (b"", b"RCPT TO:<bob@example.test>\r\n"):
            await talk.say(b"MAIL FROM:<joe@client.test>\r\nRCPT TO:<ann@example.test>\r\n" + more + b"DATA\r\n")
            await talk.say(CONTENT + b".\r\n")
        await talk.say(b"QUIT\r\n")
        (line,) = server.events("disconnected")
        assert line["messages"] == 2
