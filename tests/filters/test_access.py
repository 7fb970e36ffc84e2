"""Which list beats which, asked of the whole server."""

import pytest

from filters.access import AccessOptions
from smtpd.config.problems import ConfigError
from tests.filters.conftest import Build

OK = "250 2.1.5"
CATCH_ALL = {"@mx.test": "store"}


async def rcpt(build: Build, access: dict[str, object], sender: str = "joe@c.test", **call: str) -> str:
    """Codes of the answer at RCPT."""
    house = await build({"access": access})
    await house.call(**call)
    answers = await house.mail(sender)
    assert answers[0].startswith("250 2.1.0"), "a refusal waits for RCPT"
    return answers[1][:9]


async def test_empty_lists_let_everybody_in(build: Build) -> None:
    assert await rcpt(build, {}) == OK


@pytest.mark.parametrize(
    ("denied", "ip"),
    [("192.0.2.0/24", "192.0.2.77"), ("2001:db8::/32", "2001:db8::1"), ("192.0.2.9", "::ffff:192.0.2.9")],
)
async def test_denied_network_hears_so_at_rcpt_in_words(build: Build, denied: str, ip: str) -> None:
    house = await build({"access": {"deny_clients": [denied]}})
    await house.call(ip=ip)
    sender, recipient = await house.mail()
    assert sender.startswith("250")
    assert recipient.startswith(f"550 5.7.1 Mail from {ip} is not accepted here [access ")


async def test_other_networks_are_let_in(build: Build) -> None:
    assert await rcpt(build, {"deny_clients": ["192.0.2.0/24"]}, ip="192.0.3.1") == OK


@pytest.mark.parametrize("hello", [b"EHLO Bad.Example\r\n", b"HELO a.worse.example.\r\n"])
async def test_denied_name_in_helo_is_refused(build: Build, hello: bytes) -> None:
    house = await build({"access": {"deny_helo": ["bad.example", "*.worse.example"]}})
    await house.call(hello=hello)
    assert (await house.mail())[1].startswith("550 5.7.1 Mail from hosts that call themselves")


@pytest.mark.parametrize("sender", ["joe@a.example", "JOE@A.Example", "x@b.example", "x@deep.c.example"])
async def test_denied_sender_is_refused(build: Build, sender: str) -> None:
    lists = {"deny_senders": ["joe@a.example", "@b.example", "@*.c.example"]}
    assert await rcpt(build, lists, sender) == "550 5.7.1"


async def test_null_sender_is_never_on_a_list(build: Build) -> None:
    assert await rcpt(build, {"deny_senders": ["@*.test", "@test"]}, "") == OK


async def test_allowed_network_beats_denied_networks_names_and_senders(build: Build) -> None:
    lists: dict[str, object] = {
        "allow_clients": ["192.0.2.5"], "deny_clients": ["192.0.2.0/24"], "deny_helo": ["c.test"],
        "deny_senders": ["@c.test"],
    }  # fmt: skip
    assert await rcpt(build, lists, ip="192.0.2.5") == OK
    assert await rcpt(build, lists, ip="192.0.2.6") == "550 5.7.1"


async def test_allowed_sender_beats_denied_senders_and_nothing_else(build: Build) -> None:
    senders: dict[str, object] = {"allow_senders": ["joe@c.test"], "deny_senders": ["@c.test"]}
    assert await rcpt(build, senders) == OK
    assert await rcpt(build, senders, "eve@c.test") == "550 5.7.1"
    assert await rcpt(build, {**senders, "deny_clients": ["0.0.0.0/0"]}) == "550 5.7.1"
    assert await rcpt(build, {**senders, "deny_helo": ["c.test"]}) == "550 5.7.1"


async def test_denied_recipient_beats_catch_all_every_allow_and_a_login(build: Build) -> None:
    house = await build(
        {"access": {
            "allow_clients": ["0.0.0.0/0"], "allow_senders": ["@c.test"], "allow_recipients": ["@mx.test"],
            "deny_recipients": ["Gone@mx.test"],
        }},
        recipients=CATCH_ALL,
    )  # fmt: skip
    for login in (None, "ann"):
        await house.call(login=login)
        _, gone, here = await house.mail("joe@c.test", "gone@MX.test", "anybody@mx.test")
        assert gone.startswith("550 5.1.1 No mailbox here by the name gone@MX.test [access ")
        assert here.startswith(OK)


