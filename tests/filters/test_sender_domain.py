"""Whose sender is refused because nobody could answer it; the whole server, once on sockets and with a nameserver."""

import asyncio
import smtplib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from dns_server import running_nameserver
from resolvers import Broken, Counting

from filters.sender_domain import SenderDomain
from filters.trusted_forwarders import TrustedForwarders
from smtpd.delivery import DeliveryAgent
from smtpd.dns import Answer, Resolver, Type, tempfail
from smtpd.memory import MemoryServer
from smtpd.model import Message, Recipient, Transaction
from smtpd.replies import ACCEPTED, Reply
from smtpd.zone import Zone
from tests.conftest import Server

LETTER = "From: joe@good.example\n\nHi\n"
ZONE: Mapping[str, Mapping[str, object]] = {
    "good.example": {"MX": ["10 mx.good.example"]},
    "mx.good.example": {"A": ["192.0.2.1"]},
    "xn--bcher-kva.example": {"A": ["192.0.2.1"]},
    "null.example": {"MX": ["0 ."]},
    "empty.example": {"TXT": ["v=spf1 +all"]},
    "dead.example": {"MX": ["10 gone.example"]},
    "down.example": {"tempfail": True},
}
UNQUALIFIED = "554 5.1.8 The sender joe@printer needs a complete domain, such as joe@host.example.org [sender_domain "
LITERAL = "550 5.1.8 The sender joe@[192.0.2.1] needs a domain that is no IP address [sender_domain "
NULL = "550 5.7.27 No mail can be sent back to null.example: its MX record says that it takes none [sender_domain "
GONE = "550 5.1.8 No mail can be sent back to gone.example: there is no such domain [sender_domain "
DOWN = "451 4.4.3 The domain down.example cannot be looked up now, please try again later [sender_domain "
LATER = "451 4.7.1 Nobody could answer joe@gone.example, and who you are cannot be found out now, please try again "
RECIPIENT = "554 5.1.2 The recipient ann@printer needs a complete domain, such as joe@host.example.org [sender_domain "


class House:
    """A server with a smarthost for users who logged in, and what became of one message."""

    def __init__(
        self, resolver: Resolver | None = None, filters: Mapping[str, Any] | None = None,
        tables: Mapping[str, object] | None = None, **options: object,
    ) -> None:  # fmt: skip
        self.labels: frozenset[str] = frozenset()
        self.asked: list[str] = []
        house = self

        class Store(DeliveryAgent):
            async def verify(self, recipient: Recipient, mail: Transaction) -> Reply | None:
                house.asked.append(recipient.address.text)
                return None

            async def deliver(self, mail: Transaction, message: Message) -> Reply:
                house.labels = mail.labels_for(mail.recipients[0])
                return ACCEPTED

        self.server = MemoryServer(
            filters={"sender_domain": (SenderDomain, options), **(filters or {})},
            agents={"store": Store},
            tables={"relay": {"agent": "store"}, **(tables or {})},
            resolver=resolver or Zone(ZONE),
        )

    async def send(self, domain: str = "good.example", *, to: str = "alice@example.test", **call: Any) -> str:
        """The answer to RCPT, or to the content if there was one; `domain` may be a whole sender."""
        sender = domain if "@" in domain or not domain else f"joe@{domain}"
        async with self.server as server:
            _, answer, *more = await (await server.connect(**call)).send(LETTER, sender=sender, recipients=(to,))
        return more[-1] if more else answer

    def count(self, result: str) -> float:
        return self.server.count("smtpd_sender_domain_checks_total", result=result)


@pytest.mark.parametrize("sender", ["good.example", "GOOD.Example", "xn--bcher-kva.example"])
async def test_sender_who_can_be_answered_passes(sender: str) -> None:
    house = House()
    assert (await house.send(sender)).startswith("250 ")
    assert (house.labels, house.count("pass")) == (set(), 1)


@pytest.mark.parametrize(
    ("sender", "answer", "result"),
    [
        ("printer", UNQUALIFIED, "unqualified"),
        ("null.example", NULL, "null-mx"),
        ("gone.example", GONE, "unresolvable"),
        ("empty.example", "550 5.1.8 No mail can be sent back to empty.example: it has neither MX", "unresolvable"),
        ("dead.example", "550 5.1.8 No mail can be sent back to dead.example: no host of its MX", "unresolvable"),
    ],
)
async def test_sender_who_cannot_be_answered_is_refused(sender: str, answer: str, result: str) -> None:
    house = House()
    assert (await house.send(sender)).startswith(answer)
    assert house.count(result) == 1
    assert house.asked == []


