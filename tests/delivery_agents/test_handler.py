import asyncio
import mailbox
import sys
import threading
from collections.abc import Callable
from email.message import Message as EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.handlers import Message as MessageHandler
from aiosmtpd.smtp import MISSING
from pydantic import ValidationError

from delivery_agents.handler import Handler, HandlerOptions
from smtpd.memory import MemoryServer
from smtpd.model import TlsInfo
from smtpd.plugins import BrokenPlugin
from smtpd.policy import Filter, Verdict
from smtpd.replies import DENIED_CLIENT

TEXT = "Subject: hello\n\nbody\n"
BOTH = pytest.mark.parametrize("thread", [True, False])


class Keeper:
    """Keeps what it is given and returns the next of `answers`."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.seen: list[dict[str, Any]] = []
        self.answers: list[object] = []
        self.before: list[list[str]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> object:  # noqa: N802
        assert server.loop is session.loop is asyncio.get_running_loop()
        assert (server.session, server.envelope, server.event_handler) == (session, envelope, self)
        more = {"hostname": server.hostname, "thread": threading.get_ident()}
        self.seen.append({**vars(envelope), **vars(session), **more})
        return self.answers.pop(0) if self.answers else "250 2.0.0 kept"


class Picky(Keeper):
    """Looks at recipients, too, in the ways that aiosmtpd allows."""

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> object:
        self.before.append(list(envelope.rcpt_tos))
        name = address.partition("@")[0]
        if name == "plain":
            envelope.rcpt_tos.append(address)
            return "250 OK"
        if name == "list":
            envelope.rcpt_tos += ["one@elsewhere.test", "two@elsewhere.test"]
            return "250 OK"
        if name == "refused":
            envelope.rcpt_tos.append(address)
        answers: dict[str, object] = {"lazy": "250 OK", "default": MISSING, "refused": "550 5.1.1 who\r\n"}
        answers |= {"odd": 17, "user": "501 no", "data": "354 go on"}
        return answers[name]


class Late:
    """Ends when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.begun.set()
        assert self.go_on.wait(30)
        self.ended.set()
        return "250 OK"


class LateAtRcpt(Keeper):
    """Takes one recipient too late, while it is asked for the next."""

    go_on, ended = threading.Event(), threading.Event()

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> object:
        if address.startswith("late"):
            assert self.go_on.wait(30)
            envelope.rcpt_tos.append(address)
            self.ended.set()
        elif address.startswith("next"):
            self.go_on.set()
            assert self.ended.wait(30)
        return "250 OK"


class Never:
    def __init__(self) -> None:
        self.cancelled = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "250 OK"


class Broken:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.kind == "exit":
            sys.exit(1)
        if self.kind == "cancel":
            raise asyncio.CancelledError
        return str(await getattr(server, self.kind)("354 wait"))


class Subjects(MessageHandler):
    subjects: list[tuple[object, object]] = []

    def handle_message(self, message: EmailMessage) -> None:
        self.subjects.append((message["Subject"], message["X-MailFrom"]))


class Blocked:
    def __init__(self) -> None:
        raise OSError("no such device")

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        return "250 OK"


NO_CLASS = 3


def at(kind: type | str) -> str:
    return f"{__name__}:{kind if isinstance(kind, str) else kind.__qualname__}"


def serve(kind: type | str, *, filters: Any = None, **options: Any) -> MemoryServer:
    name = kind if isinstance(kind, str) and ":" in kind else at(kind)
    return MemoryServer(agents={"bridge": (Handler, {"handler": name, **options})}, filters=filters)


def handler(server: MemoryServer) -> Any:
    agent = server.agents["bridge"]
    assert isinstance(agent, Handler)
    return agent.handler


