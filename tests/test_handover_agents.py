"""Agents that do with the list of recipients what they like."""

from collections.abc import Mapping

from letters import ANN, BOB, LATER, LMTP, letter, send
from stage import Stage, codes

from smtpd import replies
from smtpd.model import Message, Recipient, Transaction
from smtpd.replies import Reply


async def test_recipient_that_an_agent_strikes_off_the_list_is_not_accepted_with_the_others() -> None:
    async def answer(mail: Transaction, message: Message) -> Reply:
        del mail.recipients[0]
        return replies.ACCEPTED

    async with Stage(answer=answer) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["451"]
        assert codes(await send(stage.talk(), letter(), ANN)) == ["451"]


async def test_recipients_that_an_agent_puts_in_another_order_keep_their_answers() -> None:
    async def answer(mail: Transaction, message: Message) -> Mapping[Recipient, Reply]:
        given = dict(zip(mail.recipients, (replies.ACCEPTED, LATER), strict=True))
        mail.recipients.reverse()
        return given

    async with Stage(answer=answer, listener=LMTP) as stage:
        assert codes(await send(stage.talk(), letter(), ANN, BOB)) == ["250", "452"]
        (line,) = stage.events("message")
        assert line["recipients"] == [ANN, BOB]
