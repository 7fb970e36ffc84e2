import asyncio
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, ClassVar

import pytest
from rehearsals import LETTER, NOW, play, replies, said, step_at

from smtpd import replies as texts
from smtpd.config.listeners import Listener
from smtpd.findings import SpfCheck, SpfResults
from smtpd.model import Message, Recipient, Session, Transaction
from smtpd.options import AgentOptions
from smtpd.policy import NEVER_REJECT, PASS, WOULD_REJECT, Filter, Verdict
from smtpd.rehearsal import Client, Envelope, Line, RehearsalError
from smtpd.rehearsal.rehearsal import MAX_SAID
from smtpd.rehearsal.watching import INTERRUPTED

NO = texts.DENIED_CLIENT(ip="192.0.2.1")
LATER = texts.SPF_TEMPERROR


class Refusing(Filter):
    async def on_connect(self, session: Session) -> Verdict:
        return Verdict(NO, labels=frozenset(("suspect",)))


class Crashing(Filter):
    async def on_message(self, mail: Transaction, message: Message) -> Verdict:
        raise RuntimeError("no such luck")


class Deferring(Filter):
    async def on_rcpt(self, mail: Transaction, recipient: Recipient) -> Verdict:
        return Verdict(LATER) if recipient.address.local == "later" else PASS


class Slow(Filter):
    async def on_mail(self, mail: Transaction) -> Verdict:
        await asyncio.Event().wait()
        return PASS


class Knowing(Filter):
    """Leaves a fact."""

    gives = (SpfResults,)

    async def on_mail(self, mail: Transaction) -> Verdict:
        mail.facts.add(SpfResults(SpfCheck("fail", "mailfrom", "client.test", mail.sender.text, "not listed")))
        return Verdict(NO)


class Clocked(Filter):
    seen: ClassVar[list[float]] = []

    async def on_connect(self, session: Session) -> Verdict:
        self.seen.append(self.services.now())
        return PASS


async def test_a_message_is_played_to_its_end() -> None:
    done = await play()
    assert [step.moment for step in done.steps] == ["connect", "helo", "mail", "rcpt", "data", "message"]
    assert [step.code for step in done.steps] == ["220", "250", "250", "250", "354", "250"]
    assert done.ending == "accepted"
    (letter,) = done.letters
    (collected,) = letter.collected
    assert (collected.agent, collected.mailboxes, collected.labels) == ("store", ("ann@example.test",), frozenset())


async def test_a_held_refusal_is_shown_where_it_was_decided_and_where_it_was_spoken() -> None:
    done = await play(filters={"grim": Refusing})
    connect, rcpt = step_at(done, "connect"), step_at(done, "rcpt")
    (opinion,) = connect.opinions
    assert (opinion.filter, opinion.stage, opinion.inputs) == ("grim", "connect", {"ip": "192.0.2.1"})
    assert opinion.verdict is not None
    assert opinion.verdict.reply == NO
    assert [(one.filter, one.result) for one in connect.decisions] == [("grim", "held")]
    assert (rcpt.opinions, [(one.filter, one.result) for one in rcpt.decisions]) == ([], [("grim", "refused")])
    assert rcpt.code == str(NO.code)
    assert (done.ending, done.letters[0].collected) == ("refused", [])
    assert done.letters[0].labels == {"suspect"}


async def test_an_observing_filter_refuses_nothing_and_says_what_it_would_have() -> None:
    done = await play(filters={"grim": Refusing}, rules={"grim": {"mode": "observe"}})
    assert done.ending == "accepted"
    assert [one.result for one in step_at(done, "connect").decisions] == ["observed"]
    assert done.modes == {"grim": "observe"}


async def test_a_filter_that_is_off_is_not_asked() -> None:
    done = await play(filters={"grim": Refusing}, rules={"grim": {"mode": "off"}})
    assert [one for step in done.steps for one in step.opinions] == []


@pytest.mark.parametrize(
    ("rules", "ending", "result"),
    [
        ({}, "accepted", "error"),
        ({"on_error": "defer"}, "deferred", "refused"),
        ({"on_error": "defer", "mode": "observe"}, "accepted", "error"),
    ],
)
async def test_a_crash_is_shown_and_never_refuses(rules: dict[str, Any], ending: str, result: str) -> None:
    done = await play(filters={"broken": Crashing}, rules={"broken": rules})
    (opinion,) = step_at(done, "message").opinions
    assert opinion.failure == "RuntimeError: no such luck"
    assert done.ending == ending
    assert step_at(done, "message").decisions[-1].result == result
    (complaint,) = done.complaints
    assert (complaint["event"], complaint["filter"]) == ("filter-failed", "broken")


async def test_a_filter_out_of_time_is_shown_and_never_refuses() -> None:
    done = await play(filters={"slow": Slow}, rules={"slow": {"timeout": 0.01, "on_error": "pass"}})
    assert done.ending == "accepted"
    (opinion,) = step_at(done, "mail").opinions
    assert opinion.failure == INTERRUPTED
    assert [one.result for step in done.steps for one in step.decisions] == ["timeout"]


