from ipaddress import ip_address

import pytest

from delivery_agents.discard import Discard, DiscardOptions
from smtpd import replies
from smtpd.addresses import Address, parse_address
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.metrics import Metrics
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.services import Services


def make(options: DiscardOptions) -> tuple[Discard, Metrics]:
    metrics = Metrics()
    return Discard("hole", options, Services(hostname="mx.test", log=None, metrics=metrics)), metrics  # type: ignore[arg-type]


def test_configuration_without_the_word_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="allow_discard = true"):
        DiscardOptions(type="discard")


async def test_start_refuses_however_the_options_were_made() -> None:
    agent, _ = make(DiscardOptions.model_construct(type="discard", allow_discard=False))
    with pytest.raises(ValueError, match=r"agent hole: .*allow_discard"):
        await agent.start()


async def test_discarded_mail_is_accepted_and_counted_apart() -> None:
    agent, metrics = make(DiscardOptions(type="discard", allow_discard=True))
    await agent.start()
    recipient = Recipient(parse_address("bob@example.com"), "hole")
    mail = Transaction("t", Session("s", "smtp", ip_address("192.0.2.1")), Address.null, recipients=[recipient])
    message = Message(Content(ContentBudget(0), in_memory=1024))
    assert not agent.asks
    assert await agent.deliver(mail, message) is replies.ACCEPTED
    assert await agent.deliver(mail, message) is replies.ACCEPTED
    assert 'smtpd_discarded_messages_total{agent="hole"} 2' in metrics.exposition()[0].decode()
    await agent.stop()
