from ipaddress import IPv4Address

import pytest

from smtpd.addresses import parse_address
from smtpd.findings import DkimResults, DkimSignature, DmarcResult, SpfCheck, SpfResults, results_told
from smtpd.memory import MemoryServer
from smtpd.model import Message, Session, Transaction
from smtpd.policy import PASS, Filter, Verdict


class Quick(Filter):
    name = "quick"
    gives = (DkimResults,)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        mail.facts.add(DkimResults())
        return PASS


class Slow(Filter):
    name = "slow"
    needs = (DkimResults,)
    gives = (SpfResults,)

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        mail.facts.add(SpfResults(SpfCheck("none", "mailfrom", "c.test", "joe@c.test")))
        return PASS


async def test_results_stand_in_the_same_order_whatever_was_known_first() -> None:
    async with MemoryServer(filters={"quick": Quick, "slow": Slow}) as server:
        await (await server.connect()).send("From: joe@c.test\n\nHi\n")
        field = server.delivered[-1].content.partition(b"\r\nReceived:")[0]
    assert field.index(b"spf=none") < field.index(b"dkim=none")


@pytest.mark.parametrize(
    ("signatures", "shown"),
    [
        (["abcdefghij"], ["abcdefgh"]),
        (["abc", "xyzuvw+/12"], ["abc", "xyzuvw+/"]),
        (["abcdefghij", "Abcdefghij"], ["abcdefgh", "Abcdefgh"]),
        (["abcdefg1234", "abcdefg2234"], ["abcdefg1", "abcdefg2"]),
        (["abcdefgh123", "abcdefgh223"], ["abcdefgh1", "abcdefgh2"]),
        (["abcdefghij12", "xyzuvw+/1234", "abcdefghij22", "abcdefghi122"],
         ["abcdefghij1", "xyzuvw+/", "abcdefghij2", "abcdefghi1"]),
        (["abcdefghij", "abcdefghijkl"], ["abcdefghij", "abcdefghijk"]),
        (["x" * 399 + "1", "x" * 399 + "2"], ["x" * 399 + "1", "x" * 399 + "2"]),
        (["abcdefghij", "abcdefghij"], ["abcdefgh", "abcdefgh"]),
        (["abcdefghij", "abcdefghij", "abcdefghix"], ["abcdefghij", "abcdefghij", "abcdefghix"]),
    ],
)  # fmt: skip
def test_of_a_signature_eight_characters_are_shown_and_more_where_another_begins_alike(
    signatures: list[str], shown: list[str]
) -> None:
    found = DkimResults(tuple(DkimSignature("pass", "a.test", "s", signature=one) for one in signatures))
    assert [result.properties[-1] for result in found.results()] == [("header", "b", one) for one in shown]


def test_signature_without_a_value_has_none_to_show() -> None:
    signatures = (DkimSignature("neutral", "a.test", "s"), DkimSignature("pass", "a.test", "s", signature="abc"))
    found = DkimResults(signatures)
    assert [result.properties[2:] for result in found.results()] == [(), (("header", "b", "abc"),)]


def test_log_is_told_nobodys_address_and_no_signature() -> None:
    session = Session(id="SESSION", listener="smtp", ip=IPv4Address("192.0.2.1"))
    mail = Transaction(id="MAIL", session=session, sender=parse_address("joe@c.test"))
    mail.facts.add(SpfResults(SpfCheck("pass", "mailfrom", "c.test", "joe@c.test")))
    mail.facts.add(DkimResults((DkimSignature("pass", "c.test", "s", "rsa-sha256", "joe@c.test", "abcdefghij"),)))
    assert results_told(mail) == ["spf=pass smtp.mailfrom", "dkim=pass header.d=c.test header.s=s header.a=rsa-sha256"]


def test_nothing_is_said_of_a_policy_that_nobody_published() -> None:
    (found,) = DmarcResult("none", "a.test").results()
    assert (found.comment, found.properties) == ("", (("header", "from", "a.test"),))
    (found,) = DmarcResult("permerror").results()
    assert (found.comment, found.properties) == ("", ())
