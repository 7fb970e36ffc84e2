"""Who speaks before its turn, asked of the whole server."""

import asyncio

import pytest

from smtpd.config.problems import ConfigError
from tests.filters.conftest import Build

OK = "250 2.1.5"
HELLO = b"EHLO c.test\r\n"
AT_ONCE = {"greet_delay": 0}


async def test_client_that_speaks_before_the_banner_is_refused_at_rcpt_and_stays_connected(build: Build) -> None:
    house = await build({"early_talker": {"greet_delay": "60s"}})
    answer = await house.call(hello=HELLO)
    assert house.banner == "", "the banner waits"
    assert answer.startswith("220 mx.test"), "and comes as soon as there is nothing to wait for"
    assert "\r\n250" in answer
    sender, recipient = await house.mail()
    assert sender.startswith("250 2.1.0")
    assert recipient.startswith("550 5.7.1 You spoke before it was your turn [early_talker ")
    assert (await house.say("NOOP\r\n")).startswith("250")


async def test_client_that_waits_gets_the_banner_and_its_mail_through(build: Build) -> None:
    house = await build({"early_talker": {"greet_delay": "20ms"}})
    await house.call(hello=b"")
    async with asyncio.timeout(10):
        while not (banner := await house.talk.hear()):  # noqa: ASYNC110 - the timer of the delay
            await asyncio.sleep(0)
    assert banner.startswith(b"220 mx.test")
    assert (await house.say(HELLO)).startswith("250-")
    assert (await house.send(b"From: joe@c.test\r\n\r\nHi\r\n")).startswith("250")


@pytest.mark.parametrize("hello", [b"EHLO c.test\r\nMAIL FROM:<joe@c.test>\r\n", b"HELO c.test\r\nNOOP\r\n"])
async def test_command_right_behind_the_hello_is_early(build: Build, hello: bytes) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call(hello=hello)
    await house.say("RSET\r\n")
    assert (await house.mail())[1][:9] == "550 5.7.1"


@pytest.mark.parametrize("last", ["NOOP", "VRFY ann", "EXPN staff", "TURN", "AUTH PLAIN"])
async def test_command_behind_one_that_ends_a_group_is_early(build: Build, last: str) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call()
    await house.say(f"MAIL FROM:<joe@c.test>\r\n{last}\r\n")
    await house.say("RSET\r\n")
    assert (await house.mail())[1].startswith(OK), "it was the last one of its group"
    await house.say(f"RSET\r\n{last}\r\nRSET\r\n")
    assert (await house.mail())[1][:9] == "550 5.7.1"


async def test_pipelining_as_offered_is_nothing_early(build: Build) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call()
    group = "MAIL FROM:<joe@c.test>\r\nRCPT TO:<ann@mx.test>\r\nDATA\r\n"
    assert (await house.say(group)).count("250 ") == 2
    assert (await house.say("From: joe@c.test\r\n\r\nHi\r\n.\r\nMAIL FROM:<joe@c.test>\r\n")).count("250 ") == 2
    assert (await house.say("RCPT TO:<ann@mx.test>\r\n")).startswith(OK)


async def test_message_right_behind_data_is_refused_at_its_end(build: Build) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call()
    await house.mail()
    answer = await house.say("DATA\r\nFrom: joe@c.test\r\n\r\nHi\r\n.\r\n")
    assert answer.startswith("354 ")
    assert "\r\n550 5.7.1 You spoke before it was your turn [early_talker " in answer
    assert (await house.mail())[1][:9] == "550 5.7.1", "it is known from now on"


async def test_who_spoke_early_is_counted_once_for_each_message(build: Build) -> None:
    house = await build({"early_talker": {**AT_ONCE, "mode": "observe"}})
    await house.call(hello=HELLO + b"NOOP\r\n")
    assert (await house.send(b"From: joe@c.test\r\n\r\n")).startswith("250")
    assert house.count("smtpd_filter_would_reject_total", filter="early_talker") == 1


async def test_postmaster_and_users_who_logged_in_are_not_refused(build: Build) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call(hello=HELLO + b"NOOP\r\n")
    answers = await house.mail("joe@c.test", "postmaster@mx.test", "ann@mx.test")
    assert [answer[:9] for answer in answers[1:]] == [OK, "550 5.7.1"]
    await house.call(login="ann", hello=HELLO + b"NOOP\r\n")
    assert (await house.mail())[1].startswith(OK)


async def test_label_is_there_for_other_filters_when_the_refusal_is_silenced(build: Build) -> None:
    tables = {"early_talker": {**AT_ONCE, "unless": ["trusted"]}, "headers": {"unless": ["early_talker"]}}
    house = await build(tables, trusted_networks=["192.0.2.0/24"])
    for hello, code in (HELLO, "550 5.6.0"), (HELLO + b"NOOP\r\n", "250 2.0.0"):
        await house.call(hello=hello)
        assert (await house.send(b"Subject: no author\r\n\r\n"))[:9] == code


async def test_who_said_helo_may_not_send_commands_in_groups(build: Build) -> None:
    house = await build({"early_talker": AT_ONCE})
    await house.call(hello=b"HELO c.test\r\n")
    assert (await house.mail())[1].startswith(OK)
    await house.say("RSET\r\n")
    answers = await house.say("MAIL FROM:<joe@c.test>\r\nRCPT TO:<ann@mx.test>\r\n")
    assert answers.startswith("250 2.1.0")
    assert "\r\n550 5.7.1 You spoke before" in answers


async def test_delay_has_a_limit(build: Build) -> None:
    with pytest.raises(ConfigError):
        await build({"early_talker": {"greet_delay": "2m"}})
