"""SPF asked of the whole server; tests/filters/test_spf_evaluation.py has what a record means."""

import asyncio
import gc
import re

import pytest
from resolvers import Silent

from smtpd.dns import Answer, Mx, RecordingResolver, Type
from smtpd.findings import SpfResults
from smtpd.model import Message, Session, Transaction
from smtpd.policy import PASS, Filter, Verdict
from smtpd.zone import Zone
from tests.filters.spf_server import STRICT, ZONE, answers, house, labels, results


@pytest.mark.parametrize(
    ("domain", "result", "label"),
    [
        ("pass.example", 'spf=pass reason="ip4:192.0.2.1 matches"', ""),
        ("fail.example", 'spf=fail reason="-all matches"', "spf-fail"),
        ("soft.example", 'spf=softfail reason="~all matches"', "spf-softfail"),
        ("neutral.example", 'spf=neutral reason="?all matches"', ""),
        ("nobody.example", 'spf=none reason="no record"', ""),
        ("broken.example", 'spf=permerror reason="Unknown mechanism found"', "spf-permerror"),
        ("down.example", 'spf=temperror reason="DNS: servfail for TXT of down.example"', "spf-temperror"),
    ],
)
async def test_by_default_nobody_is_refused_and_the_result_is_on_the_message(
    domain: str, result: str, label: str
) -> None:
    async with house() as server:
        assert [answer[:3] for answer in await answers(server, domain)] == ["250", "250", "250"]
        sender, name = results(server).split("; ")
        assert sender == f"{result} smtp.mailfrom=joe@{domain}"
        assert name == 'spf=none reason="no record" smtp.helo=client.example'
        assert labels(server) == ({label} if label else set())
        word = result.partition("=")[2].partition(" ")[0]
        assert server.count("smtpd_spf_checks_total", result=word) == 1
        assert server.count("smtpd_spf_helo_checks_total", result="none") == 1


@pytest.mark.parametrize(
    ("option", "action", "domain", "answer"),
    [
        ("fail", "reject", "fail.example", "550 5.7.23 SPF says 192.0.2.1 may not send for fail.example [spf "),
        ("fail", "defer", "fail.example", "451 4.7.23 SPF does not say that 192.0.2.1 may send for fail.example, "),
        ("fail", "tag", "fail.example", "250 spf-fail"),
        ("fail", "dmarc", "fail.example", "250 spf-fail"),
        ("fail", "pass", "fail.example", "250 "),
        ("softfail", "defer", "soft.example", "451 4.7.23 SPF does not say that 192.0.2.1 may send for soft.example, "),
        ("softfail", "tag", "soft.example", "250 spf-softfail"),
        ("softfail", "pass", "soft.example", "250 "),
        (
            "permerror",
            "reject",
            "broken.example",
            "550 5.7.24 The SPF record of broken.example cannot be understood: U",
        ),
        ("permerror", "defer", "broken.example", "451 4.7.24 The SPF record of broken.example cannot be understood, p"),
        ("permerror", "tag", "broken.example", "250 spf-permerror"),
        ("permerror", "pass", "broken.example", "250 "),
        ("temperror", "defer", "down.example", "451 4.4.3 The SPF record of down.example cannot be looked up now, ple"),
        ("temperror", "tag", "down.example", "250 spf-temperror"),
        ("temperror", "pass", "down.example", "250 "),
    ],
)
async def test_operator_says_what_becomes_of_a_result(option: str, action: str, domain: str, answer: str) -> None:
    async with house({option: action}) as server:
        _, recipient, *content = await answers(server, domain)
        if answer.startswith("250"):
            assert content[0].startswith("250 ")
            assert f"250 {''.join(labels(server))}" == answer
        else:
            assert recipient.startswith(answer)
            assert server.delivered == []


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("reject", "550 5.7.23 SPF says 192.0.2.1 may not call itself fail.example [spf "),
        ("defer", "451 4.7.23 SPF says 192.0.2.1 may not call itself fail.example, please try again later [spf "),
        ("tag", "250 2.1.5 "),
        ("pass", "250 2.1.5 "),
    ],
)
async def test_name_the_client_gave_itself_is_checked_too(action: str, answer: str) -> None:
    async with house({"helo_fail": action}) as server:
        _, recipient, *_ = await answers(server, "pass.example", helo="fail.example")
        assert recipient.startswith(answer)
        if answer.startswith("250"):
            assert labels(server) == ({"spf-helo-fail"} if action == "tag" else set())
            assert results(server).endswith('spf=fail reason="-all matches" smtp.helo=fail.example')
        assert server.count("smtpd_spf_helo_checks_total", result="fail") == 1
        assert server.count("smtpd_spf_checks_total", result="pass") == 1


