"""What a trusted forwarder is spared, by whom it is not mixed up, and that its filter never refuses; whole server."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from filters.dkim import Dkim
from filters.dmarc import Dmarc
from filters.headers import Headers
from filters.spf import Spf
from filters.trusted_forwarders import TrustedForwarders, TrustedForwardersOptions
from smtpd import replies
from smtpd.config import ConfigError
from smtpd.delivery import DeliveryAgent
from smtpd.dns import Answer, Resolver, Type
from smtpd.memory import MemoryServer
from smtpd.model import Message, Transaction
from smtpd.policy import PASS, Filter, PolicyError, Verdict
from smtpd.replies import Reply
from smtpd.zone import Zone

HOST = "192.0.2.9"
LETTER = "From: bob@sender.test\nSubject: Hi\n\nHello\n"
NO_FROM = "Subject: Hi\n\nHello\n"
BOTH = ("alice@example.test", "carol@other.test")
NAMED = {"name": "uni", "reverse_names": ["*.uni.test"]}
NETWORK = {"name": "uni", "networks": ["192.0.2.8/29"]}
ZONE: Mapping[str, Mapping[str, object]] = {
    "sender.test": {"TXT": ["v=spf1 -all"]},
    "_dmarc.sender.test": {"TXT": ["v=DMARC1; p=reject"]},
    "9.2.0.192.in-addr.arpa": {"PTR": ["mx1.uni.test"]},
    "mx1.uni.test": {"A": [HOST]},
    "10.2.0.192.in-addr.arpa": {"PTR": ["liar.uni.test"]},
    "liar.uni.test": {"A": ["192.0.2.99"]},
}
OK = "250 2.1.5"
REFUSED = "550 5.7.2"


class House:
    """A server whose agent remembers the labels of each recipient; `spf` refuses."""

    def __init__(
        self,
        *entries: object,
        resolver: Resolver | None = None,
        filters: Mapping[str, Any] | None = None,
        spf: Mapping[str, object] | None = None,
        **options: object,
    ) -> None:
        self.labels: dict[str, frozenset[str]] = {}
        self.content = b""
        house = self

        class Store(DeliveryAgent):
            async def deliver(self, mail: Transaction, message: Message) -> Reply:
                house.labels |= {one.address.text: mail.labels_for(one) for one in mail.recipients}
                house.content = bytes(message)
                return replies.ACCEPTED

        self.server = MemoryServer(
            filters={
                "spf": (Spf, {"fail": "reject", **(spf or {})}),
                "trusted_forwarders": (TrustedForwarders, {"entries": list(entries), **options}),
                **(filters or {}),
            },
            agents={"store": Store},
            tables={"domains": {"example.test": "store", "other.test": "store"}},
            resolver=resolver or Zone(ZONE),
        )

    async def send(
        self, content: str = LETTER, *, ip: str = HOST, recipients: tuple[str, ...] = BOTH, **call: str
    ) -> list[str]:
        """The beginnings of the answers to RCPT and the content."""
        sender = call.pop("sender", "bob@sender.test")
        async with self.server:
            talk = await self.server.connect(ip=ip, **call)
            answers = await talk.send(content, sender=sender, recipients=recipients)
            self.facts = {type(fact).__name__ for fact in talk.session.facts}
            self.by_network = self._count("network")
            self.by_name = self._count("name")
        return [answer[:9] for answer in answers[1:]]

    def _count(self, by: str) -> float:
        return self.server.count("smtpd_trusted_forwarder_connections_total", forwarder="uni", by=by)

    @property
    def head(self) -> str:
        """The header of what was delivered, unfolded."""
        return self.content.partition(b"\r\n\r\n")[0].replace(b"\r\n\t", b" ").replace(b"\r\n ", b" ").decode()


async def test_others_are_refused_by_spf() -> None:
    house = House(NETWORK)
    assert await house.send(ip="192.0.2.16") == [REFUSED, REFUSED]
    assert house.by_network == 0


@pytest.mark.parametrize("ip", [HOST, "::ffff:192.0.2.9"])
async def test_forwarder_is_known_by_its_network_without_a_lookup(ip: str) -> None:
    house = House(NETWORK)
    assert await house.send(ip=ip) == [OK, OK, "250 2.0.0"]
    assert house.labels["alice@example.test"] == {"spf-fail", "trusted-forwarder"}
    assert "IprevResult" not in house.facts
    assert (house.by_network, house.by_name) == (1, 0)


async def test_forwarder_is_known_by_a_name_that_leads_back_and_the_message_says_so() -> None:
    house = House(NAMED)
    assert await house.send() == [OK, OK, "250 2.0.0"]
    assert "iprev=pass (mx1.uni.test) policy.iprev=192.0.2.9" in house.head
    assert (house.by_network, house.by_name) == (0, 1)


async def test_name_that_does_not_lead_back_is_no_proof() -> None:
    house = House(NAMED)
    assert await house.send(ip="192.0.2.10") == [REFUSED, REFUSED]
    assert house.by_name == 0


async def test_neither_helo_nor_sender_makes_a_forwarder() -> None:
    zone = Zone({**ZONE, "mx1.uni.test": {"A": [HOST], "TXT": ["v=spf1 -all"]}})
    answers = await House(NAMED, resolver=zone).send(ip="192.0.2.77", helo="mx1.uni.test", sender="x@mx1.uni.test")
    assert answers == [REFUSED, REFUSED]


@pytest.mark.parametrize("entry", [NETWORK, NAMED])
async def test_forwarder_for_one_domain_is_a_stranger_to_the_others(entry: dict[str, object]) -> None:
    house = House({**entry, "domains": ["Example.TEST"]})
    assert await house.send() == [OK, REFUSED, "250 2.0.0"]
    assert list(house.labels) == ["alice@example.test"]


async def test_message_says_only_what_holds_for_all_its_recipients() -> None:
    house = House({**NETWORK, "domains": ["example.test"]}, spf={"fail": "tag"})
    await house.send()
    assert [sorted(labels) for labels in house.labels.values()] == [["spf-fail", "trusted-forwarder"], ["spf-fail"]]
    assert "X-Smtpd-Labels: spf-fail\r\n" in house.head
    house = House(NETWORK, spf={"fail": "tag"})
    await house.send()
    assert "X-Smtpd-Labels: spf-fail, trusted-forwarder\r\n" in house.head


def with_dmarc(entry: dict[str, object], *, resolver: Resolver | None = None, **options: object) -> House:
    filters = {"dkim": Dkim, "dmarc": Dmarc}
    return House(entry, spf={"fail": "dmarc"}, filters=filters, resolver=resolver, **options)


async def test_policy_of_dmarc_is_not_obeyed_and_the_reason_is_told() -> None:
    assert await with_dmarc({**NETWORK, "networks": ["192.0.2.1"]}).send() == [OK, OK, "550 5.7.1"]
    house = with_dmarc(NETWORK)
    assert await house.send() == [OK, OK, "250 2.0.0"]
    assert "dmarc=fail (p=reject dis=none override=trusted_forwarder) reason=uni" in house.head


@pytest.mark.parametrize("name", ["9.2.0.192.in-addr.arpa", "mx1.uni.test"])
async def test_who_may_be_a_forwarder_is_not_refused_for_good(name: str) -> None:
    down = Zone({**ZONE, name: {"tempfail": True}})
    assert await with_dmarc(NAMED, resolver=down).send() == [OK, OK, "451 4.7.1"]
    assert await with_dmarc(NAMED, resolver=down, mode="observe").send() == [OK, OK, "550 5.7.1"]
    assert await with_dmarc(NETWORK, resolver=down).send(ip="192.0.2.1") == [OK, OK, "550 5.7.1"]


@pytest.mark.parametrize("name", ["9.2.0.192.in-addr.arpa", "mx1.uni.test"])
async def test_who_may_be_a_forwarder_is_not_refused_for_good_by_spf(name: str) -> None:
    down = Zone({**ZONE, name: {"tempfail": True}})
    assert await House(NAMED, resolver=down).send() == ["451 4.7.2", "451 4.7.2"]
    assert await House(NAMED, resolver=down, spf={"unless": []}).send() == [REFUSED, REFUSED]
    assert await House(NAMED, resolver=down, mode="observe").send() == [REFUSED, REFUSED]


async def test_recipient_it_does_not_forward_to_still_has_dmarc() -> None:
    house = with_dmarc({**NETWORK, "domains": ["example.test"]})
    assert (await house.send())[:2] == [OK, OK]
    assert list(house.labels) == ["alice@example.test"]


async def test_first_entry_that_knows_the_client_counts_and_addresses_before_names() -> None:
    by_name = {"name": "second", "reverse_names": ["mx1.uni.test"], "domains": ["other.test"]}
    assert await House(by_name, {**NETWORK, "domains": ["example.test"]}).send() == [OK, REFUSED, "250 2.0.0"]
    narrow = {"name": "narrow", "networks": [HOST], "domains": ["other.test"]}
    assert await House(narrow, {**NETWORK, "domains": ["example.test"]}).send() == [REFUSED, OK, "250 2.0.0"]


async def test_refusal_of_the_message_becomes_a_label_with_never_reject() -> None:
    filters = {"headers": Headers}
    assert (await House(NETWORK, filters=filters).send(NO_FROM))[-1] == "550 5.6.0"
    house = House({**NETWORK, "never_reject": True, "domains": ["example.test"]}, filters=filters)
    assert await house.send(NO_FROM, recipients=BOTH[:1]) == [OK, "250 2.0.0"]
    assert house.labels["alice@example.test"] >= {"never-reject", "would-reject"}
    assert "would-reject" in house.head.partition("X-Smtpd-Labels: ")[2].partition("\r\n")[0]


async def test_observing_changes_nothing() -> None:
    house = House({**NETWORK, "never_reject": True}, mode="observe", filters={"headers": Headers})
    assert await house.send() == [REFUSED, REFUSED]
    assert "TrustedForwarder" not in house.facts
    assert house.by_network == 1


class Silent(Zone):
    """Answers about names of clients when it is told to."""

    def __init__(self) -> None:
        super().__init__(ZONE, cached=False)
        self.may_answer = asyncio.Event()

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        if kind == "PTR":
            await self.may_answer.wait()
        return await super().resolve(name, kind, timeout)


async def test_refusal_waits_for_the_lookup_that_could_silence_it() -> None:
    zone = Silent()
    house = House(NAMED, resolver=zone)
    async with house.server as server:
        talk = await server.connect(ip=HOST)
        await talk.say(b"MAIL FROM:<bob@sender.test>\r\n")
        asking = asyncio.create_task(talk.say(b"RCPT TO:<alice@example.test>\r\n"))
        await asyncio.wait([asyncio.create_task(server.connect(ip="192.0.2.1"))])  # others go on meanwhile
        zone.may_answer.set()
        assert (await asking).startswith(b"250 2.1.5 ")


async def test_recipient_that_nobody_would_refuse_does_not_wait() -> None:
    house = House(NAMED, resolver=Silent(), spf={"fail": "pass"})
    async with house.server as server, asyncio.timeout(30):
        talk = await server.connect(ip=HOST)
        await talk.say(b"MAIL FROM:<bob@sender.test>\r\n")
        assert (await talk.say(b"RCPT TO:<alice@example.test>\r\n")).startswith(b"250 2.1.5 ")


class Broken(Zone):
    """Falls over when asked for a client's name."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        if kind == "PTR":
            raise RuntimeError("broken")
        return await super().resolve(name, kind, timeout)