@pytest.mark.parametrize(
    ("option", "sender", "refusal"),
    [
        ("unqualified", "printer", UNQUALIFIED),
        ("literal", "[192.0.2.1]", LITERAL),
        ("null_mx", "null.example", NULL),
        ("unresolvable", "gone.example", GONE),
        ("on_tempfail", "down.example", DOWN),
    ],
)
async def test_each_finding_has_its_switch(option: str, sender: str, refusal: str) -> None:
    label = f"sender-{option.replace('_', '-').replace('on-tempfail', 'temperror')}"
    refuse = "defer" if option == "on_tempfail" else "reject"
    assert (await House(**{option: refuse}).send(sender)).startswith(refusal)
    tagging = House(**{option: "tag"})
    assert (await tagging.send(sender)).startswith("250 ")
    assert tagging.labels == {label}
    if option != "on_tempfail":
        passing = House(**{option: "pass"})
        assert (await passing.send(sender)).startswith("250 ")
        assert passing.labels == set()


async def test_literals_pass_and_a_broken_dns_refuses_nobody() -> None:
    literal = House()
    assert (await literal.send("[ipv6:2001:db8::1]")).startswith("250 ")
    assert (literal.labels, literal.count("literal")) == (set(), 1)
    house = House()
    assert (await house.send("down.example")).startswith("250 ")
    assert (house.labels, house.count("temperror")) == ({"sender-temperror"}, 1)
    broken = House(Broken())
    assert (await broken_answer(broken)).startswith("250 ")


async def broken_answer(house: House) -> str:
    async with house.server as server:
        answers = await (await server.connect()).send(LETTER, sender="joe@good.example")
        server.forget("filter-failed")
    return answers[-1]


@pytest.mark.parametrize(
    "sender", ["", "bob@example.test", "bob@localhost", "bob@a.b.example.org", "joe@printer", "joe@[192.0.2.1]"]
)
async def test_what_needs_no_lookup_costs_none(sender: str) -> None:
    resolver = Counting({})
    domains = {"example.test": "store", "localhost": "store", "*.example.org": "store"}
    await House(resolver, tables={"domains": domains}).send(sender)
    assert resolver.asked == []


@pytest.mark.parametrize("sender", ["", "bob@example.test", "bob@localhost", "bob@a.b.example.org"])
async def test_empty_sender_and_our_own_domains_pass(sender: str) -> None:
    domains = {"example.test": "store", "localhost": "store", "*.example.org": "store"}
    assert (await House(tables={"domains": domains}).send(sender)).startswith("250 ")


async def test_a_store_for_everything_does_not_make_all_senders_ours() -> None:
    assert (await House(tables={"domains": {"*": "store"}}).send("gone.example")).startswith(GONE)


async def test_users_who_logged_in_hear_of_it_too_unless_the_operator_does_not_want_it() -> None:
    for sender, refusal in (("printer", UNQUALIFIED), ("gone.example", GONE)):
        assert (await House().send(sender, login="bob")).startswith(refusal)
        house = House(unless=["authenticated"])
        assert (await house.send(sender, login="bob")).startswith("250 ")
        assert house.labels == set()


@pytest.mark.parametrize(("domain", "option"), [("printer", "unqualified"), ("[ipv6:::1]", "literal")])
async def test_recipients_of_users_need_a_complete_domain(domain: str, option: str) -> None:
    # RFC 6409 §4.2
    house = House()
    answer = await house.send(to=f"ann@{domain}", login="bob")
    assert answer.startswith(RECIPIENT if option == "unqualified" else "250 ")
    assert house.asked == ([] if option == "unqualified" else ["ann@[ipv6:::1]"])
    if option == "unqualified":
        for action, labels in (("tag", {"recipient-unqualified"}), ("pass", set())):
            house = House(unqualified=action)
            assert (await house.send(to=f"ann@{domain}", login="bob")).startswith("250 ")
            assert house.labels == labels


@pytest.mark.parametrize("domains", [{"example.test": "store", "printer": "store"}, {"*": "store"}])
async def test_recipients_in_our_own_domains_pass_whatever_those_are_called(domains: dict[str, str]) -> None:
    tables = {"domains": domains, "postmaster": "root@printer"}
    for login in (None, "bob"):
        assert (await House(tables=tables).send(to="ann@printer", login=login)).startswith("250 ")
        assert (await House(tables=tables).send(to="Postmaster", login=login)).startswith("250 ")


async def test_strangers_hear_that_they_may_not_relay_and_not_how() -> None:
    assert (await House().send(to="ann@printer")).startswith("550 5.7.1 ")


async def test_trusted_networks_and_forwarders_are_spared() -> None:
    trusted = House(Counting({}), tables={"trusted_networks": ["192.0.2.0/24"]})
    assert (await trusted.send("gone.example")).startswith("250 ")
    assert trusted.count("unresolvable") == 0
    entry = {"name": "uni", "networks": ["192.0.2.1"]}
    spared = House(filters={"trusted_forwarders": (TrustedForwarders, {"entries": [entry]})})
    assert (await spared.send("gone.example")).startswith("250 ")
    assert spared.labels == {"trusted-forwarder", "sender-unresolvable"}