async def test_heavier_refusal_of_the_two_is_spoken() -> None:
    async with house({"temperror": "defer", "helo_fail": "reject"}) as server:
        _, recipient = await answers(server, "down.example", helo="fail.example")
        assert recipient.startswith("550 5.7.23 SPF says 192.0.2.1 may not call itself fail.example")
    async with house({"fail": "reject", "helo_fail": "defer"}) as server:
        _, recipient = await answers(server, "fail.example", helo="fail.example")
        assert recipient.startswith("550 5.7.23 SPF says 192.0.2.1 may not send for fail.example")


async def test_empty_sender_is_postmaster_of_the_name_and_checked_once() -> None:
    zone = {**ZONE, "host.example": {"TXT": ["v=spf1 exists:%{l}.%{o}.list.example -all"]}}
    zone["postmaster.host.example.list.example"] = {"A": ["127.0.0.2"]}
    async with house({"fail": "reject"}, resolver=Zone(zone)) as server:
        assert (await answers(server, "", sender="", helo="host.example"))[-1].startswith("250 ")
        assert results(server) == ('spf=pass reason="exists:%{l}.%{o}.list.example matches" smtp.helo=host.example')
        assert server.count("smtpd_spf_checks_total", result="pass") == 1
        assert server.count("smtpd_spf_helo_checks_total", result="pass") == 0
        _, recipient = await answers(server, "", sender="", helo="fail.example")
        assert recipient.startswith("550 5.7.23 SPF says 192.0.2.1 may not send for fail.example")


@pytest.mark.parametrize(
    ("sender", "helo"),
    [("joe@[192.0.2.9]", "[192.0.2.1]"), ("joe@localhost", "localhost"), ("joe@a", "192.0.2.1"), ("", "bad..name")],
)
async def test_names_that_can_have_no_record_are_not_looked_up(sender: str, helo: str) -> None:
    resolver = RecordingResolver(Zone())
    async with house(dict(STRICT, temperror="defer"), resolver=resolver) as server:
        assert (await answers(server, "", sender=sender, helo=helo))[-1].startswith("250 ")
        assert set(re.findall(r"spf=(\w+)", results(server))) == {"none"}
    assert not resolver.answers


async def test_address_of_ipv4_inside_of_ipv6_is_ipv4() -> None:
    async with house({"fail": "reject"}) as server:
        assert (await answers(server, "pass.example", ip="::ffff:192.0.2.1"))[-1].startswith("250 ")
        assert results(server).startswith("spf=pass ")


async def test_words_of_the_domain_are_marked_as_such_and_stay_in_one_line() -> None:
    async with house({"fail": "reject"}) as server:
        _, recipient = await answers(server, "told.example")
        start = (
            "550 5.7.23 SPF says 192.0.2.1 may not send for told.example, domain says: Ask told.example?250 2.0.0 Ok x"
        )
        assert recipient.startswith(start)
        assert "\n" not in recipient
        words = recipient.partition("domain says: ")[2].partition(" [spf ")[0]
        assert len(words) == 200


async def test_macros_are_the_sender_without_quotes_the_name_and_our_own() -> None:
    zone = {"macro.example": {"TXT": ["v=spf1 -all exp=why.macro.example"]}}
    zone["why.macro.example"] = {"TXT": ["%{s} %{h} %{c} %{r}"]}
    async with house({"fail": "reject"}, resolver=Zone(zone)) as server:
        _, recipient = await answers(server, "", sender='"joe b"@macro.example', helo="host.example")
        assert "domain says: joe b@macro.example host.example 192.0.2.1 mx.example.test [spf " in recipient


async def test_user_who_logged_in_is_not_checked() -> None:
    resolver = RecordingResolver(Zone(ZONE))
    async with house(STRICT, resolver=resolver) as server:
        assert (await answers(server, "fail.example", helo="fail.example", login="joe"))[-1].startswith("250 ")
        assert labels(server) == set()
        assert not resolver.answers


