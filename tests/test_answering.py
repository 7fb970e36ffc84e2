"""Answers that dialog files cannot provoke: after a bug, and to clients that never tire."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dialogue import ENCRYPTED
from stage import CONTENT, ENVELOPE, Stage, codes

from smtpd import replies
from smtpd.delivery import Delivery
from smtpd.model import Transaction
from smtpd.options import FilterOptions, StageName
from smtpd.policy import PASS, Filter, Verdict
from smtpd.users import Options as FileOptions

MAIL = b"MAIL FROM:<joe@client.test>\r\n"
RCPT = b"RCPT TO:<u%d@example.test>\r\n"


class PutsOff(Filter):
    """Every sender, at once."""

    class Options(FilterOptions):
        act_at: StageName | None = "mail"

    name = "later"

    async def on_mail(self, mail: Transaction) -> Verdict:
        return Verdict(replies.OUR_FAULT)


def broken_clock() -> float:
    raise RuntimeError("our bug")


async def test_lmtp_client_is_left_after_a_bug_because_it_waits_for_more_replies() -> None:
    """Else it would take the 250 to its next MAIL for what became of its second recipient."""
    async with Stage(listener={"mode": "lmtp"}) as server:
        talk = server.talk(now=broken_clock)
        await talk.say(ENVELOPE.replace(b"EHLO", b"LHLO") + RCPT % 2)
        said = await talk.say(b"DATA\r\n" + CONTENT + b".\r\n" + MAIL)
        assert codes(said) == ["354", "451"]
        assert talk.is_over


async def test_senders_that_are_put_off_count_as_messages() -> None:
    async with Stage(filters={"later": PutsOff}, tables={"limits": {"messages_per_session": 2}}) as server:
        said = await server.talk().say(b"EHLO client.test\r\n" + MAIL * 9)
        assert codes(said)[2:] == ["451", "451", "421"]


async def test_too_many_recipients_are_one_line_for_each_message_and_all_are_counted() -> None:
    """A client that goes on all the same could fill the disk."""
    burst = MAIL + b"".join(RCPT % number for number in range(20)) + b"RSET\r\n"
    async with Stage(tables={"max_recipients": 2}) as server:
        said = await server.talk().say(b"EHLO client.test\r\n" + burst + burst)
        assert codes(said).count("452") == 36
        assert [line["reason"] for line in server.events("refused")] == ["too-many-recipients"] * 2
        reason = {"listener": "smtp", "reason": "too-many-recipients", "recipient_domain": "other"}
        assert server.count("smtpd_messages_rejected_total", **reason) == 36


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"]
)
async def test_browser_is_hung_up_on_whatever_it_asks_for(method: bytes) -> None:
    """RFC 9110 §9.3 and RFC 5789; the commands would stand in its body."""
    async with Stage() as server:
        talk = server.talk()
        await talk.hear()
        assert not await talk.say(method + b" / HTTP/1.1\r\nHost: mx.test\r\n\r\n" + ENVELOPE)
        assert talk.is_over


@pytest.mark.parametrize("end", [b"RSET\r\n", b"EHLO client.test\r\n", b"QUIT\r\n", None])
async def test_agent_hears_once_that_a_transaction_is_given_up(end: bytes | None) -> None:
    """It may hold a connection to the server behind it."""
    abandoned: list[str] = []

    class Held(Delivery):
        async def abandon(self) -> None:
            abandoned.append(self.mail.sender.text)

    async with Stage() as server:
        agent = server.service.agents["keeper"]
        agent.asks = True
        agent.open = lambda mail: Held(agent, mail)  # type: ignore[method-assign]
        talk = await server.ready()
        assert not abandoned
        await (talk.hang_up() if end is None else talk.say(end))
        await asyncio.sleep(0)
        assert abandoned == ["joe@client.test"]
        if not talk.is_over:
            await talk.hang_up()
    assert len(abandoned) == 1


@pytest.mark.parametrize(
    ("verdict", "end"),
    [(PASS, b"RSET\r\n"), (PASS, b"HELO client.test\r\n"), (Verdict(replies.OUR_FAULT), b"")],
)
async def test_transactions_that_come_to_nothing_one_after_the_other_let_others_have_their_turn(
    verdict: Verdict, end: bytes
) -> None:
    """Each has its filters asked, which takes a hundred times as long as a command."""
    asked: list[Transaction] = []

    class Asked(PutsOff):
        name = "asked"

        async def on_mail(self, mail: Transaction) -> Verdict:
            asked.append(mail)
            return verdict

    async with Stage(filters={"asked": Asked}) as server:
        talk = server.talk()
        loop, seen = asyncio.get_running_loop(), list[int]()

        def look() -> None:
            seen.append(len(asked))
            if len(asked) < 50:
                loop.call_soon(look)

        look()
        await talk.say(b"EHLO client.test\r\n" + (MAIL + end) * 50)
        assert max(after - before for before, after in pairwise(seen)) <= 2


async def test_logins_that_cannot_be_checked_end_a_connection_like_wrong_passwords(
    certificates: Any, tmp_path: Path
) -> None:
    """Each leaves a line in the log, and a client could ask for as many as it likes."""
    users = tmp_path / "users"
    users.touch(0o600)
    tables = {
        "tls": {"cert_file": certificates.cert_file, "key_file": certificates.key_file},
        "auth": {"providers": ["users"], "users": FileOptions(type="file", path=str(users))},
    }
    async with Stage(listener={"mode": "alt", "tls": "starttls"}, tables=tables) as server:
        users.unlink()
        users.mkdir()
        talk = server.talk(tls=ENCRYPTED)
        await talk.say(b"EHLO client.test\r\n")
        login = b"AUTH PLAIN AGFubgB4\r\n"
        assert [codes(await talk.say(login)) for _ in range(3)] == [["454"], ["454"], ["454", "421"]]
        assert talk.is_over


async def test_replies_of_a_burst_leave_together_though_others_have_had_their_turn() -> None:
    class Refusing(Filter):
        name = "refusing"
        early = True

        async def on_mail(self, mail: Transaction) -> Verdict:
            return Verdict(replies.BAD_SENDER_SYNTAX(problem="always"))

    async with Stage(filters={"refusing": Refusing}) as server:
        talk = server.talk()
        await talk.say(b"EHLO client.test\r\n")
        talk._channel.feed(MAIL + RCPT % 1 + b"DATA\r\n" + MAIL + b"RSET\r\n")
        while not talk._channel.is_listening:  # noqa: ASYNC110 - a turn of the loop, no more
            await asyncio.sleep(0)
        (burst,) = talk.transport.writes
        assert len(burst.splitlines()) == 5
