"""What a client of ours notices of the store behind us."""

from pathlib import Path
from typing import Any

import pytest
from lmtp_store import CLOSE, LmtpStore

from delivery_agents.lmtp import Lmtp
from smtpd import replies
from smtpd.memory import MemoryServer
from smtpd.model import Transaction
from smtpd.policy import PASS, Filter, Verdict

TEXT = "From: bob@sender.test\nSubject: x\n\n.A dot\n.\n..\nand no line end"


def server(store: LmtpStore | str, filters: dict[str, type[Filter]] | None = None, **options: Any) -> MemoryServer:
    address = store if isinstance(store, str) else store.address
    return MemoryServer(agents={"store": (Lmtp, {"address": address, **options})}, filters=filters)


def no(line: bytes, *names: bytes, say: bytes = b"550 5.1.1 User doesn't exist\r\n") -> bytes:
    return say if any(b"<%b@" % name in line for name in names) else b"250 2.1.5 Ok\r\n"


@pytest.mark.parametrize("chunking", [True, False])
async def test_message_reaches_the_store_as_it_was_sent(chunking: bool) -> None:
    async with LmtpStore() as store, server(store, chunking=chunking) as front:
        answers = await (await front.connect()).send(TEXT)
        assert answers[-1].startswith("250 2.0.0 Saved 1 [")
        (message,) = store.messages
        assert message.mail == b"MAIL FROM:<bob@sender.test> BODY=8BITMIME\r\n"
        assert message.recipients == [b"RCPT TO:<alice@example.test>\r\n"]
        end = TEXT.replace("\n", "\r\n").encode() + (b"" if chunking else b"\r\n")
        assert message.content.startswith(b"Received: from client.example ")
        assert message.content.endswith(b"\r\n" + end)
        assert store.visits[0].verbs == ["LHLO", "MAIL", "RCPT", "BDAT" if chunking else "DATA"]


@pytest.mark.parametrize("chunking", [True, False])
async def test_empty_message_is_delivered(chunking: bool) -> None:
    async with LmtpStore() as store, server(store, chunking=chunking) as front:
        assert (await (await front.connect()).send(b""))[-1].startswith("250 ")
        assert store.messages[0].content.count(b"\r\n") == 4


async def test_store_behind_a_unix_socket(directory: Path) -> None:
    async with LmtpStore(path=directory / "lmtp") as store, server(store) as front:
        assert (await (await front.connect()).send(TEXT))[-1].startswith("250 ")
        assert store.visits[0].commands[0] == b"LHLO mx.example.test\r\n"


async def test_data_is_used_where_the_store_knows_no_chunks() -> None:
    async with LmtpStore(offers=("PIPELINING",)) as store, server(store) as front:
        assert (await (await front.connect()).send(TEXT))[-1].startswith("250 ")
        assert "DATA" in store.visits[0].verbs
        assert store.messages[0].mail == b"MAIL FROM:<bob@sender.test>\r\n"


