import asyncio
from ipaddress import ip_address
from typing import Any

import pytest

from smtpd import delivery, replies
from smtpd.addresses import Address, parse_address
from smtpd.delivery import (
    MAX_REMEMBERED,
    Deliveries,
    Delivery,
    DeliveryAgent,
    Outcome,
    RememberedAnswers,
    combine,
)
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply


class Events:
    """Takes the place of the log: keeps what was written."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def error(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


class Storing(DeliveryAgent):
    """Answers what it is told to; never asks at RCPT."""

    def __init__(self, name: str = "store", answer: object = replies.ACCEPTED) -> None:
        super().__init__(name, AgentOptions(type="test"), None)  # type: ignore[arg-type]
        self.answer = answer
        self.seen: list[Transaction] = []

    async def deliver(self, mail: Transaction, message: Message) -> Outcome:
        self.seen.append(mail)
        answer: Any = self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer(mail) if callable(answer) and not isinstance(answer, Reply) else answer


class Asking(Storing):
    """Also has something to say at RCPT."""

    def __init__(self, name: str = "asking", verdict: object = None, **options: float) -> None:
        super().__init__(name)
        DeliveryAgent.__init__(self, name, AgentOptions(type="test", **options), None)  # type: ignore[arg-type]
        self.verdict: Any = verdict
        self.asked = 0

    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        self.asked += 1
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        return self.verdict


class Silent(Asking):
    async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
        await asyncio.Event().wait()
        return None

    async def deliver(self, mail: Transaction, message: Message) -> Outcome:
        await asyncio.Event().wait()
        return replies.ACCEPTED


class Tracked(Delivery):
    abandoned = 0

    async def abandon(self) -> None:
        Tracked.abandoned += 1
        raise OSError("broken")


class Opening(Asking):
    opened = 0

    def open(self, mail: Transaction) -> Delivery:
        self.opened += 1
        return Tracked(self, mail)


def transaction(*recipients: Recipient) -> Transaction:
    session = Session("s", "smtp", ip_address("192.0.2.1"))
    return Transaction("01TRACE", session, Address.null, recipients=list(recipients))


def recipient(agent: str = "store", local: str = "bob") -> Recipient:
    return Recipient(parse_address(f"{local}@example.com"), agent)


def deliveries(mail: Transaction, *agents: DeliveryAgent) -> tuple[Deliveries, Events]:
    events = Events()
    return Deliveries({agent.name: agent for agent in agents}, mail, events), events  # type: ignore[arg-type]


MESSAGE: Message = None  # type: ignore[assignment] # no agent here looks at it


async def test_one_agent_gets_the_transaction_and_its_reply_is_everybodys() -> None:
    agent, one, two = Storing(), recipient(), recipient(local="eve")
    mail = transaction(one, two)
    made, _ = deliveries(mail, agent)
    assert not made.asks(one)
    assert await made.deliver(MESSAGE) == {one: replies.ACCEPTED, two: replies.ACCEPTED}
    assert agent.seen[0].recipients == [one, two]


async def test_each_agent_sees_only_its_own_recipients() -> None:
    first, second = Storing("first"), Asking("second")
    one, two, three = recipient("first"), recipient("second", "eve"), recipient("first", "carl")
    mail = transaction()
    made, _ = deliveries(mail, first, second)
    assert await made.add(two) is None
    mail.recipients += [one, two, three]
    mail.labels = frozenset({"junk"})
    assert set(await made.deliver(MESSAGE)) == {one, two, three}
    assert first.seen[0].recipients == [one, three]
    assert second.seen[0].recipients == [two]
    assert second.seen[0].labels == {"junk"}
    assert mail.recipients == [one, two, three]


async def test_agents_of_one_message_work_at_the_same_time() -> None:
    arrived = asyncio.Barrier(2)

    class Meeting(Storing):
        async def deliver(self, mail: Transaction, message: Message) -> Outcome:
            await arrived.wait()
            return replies.ACCEPTED

    one, two = recipient("first"), recipient("second")
    made, _ = deliveries(transaction(one, two), Meeting("first"), Meeting("second"))
    async with asyncio.timeout(5):
        assert len(await made.deliver(MESSAGE)) == 2


async def test_recipient_refused_by_a_filter_after_the_agent_took_it_gets_nothing() -> None:
    agent, kept, refused = Asking(), recipient("asking"), recipient("asking", "eve")
    mail = transaction()
    made, _ = deliveries(mail, agent)
    await made.add(kept)
    await made.add(refused)
    mail.recipients.append(kept)
    assert await made.deliver(MESSAGE) == {kept: replies.ACCEPTED}
    assert agent.seen[0].recipients == [kept]


class Panic(BaseException):
    """As extension modules written in Rust raise it: no Exception."""


@pytest.mark.parametrize("problem", [RuntimeError("broken"), SystemExit(1), Panic()])
async def test_broken_agent_is_451_and_one_log_line(problem: BaseException) -> None:
    one = recipient()
    made, events = deliveries(transaction(one), Storing(answer=problem))
    assert await made.deliver(MESSAGE) == {one: replies.OUR_FAULT}
    assert events.lines == [("delivery-failed", {"agent": "store", "trace": "01TRACE", "exception": problem})]


@pytest.mark.parametrize("problem", [OSError("broken"), SystemExit(1), Panic()])
async def test_agent_broken_at_recipient_is_451(problem: BaseException) -> None:
    one = recipient("asking")
    made, events = deliveries(transaction(), Asking(verdict=problem))
    assert await made.add(one) is replies.OUR_FAULT
    assert len(events.lines) == 1


async def test_agent_that_is_silent_at_recipient_is_451(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "VERIFY_SECONDS", 0.01)
    made, events = deliveries(transaction(), Silent())
    async with asyncio.timeout(10):
        assert await made.add(recipient("asking")) is replies.BACKEND_TIMEOUT
    assert [event for event, _ in events.lines] == ["delivery-failed"]


async def test_unknown_agent_is_451() -> None:
    one = recipient("nowhere")
    made, _ = deliveries(transaction(one))
    assert made.asks(one)
    assert await made.add(one) is replies.OUR_FAULT
    assert await made.deliver(MESSAGE) == {one: replies.OUR_FAULT}


@pytest.mark.parametrize("at", ["recipient", "message"])
async def test_cancellation_inside_the_agent_is_a_failure_of_the_agent(at: str) -> None:
    one, agent = recipient("asking"), Asking(verdict=asyncio.CancelledError())
    agent.answer = asyncio.CancelledError()
    made, events = deliveries(transaction(one), agent)
    answer = await (made.add(one) if at == "recipient" else made.deliver(MESSAGE))
    assert answer == (replies.OUR_FAULT if at == "recipient" else {one: replies.OUR_FAULT})
    assert len(events.lines) == 1


@pytest.mark.parametrize("at", ["recipient", "message"])
async def test_our_own_cancellation_goes_through(at: str) -> None:
    one = recipient("asking")
    made, events = deliveries(transaction(one), Silent())
    task: asyncio.Task[object] = asyncio.create_task(made.add(one) if at == "recipient" else made.deliver(MESSAGE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events.lines == []


@pytest.mark.parametrize("answer", [None, "250 ok", replies.SEND_DATA, {}, 250])
async def test_nonsense_from_an_agent_is_451(answer: object) -> None:
    one, two = recipient(), recipient(local="eve")
    made, events = deliveries(transaction(one, two), Storing(answer=answer))
    assert await made.deliver(MESSAGE) == {one: replies.OUR_FAULT, two: replies.OUR_FAULT}
    assert events.lines


async def test_recipients_missing_in_the_answer_are_451() -> None:
    one, two = recipient(), recipient(local="eve")
    stranger = recipient(local="stranger")
    answer = {one: replies.ACCEPTED, stranger: replies.ACCEPTED}
    made, _ = deliveries(transaction(one, two), Storing(answer=answer))
    assert await made.deliver(MESSAGE) == {one: replies.ACCEPTED, two: replies.OUR_FAULT}


async def test_positive_word_at_recipient_is_a_yes_and_354_is_not() -> None:
    made, _ = deliveries(transaction(), Asking(verdict=replies.RECIPIENT_OK))
    assert await made.add(recipient("asking")) is None
    made, _ = deliveries(transaction(), Asking(verdict=replies.SEND_DATA))
    assert await made.add(recipient("asking")) is replies.OUR_FAULT


async def test_abandon_reaches_every_open_delivery_once_though_each_breaks() -> None:
    Tracked.abandoned = 0
    made, _ = deliveries(transaction(), Opening("a"), Opening("b"))
    await made.add(recipient("a"))
    await made.add(recipient("a", "eve"))
    await made.add(recipient("b"))
    await made.abandon()
    await made.abandon()
    assert Tracked.abandoned == 2


async def test_what_was_opened_at_rcpt_gets_the_message_or_is_abandoned_when_no_recipient_is_left() -> None:
    Tracked.abandoned = 0
    one, kept, mail = recipient("b"), Opening("b"), transaction()
    made, _ = deliveries(mail, Opening("a"), kept)
    await made.add(recipient("a"))
    await made.add(one)
    mail.recipients.append(one)
    assert await made.deliver(MESSAGE) == {one: replies.ACCEPTED}
    await made.abandon()
    assert (Tracked.abandoned, kept.opened) == (1, 1)


async def test_nothing_is_remembered_by_default() -> None:
    agent = Asking()
    for _ in range(2):
        made, _ = deliveries(transaction(), agent)
        await made.add(recipient("asking"))
    assert agent.asked == 2


@pytest.mark.parametrize(
    ("verdict", "options", "asked"),
    [
        (None, {"remember_known": 60}, 1),
        (None, {"remember_unknown": 60}, 2),
        (replies.NO_SUCH_USER, {"remember_unknown": 60}, 1),
        (replies.NO_SUCH_USER, {"remember_known": 60}, 2),
        (replies.MAILBOX_FULL, {"remember_known": 60, "remember_unknown": 60}, 2),
        (replies.MAILBOX_FULL_PERMANENTLY, {"remember_known": 60, "remember_unknown": 60}, 2),
        (replies.BACKEND_DOWN, {"remember_known": 60, "remember_unknown": 60}, 2),
        (replies.RELAY_DENIED, {"remember_known": 60, "remember_unknown": 60}, 2),
    ],
)
async def test_only_known_and_unknown_recipients_are_remembered(
    verdict: Reply | None, options: dict[str, float], asked: int
) -> None:
    agent = Asking("asking", verdict, **options)
    for _ in range(2):
        made, _ = deliveries(transaction(), agent)
        assert await made.add(recipient("asking")) is verdict
    assert agent.asked == asked


async def test_remembered_recipient_is_delivered_to() -> None:
    agent = Asking("asking", None, remember_known=60)
    for _ in range(2):
        one, mail = recipient("asking"), transaction()
        made, _ = deliveries(mail, agent)
        await made.add(one)
        mail.recipients.append(one)
        assert await made.deliver(MESSAGE) == {one: replies.ACCEPTED}
    assert agent.asked == 1


async def test_agent_with_a_delivery_of_its_own_hears_of_every_recipient() -> None:
    agent = Opening("asking", None, remember_known=60)
    for _ in range(2):
        made, _ = deliveries(transaction(), agent)
        await made.add(recipient("asking"))
    assert agent.asked == 2


@pytest.mark.parametrize("options", [{"remember_known": 61}, {"remember_unknown": "6m"}])
def test_answers_cannot_be_remembered_for_longer_than_promised(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="less than or equal"):
        AgentOptions(type="test", **options)


def test_memory_expires_and_is_bounded() -> None:
    now = [0.0]
    memory = RememberedAnswers(known=10, unknown=20, clock=lambda: now[0])
    memory.put("a", None)
    memory.put("b", replies.NO_SUCH_USER)
    assert memory.get("a") == (True, None)
    now[0] = 10.0
    assert memory.get("a") == (False, None)
    assert memory.get("b") == (True, replies.NO_SUCH_USER)
    for number in range(MAX_REMEMBERED + 5):
        memory.put(str(number), None)
    assert memory.get("b") == (False, None)
    assert memory.get("4") == (False, None)
    assert memory.get("5") == (True, None)


def test_new_answer_replaces_the_remembered_one() -> None:
    memory = RememberedAnswers(known=10, unknown=20, clock=lambda: 0.0)
    memory.put("a", None)
    memory.put("a", replies.MAILBOX_FULL)
    assert memory.get("a") == (False, None)


TWO, TEMPORARY = replies.ACCEPTED, replies.MAILBOX_FULL
UNKNOWN, FULL, REFUSED = replies.NO_SUCH_USER, replies.MAILBOX_FULL_PERMANENTLY, replies.MAIL_LOOP


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([TWO], "250 2.0.0"),
        ([TWO, TWO], "250 2.0.0"),
        ([TEMPORARY], "452 4.2.2"),
        ([TEMPORARY, replies.OUR_FAULT], "452 4.2.2"),
        ([UNKNOWN], "550 5.1.1"),
        ([REFUSED, UNKNOWN], "554 5.4.6"),
        ([TWO, TEMPORARY], "451 4.3.0"),
        ([TEMPORARY, TWO], "451 4.3.0"),
        ([TWO, UNKNOWN], "451 4.3.0"),
        ([FULL, TWO], "451 4.3.0"),
        ([TWO, REFUSED], "550 5.0.0"),
        ([TWO, TEMPORARY, REFUSED], "451 4.3.0"),
        ([TWO, UNKNOWN, REFUSED], "451 4.3.0"),
        ([TEMPORARY, UNKNOWN], "451 4.3.0"),
        ([REFUSED, TEMPORARY], "451 4.3.0"),
        ([], "451 4.3.0"),
    ],
)
def test_mixed_outcomes_follow_the_table(outcomes: list[Reply], expected: str) -> None:
    reply = combine({recipient(local=f"r{number}"): reply for number, reply in enumerate(outcomes)}, prdr=False)
    assert f"{reply.code} {reply.status}" == expected


def test_refused_recipients_are_named() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): REFUSED}
    assert "bad@example.com" in str(combine(outcomes, prdr=False))
    assert "good@example.com" not in str(combine(outcomes, prdr=False))


def test_client_that_has_to_come_back_hears_what_is_wrong_with_the_others() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): FULL(address="bad@example.com")}
    reply = combine(outcomes, prdr=False)
    assert str(reply) == (
        "451 4.3.0 Not delivered to everybody, please try again later: The mailbox of bad@example.com is full"
    )


def test_filter_that_refused_some_recipients_is_named_behind_the_one_reply() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): replies.DENIED_CLIENT(ip="::1", filter="access")}
    assert combine(outcomes, prdr=False).values["filter"] == "access"


def test_with_prdr_one_success_is_enough_for_the_last_reply() -> None:
    outcomes = {recipient(local="good"): TWO, recipient(local="bad"): TEMPORARY}
    assert combine(outcomes, prdr=True) is TWO


def test_what_asks_is_found_out_from_the_class() -> None:
    def asks(agent: DeliveryAgent) -> bool:
        return deliveries(transaction(), agent)[0].asks(recipient(agent.name))

    assert (asks(Storing()), asks(Asking()), asks(Opening())) == (False, True, True)