async def reaches(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it happens in a thread
            await asyncio.sleep(0)


@BOTH
async def test_handler_gets_what_aiosmtpd_would_give_it(thread: bool) -> None:
    async with serve(Keeper, thread=thread) as server:
        talk = await server.connect(ip="2001:db8::7", login="joe", tls=TlsInfo("TLSv1.3", "AES", 256))
        await talk.say(b"MAIL FROM:<a@b.test> SIZE=30 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<j\xc3\xb6rg@example.test>\r\n")
        said = await talk.say(b"DATA\r\nSubject: x\r\n\r\n..\r\n.\r\n")
        assert said.split(b"\r\n")[1].startswith(b"250 2.0.0 kept [")
        (seen,) = handler(server).seen
    assert (seen["mail_from"], seen["rcpt_tos"], seen["rcpt_options"]) == ("a@b.test", ["jörg@example.test"], [])
    assert (seen["smtp_utf8"], seen["mail_options"]) == (True, ["SIZE=30", "BODY=8BITMIME", "SMTPUTF8"])
    assert seen["content"] is seen["original_content"]
    assert seen["content"].startswith(b"Received: from client.example ([IPv6:2001:db8::7])")
    assert seen["content"].endswith(b"\r\nSubject: x\r\n\r\n.\r\n")
    assert (seen["peer"], seen["host_name"]) == (("2001:db8::7", 0, 0, 0), "client.example")
    assert seen["extended_smtp"]
    assert seen["ssl"] == {"cipher": ("AES", "TLSv1.3", 256)}
    assert (seen["authenticated"], seen["auth_data"].login, seen["auth_data"].password) == (True, b"joe", b"")
    assert seen["hostname"] == "mx.example.test"
    assert (seen["thread"] == threading.get_ident()) is not thread


async def test_empty_sender_is_written_as_aiosmtpd_does() -> None:
    async with serve(Keeper) as server:
        await (await server.connect()).send(TEXT, sender="")
        (seen,) = handler(server).seen
    assert (seen["mail_from"], seen["authenticated"], seen["auth_data"], seen["ssl"]) == ("<>", False, None, None)
    assert (seen["peer"], seen["mail_options"]) == (("192.0.2.1", 0), [])


@pytest.mark.parametrize(
    ("status", "heard"),
    [
        ("250 OK", "250 2.0.0 OK ["),
        ("250 2.6.0 queued", "250 2.6.0 queued ["),
        (b"250 OK\r\n", "250 2.0.0 OK ["),
        (MISSING, "250 2.0.0 "),
        ("451 4.7.1 later", "451 4.7.1 later ["),
        ("450 5.7.1 they disagree", "450 4.0.0 they disagree ["),
        ("550-5.7.1 first\r\n550 5.7.1 second", "550 5.7.1 first second ["),
        ("554 bad \x1b[2J\x07 ünd", "554 5.0.0 bad ?[2J? \\xfcnd ["),
        ("500 Could not process your message", "554 5.0.0 Could not process your message ["),
        ("421 4.3.0 good bye", "451 4.3.2 good bye ["),
        ("550", "550 5.0.0 ["),
    ],
)
async def test_reply_of_the_handler_is_what_the_client_hears(status: object, heard: str) -> None:
    async with serve(Keeper) as server:
        handler(server).answers.append(status)
        answer = (await (await server.connect()).send(TEXT))[-1]
    assert answer.startswith(heard) or answer.replace("  ", " ").startswith(heard)
    assert "\n" not in answer


@pytest.mark.parametrize(
    "status",
    [None, b"", "", "OK", 250, True, "354 go on", "150 x", "650 x", "250-never\r\n250-ending", "250 a\r\n250 b",
     "250-a\r\n550 b", "2500 x", ["250 OK"], "250 " + "x" * 9000],
)  # fmt: skip
async def test_what_is_no_reply_defers(status: object) -> None:
    async with serve(Keeper) as server:
        handler(server).answers.append(status)
        assert (await (await server.connect()).send(TEXT))[-1].startswith("451 4.3.0 ")
        server.forget("delivery-answer-unusable")


@BOTH
@pytest.mark.parametrize("kind", ["exit", "cancel", "push"])
async def test_handler_that_breaks_defers_and_the_server_lives(kind: str, thread: bool) -> None:
    async with serve(Broken, arguments=[kind], thread=thread) as server:
        talk = await server.connect()
        assert (await talk.send(TEXT))[-1].startswith("451 4.3.0 ")
        assert (await talk.send(TEXT))[-1].startswith("451 4.3.0 ")
        failures = [line for line in server.log if line["event"] == "delivery-failed"]
        assert len(failures) == 2
        if kind == "push":
            assert "has no 'push'" in str(failures[0]["exception"])
        server.forget("delivery-failed")


async def test_handler_is_asked_at_rcpt_and_fills_the_envelope() -> None:
    async with serve(Picky) as server:
        names = ["plain", "list", "lazy", "refused", "default"]
        answers = await (await server.connect()).send(TEXT, recipients=[f"{name}@example.test" for name in names])
        assert [answer[:9] for answer in answers[1:]] == ["250 2.1.5"] * 3 + ["550 5.1.1", "250 2.1.5", "250 2.0.0"]
        (seen,) = handler(server).seen
        assert not [address for known in handler(server).before for address in known if address.startswith("refused")]
    listed = ["one@elsewhere.test", "two@elsewhere.test"]
    assert seen["rcpt_tos"] == ["plain@example.test", *listed, "lazy@example.test", "default@example.test"]


async def test_answer_at_rcpt_that_makes_no_sense_defers() -> None:
    async with serve(Picky) as server:
        talk = await server.connect()
        answers = await talk.send(TEXT, recipients=["odd@example.test", "user@example.test", "data@example.test"])
        assert [answer[:9] for answer in answers[1:]] == ["451 4.3.0", "554 5.0.0", "451 4.3.0"]
        server.forget("delivery-answer-unusable")


async def test_recipient_that_a_filter_refused_afterwards_is_not_delivered_to() -> None:
    class Second(Filter):
        name = "second"

        async def on_message(self, mail: Any, message: Any) -> Verdict:
            return Verdict(DENIED_CLIENT, recipients=frozenset(mail.recipients[:1]))

    async with serve(Picky, filters={"second": Second}) as server:
        await (await server.connect()).send(TEXT, recipients=["list@example.test", "plain@example.test"])
        assert [seen["rcpt_tos"] for seen in handler(server).seen] == [["plain@example.test"]]


def test_handler_without_handle_rcpt_is_not_asked() -> None:
    services: Any = None
    assert not Handler("h", HandlerOptions(type="handler", handler=at(Keeper)), services).asks
    assert Handler("h", HandlerOptions(type="handler", handler=at(Picky)), services).asks


async def test_blocking_handler_stalls_nobody_else() -> None:
    async with serve(Late) as server:
        late = handler(server)
        first, second = await server.connect(), await server.connect()
        sent = asyncio.create_task(first.send(TEXT))
        await reaches(late.begun.is_set)
        assert (await second.say(b"NOOP\r\n")).startswith(b"250 ")
        assert not sent.done()
        late.go_on.set()
        assert (await sent)[-1].startswith("250 ")


async def test_thread_that_overruns_leaves_the_outcome_unknown_and_keeps_its_place() -> None:
    async with serve(Late, timeout=0.05, concurrency=1) as server:
        late = handler(server)
        talk = await server.connect()
        assert "did not say whether" in (await talk.send(TEXT))[-1]
        late.begun.clear()
        assert (await talk.send(TEXT))[-1].startswith("451 4.4.2 The mail system did not answer in time")
        assert not late.begun.is_set()
        late.go_on.set()
        await reaches(late.ended.is_set)
        server.forget("delivery-timed-out")


async def test_recipient_that_is_taken_too_late_gets_nothing() -> None:
    async with serve(LateAtRcpt, timeout=1.0) as server:
        recipients = ["first@example.test", "late@example.test", "next@example.test"]
        answers = await (await server.connect()).send(TEXT, recipients=recipients)
        assert [answer[:3] for answer in answers[-4:-1]] == ["250", "451", "250"]
        assert handler(server).seen[0]["rcpt_tos"] == ["first@example.test", "next@example.test"]
        server.forget("delivery-timed-out")


async def test_overrun_in_the_event_loop_is_cancelled() -> None:
    async with serve(Never, timeout=0.05, concurrency=1, thread=False) as server:
        talk = await server.connect()
        for _ in range(2):
            answer = (await talk.send(TEXT))[-1]
            assert answer.startswith("451 4.4.2 ")
            assert "did not say whether" in answer
        assert handler(server).cancelled
        server.forget("delivery-timed-out")


async def test_stop_does_not_wait_for_a_thread_that_overruns() -> None:
    async with serve(Late, timeout=0.05) as server:
        late = handler(server)
        await (await server.connect()).send(TEXT)
        server.forget("delivery-timed-out")
    assert not late.ended.is_set()
    late.go_on.set()


async def test_stop_waits_for_a_call_that_has_begun() -> None:
    async with serve(Late) as server:
        late = handler(server)
        sent = asyncio.create_task((await server.connect()).send(TEXT))
        await reaches(late.begun.is_set)
        stopping = asyncio.create_task(server.agents["bridge"].stop())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not stopping.done()
        late.go_on.set()
        await stopping
        assert late.ended.is_set()
        assert (await sent)[-1].startswith("250 ")


async def test_mailbox_of_aiosmtpd_works(tmp_path: Path) -> None:
    path = tmp_path / "mail"
    async with serve("aiosmtpd.handlers:Mailbox", arguments=[str(path)]) as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("250 ")
    (message,) = mailbox.Maildir(path)
    assert (message["Subject"], message["X-RcptTo"]) == ("hello", "alice@example.test")


async def test_debugging_of_aiosmtpd_works(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve("aiosmtpd.handlers:Debugging") as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("250 ")
    assert "Subject: hello\nX-Peer: ('192.0.2.1', 0)\n" in capsys.readouterr().out


async def test_subclass_of_message_works() -> None:
    Subjects.subjects.clear()
    async with serve(Subjects) as server:
        assert (await (await server.connect()).send(TEXT))[-1].startswith("250 ")
    assert Subjects.subjects == [("hello", "bob@sender.test")]


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("aiosmtpd", [], r'must look like "package.module:Class"'),
        ("nowhere_at_all:Class", [], "cannot be imported: ModuleNotFoundError"),
        ("aiosmtpd.handlers:Nothing", [], "cannot be imported: AttributeError"),
        ("aiosmtpd.handlers:Sink", [], "has no handle_DATA"),
        ("aiosmtpd.handlers:Message", [], "is not complete, it lacks handle_message"),
        ("aiosmtpd.handlers:Mailbox", [], r"the arguments do not fit Mailbox\(.*'mail_dir'"),
        ("aiosmtpd.handlers:Mailbox", ["a", "b", "c"], "too many positional arguments"),
    ],
)
def test_class_that_cannot_be_used_is_a_mistake(name: str, arguments: list[str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        HandlerOptions.model_validate({"type": "handler", "handler": name, "arguments": arguments})


def test_what_is_no_class_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ValidationError, match="is no class"):
        HandlerOptions(type="handler", handler=at("NO_CLASS"))


async def test_constructor_that_fails_keeps_the_server_from_starting() -> None:
    with pytest.raises(BrokenPlugin, match=r"agent bridge: handler: .*:Blocked cannot be made: OSError: no such"):
        async with serve(Blocked):
            pass


async def test_arguments_reach_the_constructor() -> None:
    async with serve(Keeper, arguments=["a", 25, True]) as server:
        assert handler(server).arguments == ("a", 25, True)