DOWN = {"9.2.0.192.in-addr.arpa": {"tempfail": True}, "sender.test": {"TXT": ["v=spf1 +all"]}}


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_nobody_is_refused_when_it_crashes_is_late_or_dns_is_down(mode: str) -> None:
    house = House(NAMED, resolver=Broken(DOWN, cached=False), mode=mode)
    async with house.server as server:
        answers = await (await server.connect(ip=HOST)).send(LETTER)
        assert answers[-1].startswith("250 ")
        server.forget("filter-failed")
    zone = Silent()
    zone.put("sender.test", TXT=["v=spf1 +all"])
    late = House(NAMED, resolver=zone, mode=mode, timeout="10ms")
    assert await late.send() == [OK, OK, "250 2.0.0"]
    down = House(NAMED, resolver=Zone(DOWN), mode=mode)
    assert await down.send() == [OK, OK, "250 2.0.0"]
    assert 'iprev=temperror reason="no answer" policy.iprev=192.0.2.9' in down.head


async def test_who_is_not_recognised_in_time_is_treated_like_others() -> None:
    house = House(NAMED, resolver=Silent(), timeout="10ms")
    assert await house.send() == [REFUSED, REFUSED]
    assert any(line["event"] == "filter-timed-out" for line in house.server.log)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"name": "a"}], "a: needs networks or reverse_names"),
        ([{"name": "a b", "networks": [HOST]}], "name must be letters"),
        ([{"name": "a", "networks": ["0.0.0.0/0"]}], "a: 0.0.0.0/0 is everybody"),
        ([{"name": "a", "networks": ["::/0"]}], "a: ::/0 is everybody"),
        ([{"name": "a", "reverse_names": ["*.com"]}], 'a: "*.com" is too wide'),
        ([{"name": "a", "networks": [HOST], "domains": ["ex ample"]}], "is no domain"),
        ([NETWORK, {**NAMED}], 'two entries with the name "uni"'),
        ([NETWORK, {"name": "b", "networks": [HOST]}], "b: 192.0.2.9/32 is in the entry uni already"),
        ([NETWORK, {**NETWORK, "name": "b"}], "b: 192.0.2.8/29 is in the entry uni already"),
        ([NAMED, {"name": "b", "reverse_names": ["*.MX.uni.test"]}], 'b: "*.MX.uni.test" is in the entry uni already'),
        ([NAMED, {"name": "b", "reverse_names": ["mx1.uni.test"]}], 'b: "mx1.uni.test" is in the entry uni already'),
    ],
)
def test_entry_that_is_too_wide_or_never_reached_is_a_mistake(entries: list[object], problem: str) -> None:
    with pytest.raises(ValueError, match="entries") as raised:
        TrustedForwardersOptions.model_validate({"entries": entries})
    assert problem in str(raised.value)


def test_wider_entries_may_follow_narrower_ones() -> None:
    narrow = {"name": "a", "networks": [HOST], "reverse_names": ["mx1.uni.test"]}
    wide = {"name": "b", "networks": ["192.0.2.0/24", "2001:db8::/32"], "reverse_names": ["*.uni.test"]}
    assert len(TrustedForwardersOptions.model_validate({"entries": [narrow, wide]}).entries) == 2


class Blocklist(Filter):
    """Refuses at once."""

    async def on_connect(self, session: object) -> Verdict:
        return PASS


async def test_filter_that_refuses_before_rcpt_cannot_have_the_label() -> None:
    early = {"act_at": "mail", "unless": ["trusted-forwarder"]}
    house = House(NETWORK, filters={"blocklist": (Blocklist, early)})
    with pytest.raises((PolicyError, ConfigError), match='gives the label "trusted-forwarder" only after blocklist'):
        await house.send()
