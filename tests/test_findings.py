from smtpd.findings import DkimResults, SpfCheck, SpfResults
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction
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
