"""A server with DMARC and the facts it needs, as if SPF, DKIM and the others had found them."""

from collections.abc import Mapping, Sequence
from typing import Any

from filters.dmarc import Dmarc
from smtpd.findings import DkimResults, DkimSignature, DmarcResult, SpfCheck, SpfResults
from smtpd.memory import MemoryServer, Talk
from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, Verdict
from tests.filters.dmarc_case import zone_of

FORGED = "From: boss@bank.example\nSubject: Hi\n\nHello\n"
REFUSED = (
    "550 5.7.1 Rejected by the DMARC policy of bank.example (p=reject): neither SPF nor DKIM shows that bank.example "
    "sent it [dmarc "
)
BANK = {"bank.example": "p=reject"}


def given(*facts: object, also: tuple[type, ...] = ()) -> type[Filter]:
    """A filter that finds these facts about every message."""

    class Given(Filter):
        gives = (*(type(fact) for fact in facts), *also)

        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            for fact in facts:
                mail.facts.add(fact)
            return PASS

    return Given


def spf(result: Any = "fail", domain: str = "evil.example") -> SpfResults:
    return SpfResults(SpfCheck(result, "mailfrom", domain, f"eve@{domain}"))


def dkim(result: Any = "pass", domain: str = "evil.example", *, counts: bool = True) -> DkimResults:
    return DkimResults((DkimSignature(result, domain, "s", counts=counts),))


UNSIGNED = DkimResults()


class Bench:
    """A server with DMARC, facts given, and what became of one message."""

    def __init__(
        self,
        facts: Sequence[object] = (spf(), UNSIGNED),
        *,
        records: Mapping[str, str] | None = None,
        filters: Mapping[str, Any] | None = None,
        resolver: Any = None,
        tables: Mapping[str, object] | None = None,
        agents: Any = None,
        **options: object,
    ) -> None:
        self.found: list[DmarcResult | None] = []
        found = self.found

        class Witness(Filter):
            needs = (DmarcResult,)

            async def on_message(self, mail: Transaction, message: Message) -> Verdict:
                found.append(mail.facts.get(DmarcResult))
                return PASS

        chain = filters or {"given": given(*facts, also=(SpfResults, DkimResults))}
        self.server = MemoryServer(
            filters={**chain, "dmarc": (Dmarc, options), "witness": Witness},
            resolver=resolver or zone_of(BANK if records is None else records),
            tables=tables,
            agents=agents,
        )

    async def send(self, content: str | bytes = FORGED, **parts: Any) -> str:
        """The answer to the content."""
        talk: Talk = await self.server.connect(**{key: parts.pop(key) for key in ("login", "helo") if key in parts})
        return (await talk.send(content, **parts))[-1]

    def count(self, result: str) -> float:
        return self.server.count("smtpd_dmarc_checks_total", result=result)

    @property
    def filter(self) -> Dmarc:
        dmarc = self.server.filters["dmarc"]
        assert isinstance(dmarc, Dmarc)
        return dmarc

    @property
    def finding(self) -> DmarcResult:
        assert self.found[-1] is not None
        return self.found[-1]

    @property
    def labels(self) -> frozenset[str]:
        return self.server.delivered[-1].labels

    async def __aenter__(self) -> "Bench":
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.server.__aexit__(*error)