async def test_an_answer_that_comes_later_stands_where_the_question_was() -> None:
    class Late(Filter):
        async def on_connect(self, session: Session) -> Verdict:
            while not session.helo:  # noqa: ASYNC110 - the client goes on without it
                await asyncio.sleep(0)
            return Verdict(NO)

    done = await play(filters={"late": Late})
    assert [one.result for one in step_at(done, "connect").decisions] == ["held"]
    assert [one.result for one in step_at(done, "rcpt").decisions] == ["refused"]


async def test_results_are_shown_of_a_message_that_was_refused() -> None:
    done = await play(filters={"spf": Knowing})
    (letter,) = done.letters
    assert letter.collected == []
    assert letter.authentication_results.startswith("Authentication-Results: mx.test; spf=fail")
    assert step_at(done, "mail").opinions[0].found == [letter.mail.facts.get(SpfResults)]


async def test_a_transaction_refused_at_mail_is_known() -> None:
    done = await play(filters={"spf": Knowing}, rules={"spf": {"act_at": "mail"}})
    assert [step.code for step in done.steps] == ["220", "250", "550"]
    assert done.letters[0].mail.sender.text == "joe@client.test"


async def test_what_is_added_is_what_an_agent_would_write() -> None:
    done = await play(filters={"spf": Knowing}, rules={"spf": {"mode": "observe"}})
    added = done.letters[0].collected[0].added
    assert added[0].decode().replace("\r\n\t", " ").rstrip() == done.letters[0].authentication_results
    assert added[-1].startswith(b"Received: from client.example ([192.0.2.1])")


async def test_filters_and_our_fields_see_the_time_that_is_given() -> None:
    Clocked.seen.clear()
    done = await play(filters={"clocked": Clocked})
    assert (Clocked.seen, done.time) == ([NOW], NOW)
    (received,) = done.letters[0].collected[0].added
    assert b"Nov 2023 " in received


async def test_some_recipients_refused_is_accepted_in_part() -> None:
    letter = replace(LETTER, recipients=("later@example.test", "ann@example.test", "joe@elsewhere.test"))
    done = await play(letter, filters={"put off": Deferring})
    assert [step.code for step in done.steps if step.moment == "rcpt"] == ["451", "250", "550"]
    assert done.ending == "partly accepted"


async def test_a_message_put_off_is_deferred() -> None:
    letter = replace(LETTER, recipients=("later@example.test",))
    done = await play(letter, filters={"put off": Deferring})
    assert (done.ending, done.steps[-1].moment) == ("deferred", "rcpt")


async def test_dots_and_octets_arrive_as_they_are_in_the_file() -> None:
    content = b"From: joe@client.test\r\n\r\n.one\r\n..two\r\n\xff"
    seen: list[bytes] = []

    class Reading(Filter):
        async def on_message(self, mail: Transaction, message: Message) -> Verdict:
            seen.append(b"".join(message.content.chunks()))
            return PASS

    done = await play(replace(LETTER, content=content), filters={"reading": Reading})
    assert step_at(done, "mail").said.endswith(f"SIZE={len(content)} BODY=8BITMIME")
    assert seen == [content + b"\r\n"]
    assert done.ending == "accepted"


SUBMISSION = {
    "listeners": {
        "smtp": Listener(address=("127.0.0.1:0",), mode="submission"),
        "smtps": Listener(address=("127.0.0.1:0",), mode="smtps"),
    },
    "tls": {"cert_file": "/nonexistent/crt", "key_file": "/nonexistent/key"},
    "auth": {"providers": ["users"], "users": AgentOptions(type="nonexistent")},
    "relay": {"agent": "store"},
}
OUT = replace(LETTER, recipients=("ann@elsewhere.test",))


@pytest.mark.parametrize(
    ("client", "listener", "ending"),
    [
        (Client(), "smtp", "refused"),
        (Client(tls=True), "smtp", "refused"),
        (Client(tls=True, login="joe"), "smtp", "accepted"),
        (Client(login="joe"), "smtps", "accepted"),
        (Client(), "smtps", "refused"),
    ],
)
async def test_rules_of_a_listener_hold_for_logins_and_tls(client: Client, listener: str, ending: str) -> None:
    done = await play(OUT, tables=SUBMISSION, client=client, listener=listener)
    assert done.ending == ending


async def test_a_dialog_may_start_tls_and_log_in_with_any_password() -> None:
    dialog = said(
        "EHLO pc", "STARTTLS", "EHLO pc", "AUTH PLAIN AGpvZQB3cm9uZw==", "MAIL FROM:<joe@client.test> AUTH=<>",
        "RCPT TO:<ann@elsewhere.test>", "DATA", "From: joe@client.test", "", "Hi", ".", "QUIT",
    )  # fmt: skip
    done = await play(dialog, tables=SUBMISSION)
    codes = [step.code for step in done.steps]
    assert codes == ["220", "250", "220", "250", "235", "250", "250", "354", "250", "221"]
    assert done.session.login == "joe"
    assert "AUTH PLAIN ***" in [step.said for step in done.steps]
    assert [step.said for step in done.steps if step.moment == "message"] == ["(32 octets)"]
    assert done.ending == "accepted"


