"""ARC asked of the whole server: what is told and done, whom it believes, and that nothing broken refuses."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from arc_house import ONE, PASSED, THREE, TWO, Hop, Tags, Witness, chain, found, house, zone
from dkim_house import JOE, SUBDOMAIN
from resolvers import Broken, Silent, Slow
from signer import LETTER, Signer

from filters.arc import Arc
from filters.dkim import Dkim
from filters.dmarc import Dmarc
from filters.spf import Spf
from smtpd.memory import MemoryServer
from smtpd.zone import Zone

CHANGED = chain(2).replace(b"Hello", b"Hallo")
NOT_PASSED = "dmarc=fail header.from=a.test"


# What is told and done


async def test_pass_stands_in_authentication_results() -> None:
    message = TWO.add(ONE.add(LETTER) + b"-- \r\nthe list\r\n")
    async with house() as server:
        await (await server.connect(ip="2001:db8::1")).send(message)
        (delivered,) = server.delivered
        assert server.count("smtpd_arc_checks_total", result="pass") == 1
        assert server.count("smtpd_arc_checks_total", result="trusted") == 0
    assert b'arc=pass smtp.remote-ip="2001:db8::1" header.oldest-pass=2' in delivered.content.replace(b"\r\n\t", b" ")
    assert delivered.labels == {"arc-pass"}


async def test_fail_stands_there_with_its_reason() -> None:
    async with house() as server:
        assert (await (await server.connect()).send(CHANGED))[-1].startswith("250 ")
        (delivered,) = server.delivered
        assert server.count("smtpd_arc_checks_total", result="fail") == 1
    text = b" ".join(delivered.content.split())
    assert b'arc=fail reason="ARC-Message-Signature 2: the body was changed" smtp.remote-ip=192.0.2.1' in text
    assert delivered.labels == {"arc-fail"}


async def test_message_without_a_chain_is_told_and_not_labelled() -> None:
    async with house({"fail": "reject"}) as server:
        assert (await (await server.connect()).send(LETTER))[-1].startswith("250 ")
        (delivered,) = server.delivered
        assert server.count("smtpd_arc_checks_total", result="none") == 1
    assert b"arc=none\r\n" in delivered.content
    assert delivered.labels == frozenset()


@pytest.mark.parametrize(
    ("options", "login", "heard"),
    [
        ({}, None, "250 2.0.0"),
        ({"fail": "reject"}, None, "550 5.7.29 The ARC chain of the message does not hold: ARC-Message-Signature 2: "),
        ({"fail": "reject"}, "joe", "250 2.0.0"),
        ({"fail": "reject", "unless": ["arc-fail"]}, None, "250 2.0.0"),
        ({"fail": "reject", "mode": "observe"}, None, "250 2.0.0"),
        ({"fail": "reject", "max_instances": 1}, None, "250 2.0.0"),
    ],
)
async def test_fail_refuses_only_where_the_operator_says_so(
    options: dict[str, object], login: str | None, heard: str
) -> None:
    async with house(options) as server:
        assert (await (await server.connect(login=login)).send(CHANGED))[-1].startswith(heard)


async def test_chain_that_passes_is_not_refused() -> None:
    assert (await found(chain(2), fail="reject")).status == "pass"


async def test_chain_longer_than_the_operator_wants_fails() -> None:
    result = await found(chain(3), max_instances=2)
    assert (result.status, result.reason) == ("fail", "there are more than 2 sets")


# What goes wrong here


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("on_error", ["pass", "defer"])
@pytest.mark.parametrize(("resolver", "event"), [(Broken(), "filter-failed"), (Silent(), "filter-timed-out")])
async def test_filter_that_breaks_never_refuses(mode: str, on_error: str, resolver: Zone, event: str) -> None:
    options = {"fail": "reject", "mode": mode, "on_error": on_error, "timeout": "50ms"}
    async with MemoryServer(filters={"arc": (Arc, options)}, resolver=resolver) as server:
        heard = (await (await server.connect()).send(chain(2)))[-1]
        server.forget(event)
    is_deferred = on_error == "defer" and mode == "enforce"
    assert heard[:9] == ("451 4.3.0" if is_deferred else "250 2.0.0")


async def test_key_that_comes_too_late_for_the_filter_is_a_temporary_error() -> None:
    result = await found(chain(2), Slow(), fail="reject", timeout="900ms", on_error="defer")
    assert result.status == "temperror"


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_dns_that_is_down_never_refuses(mode: str) -> None:
    down = {"tempfail": True}
    async with house({"fail": "reject", "mode": mode}, zone(one=down, two=down)) as server:
        assert (await (await server.connect()).send(chain(2)))[-1].startswith("250 ")
        assert server.delivered[0].labels == frozenset()
        assert server.count("smtpd_arc_checks_total", result="temperror") == 1
    assert Witness.seen.pop().status == "temperror"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_header": "1K"}, chain(2)),
        ({"max_fields": 5}, chain(2)),
        ({}, chain(2).replace(b"To: ", b"no field\r\nTo: ")),
    ],
    ids=["many octets", "many fields", "a line that is no field"],
)
async def test_header_beyond_our_limits_fails_and_is_not_refused(options: dict[str, object], message: bytes) -> None:
    result = await found(message, fail="reject", **options)
    assert result.status == "fail"
    assert result.reason


async def test_lookups_for_the_author_come_before_those_for_the_chain() -> None:
    junk = b"".join(
        b"ARC-Seal: i=%d; a=rsa-sha256; cv=%b; d=one.test; s=k%d; b=AAAA\r\n"
        b"ARC-Message-Signature: i=%d; a=rsa-sha256; d=one.test; s=k%d; h=from; bh=AAAA; b=AAAA\r\n"
        b"ARC-Authentication-Results: i=%d; one.test; none\r\n"
        % (number, b"pass" if number > 1 else b"none", number, number, number, number)
        for number in range(50, 0, -1)
    )
    async with MemoryServer(
        filters={"arc": Arc, "dkim": Dkim},
        resolver=Zone(JOE.zone, cached=False),
        tables={"dns": {"lookups_per_message": 5}},
    ) as server:
        await (await server.connect()).send(junk + SUBDOMAIN.field() + JOE.sign())
        assert server.delivered[0].labels >= {"dkim-pass"}
        assert server.count("smtpd_arc_checks_total", result="pass") == 0


# Whom it believes


@pytest.mark.parametrize(
    ("trusted", "by"),
    [
        (["two.test"], "two.test"),
        (["TWO.test."], "two.test"),
        (["*.test"], "two.test"),
        (["one.test"], ""),
        (["*.two.test"], ""),
        (["wo.test"], ""),
        ([], ""),
    ],
)
async def test_last_host_has_to_be_in_the_list(trusted: list[str], by: str) -> None:
    result = await found(chain(2), trusted_sealers=trusted)
    assert (result.status, result.trusted_by, result.passed_upstream) == ("pass", by, bool(by))


async def test_last_host_that_is_trusted_is_counted() -> None:
    async with house({"trusted_sealers": ["two.test"]}) as server:
        await (await server.connect()).send(chain(2))
        assert server.count("smtpd_arc_checks_total", result="trusted") == 1


async def test_nobody_is_believed_when_the_chain_does_not_pass() -> None:
    for message, resolver in ((CHANGED, zone()), (chain(2), zone(one={"tempfail": True}))):
        result = await found(message, resolver, trusted_sealers=["*.test"])
        assert (result.trusted_by, result.passed_upstream) == ("", False)


ALL = ["one.test", "two.test", "three.test"]


@pytest.mark.parametrize(
    ("trusted", "said", "passed"),
    [
        (ALL, (PASSED, PASSED, PASSED), True),
        (ALL, (PASSED, NOT_PASSED, NOT_PASSED), True),  # a list in between changed it
        (ALL, (NOT_PASSED, NOT_PASSED, PASSED), True),
        (ALL, (NOT_PASSED, NOT_PASSED, NOT_PASSED), False),
        (["three.test"], (NOT_PASSED, NOT_PASSED, PASSED), True),
        (["three.test"], (PASSED, NOT_PASSED, NOT_PASSED), False),  # whoever began the chain may have lied
        (["three.test", "two.test"], (PASSED, NOT_PASSED, NOT_PASSED), False),
        (["three.test", "two.test"], (NOT_PASSED, PASSED, NOT_PASSED), True),
        (["three.test", "one.test"], (PASSED, PASSED, NOT_PASSED), False),  # two.test could have changed all
        (["one.test", "two.test"], (PASSED, PASSED, PASSED), False),
    ],
)
async def test_hosts_are_believed_from_the_last_one_down_without_a_gap(
    trusted: list[str], said: tuple[str, str, str], passed: bool
) -> None:
    message = LETTER
    for hop, results in zip((ONE, TWO, THREE), said, strict=True):
        message = hop.add(message, results)
    assert (await found(message, trusted_sealers=trusted)).passed_upstream is passed


@pytest.mark.parametrize(
    ("author", "results", "passed"),
    [
        (b"Joe <joe@a.test>", PASSED, True),
        (b"Joe <joe@A.Test>", PASSED, True),
        (b"Joe <joe@mail.a.test>", PASSED, False),
        (b"Joe <joe@b.test>", PASSED, False),
        (b"joe@a.test, eve@b.test", PASSED, False),
        (b"joe@a.test, eve@b.test", f"{PASSED}; dmarc=pass header.from=b.test", True),
        (b"nobody", PASSED, False),
        (b"Joe <joe@a.test>", "dmarc=pass", False),
        (b"Joe <joe@a.test>", "spf=pass smtp.mailfrom=a.test", False),
    ],
)
async def test_dmarc_must_have_passed_for_who_is_in_from_now(author: bytes, results: str, passed: bool) -> None:
    message = ONE.forge(LETTER.replace(b"Joe <joe@a.test>", author), 1, results=results)
    result = await found(message, trusted_sealers=["one.test"])
    assert (result.status, result.trusted_by) == ("pass", "one.test")
    assert result.passed_upstream is passed


@pytest.mark.parametrize(
    ("tags", "on_top", "below"),
    [
        ({"l": "5"}, b"", b"buy this\r\n"),
        ({}, b"Subject: Buy this\r\n", b""),
        ({"h": "from:to:date"}, b"Content-Type: text/html\r\nContent-Type: text/plain\r\n", b""),
    ],
    ids=["end of the body", "a second Subject", "two of what is not signed"],
)
async def test_nobody_is_believed_about_what_was_not_signed(tags: Tags, on_top: bytes, below: bytes) -> None:
    message = on_top + ONE.forge(LETTER, 1, signature=tags) + below
    result = await found(message, trusted_sealers=["one.test"])
    assert (result.status, result.trusted_by, result.passed_upstream) == ("pass", "", False)


@pytest.mark.parametrize(
    "name",
    ["Content-Transfer-Encoding", "Content-Type", "Date", "Message-ID", "MIME-Version", "Sender", "Subject"],
)
async def test_no_field_that_says_how_a_message_is_shown_may_be_there_twice(name: str) -> None:
    _, *lines = LETTER.partition(b"\r\n\r\n")
    once = b"From: Joe <joe@a.test>\r\n%b: 1" % name.encode() + b"".join(lines)
    options = {"trusted_sealers": ["one.test"]}
    assert (await found(ONE.forge(once, 1, signature={"h": "from"}), **options)).trusted_by == "one.test"
    twice = f"{name}: 2\r\n".encode() + once
    assert (await found(ONE.forge(twice, 1, signature={"h": "from"}), **options)).trusted_by == ""


async def test_message_signature_may_be_by_another_key_than_the_seal() -> None:
    resolver = zone()
    other = Signer("host.two.test", "x")
    resolver.put(other.name, TXT=[other.record])
    message = Hop(TWO.signer, other).forge(ONE.add(LETTER), 2)
    result = await found(message, resolver, trusted_sealers=["two.test"])
    assert (result.status, result.trusted_by) == ("pass", "two.test")


async def test_key_that_is_only_tried_is_as_good_as_another() -> None:
    # RFC 6376 §3.6.1 is about signatures of authors; here the operator has decided whom to believe
    resolver = zone(one={"TXT": [f"v=DKIM1; t=y; p={ONE.signer.public}"]})
    assert (await found(chain(1), resolver, trusted_sealers=["one.test"])).trusted_by == "one.test"


# With DMARC


LIST = ONE.add(LETTER).replace(b"\r\nJoe\r\n", b"\r\nJoe\r\n-- \r\nthe list\r\n")


LATER = "451 4.7.1"


async def heard_with_dmarc(
    message: bytes,
    trusted: list[str],
    *,
    arc: type[Arc] = Arc,
    down: Sequence[str] = (),
    forget: str = "",
    **options: object,
) -> str:
    resolver = zone(**{host: {"tempfail": True} for host in down})
    resolver.put("a.test", TXT=["v=spf1 -all"])
    resolver.put("_dmarc.a.test", TXT=["v=DMARC1; p=reject"])
    filters: dict[str, Any] = {
        "spf": Spf,
        "dkim": Dkim,
        "dmarc": Dmarc,
        "arc": (arc, {"trusted_sealers": trusted, **options}),
    }
    async with MemoryServer(filters=filters, resolver=resolver) as server:
        heard = (await (await server.connect()).send(message, sender="bounce@list.test"))[-1][:9]
        if forget:
            server.forget(forget)
        if server.delivered:
            head = b" ".join(server.delivered[0].content.split())
            assert b"override=local_policy" in head
            assert b"arc=pass" in head
    return heard


async def test_list_that_is_trusted_gets_through_dmarc() -> None:
    message = TWO.add(LIST, NOT_PASSED)
    assert await heard_with_dmarc(message, ["one.test", "two.test"]) == "250 2.0.0"


async def test_list_that_saw_a_pass_itself_gets_through_whoever_was_before_it() -> None:
    assert await heard_with_dmarc(TWO.add(LIST), ["two.test"]) == "250 2.0.0"


async def test_list_that_is_not_trusted_does_not() -> None:
    assert await heard_with_dmarc(TWO.add(LIST), []) == "550 5.7.1"
    assert await heard_with_dmarc(TWO.add(LIST), ["one.test"]) == "550 5.7.1"


async def test_lie_at_the_beginning_of_a_chain_does_not_get_through_a_list_that_is_trusted() -> None:
    assert await heard_with_dmarc(TWO.add(LIST, NOT_PASSED), ["two.test"]) == "550 5.7.1"


async def test_message_changed_behind_the_list_does_not_get_through() -> None:
    message = TWO.add(LIST).replace(b"the list", b"buy this")
    assert await heard_with_dmarc(message, ["one.test", "two.test"]) == "550 5.7.1"


class Crashing(Arc):
    """Breaks when it looks at a chain."""

    async def _verify(self, *_: Any) -> Any:
        raise RuntimeError("bug")


class Hanging(Arc):
    """Never comes to an end."""

    async def _verify(self, *_: Any) -> Any:
        await asyncio.Event().wait()


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize(("arc", "event"), [(Crashing, "filter-failed"), (Hanging, "filter-timed-out")])
async def test_list_that_is_trusted_is_not_refused_for_good_when_the_filter_breaks(
    arc: type[Arc], event: str, mode: str
) -> None:
    message = TWO.add(LIST)
    assert await heard_with_dmarc(message, ["two.test"], arc=arc, forget=event, timeout="50ms", mode=mode) == LATER
    assert await heard_with_dmarc(message, [], arc=arc, forget=event, timeout="50ms", mode=mode) == "550 5.7.1"
    assert await heard_with_dmarc(LETTER, ["two.test"], arc=arc, timeout="50ms", mode=mode) == "550 5.7.1"


async def test_list_whose_key_cannot_be_looked_up_now_is_not_refused_for_good() -> None:
    message = TWO.add(LIST)
    assert await heard_with_dmarc(message, ["two.test"], down=["two"]) == LATER
    assert await heard_with_dmarc(message, ["one.test"], down=["two"]) == "550 5.7.1"
    changed = message.replace(b"the list", b"buy this")
    assert await heard_with_dmarc(changed, ["one.test", "two.test"], down=["one"]) == "550 5.7.1"
