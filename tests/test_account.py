"""What is counted and logged of a conversation."""

import pytest
from stage import CONTENT, Answer, Stage

from smtpd import replies
from smtpd.model import Message, Transaction
from smtpd.policy import Filter, Verdict
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