async def test_denied_recipient_is_answered_before_what_is_held(build: Build) -> None:
    house = await build({"access": {"deny_clients": ["0.0.0.0/0"], "deny_recipients": ["gone@mx.test"]}})
    await house.call()
    _, gone, other = await house.mail("joe@c.test", "gone@mx.test", "ann@mx.test")
    assert (gone[:9], other[:9]) == ("550 5.1.1", "550 5.7.1")


async def test_postmaster_is_reached_by_denied_clients(build: Build) -> None:
    house = await build({"access": {"deny_clients": ["0.0.0.0/0"], "deny_recipients": ["@mx.test"]}})
    await house.call()
    answers = await house.mail("joe@c.test", "Postmaster", "postmaster@mx.test", "ann@mx.test")
    assert [answer[:9] for answer in answers[1:]] == [OK, OK, "550 5.1.1"]


async def test_user_who_logged_in_may_come_from_a_denied_network(build: Build) -> None:
    lists = {"deny_clients": ["192.0.2.0/24"], "deny_helo": ["c.test"], "deny_senders": ["@c.test"]}
    assert await rcpt(build, lists, login="ann") == OK


async def test_denied_network_gets_no_banner_when_the_operator_wants_so(build: Build) -> None:
    house = await build({"access": {"deny_clients": ["192.0.2.0/24"], "act_at": "connect"}})
    await house.call(hello=b"")
    assert house.banner.startswith("554 mx.test")
    await house.call(ip="192.0.3.1")
    assert (await house.mail())[1].startswith(OK)


async def test_denied_sender_still_waits_for_mail_when_networks_are_refused_at_connect(build: Build) -> None:
    house = await build({"access": {"deny_senders": ["@c.test"], "act_at": "connect"}})
    await house.call()
    assert (await house.mail())[0].startswith("550 5.7.1 Mail from joe@c.test")


@pytest.mark.parametrize(
    ("label", "lists"),
    [("allowed", {"allow_clients": ["192.0.2.1"]}), ("allowed_sender", {"allow_senders": ["@c.test"]}),
     ("allowed_recipient", {"allow_recipients": ["ann@mx.test"]})],
)  # fmt: skip
async def test_label_of_an_allow_silences_filters_that_ask_for_it_and_no_others(
    build: Build, label: str, lists: dict[str, object]
) -> None:
    for unless, code in ([label], OK), (["trusted"], "550 5.7.1"):
        talkers = {"greet_delay": 0, "unless": unless}
        house = await build({"access": lists, "early_talker": talkers})
        await house.call()
        house.talk.session.early = True
        assert (await house.mail())[1][:9] == code


async def test_an_allow_never_silences_checks_of_the_from_field(build: Build) -> None:
    lists = {"allow_clients": ["0.0.0.0/0"], "allow_senders": ["@c.test"], "allow_recipients": ["@mx.test"]}
    house = await build({"access": lists, "headers": {}})
    await house.call()
    assert (await house.send(b"From: a@c.test\r\nFrom: b@d.test\r\n\r\n")).startswith("550 5.6.0")


async def test_label_of_one_recipient_is_not_the_others(build: Build) -> None:
    talkers = {"greet_delay": 0, "unless": ["allowed_recipient"]}
    house = await build({"access": {"allow_recipients": ["abuse@mx.test"]}, "early_talker": talkers})
    await house.call()
    house.talk.session.early = True
    answers = await house.mail("joe@c.test", "abuse@mx.test", "ann@mx.test")
    assert [answer[:9] for answer in answers[1:]] == [OK, "550 5.7.1"]


async def test_denial_in_observe_mode_is_only_counted(build: Build) -> None:
    house = await build({"access": {"deny_clients": ["0.0.0.0/0"], "mode": "observe"}})
    await house.call()
    assert (await house.mail())[1].startswith(OK)
    assert house.count("smtpd_filter_would_reject_total", filter="access") == 1
    assert house.count("smtpd_access_matches_total", filter="access", list="deny_clients") == 1


async def test_mistakes_in_lists_name_the_entry(build: Build) -> None:
    lists = {"deny_clients": ["192.0.2.1/24"], "deny_helo": ["*"], "deny_senders": ["@ok.test", "*@a.example"]}
    with pytest.raises(ConfigError) as caught:
        await build({"access": lists})
    problems = "\n".join(map(str, caught.value.problems))
    for key in ("deny_clients[0]", "deny_helo[0]", "deny_senders[1]"):
        assert f"filters.access.{key}" in problems


def test_there_is_no_list_of_helo_names_to_allow() -> None:
    assert not [name for name in AccessOptions.model_fields if "allow" in name and "helo" in name]