async def test_user_who_logged_in_is_checked_when_nothing_excuses_him() -> None:
    async with house({"fail": "reject", "unless": []}) as server:
        assert (await answers(server, "fail.example", login="joe"))[1].startswith("550 5.7.23 ")


@pytest.mark.parametrize(("unless", "code"), [(["trusted"], "250"), (["authenticated"], "550")])
async def test_trusted_network_is_not_checked_when_it_excuses(unless: list[str], code: str) -> None:
    tables = {"trusted_networks": ["192.0.2.0/24"]}
    async with house({"fail": "reject", "unless": unless}, tables=tables) as server:
        assert (await answers(server, "fail.example"))[1][:3] == code


class Forwarder(Filter):
    name = "forwarder"
    labels = frozenset(("trusted-forwarder",))

    async def on_connect(self, session: Session) -> Verdict:
        return Verdict(labels=self.labels) if session.ip_text == "192.0.2.7" else PASS


async def test_trusted_forwarder_is_never_refused() -> None:
    async with house(STRICT, filters={"forwarder": Forwarder}) as server:
        assert (await answers(server, "fail.example", ip="192.0.2.8"))[1].startswith("550 5.7.23 ")
        assert (await answers(server, "fail.example", ip="192.0.2.7"))[-1].startswith("250 ")
        assert results(server).startswith("spf=fail ")


class Reader(Filter):
    """What a filter that needs the fact finds."""

    name = "reader"
    needs = (SpfResults,)
    found: SpfResults | None = None

    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        self.found = mail.facts.get(SpfResults)
        return PASS


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_results_are_there_for_filters_that_need_them(mode: str) -> None:
    async with house({"mode": mode}, resolver=Zone(ZONE, cached=False), filters={"reader": Reader}) as server:
        await answers(server, "told.example", helo="pass.example")
        reader = server.filters["reader"]
        assert isinstance(reader, Reader)
        assert reader.found is not None
        sender, helo = reader.found.mailfrom, reader.found.helo
        assert (sender.result, sender.identity, sender.domain) == ("fail", "mailfrom", "told.example")
        assert (sender.identifier, sender.mechanism) == ("joe@told.example", "-all")
        assert sender.explanation.startswith("Ask told.example?")
        assert helo is not None
        assert (helo.result, helo.identity, helo.domain, helo.identifier) == ("pass", "helo", *["pass.example"] * 2)


class Odd(Zone):
    """A resolver with records that no nameserver sends."""

    def ask(self, name: str, kind: Type) -> Answer:
        if kind == "MX":
            return Answer("ok", (Mx(1, "a.example"), Mx(None, "b.example")))  # type: ignore[arg-type]
        return super().ask(name, kind)


class Broken(Zone):
    """A resolver with a bug."""

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        raise ZeroDivisionError


class Down(Zone):
    """A resolver without a nameserver."""

    def ask(self, name: str, kind: Type) -> Answer:
        return Answer("tempfail", reason="timeout")


TROUBLE = {
    "crash": (Broken, {}, "filter-failed"),
    "timeout": (Silent, {"timeout": 0.9}, ""),  # it ends by itself before the policy ends it, and has a result
    "too slow": (Silent, {"longest": 0.01}, ""),
    "dns down": (Down, {}, ""),
}


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("on_error", ["pass", "defer"])
@pytest.mark.parametrize("trouble", TROUBLE)
async def test_trouble_of_our_own_never_refuses(trouble: str, on_error: str, mode: str) -> None:
    kind, table, event = TROUBLE[trouble]
    options = {**STRICT, **table, "mode": mode, "on_error": on_error}
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with house(options, resolver=kind(ZONE, cached=False)) as server:
        said = await answers(server, "fail.example", helo="fail.example")
        code = "451" if mode == "enforce" and on_error == "defer" and event else "250"
        assert [answer[:3] for answer in said[:2]] == ["250", code]
        assert said[-1][:3] == code
        if trouble == "crash" or (event and mode == "enforce"):  # nobody waits for a filter that only observes
            assert [line["event"] for line in server.log].count(event) == 1
            server.forget(event)
        elif mode == "enforce":
            assert server.count("smtpd_spf_checks_total", result="temperror") == 1
            assert "spf-temperror" in labels(server)
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