@pytest.mark.parametrize(("mode", "answer"), [("enforce", LATER), ("observe", GONE)])
async def test_who_may_be_a_forwarder_is_not_refused_for_good(mode: str, answer: str) -> None:
    pointer = "1.2.0.192.in-addr.arpa"
    entry = {"name": "uni", "reverse_names": ["*.uni.test"]}
    filters = {"trusted_forwarders": (TrustedForwarders, {"entries": [entry], "mode": mode})}
    down = Zone({**ZONE, pointer: {"tempfail": True}})
    assert (await House(down, filters=filters).send("gone.example")).startswith(answer)
    assert (await House(down, filters=filters, unless=["trusted"]).send("gone.example")).startswith(GONE)
    deferring = House(down, filters=filters, on_tempfail="defer")
    assert (await deferring.send("down.example")).startswith(DOWN)
    known = Zone({**ZONE, pointer: {"PTR": ["mx.good.example"]}})
    assert (await House(known, filters=filters).send("gone.example")).startswith(GONE)


async def test_who_a_client_is_may_take_longer_to_find_out_than_that_its_sender_has_no_way_back() -> None:
    class Late(Zone):
        found = asyncio.Event()

        async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
            if kind == "PTR":
                await self.found.wait()
                return tempfail("servfail")
            return self.ask(name, kind)

    entry = {"name": "uni", "reverse_names": ["*.uni.test"]}
    filters = {"trusted_forwarders": (TrustedForwarders, {"entries": [entry]})}
    async with House(Late(ZONE, cached=False), filters=filters).server as server:
        talk = await server.connect()
        assert (await talk.say(b"MAIL FROM:<joe@gone.example>\r\n")).startswith(b"250 ")
        Late.found.set()
        assert (await talk.say(b"RCPT TO:<alice@example.test>\r\n")).decode().startswith(LATER)


async def test_postmaster_is_reached_by_everybody() -> None:
    house = House(tables={"postmaster": "root@example.test"})
    assert (await house.send("gone.example", to="Postmaster")).startswith("250 ")


async def test_observed_it_refuses_nobody() -> None:
    house = House(mode="observe")
    assert (await house.send("gone.example")).startswith("250 ")
    assert house.server.count("smtpd_filter_would_reject_total", filter="sender_domain") == 1


async def test_limit_of_a_message_is_no_refusal() -> None:
    house = House(Counting(ZONE), tables={"dns": {"lookups_per_message": 1}})
    assert (await house.send("dead.example")).startswith("250 ")
    assert house.labels == {"sender-temperror"}


@pytest.mark.parametrize("sender", ["joe@good.example.", "postmaster"])
async def test_what_is_no_address_at_all_is_told_at_once(sender: str) -> None:
    async with MemoryServer(filters={"sender_domain": SenderDomain}) as server:
        assert (await (await server.connect()).say(b"MAIL FROM:<%b>\r\n" % sender.encode())).startswith(b"501 5.1.7 ")


def test_real_server_asks_a_real_nameserver(serve: Callable[..., Server]) -> None:
    with running_nameserver() as nameserver:
        for name in ("good.test", "mx.good.test"):
            nameserver.add(f"{name}. 60 IN A 192.0.2.1")
        nameserver.add("good.test. 60 IN MX 10 mx.good.test.")
        nameserver.add("null.test. 60 IN MX 0 .")
        nameserver.add('empty.test. 60 IN TXT "v=spf1 +all"')
        nameserver.fail("down.test", "SERVFAIL")
        tables = {"dns": {"nameservers": [nameserver.address]}, "filters": {"sender_domain": {}}}
        server = serve({"smtpd": tables})
        said = {}
        for domain in ("good", "null", "empty", "gone", "down"):
            with smtplib.SMTP("127.0.0.1", server.port("smtp"), "c.test") as client:
                client.ehlo()
                client.mail(f"joe@{domain}.test")
                said[domain] = client.rcpt("ann@example.test")[1].decode().partition(" ")[0]
        asked = dict(nameserver.asked)
    assert said == {"good": "2.1.5", "null": "5.7.27", "empty": "5.1.8", "gone": "5.1.8", "down": "2.1.5"}
    assert {key: asked[key] for key in asked if "good" in key[0]} == {("good.test", "MX"): 1, ("mx.good.test", "A"): 1}
    refused = server.wait_for("refused", 3)
    assert refused["reason"] == "sender-unresolvable"
    assert any(one.startswith("sender_domain mail held sender-unresolvable ") for one in refused["decisions"])
