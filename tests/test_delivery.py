import asyncio
from typing import Any

import pytest
from agents import Asking, Opening, Silent, Storing, Tracked, deliveries, recipient, transaction

from smtpd import delivery, replies
from smtpd.delivery import MAX_REMEMBERED, AgentAnswer, Delivery, DeliveryAgent, RememberedAnswers
from smtpd.model import Message, Recipient, Transaction
from smtpd.options import AgentOptions
from smtpd.replies import Reply

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
        async def deliver(self, mail: Transaction, message: Message) -> AgentAnswer:
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


@pytest.mark.parametrize("answer", ["250 ok", True, False, 250, Reply("go-on", 354, "", "Go on"), ValueError])
async def test_answer_at_recipient_that_is_none_is_451_and_one_log_line(answer: object) -> None:
    made, events = deliveries(transaction(), Asking(verdict=answer))
    assert await made.add(recipient("asking")) is replies.OUR_FAULT
    assert [(event, fields["agent"], fields["answer"]) for event, fields in events.lines] == [
        ("delivery-answer-unusable", "asking", repr(answer))
    ]


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Liar(dict[Recipient, Reply]):
    def get(self, *_: object) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize("answer", [Shy(), Liar()])
async def test_answer_that_cannot_even_be_looked_at_is_451_and_one_log_line(answer: object) -> None:
    one = recipient()
    made, events = deliveries(transaction(one), Storing(answer=answer))
    assert await made.deliver(MESSAGE) == {one: replies.OUR_FAULT}
    assert [fields["agent"] for _, fields in events.lines] == ["store"]


async def test_recipient_without_an_answer_is_named_in_the_log() -> None:
    one, other = recipient(), recipient(local="eve")
    made, events = deliveries(transaction(one, other), Storing(answer={one: replies.ACCEPTED}))
    assert await made.deliver(MESSAGE) == {one: replies.ACCEPTED, other: replies.OUR_FAULT}
    assert [fields["answer"] for _, fields in events.lines] == ["None for eve@example.com"]


async def test_agent_is_named_that_strikes_recipients_off_the_list() -> None:
    def strike(mail: Transaction) -> Reply:
        mail.recipients.remove(one)
        return replies.ACCEPTED

    one, other = recipient(), recipient(local="eve")
    made, events = deliveries(transaction(one, other), Storing(answer=strike))
    assert await made.deliver(MESSAGE) == {one: replies.OUR_FAULT, other: replies.ACCEPTED}
    assert [(event, fields["agent"]) for event, fields in events.lines] == [("delivery-answer-unusable", "store")]


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


class Sulking(Tracked):
    async def abandon(self) -> None:
        problem: Any = self.agent.verdict  # type: ignore[attr-defined]
        if problem is None:
            await asyncio.Event().wait()
        raise problem


@pytest.mark.parametrize("problem", [OSError("broken"), SystemExit(1), Panic(), asyncio.CancelledError(), None])
async def test_delivery_that_cannot_be_abandoned_is_one_log_line(
    problem: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Grumpy(Asking):
        def open(self, mail: Transaction) -> Delivery:
            return Sulking(self, mail)

    Tracked.abandoned = 0
    agent = Grumpy("a")
    made, events = deliveries(transaction(), agent, Opening("b"))
    await made.add(recipient("a"))
    await made.add(recipient("b"))
    agent.verdict = problem
    monkeypatch.setattr("smtpd.delivery.VERIFY_SECONDS", 0.01)
    async with asyncio.timeout(10):
        await made.abandon()
    assert [(event, fields["agent"]) for event, fields in events.lines] == [
        ("delivery-failed", "a"),
        ("delivery-failed", "b"),
    ]
    assert Tracked.abandoned == 1


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


def test_what_asks_is_found_out_from_the_class() -> None:
    def asks(agent: DeliveryAgent) -> bool:
        return deliveries(transaction(), agent)[0].asks(recipient(agent.name))

    assert (asks(Storing()), asks(Asking()), asks(Opening())) == (False, True, True)