@pytest.mark.parametrize("trouble", ["too slow", "dns down"])
async def test_dns_that_does_not_answer_puts_mail_off_when_the_operator_says_so(trouble: str) -> None:
    kind, table, _ = TROUBLE[trouble]
    async with house({**table, "temperror": "defer"}, resolver=kind(ZONE, cached=False)) as server:
        _, recipient = await answers(server, "fail.example")
        assert recipient.startswith("451 4.4.3 The SPF record of fail.example cannot be looked up now, ")


async def test_check_is_given_up_after_the_longest_time() -> None:
    async with house({"longest": "10ms"}, resolver=Silent(cached=False)) as server:
        await answers(server, "pass.example")
        assert results(server).startswith('spf=temperror reason="not done in 0.01 s" ')


async def test_check_is_given_up_in_time_to_leave_a_result() -> None:
    async with house({"longest": "20s", "timeout": "900ms"}, resolver=Silent(cached=False)) as server:
        await answers(server, "pass.example")
        assert results(server).startswith('spf=temperror reason="not done in 0.6 s" ')


async def test_in_observe_mode_a_refusal_is_only_counted() -> None:
    async with house({"fail": "reject", "mode": "observe"}) as server:
        assert (await answers(server, "fail.example"))[-1].startswith("250 ")
        assert server.count("smtpd_filter_would_reject_total", filter="spf") == 1
        assert labels(server) == set()
        assert results(server).startswith("spf=fail ")


async def test_record_that_confuses_the_library_is_a_permanent_error_and_in_the_log() -> None:
    zone = {"odd.example": {"TXT": ["v=spf1 mx -all"]}}
    async with house({"permerror": "tag"}, resolver=Odd(zone)) as server:
        assert (await answers(server, "odd.example"))[-1].startswith("250 ")
        assert results(server).startswith('spf=permerror reason="the record cannot be evaluated" ')
        (line,) = (line for line in server.log if line["event"] == "spf-not-evaluated")
        assert line["domain"] == "odd.example"


async def test_lookups_of_a_message_are_limited_and_the_name_in_ehlo_has_half_as_many_of_its_own() -> None:
    zone = {**ZONE, "many.example": {"TXT": ["v=spf1 a:pass.example mx:pass.example -all"]}}
    async with house(resolver=Zone(zone, cached=False), tables={"dns": {"lookups_per_message": 2}}) as server:
        await answers(server, "many.example", helo="many.example")
        sender, name = results(server).split("; ")
        assert sender.startswith('spf=temperror reason="DNS: limit for MX of pass.example" ')
        assert name.startswith('spf=temperror reason="DNS: limit for A of pass.example" ')


async def test_client_that_leaves_during_a_check_is_no_trouble() -> None:
    async with house({"fail": "reject"}, resolver=Silent(cached=False)) as server:
        talk = await server.connect()
        await talk.say(b"MAIL FROM:<joe@pass.example>\r\n")
        assert talk.last.startswith(b"250 "), "MAIL does not wait for the DNS"
        assert len(asyncio.all_tasks()) > 1
        await talk.hang_up()
        assert server.count("smtpd_filter_errors_total", filter="spf", kind="exception") == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_received_spf_is_written_on_request_below_our_results_and_above_our_received() -> None:
    async with house({"received_spf": True}) as server:
        await answers(server, "pass.example")
        await answers(server, "fail.example", sender=f"{'j' * 60}@fail.example", helo=f"{'h' * 63}.example")
        passed, failed = (kept.content.decode() for kept in server.delivered)
    names = re.findall(r"^([A-Za-z-]+):", passed, re.MULTILINE)
    assert names[:3] == ["Authentication-Results", "Received-SPF", "Received"]
    field = re.search(r"^Received-SPF: (.*?)\r\n(?![ \t])", passed, re.MULTILINE | re.DOTALL)
    assert field is not None
    assert " ".join(field[1].split()) == (
        "pass receiver=mx.example.test; identity=mailfrom; client-ip=192.0.2.1; "
        'envelope-from="joe@pass.example"; helo=client.example; mechanism="ip4:192.0.2.1"'
    )
    assert "\r\nReceived-SPF: fail " in failed
    assert max(map(len, failed.split("\r\n"))) <= 100, "long ones are folded"
