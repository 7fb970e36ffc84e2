"""Header sections of very many fields are judged without splitting them, which takes a microsecond for each field."""

from collections.abc import Callable

import pytest

from filters.dmarc_authors import find_authors
from filters.dmarc_outcome import Sampler
from filters.headers import Headers, HeadersOptions
from filters.own_domain import OwnDomain, OwnDomainOptions
from smtpd import replies
from smtpd.addresses import Address
from smtpd.config import LogOptions
from smtpd.content import Content
from smtpd.limits import ContentBudget
from smtpd.log import Log
from smtpd.memory import LogEntries, MemoryServer
from smtpd.metrics import Metrics
from smtpd.model import Message, Transaction
from smtpd.services import Services

MANY = b"a:\r\n" * 60_000


class Unsplit(Message):
    """Whoever wants all fields of it fails."""

    @property
    def fields(self) -> list[tuple[str, bytes]]:
        raise AssertionError("all fields are split")


def message(*fields: bytes, padding: bytes = MANY) -> Message:
    content = Content(ContentBudget(0), in_memory=1 << 24)
    content.write(padding + b"".join(fields) + b"\r\nFrom: b@body.test\r\n")
    return Unsplit(content)


@pytest.fixture
def services() -> Services:
    return Services(hostname="mx.test", log=Log(LogOptions(), sink=LogEntries()), metrics=Metrics())


@pytest.fixture
async def mail() -> Transaction:
    async with MemoryServer() as server:
        return Transaction("test", (await server.connect()).session, Address.null)


async def test_headers_refuses_them(services: Services, mail: Transaction) -> None:
    refused = await Headers("headers", HeadersOptions(), services).on_message(mail, message(b"From: joe@a.test\r\n"))
    problem = "The header section has more than 1000 fields"
    assert refused.reply == replies.BAD_HEADER(problem=problem)


async def test_own_domain_finds_the_author(services: Services, mail: Transaction) -> None:
    ours = OwnDomain("own_domain", OwnDomainOptions(domains=("a.test",)), services)
    assert (await ours.on_message(mail, message(b"From: joe@a.test\r\n"))).labels
    assert not (await ours.on_message(mail, message(b"From: joe@b.test\r\n"))).labels


def test_dmarc_finds_the_author() -> None:
    assert find_authors(message(b"From: joe@a.test\r\n")).domains == ("a.test",)
    problem = "A message has exactly one From field, not 20000"
    assert find_authors(message(padding=b"From:\r\n" * 20_000)).problem == problem


@pytest.mark.parametrize("field", [b"Message-ID: <%d@a.test>", b"Date: %d", b"From: %d@a.test"])
def test_dmarc_takes_samples(field: bytes) -> None:
    leaves_out: Callable[[Message, int], bool] = Sampler(b"key").leaves_out
    answers = {leaves_out(message(field % number + b"\r\n", padding=b"a:\r\n" * 1000), 50) for number in range(20)}
    assert answers == {True, False}