async def test_a_password_in_a_dialog_is_not_shown() -> None:
    dialog = said("EHLO pc", "STARTTLS", "EHLO pc", "AUTH LOGIN", "am9l", "d3Jvbmc=", "AUTH PLAIN")
    done = await play(dialog, tables=SUBMISSION)
    assert [step.said for step in done.steps][4:] == ["AUTH LOGIN", "***", "***", "AUTH PLAIN"]
    assert done.session.login == "joe"


async def test_a_dialog_ends_where_the_client_hangs_up_or_the_server_does() -> None:
    assert replies(await play([*said("NOOP"), Line(hangs_up=True), *said("NOOP")]))[1:] == ["250 2.0.0 Ok"]
    assert len((await play(said("QUIT", "NOOP"))).steps) == 2
    assert (await play(said("NOOP"))).ending == "nothing sent"


async def test_decisions_about_a_session_without_a_message_are_shown() -> None:
    done = await play(said("NOOP"), filters={"grim": Refusing})
    assert [one.result for one in step_at(done, "connect").decisions] == ["held"]


async def test_decisions_about_a_client_behind_another_are_shown() -> None:
    listener = Listener(address=("127.0.0.1:0",), mode="alt", auth="off", tls="off", xclient=(ip_network("192.0.2.1"),))
    dialog = said("EHLO pc", "XCLIENT ADDR=198.51.100.7", "EHLO pc", "MAIL FROM:<a@b.test>", "RCPT TO:<c@example.test>")
    done = await play(dialog, filters={"grim": Refusing}, tables={"listeners": {"smtp": listener}})
    assert [one.inputs["ip"] for step in done.steps for one in step.opinions] == ["192.0.2.1", "198.51.100.7"]
    assert [one.result for step in done.steps for one in step.decisions] == ["held", "held", "refused"]


async def test_a_long_line_is_shown_in_part() -> None:
    done = await play(said("NOOP " + "x" * 3000))
    assert len(done.steps[-1].said) == MAX_SAID


async def test_several_messages_of_a_dialog_are_kept_apart() -> None:
    one = said("MAIL FROM:<joe@client.test>", "RCPT TO:<ann@example.test>", "BDAT 6 LAST")
    done = await play([*said("EHLO pc"), *one, Line(b"a: b\r\n"), *said("MAIL FROM:<>", "RSET")])
    assert [bool(letter.collected) for letter in done.letters] == [True, False]


async def test_a_table_that_is_called_like_our_onlooker_is_no_problem() -> None:
    done = await play(filters={"bystander": Refusing})
    assert [one.filter for step in done.steps for one in step.decisions] == ["bystander", "bystander"]


async def test_lmtp_is_greeted_as_lmtp() -> None:
    listener = Listener(address=("127.0.0.1:0",), mode="lmtp")
    done = await play(tables={"listeners": {"smtp": listener}})
    assert step_at(done, "helo").said.startswith("LHLO ")
    assert done.ending == "accepted"


async def test_what_cannot_start_is_an_error_in_words() -> None:
    class Unable(Filter):
        async def start(self) -> None:
            raise OSError("no model")

    with pytest.raises(RehearsalError, match="cannot start: filter unable: no model"):
        await play(filters={"unable": Unable})
    with pytest.raises(RehearsalError, match="there is no listener 'mx'"):
        await play(listener="mx")
    with pytest.raises(RehearsalError, match="nothing of type 'nowhere' is installed"):
        await play(tables={"agents": {"store": AgentOptions(type="nowhere")}})


async def test_nothing_is_left_running() -> None:
    class Lingering(Filter):
        stopped: ClassVar[list[str]] = []

        async def stop(self) -> None:
            self.stopped.append(self.table)

        async def on_connect(self, session: Session) -> Verdict:
            await asyncio.Event().wait()
            return PASS

    before = len(asyncio.all_tasks())
    done = await play(said("NOOP"), filters={"linger": Lingering}, rules={"linger": {"act_at": "message"}})
    assert len(asyncio.all_tasks()) == before
    assert Lingering.stopped == ["linger"]
    assert step_at(done, "connect").opinions[0].verdict is None


@pytest.mark.parametrize("envelope", [("joe\r\n@x.test", ("a@b.test",)), ("", ()), ("", ("a\0@b.test",))])
def test_an_envelope_that_cannot_be_said_is_an_error(envelope: tuple[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError):
        Envelope(*envelope, b"")


async def test_labels_are_known_that_filters_say_they_can_give_and_those_that_are_there() -> None:
    class Marking(Filter):
        labels = frozenset(("clean", NEVER_REJECT))

    done = await play(filters={"refusing": Refusing, "marking": Marking}, rules={"marking": {"mode": "off"}})
    assert done.known_labels == {"suspect", "clean", NEVER_REJECT, WOULD_REJECT}
    assert (await play(filters={"marking": Filter})).known_labels == frozenset()
