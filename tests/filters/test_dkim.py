"""DKIM asked of the whole server: messages signed by others, what happens to mail, and what a stranger can cost."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from dkim_house import ED25519, EVE, JOE, SUBDOMAIN, Witness, found, house, only
from resolvers import Broken, Counting, Silent, Slow
from signer import LETTER, Signer

from filters.dkim import Dkim
from smtpd.config.problems import ConfigError
from smtpd.memory import MemoryServer
from smtpd.zone import Zone

VECTORS = Path(__file__).parent.parent / "vectors" / "dkim"
SIGNED_BY_OTHERS = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.eml"))}
ALL_REFUSE = {"unsigned": "reject", "failed": "reject", "unaligned": "reject", "temperror": "defer"}


async def answer(message: bytes, options: Mapping[str, object], **records: str) -> str:
    """What the client hears, with the label behind it."""
    async with house(options, **records) as server:
        heard = (await (await server.connect()).send(message))[-1]
        labels = [label for one in server.delivered for label in one.labels]
    return f"{heard[:9]} {' '.join(labels)}".strip()


# Messages of others


@pytest.mark.parametrize("message", SIGNED_BY_OTHERS.values(), ids=SIGNED_BY_OTHERS.keys())
async def test_messages_signed_by_others_pass(message: bytes) -> None:
    async with MemoryServer(
        filters={"dkim": (Dkim, {"body_length": "count"}), "witness": Witness},
        resolver=Zone.load(VECTORS / "zone.toml"),
    ) as server:
        assert (await (await server.connect()).send(message))[-1].startswith("250 ")
        assert server.delivered[0].labels == {"dkim-pass"}
    assert {one.result for one in Witness.seen.pop().signatures} == {"pass"}


@pytest.mark.parametrize("message", SIGNED_BY_OTHERS.values(), ids=SIGNED_BY_OTHERS.keys())
@pytest.mark.parametrize("change", [(b"Subject: ", b"Subject: Re: "), (b"opendkim.test>\r\n", b"0pendkim.test>\r\n")])
async def test_messages_signed_by_others_fail_when_changed(message: bytes, change: tuple[bytes, bytes]) -> None:
    changed = message.replace(*change, 1) if change[0] in message else message.replace(b"Joe.", b"Eve.")
    async with MemoryServer(
        filters={"dkim": Dkim, "witness": Witness}, resolver=Zone.load(VECTORS / "zone.toml")
    ) as server:
        await (await server.connect()).send(changed)
        assert server.delivered[0].labels == {"dkim-fail"}
    assert {one.result for one in Witness.seen.pop().signatures} == {"fail"}


async def test_report_names_each_signature_with_its_reason() -> None:
    message = JOE.field() + ED25519.field(i="@a.test") + LETTER
    async with house(ed="v=DKIM1; k=ed25519; p=") as server:
        await (await server.connect()).send(message)
        head = server.delivered[0].content.replace(b"\r\n\t", b" ").replace(b"\r\n ", b" ").decode()
        assert server.count("smtpd_dkim_checks_total", result="pass") == 1
        assert server.count("smtpd_dkim_checks_total", result="permerror") == 1
    begin = message.partition(b" b=")[2][:8].decode()
    assert "dkim=pass header.d=a.test header.s=s header.a=rsa-sha256 header.b=" in head
    assert begin in head.partition("header.b=")[2][:10]
    assert 'dkim=permerror reason="the key was revoked" header.d=a.test header.s=ed' in head
    assert "header.i=@a.test" in head


async def test_report_tells_signatures_apart_that_begin_alike() -> None:
    value = JOE.field().partition(b" b=")[2].strip().decode()
    other = value[:300] + ("A" if value[300] != "A" else "B") + value[301:]
    message = JOE.field(b="\r\n ".join(other[start : start + 20] for start in range(0, 344, 20))) + JOE.sign()
    async with house() as server:
        await (await server.connect()).send(message)
        field = server.delivered[0].content.partition(b"\r\nReceived:")[0].decode()
    shown = [word.removeprefix("header.b=").strip('";') for word in field.split() if word.startswith("header.b=")]
    assert shown == [other[:301], value[:301]]


# What happens to the message


CHANGED = JOE.sign() + b"PS\r\n"
APPENDED = JOE.sign(l="5") + b"PS\r\n"


@pytest.mark.parametrize(
    ("options", "message", "records", "heard"),
    [
        ({}, LETTER, {}, "250 2.0.0 dkim-none"),
        ({}, CHANGED, {}, "250 2.0.0 dkim-fail"),
        ({}, EVE.sign(), {}, "250 2.0.0 dkim-pass"),
        ({}, b"X: " + b"x" * 999 + b"\r\n", {}, "250 2.0.0 dkim-none"),
        ({"unsigned": "reject"}, LETTER, {}, "550 5.7.2"),
        ({"unsigned": "reject"}, CHANGED, {}, "250 2.0.0 dkim-fail"),
        ({"unsigned": "reject"}, CHANGED, {"s": f"t=y; p={JOE.public}"}, "550 5.7.2"),
        ({"failed": "reject"}, CHANGED, {"s": f"t=y; p={JOE.public}"}, "250 2.0.0 dkim-none"),
        ({"failed": "reject"}, LETTER, {}, "250 2.0.0 dkim-none"),
        ({"failed": "reject"}, EVE.field() + CHANGED, {}, "550 5.7.2"),
        ({"failed": "reject"}, EVE.field(h="from") + CHANGED, {}, "550 5.7.2"),
        ({"failed": "reject"}, CHANGED.replace(b"b=", b"b=A", 1), {}, "550 5.7.2"),
        ({}, APPENDED, {}, "250 2.0.0 dkim-fail"),
        ({"failed": "reject"}, APPENDED, {}, "550 5.7.2"),
        ({"body_length": "count", "failed": "reject"}, APPENDED, {}, "250 2.0.0 dkim-pass"),
        ({"unaligned": "reject"}, EVE.sign(), {}, "550 5.7.2"),
        ({"unaligned": "reject"}, EVE.field() + JOE.sign(), {}, "250 2.0.0 dkim-pass"),
        ({"unaligned": "reject"}, SUBDOMAIN.sign(), {}, "250 2.0.0 dkim-pass"),
        ({"unaligned": "reject"}, LETTER, {}, "250 2.0.0 dkim-none"),
    ],
)  # fmt: skip
async def test_operator_decides_what_happens(
    options: dict[str, object], message: bytes, records: dict[str, str], heard: str
) -> None:
    assert await answer(message, options, **records) == heard


async def test_refusals_say_why_with_the_codes_of_rfc_7372() -> None:
    said = []
    for message in (LETTER, CHANGED, JOE.sign(a="rsa-sha1"), EVE.sign()):
        async with house(ALL_REFUSE) as server:
            said.append((await (await server.connect()).send(message))[-1].partition(" [dkim")[0])
    assert said == [
        "550 5.7.20 The message has no DKIM signature",
        "550 5.7.20 No DKIM signature of the message passes: the body was changed",
        "550 5.7.21 No DKIM signature of the message is acceptable: rsa-sha1 proves nothing",
        "550 5.7.22 No DKIM signature is by the domain in From",
    ]


async def test_mail_of_users_who_logged_in_is_not_refused() -> None:
    async with house(ALL_REFUSE) as server:
        talk = await server.connect(login="joe")
        assert (await talk.send(LETTER))[-1].startswith("250 ")


# What goes wrong here


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("on_error", ["pass", "defer"])
@pytest.mark.parametrize(("resolver", "event"), [(Broken(), "filter-failed"), (Silent(), "filter-timed-out")])
async def test_filter_that_breaks_never_refuses(mode: str, on_error: str, resolver: Zone, event: str) -> None:
    options = {**ALL_REFUSE, "mode": mode, "on_error": on_error, "timeout": "50ms"}
    async with MemoryServer(filters={"dkim": (Dkim, options)}, resolver=resolver) as server:
        heard = (await (await server.connect()).send(JOE.sign()))[-1]
        server.forget(event)
    is_deferred = on_error == "defer" and mode == "enforce"
    assert heard[:9] == ("451 4.3.0" if is_deferred else "250 2.0.0")


async def test_key_that_comes_too_late_for_the_filter_is_a_temporary_error() -> None:
    async with house({**ALL_REFUSE, "timeout": "900ms", "on_error": "defer"}, resolver=Slow()) as server:
        assert (await (await server.connect()).send(JOE.sign()))[-1].startswith("451 4.7.5 A DKIM key cannot be looked")
        assert server.count("smtpd_dkim_checks_total", result="temperror") == 1


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("temperror", ["tag", "defer"])
async def test_dns_that_is_down_defers_where_the_operator_says_so(mode: str, temperror: str) -> None:
    options = {**ALL_REFUSE, "mode": mode, "temperror": temperror}
    async with house(options, resolver=Zone({JOE.name: {"tempfail": True}})) as server:
        heard = (await (await server.connect()).send(JOE.sign()))[-1]
    is_deferred = temperror == "defer" and mode == "enforce"
    assert heard[:9] == ("451 4.7.5" if is_deferred else "250 2.0.0")


async def test_refusals_are_only_counted_in_observe_mode() -> None:
    async with house({**ALL_REFUSE, "mode": "observe"}) as server:
        assert (await (await server.connect()).send(CHANGED))[-1].startswith("250 ")
        assert server.count("smtpd_filter_would_reject_total", filter="dkim") == 1
        assert server.count("smtpd_dkim_checks_total", result="fail") == 1


async def test_one_good_signature_makes_up_for_keys_nobody_answers_for() -> None:
    zone = Zone({EVE.name: {"tempfail": True}, **JOE.zone})
    async with house({"temperror": "defer"}, resolver=zone) as server:
        assert (await (await server.connect()).send(EVE.field() + JOE.sign()))[-1].startswith("250 ")
        assert server.delivered[0].labels == {"dkim-pass"}


# What a stranger can cost


async def test_thousand_signatures_cost_eight_lookups_and_do_not_hide_the_authors() -> None:
    # 990 of a stranger's, each with a key of its own, on top of one of the author's
    junk = [
        b"DKIM-Signature: v=1; d=eve.test; s=x%d; h=from; b=AAAA; bh=AAAA; a=rsa-sha256\r\n" % n for n in range(990)
    ]
    zone = Counting(JOE.zone)
    async with house(resolver=zone) as server:
        await (await server.connect()).send(b"".join(junk) + JOE.sign())
        assert server.delivered[0].labels == {"dkim-pass"}
        assert server.count("smtpd_dkim_checks_total", result="permerror") == 7
        assert b"(983 more signatures not looked at)" in server.delivered[0].content
    results = Witness.seen[0]
    assert len(results.signatures) == 8
    assert results.unchecked == 983
    assert results.signatures[-1].result == "pass"
    assert len(zone.asked) == 8


async def test_signatures_of_domains_above_and_below_the_author_come_before_strangers() -> None:
    message = EVE.field() + EVE.field() + SUBDOMAIN.field() + LETTER
    results = await found(message, {"max_signatures": 1})
    assert [one.domain for one in results.signatures] == ["mail.a.test"]
    below = LETTER.replace(b"joe@a.test", b"joe@news.a.test")
    results = await found(EVE.field(below) + JOE.field(below) + below, {"max_signatures": 1})
    assert [one.domain for one in results.signatures] == ["a.test"]
    results = await found(EVE.field() + Signer("xa.test").field() + LETTER, {"max_signatures": 1})
    assert [one.domain for one in results.signatures] == ["eve.test"]


async def test_signatures_with_one_key_cost_one_lookup() -> None:
    zone = Counting(JOE.zone)
    async with house(resolver=zone) as server:
        await (await server.connect()).send(JOE.field() + JOE.field(c="simple") + JOE.field(h="from") + LETTER)
    assert [one.result for one in Witness.seen[0].signatures] == ["pass"] * 3
    assert zone.asked == [JOE.name]


async def test_keys_are_found_however_many_lookups_others_have_used_up() -> None:
    zone = Counting({**JOE.zone, **EVE.zone, **ED25519.zone})
    server = MemoryServer(
        filters={"dkim": Dkim, "witness": Witness}, resolver=zone, tables={"dns": {"lookups_per_message": 1}}
    )
    Witness.seen.clear()
    async with server:
        await (await server.connect()).send(JOE.field() + EVE.field() + ED25519.sign())
    assert [one.result for one in Witness.seen[0].signatures] == ["pass"] * 3


async def test_header_section_over_the_limits_is_not_looked_at() -> None:
    many = b"X: y\r\n" * 1000
    signature = await only(many + JOE.sign())
    assert (signature.result, signature.reason) == ("policy", "the header section has more than 1000 fields")
    assert (await only(many + JOE.sign(), {"max_fields": 2000})).result == "pass"
    assert (await only(b"X: y\r\n" + b" folded\r\n" * 2000 + JOE.sign())).result == "pass"
    big = b"X: " + b"y" * 900 + b"\r\n"
    signature = await only(big * 300 + JOE.sign())
    assert (signature.result, signature.reason) == ("policy", "the header section is bigger than 262144 octets")
    assert (await only(big * 300 + JOE.sign(), {"max_header": "512K"})).result == "pass"


async def test_unsigned_message_is_not_looked_at_at_all() -> None:
    assert (await found(b"no field\r\n" + LETTER)).signatures == ()
    assert (await found(LETTER + b"DKIM-Signature: v=1\r\n")).signatures == ()


@pytest.mark.parametrize(
    "options", [{"max_signatures": 0}, {"min_rsa_bits": 512}, {"max_header": "1M"}, {"single": ["Subject:"]}]
)
def test_options_have_bounds(options: dict[str, object]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        Dkim.Options.model_validate(options)