async def test_commands_come_one_by_one_where_the_store_cannot_take_more() -> None:
    async with LmtpStore(offers=("8BITMIME",)) as store, server(store) as front:
        talk = await front.connect()
        await talk.send(TEXT, recipients=["alice@example.test", "bob@example.test"])
        await talk.say(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<alice@example.test>\r\nRSET\r\n")
        assert (await talk.send(TEXT))[-1].startswith("250 ")
        assert len(store.messages) == 2


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (b"550 5.1.1 <x> User doesn't exist\r\n", "550 5.1.1 <x> User doesn't exist ["),
        (b"552 5.2.2 Mailbox full\r\n", "552 5.2.2 Mailbox full ["),
        (b"452-4.2.2 Mailbox\r\n452 4.2.2 full\r\n", "452 4.2.2 Mailbox full ["),
        (b"550 5.2.1 Disabled\r\n", "550 5.2.1 Disabled ["),
        (b"451 Temporary\r\n", "451 4.0.0 Temporary ["),
        (b"421 4.3.2 Closing\r\n", "451 4.3.2 Closing ["),
        (b"503 5.5.1 MAIL first\r\n", "451 4.4.1 The mail system cannot be reached"),
        (b"354 Go on\r\n", "451 4.4.1 "),
        (b"221 2.0.0 Bye\r\n", "451 4.4.1 "),
        (CLOSE, "451 4.4.2 The mail system ended the connection"),
    ],
)
async def test_what_the_store_says_of_a_recipient_is_heard_at_rcpt(say: bytes, heard: str) -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["RCPT"] = lambda line: no(line, b"eve", say=say)
        talk = await front.connect()
        answers = await talk.send(TEXT, recipients=["alice@example.test", "eve@example.test", "ann@example.test"])
        assert answers[1].startswith("250 2.1.5 ")
        assert answers[2].startswith(heard)
        assert answers[3].startswith("250 2.1.5 ")
        assert answers[4].startswith("250 2.0.0 ")
        assert [len(message.recipients) for message in store.messages] == [2]
        assert not talk.is_over


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (b"550 5.7.1 Not from him\r\n", "550 5.7.1 Not from him ["),
        (b"451 4.3.0 Later\r\n", "451 4.3.0 Later ["),
        (b"503 5.5.1 LHLO first\r\n", "451 4.4.1 "),
        (b"555 5.5.4 BODY is not known\r\n", "451 4.4.1 "),
    ],
)
async def test_what_the_store_says_of_the_sender_is_heard_by_the_recipient(say: bytes, heard: str) -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say |= {"MAIL": say, "RCPT": b"503 5.5.1 MAIL first\r\n"}
        talk = await front.connect()
        assert (await talk.send(TEXT))[1].startswith(heard)
        store.say.clear()
        assert (await talk.send(TEXT))[-1].startswith("250 ")


async def test_sender_that_is_refused_late_is_no_open_door() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["MAIL"] = b"550 5.7.1 Not from him\r\n"
        answers = await (await front.connect()).send(TEXT)
        assert answers[1].startswith("451 4.4.1 ")  # it takes the recipient all the same: nonsense
        assert store.messages == []


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (b"552 5.2.2 Mailbox full\r\n", "552 5.2.2 Mailbox full ["),
        (b"452 4.2.2 Mailbox full\r\n", "452 4.2.2 Mailbox full ["),
        (b"554 No\r\n", "554 5.0.0 No ["),
        (b"421 4.3.2 Closing\r\n", "451 4.4.2 The mail system did not say"),  # it may store it all the same
        (b"503 5.5.1 RCPT first\r\n", "451 4.4.2 The mail system did not say"),
        (b"354 Go on\r\n", "451 4.4.2 The mail system did not say"),
        (CLOSE, "451 4.4.2 The mail system did not say"),
    ],
)
async def test_what_the_store_says_of_the_message_is_heard_at_its_end(chunking: bool, say: bytes, heard: str) -> None:
    async with LmtpStore() as store, server(store, chunking=chunking) as front:
        store.say["content"] = say
        talk = await front.connect()
        assert (await talk.send(TEXT))[-1].startswith(heard)
        assert not talk.is_over
        store.say.clear()
        assert (await talk.send(TEXT))[-1].startswith("250 2.0.0 Saved 2 ")


async def test_each_recipient_has_an_answer_of_its_own() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["content"] = lambda line: no(line, b"bob", say=b"554 5.6.0 Not that\r\n")
        recipients = [f"{name}@example.test" for name in ("ann", "bob", "eve")]
        answers = await (await front.connect()).send(TEXT, recipients=recipients)
        assert answers[-1].startswith("550 5.0.0 Delivered, but not to bob@example.test: Not that ")


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (b"554 5.6.0 Not that\r\n", "554 5.6.0 Not that ["),
        (b"451 4.3.0 Later\r\n", "451 4.3.0 Later ["),
        (b"503 5.5.1 RCPT first\r\n", "451 4.4.1 "),
        (b"250 2.0.0 Ok\r\n", "451 4.4.1 "),
    ],
)
async def test_data_that_the_store_does_not_want_is_not_sent(say: bytes, heard: str) -> None:
    async with LmtpStore() as store, server(store, chunking=False) as front:
        store.say["DATA"] = say
        talk = await front.connect()
        assert (await talk.send(TEXT))[-1].startswith(heard)
        store.say.clear()
        assert (await talk.send(TEXT))[-1].startswith("250 2.0.0 Saved 1 ")


