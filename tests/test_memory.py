"""The test kit of filters and agents; what authors do with it stands in docs/plugins.md and is run from there."""

import pytest

from smtpd import PASS, DeliveryAgent, Filter, Message, Recipient, Reply, Session, Transaction, Verdict
from smtpd.memory import MemoryServer
from smtpd.replies import DENIED_CLIENT, MAILBOX_FULL, RECIPIENT_OK

HELLO = "From: <bob@sender.test>\nSubject: Hello\n\n.\nHello.\n"


class Broken(Filter):
    name = "broken"

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        raise RuntimeError("this filter has a bug")


class Hostile(Filter):
    name = "hostile"
    labels = frozenset(("seen",))

    async def on_connect(self, session: Session) -> Verdict:
        if session.ip_text == "192.0.2.66":
            return Verdict(DENIED_CLIENT(ip=session.ip))
        return Verdict(labels=self.labels) if session.ip_text == "192.0.2.7" else PASS


class Full(DeliveryAgent):
    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        return MAILBOX_FULL(address=recipient.address)


async def test_message_is_delivered_as_it_was_sent() -> None:
    async with MemoryServer() as server:
        talk = await server.connect()
        assert talk.last.startswith(b"250-mx.example.test\r\n")
        answers = await talk.send(HELLO, sender="a@b.test", recipients=["x@example.test", "y@example.test"])
        assert [answer[:3] for answer in answers] == ["250"] * 4
        assert await talk.say(b"QUIT\r\n") == b"221 2.0.0 Bye\r\n"
    (delivered,) = server.delivered
    assert (delivered.sender, delivered.recipients) == ("a@b.test", ("x@example.test", "y@example.test"))
    assert delivered.content.endswith(b"\r\n\r\n.\r\nHello.\r\n")


async def test_octets_are_sent_as_they_are() -> None:
    async with MemoryServer() as server:
        assert (await (await server.connect()).send(b"Subject: x\n\n"))[-1].startswith("550 5.5.2")


async def test_broken_filter_does_not_pass_a_test_unnoticed() -> None:
    with pytest.raises(AssertionError, match="this filter has a bug"):
        async with MemoryServer(filters={"broken": Broken}) as server:
            assert (await (await server.connect()).send(HELLO))[-1].startswith("250")


async def test_expected_failure_is_forgotten() -> None:
    async with MemoryServer(filters={"broken": (Broken, {"on_error": "defer"})}) as server:
        assert (await (await server.connect()).send(HELLO))[-1].startswith("451")
        server.forget("filter-failed")
        with pytest.raises(AssertionError, match="no filter-failed"):
            server.forget("filter-failed")


async def test_error_of_the_test_itself_comes_first() -> None:
    async def fail() -> None:
        async with MemoryServer(filters={"broken": Broken}) as server:
            await (await server.connect()).send(HELLO)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()


async def test_clients_come_from_anywhere_and_say_what_they_like() -> None:
    async with MemoryServer(filters={"hostile": (Hostile, {"act_at": "connect"})}) as server:
        assert (await server.connect(ip="192.0.2.66")).last.startswith(b"554 ")
        seen = await server.connect(ip="192.0.2.7", login="bob@example.test", helo="pc")
        assert (seen.session.helo, seen.session.login, seen.session.labels) == ("pc", "bob@example.test", {"seen"})
        assert (await server.connect(helo="")).last.startswith(b"220 ")
        assert [line["ip"] for line in server.log if line["event"] == "refused"] == ["192.0.2.66"]
        assert server.count("smtpd_messages_rejected_total", reason="denied-client") == 0
        labels = {"listener": "smtp", "reason": "denied-client", "recipient_domain": "other"}
        assert server.count("smtpd_messages_rejected_total", **labels) == 1


async def test_transaction_without_a_recipient_is_given_up() -> None:
    async with MemoryServer(agents={"full": Full}) as server:
        assert isinstance(server.agents["full"], Full)
        talk = await server.connect()
        for _ in range(2):
            assert [answer[:9] for answer in await talk.send(HELLO)] == ["250 2.1.0", "452 4.2.2"]
        assert server.delivered == []


async def test_other_tables_are_taken_over() -> None:
    async with MemoryServer(tables={"replies": {"recipient-ok": "Yes"}, "max_recipients": 1}) as server:
        answers = await (await server.connect()).send(HELLO, recipients=["a@example.test", "b@example.test"])
        assert answers[1] == f"{RECIPIENT_OK.code} {RECIPIENT_OK.status} Yes"
        assert answers[2].startswith("452 4.5.3")
