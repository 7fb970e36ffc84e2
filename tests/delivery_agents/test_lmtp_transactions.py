"""One delivery, without a server of ours around it: what the store offers, lost connections, cancelling, memory."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from lmtp_store import CLOSE, HANG, LmtpStore, until
from log_lines import Lines

from delivery_agents.lmtp import Lmtp, LmtpOptions
from smtpd import replies
from smtpd.addresses import parse_address
from smtpd.config import LogOptions
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.services import Services

BASIC = ("PIPELINING", "ENHANCEDSTATUSCODES")


@asynccontextmanager
async def agent_for(store: LmtpStore | str, **options: Any) -> AsyncIterator[Lmtp]:
    address = store if isinstance(store, str) else store.address
    lines = Lines()
    log = Log(LogOptions(), sink=lines)
    services = Services(hostname="mx.test", log=log, metrics=Metrics())
    agent = Lmtp("store", LmtpOptions(type="lmtp", address=address, **options), services)
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()
        log.close()


def mail(**parts: Any) -> Transaction:
    sender = parse_address(parts.pop("sender", "bob@sender.test"))
    return Transaction("01T", Session("s", "smtp", ip_address("192.0.2.1")), sender, **parts)


def to(text: str, mailbox: str = "") -> Recipient:
    return Recipient(parse_address(text), "store", parse_address(mailbox) if mailbox else None)


def message(text: bytes = b"Subject: x\r\n\r\nbody\r\n") -> Message:
    content = Content(ContentBudget(0), in_memory=1 << 30)
    content.write(text)
    return Message(content)


ANN, BOB = to("ann@example.test"), to("bob@example.test")


async def deliver(agent: Lmtp, envelope: Transaction, *recipients: Recipient, text: bytes = b"x: y\r\n\r\n") -> Any:
    """Like `Deliveries`: a refusal at RCPT, or what became of each recipient."""
    delivery = agent.open(envelope)
    for recipient in recipients:
        if reply := await delivery.recipient(recipient):
            await delivery.abandon()
            return reply
        envelope.recipients.append(recipient)
    return await delivery.deliver(message(text))


def heard(outcome: Any) -> Any:
    """Replies by what a client would hear."""
    if isinstance(outcome, dict):
        return {recipient: heard(reply) for recipient, reply in outcome.items()}
    return outcome if outcome is None else str(outcome)


async def test_size_is_announced_where_the_store_wants_to_know() -> None:
    async with LmtpStore(offers=("SIZE 1000",)) as store, agent_for(store) as agent:
        await deliver(agent, mail(size=600), ANN)
        assert store.messages[0].mail == b"MAIL FROM:<bob@sender.test> SIZE=600\r\n"


@pytest.mark.parametrize("offer", ["SIZE", "SIZE 0", "SIZE x", "SIZE 1000"])
async def test_size_without_a_limit_is_none(offer: str) -> None:
    async with LmtpStore(offers=(offer,)) as store, agent_for(store) as agent:
        assert (await deliver(agent, mail(size=900), ANN, text=b"x" * 900))[ANN].code == 250


async def test_announced_size_over_that_of_the_store_is_refused_at_rcpt() -> None:
    async with LmtpStore(offers=("SIZE 1000",)) as store, agent_for(store) as agent:
        reply = await agent.open(mail(size=1001)).recipient(ANN)
        assert heard(reply) == "552 5.3.4 Message bigger than 1000 octets"
        assert store.visits[0].verbs == ["LHLO"]


async def test_message_over_the_size_of_the_store_is_refused_at_its_end() -> None:
    async with LmtpStore(offers=("SIZE 100",)) as store, agent_for(store) as agent:
        too_big = "552 5.3.4 Message bigger than 100 octets"
        assert heard(await deliver(agent, mail(), ANN, BOB, text=b"x" * 101)) == {ANN: too_big, BOB: too_big}
        assert (await deliver(agent, mail(), ANN, text=b"x" * 98 + b"\r\n"))[ANN].code == 250
        assert len(store.visits) == 1


async def test_announced_8_bit_content_is_refused_at_rcpt_where_the_store_cannot_take_it() -> None:
    async with LmtpStore(offers=BASIC) as store, agent_for(store) as agent:
        reply = await agent.open(mail(body="8BITMIME")).recipient(ANN)
        assert heard(reply) == "554 5.6.3 ann@example.test cannot receive content beyond ASCII"


async def test_8_bit_content_is_refused_where_the_store_cannot_take_it() -> None:
    async with LmtpStore(offers=BASIC) as store, agent_for(store) as agent:
        outcome = await deliver(agent, mail(), ANN, text=b"x: caf\xc3\xa9\r\n")
        assert heard(outcome) == {ANN: "554 5.6.3 ann@example.test cannot receive content beyond ASCII"}
        assert store.messages == []
        assert (await deliver(agent, mail(), ANN))[ANN].code == 250


async def test_utf8_in_header_fields_is_delivered_without_smtputf8() -> None:
    async with LmtpStore(offers=("8BITMIME",)) as store, agent_for(store) as agent:
        assert (await deliver(agent, mail(), ANN, text=b"Subject: caf\xc3\xa9\r\n"))[ANN].code == 250
        assert not agent.carries_utf8


async def test_smtputf8_is_asked_for_where_it_is_needed() -> None:
    async with LmtpStore(offers=("SMTPUTF8", "8BITMIME")) as store, agent_for(store) as agent:
        assert agent.carries_utf8
        await deliver(agent, mail(smtputf8=True), ANN)
        await deliver(agent, mail(), to("jörg@example.test"))
        await deliver(agent, mail(), ANN)
        parameters = [message.mail.decode().partition("> ")[2].strip() for message in store.messages]
        assert parameters == ["BODY=8BITMIME SMTPUTF8", "BODY=8BITMIME SMTPUTF8", "BODY=8BITMIME"]
        assert store.messages[1].recipients == ["RCPT TO:<jörg@example.test>\r\n".encode()]


async def test_later_recipient_beyond_ascii_takes_the_others_along() -> None:
    async with LmtpStore(offers=("SMTPUTF8", "PIPELINING")) as store, agent_for(store) as agent:
        outcome = await deliver(agent, mail(), ANN, to("jörg@example.test"), BOB)
        assert [reply.code for reply in outcome.values()] == [250, 250, 250]
        (message,) = store.messages
        assert message.mail.endswith(b" SMTPUTF8\r\n")
        assert len(message.recipients) == 3


@pytest.mark.parametrize("local", ["a\u200bb", "a\u00adb", "\ue000", '"a\u00a0b"'])
async def test_letters_that_are_not_shown_are_letters_all_the_same(local: str) -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        outcome = await deliver(agent, mail(sender=f"{local}@sender.test"), to(f"{local}@example.test"))
        assert [reply.code for reply in outcome.values()] == [250]
        assert store.messages[0].recipients == [f"RCPT TO:<{local}@example.test>\r\n".encode()]


async def test_limit_that_no_message_reaches_is_none() -> None:
    async with LmtpStore(offers=("SIZE " + "9" * 5000,)) as store, agent_for(store) as agent:
        assert (await deliver(agent, mail(size=100), ANN))[ANN].code == 250


async def test_mail_that_needs_smtputf8_is_refused_where_the_store_cannot_take_it() -> None:
    async with LmtpStore(offers=("8BITMIME",)) as store, agent_for(store) as agent:
        for envelope, recipient in ((mail(smtputf8=True), ANN), (mail(), to("ann@example.test", "jörg@example.test"))):
            reply = await agent.open(envelope).recipient(recipient)
            assert heard(reply) == "553 5.6.7 ann@example.test cannot receive mail that needs SMTPUTF8"


async def test_offers_are_those_of_the_newest_connection() -> None:
    async with LmtpStore(offers=("SMTPUTF8",)) as store, agent_for(store) as agent:
        assert agent.carries_utf8
        await store.stop()
        store.offers = ()
        await store.start()
        await deliver(agent, mail(), ANN)
        assert not agent.carries_utf8


async def test_same_mailbox_is_named_once() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        first, second = to("a@example.test", "ann@example.test"), to("b@example.test", "ann@example.test")
        outcome = await deliver(agent, mail(), first, BOB, second)
        assert [reply.code for reply in outcome.values()] == [250, 250, 250]
        assert len(store.messages[0].recipients) == 2
        assert store.visits[0].verbs == ["LHLO", "MAIL", "RCPT", "RCPT", "BDAT"]


@pytest.mark.parametrize(
    ("address", "folder", "said"),
    [
        ("ann@example.test", "News", "ann+News@example.test"),
        ("ann+x@example.test", "Lists/Python", "ann+Lists/Python@example.test"),
        ("ann@example.test", "My mail", '"ann+My mail"@example.test'),
        ('"a b"@example.test', "News", '"a b+News"@example.test'),
        ("+@example.test", "News", "++News@example.test"),
    ],
)
async def test_folder_of_the_recipient_map_becomes_the_detail(address: str, folder: str, said: str) -> None:
    async with LmtpStore() as store, agent_for(store, details={"junk": "Junk"}) as agent:
        await deliver(agent, mail(), replace(to(address), folder=folder))
        assert store.messages[0].recipients == [f"RCPT TO:<{said}>\r\n".encode()]


async def test_connection_that_the_store_wants_to_close_is_not_used_again() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        store.say["content"] = b"421 4.3.2 Closing\r\n"
        assert await deliver(agent, mail(), ANN) == {ANN: replies.OUTCOME_UNKNOWN}
        store.say.clear()
        assert (await deliver(agent, mail(), ANN))[ANN].code == 250
        assert len(store.visits) == 2


async def test_address_cannot_smuggle_a_command() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        address = replace(ANN.address, text="ann@example.test>\r\nRCPT TO:<eve@example.test")
        with pytest.raises(ValueError, match="control character"):
            await agent.open(mail()).recipient(Recipient(address, "store"))
        assert (await deliver(agent, mail(), ANN))[ANN].code == 250


@pytest.mark.parametrize("chunking", [True, False])
async def test_connection_lost_before_the_content_is_replaced(chunking: bool) -> None:
    async with LmtpStore() as store, agent_for(store, chunking=chunking) as agent:
        envelope = mail()
        delivery = agent.open(envelope)
        for recipient in (ANN, BOB):
            assert await delivery.recipient(recipient) is None
            envelope.recipients.append(recipient)
        await store.stop()
        await store.start()
        outcome = await delivery.deliver(message())
        assert isinstance(outcome, dict)
        assert [reply.code for reply in outcome.values()] == [250, 250]
        assert len(store.messages) == 1


async def test_connection_lost_between_recipients_is_replaced() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        envelope = mail()
        delivery = agent.open(envelope)
        envelope.recipients += [ANN, BOB]
        assert await delivery.recipient(ANN) is None
        await store.stop()
        await store.start()
        assert await delivery.recipient(BOB) is None
        await delivery.deliver(message())
        assert len(store.messages[0].recipients) == 2


async def test_connection_lost_at_data_is_replaced() -> None:
    async with LmtpStore() as store, agent_for(store, chunking=False) as agent:
        said = iter([CLOSE, b"354 Go on\r\n"])
        store.say["DATA"] = lambda line: next(said)
        assert (await deliver(agent, mail(), ANN))[ANN].code == 250
        assert len(store.messages) == 1


async def test_store_that_closes_at_every_data_is_given_up() -> None:
    async with LmtpStore() as store, agent_for(store, chunking=False) as agent:
        store.say["DATA"] = CLOSE
        assert await deliver(agent, mail(), ANN) == {ANN: replies.BACKEND_LOST}


@pytest.mark.parametrize("answered", [0, 1, 2])
async def test_answers_that_are_missing_are_unknown(answered: int) -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        said = iter([b"250 2.0.0 Saved\r\n"] * answered + [CLOSE])
        store.say["content"] = lambda line: next(said)
        outcome = await deliver(agent, mail(), ANN, BOB, to("eve@example.test"))
        unknown = [reply == replies.OUTCOME_UNKNOWN for reply in outcome.values()]
        assert unknown == [False] * answered + [True] * (3 - answered)
        assert [reply.code for reply in outcome.values()] == [250] * answered + [451] * (3 - answered)


async def test_store_that_is_silent_about_a_recipient_is_too_slow() -> None:
    async with LmtpStore() as store, agent_for(store, reply_timeout=0.05) as agent:
        store.say["RCPT"] = HANG
        assert await deliver(agent, mail(), ANN) is replies.BACKEND_TIMEOUT


@pytest.mark.parametrize(("offers", "unheard"), [((), b""), (("PIPELINING",), b"MAIL")])
async def test_nothing_is_said_behind_rset_where_the_store_wants_one_command_at_a_time(
    offers: tuple[str, ...], unheard: bytes
) -> None:
    async with LmtpStore(offers=offers) as store, agent_for(store, reply_timeout=0.05) as agent:
        store.say["RSET"] = HANG
        delivery = agent.open(mail())
        await delivery.recipient(ANN)
        await delivery.abandon()
        assert await agent.open(mail()).recipient(ANN) is replies.BACKEND_TIMEOUT
        assert store.visits[0].unheard == unheard


async def test_store_that_is_silent_about_the_content_leaves_us_in_the_dark() -> None:
    async with LmtpStore() as store, agent_for(store, delivery_timeout=0.05) as agent:
        store.say["content"] = HANG
        assert await deliver(agent, mail(), ANN) == {ANN: replies.OUTCOME_UNKNOWN}


async def test_store_that_is_silent_behind_data_was_given_nothing() -> None:
    async with LmtpStore() as store, agent_for(store, delivery_timeout=0.05, chunking=False) as agent:
        store.say["DATA"] = HANG
        assert await deliver(agent, mail(), ANN) == {ANN: replies.BACKEND_TIMEOUT}


async def test_store_that_does_not_read_was_given_nothing() -> None:
    async with LmtpStore() as store, agent_for(store, delivery_timeout=0.05) as agent:
        store.may_read = asyncio.Event()
        outcome = await agent.open(mail(recipients=[ANN])).deliver(Message(Endless(100)))
        assert outcome == {ANN: replies.BACKEND_TIMEOUT}


async def test_answer_that_comes_too_late_is_nobodys() -> None:
    async with LmtpStore() as store, agent_for(store, reply_timeout=0.05) as agent:
        store.say["RCPT"] = HANG
        assert await deliver(agent, mail(), ANN) is replies.BACKEND_TIMEOUT
        store.say["RCPT"] = b"250 2.1.5 Ok\r\n"
        await deliver(agent, mail(), BOB)
        assert [visit.verbs[:2] for visit in store.visits] == [["LHLO", "MAIL"]] * 2


@pytest.mark.parametrize("text", ["250 2.0.0 Saved", "554 5.6.0 No"])
async def test_answer_before_the_end_of_the_message_is_not_believed(text: str) -> None:
    async with LmtpStore() as store, agent_for(store, chunking=False) as agent:
        store.say["DATA"] = f"354 Go on\r\n{text}\r\n".encode()
        assert await deliver(agent, mail(), ANN) == {ANN: replies.BACKEND_DOWN}


async def test_answer_while_the_end_of_the_message_is_still_ours_is_not_believed(directory: Path) -> None:
    async with LmtpStore(path=directory / "lmtp") as store, agent_for(store) as agent:
        store.may_read = asyncio.Event()
        delivery = agent.open(mail(recipients=[ANN]))
        assert await delivery.recipient(ANN) is None
        task = asyncio.create_task(delivery.deliver(message(b"x" * (4 << 20))))
        await until(lambda: store.visits[0].verbs[-1] == "BDAT")
        store.shout(b"250 2.0.0 Saved\r\n")
        assert await task == {ANN: replies.OUTCOME_UNKNOWN}


async def test_answer_too_many_makes_all_of_them_doubtful() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        store.say["RCPT"] = b"250 2.1.5 Ok\r\n550 5.1.1 No\r\n"
        assert await deliver(agent, mail(), ANN) is replies.BACKEND_DOWN
        store.say.clear()
        store.say["content"] = b"250 2.0.0 Saved\r\n250 2.0.0 Saved\r\n"
        assert await deliver(agent, mail(), ANN) == {ANN: replies.OUTCOME_UNKNOWN}


async def test_closing_notice_behind_the_answers_takes_nothing_back() -> None:
    async with LmtpStore() as store, agent_for(store) as agent:
        store.say["content"] = b"250 2.0.0 Saved\r\n421 4.3.2 Bye\r\n"
        assert heard(await deliver(agent, mail(), ANN)) == {ANN: "250 2.0.0 Saved"}
        store.say.clear()
        assert (await deliver(agent, mail(), ANN))[ANN].code == 250
        assert len(store.visits) == 2


class Endless:
    """Content that is made while it is asked for; `asked` is how far that is."""

    def __init__(self, blocks: int) -> None:
        self.size = blocks << 18
        self.asked = 0

    def chunks(self) -> Iterator[bytes]:
        for _ in range(self.size >> 18):
            self.asked += 1
            yield (b"x" * 62 + b"\r\n") * (1 << 12)

    def head(self) -> bytes:
        return b""

    def close(self) -> None: ...


@pytest.mark.parametrize("chunking", [True, False])
async def test_big_message_is_read_as_fast_as_the_store_takes_it(directory: Path, chunking: bool) -> None:
    async with LmtpStore(path=directory / "lmtp") as store, agent_for(store, chunking=chunking) as agent:
        store.may_read = asyncio.Event()
        content, delivery = Endless(40), agent.open(mail(recipients=[ANN]))
        assert await delivery.recipient(ANN) is None
        task = asyncio.create_task(delivery.deliver(Message(content)))
        await until(lambda: store.visits[0].verbs[-1] == ("BDAT" if chunking else "DATA"))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert 1 <= content.asked <= 6  # two blocks of ours, and what the two ends of the socket hold
        store.may_read.set()
        outcome = await task
        assert isinstance(outcome, dict)
        assert outcome[ANN].code == 250
        assert len(store.messages[0].content) == content.size