class Vetoes(Filter):
    """Refuses bob after the store was asked, and marks what eve gets."""

    name = "vetoes"
    labels = frozenset(("junk", "bulk"))

    async def on_message(self, mail: Transaction, message: object) -> Verdict:
        bobs = frozenset(recipient for recipient in mail.recipients if recipient.address.local == "bob")
        return Verdict(replies.DENIED_SENDER(address=mail.sender), recipients=bobs) if bobs else PASS


class Marks(Filter):
    """Marks every message."""

    name = "marks"
    labels = frozenset(("junk", "bulk"))

    async def on_message(self, mail: Transaction, message: object) -> Verdict:
        return Verdict(labels=self.labels)


async def test_recipient_that_a_filter_refuses_late_gets_nothing() -> None:
    async with LmtpStore() as store, server(store, {"vetoes": Vetoes}) as front:
        recipients = [f"{name}@example.test" for name in ("ann", "bob", "eve")]
        await (await front.connect()).send(TEXT, recipients=recipients)
        (message,) = store.messages
        assert message.recipients == [b"RCPT TO:<ann@example.test>\r\n", b"RCPT TO:<eve@example.test>\r\n"]
        assert store.visits[0].verbs[4:] == ["RCPT", "RSET", "MAIL", "RCPT", "RCPT", "DATA"]


async def test_recipient_that_is_refused_when_named_again_hears_so() -> None:
    async with LmtpStore() as store, server(store, {"vetoes": Vetoes}) as front:
        said: list[bytes] = []

        def once(line: bytes) -> bytes:
            said.append(line)
            return no(line, b"eve", say=b"452 4.2.2 Full by now\r\n") if said.count(line) > 1 else b"250 Ok\r\n"

        store.say["RCPT"] = once
        answers = await (await front.connect()).send(TEXT, recipients=["eve@example.test", "bob@example.test"])
        assert answers[-1].startswith(("451 4.3.0 Not delivered to everybody", "452 4.2.2 Full by now"))
        assert store.messages == []


async def test_label_becomes_the_detail_of_the_recipient() -> None:
    async with LmtpStore() as store, server(store, {"marks": Marks}, details={"virus": "V", "junk": "Junk"}) as front:
        recipients = ["ann@example.test", "bob+news@example.test", '"e e"@example.test']
        answers = await (await front.connect()).send(TEXT, recipients=recipients)
        assert answers[-1].startswith("250 ")
        names = [line[len(b"RCPT TO:<") : -len(b"@example.test>\r\n")] for line in store.messages[0].recipients]
        assert names == [b"ann+Junk", b"bob+Junk", b'"e e+Junk"']


async def test_labels_stand_in_the_field_that_the_operator_names() -> None:
    async with LmtpStore() as store, server(store, {"marks": Marks}, labels_field="X-Labels") as front:
        await (await front.connect()).send(TEXT)
        assert store.messages[0].content.startswith(b"X-Labels: bulk, junk\r\n")


async def test_nobody_can_write_the_labels_himself() -> None:
    async with LmtpStore() as store, server(store, labels_field="X-Labels") as front:
        await (await front.connect()).send("X-Labels: trusted\n\nx\n")
        assert store.messages[0].content.startswith(b"X-Labels: none\r\nReceived: ")


@pytest.mark.parametrize(
    "table",
    [
        {"address": "127.0.0.1:25"}, {"address": "[::1]:25"}, {"address": "127.0.0.1"}, {"address": "unix:"},
        {"address": "[::1:24"}, {"address": "a b:24"}, {"address": "host:0"}, {"address": "host:65536"},
        {"address": "unix:/" + "x" * 107}, {}, {"address": "unix:/x", "tls": "starttls"},
        {"address": "host:24", "details": {"junk": "a b"}}, {"address": "host:24", "details": {"junk": "a@b"}},
        {"address": "host:24", "labels_field": "X: y"}, {"address": "host:24", "labels_field": "X\r\nY"},
        {"address": "host:24", "connections": 0}, {"address": "host:24", "reply_timeout": 30},
        {"address": "host:24", "separator": "@"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Lmtp.Options.model_validate({"type": "lmtp", **table})


@pytest.mark.parametrize("address", ["unix:/run/dovecot/lmtp", "127.0.0.1:24", "[::1]:2003", "store.example:24"])
def test_addresses_come_in_three_forms(address: str) -> None:
    assert Lmtp.Options.model_validate({"type": "lmtp", "address": address}).address == address
