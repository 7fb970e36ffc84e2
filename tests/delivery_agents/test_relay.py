"""What a user of ours notices of the smarthost, and the smarthost of us."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from conftest import Certificates
from lmtp_store import CLOSE, ENOUGH, HANG, LmtpStore

from delivery_agents.relay import Relay
from smtpd.memory import MemoryServer, Talk

TEXT = "From: alice@example.test\nSubject: x\n\n.A dot\n.\n..\nand no line end"
OTHERS = ("bob@else.test", "eve@else.test", "zoe@third.test")
LOGS_IN = {"user": "us", "password": "correct horse"}


def server(smarthost: LmtpStore | str, **options: Any) -> MemoryServer:
    address = smarthost if isinstance(smarthost, str) else smarthost.address
    return MemoryServer(
        agents={"smarthost": (Relay, {"address": address, **options})}, tables={"relay": {"agent": "smarthost"}}
    )


async def user(front: MemoryServer) -> Talk:
    return await front.connect(login="alice")


async def send(front: MemoryServer, *recipients: str, text: str = TEXT) -> list[str]:
    """The answers from RCPT on."""
    return (await (await user(front)).send(text, recipients=recipients or OTHERS[:1]))[1:]


def context(certificates: Certificates) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificates.cert_file, certificates.key_file)
    return made


@pytest.mark.parametrize("chunking", [True, False])
async def test_mail_of_a_user_goes_out_as_it_was_sent(chunking: bool) -> None:
    async with LmtpStore() as smarthost, server(smarthost, chunking=chunking) as front:
        assert (await send(front, *OTHERS))[-1].startswith("250 2.0.0 Saved 1 [")
        (message,) = smarthost.messages
        assert message.mail == b"MAIL FROM:<bob@sender.test> BODY=8BITMIME\r\n"
        assert message.recipients == [f"RCPT TO:<{each}>\r\n".encode() for each in OTHERS]
        end = TEXT.replace("\n", "\r\n").encode() + (b"" if chunking else b"\r\n")
        assert message.content.startswith(b"Received: from client.example ")
        assert message.content.endswith(b"\r\n" + end)
        verbs = ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT", "BDAT" if chunking else "DATA"]
        assert smarthost.visits[0].verbs == verbs


async def test_nobody_relays_without_a_login() -> None:
    async with LmtpStore() as smarthost, server(smarthost) as front:
        answers = await (await front.connect()).send(TEXT, recipients=OTHERS)
        assert [answer[:9] for answer in answers[1:]] == ["550 5.7.1"] * 3
        assert smarthost.visits[0].verbs == ["EHLO"]


async def test_connection_serves_one_message_after_the_other() -> None:
    async with LmtpStore() as smarthost, server(smarthost) as front:
        for _ in range(3):
            assert (await send(front, *OTHERS[:2]))[-1].startswith("250 ")
        assert [visit.verbs for visit in smarthost.visits] == [["EHLO", *["MAIL", "RCPT", "RCPT", "BDAT"] * 3]]


async def test_bounce_goes_out_with_the_null_sender() -> None:
    async with LmtpStore() as smarthost, server(smarthost) as front:
        answers = await (await user(front)).send(TEXT, sender="", recipients=OTHERS[:1])
        assert answers[-1].startswith("250 ")
        assert smarthost.messages[0].mail.startswith(b"MAIL FROM:<> ")


@pytest.mark.parametrize(
    ("key", "say", "heard"),
    [
        ("RCPT", b"550 5.1.1 Nobody\r\n", "550 5.1.1 Nobody ["),
        ("RCPT", b"452 4.5.3 Too many\r\n", "452 4.5.3 Too many ["),
        ("RCPT", b"530 5.7.0 Log in\r\n", "451 4.4.1 The next mail server cannot be reached"),
        ("MAIL", b"550 5.7.1 Not from him\r\n", "550 5.7.1 Not from him ["),
        ("MAIL", b"530 5.7.0 Must issue STARTTLS first\r\n", "451 4.4.1 "),
        ("MAIL", b"555 5.5.4 What is BODY\r\n", "451 4.4.1 "),
    ],
)
async def test_what_the_smarthost_says_of_the_envelope_is_heard_at_rcpt(key: str, say: bytes, heard: str) -> None:
    async with LmtpStore() as smarthost, server(smarthost) as front:
        smarthost.say = {key: say} if key == "RCPT" else {key: say, "RCPT": b"503 5.5.1 MAIL first\r\n"}
        assert (await send(front))[0].startswith(heard)
        smarthost.say.clear()
        assert (await send(front))[-1].startswith("250 ")


@pytest.mark.parametrize("offers", [ENOUGH, (*ENOUGH, "PRDR")])
@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (b"250 2.0.0 Ok: queued as 4F\r\n", "250 2.0.0 Ok: queued as 4F ["),
        (b"554 5.7.1 Spam\r\n", "554 5.7.1 Spam ["),
        (b"452 4.3.1 Disk\r\n", "452 4.3.1 Disk ["),
        (b"421 4.3.2 Closing\r\n", "451 4.4.2 The next mail server did not say"),  # it may have queued it all the same
        (b"503 5.5.1 RCPT first\r\n", "451 4.4.2 The next mail server did not say"),
        (b"354 Go on\r\n", "451 4.4.2 The next mail server did not say"),
        (CLOSE, "451 4.4.2 The next mail server did not say"),
    ],
)
async def test_one_answer_to_the_content_stands_for_all(
    say: bytes, heard: str, chunking: bool, offers: tuple[str, ...]
) -> None:
    async with LmtpStore(offers=offers) as smarthost, server(smarthost, chunking=chunking) as front:
        smarthost.say = {"each": say, "content": say} if "PRDR" not in offers else {"each": say + CLOSE}
        answers = await send(front, *OTHERS)
        assert [answer[:3] for answer in answers[:-1]] == ["250"] * 3
        assert answers[-1].startswith(heard)
        smarthost.say.clear()
        assert (await send(front))[-1].startswith("250 2.0.0 Saved 2 ")


async def test_second_answer_to_the_content_is_never_one_to_the_next_message() -> None:
    async with LmtpStore() as smarthost, server(smarthost) as front:
        talk = await user(front)
        smarthost.say["content"] = b"250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n"
        await talk.send(TEXT, recipients=OTHERS)
        smarthost.say["content"] = b"554 5.7.1 Spam\r\n"
        assert (await talk.send(TEXT, recipients=OTHERS))[-1].startswith("554 5.7.1 Spam ")
        assert len(smarthost.visits) == 2


def for_bob(say: bytes) -> Any:
    return lambda line: say if b"<bob@" in line else b"250 2.0.0 Ok\r\n"


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize(
    ("say", "heard"),
    [
        ({}, "250 2.0.0 Saved 1 ["),
        ({"content": for_bob(b"554 5.6.0 Not that\r\n")}, "550 5.0.0 Delivered, but not to bob@else.test: Not that ["),
        ({"content": for_bob(b"451 4.2.0 Later\r\n")}, "451 4.3.0 Not delivered to everybody"),
        ({"content": b"554 5.6.0 Not that\r\n"}, "554 5.6.0 Not that ["),
        ({"content": b"554 5.6.0 Not that\r\n", "last": CLOSE}, "554 5.6.0 Not that ["),
        ({"last": b"452 4.3.1 Disk\r\n"}, "452 4.3.1 Disk ["),
        ({"content": for_bob(b"554 5.6.0 No\r\n"), "last": b"554 5.7.1 Spam\r\n"}, "554 5.6.0 No ["),
        ({"last": CLOSE}, "451 4.4.2 The next mail server did not say"),
        ({"last": b"353 Again\r\n"}, "451 4.4.2 The next mail server did not say"),
        ({"content": for_bob(CLOSE)}, "451 4.4.2 The next mail server did not say"),
        ({"content": b"353 Again\r\n"}, "451 4.4.2 The next mail server did not say"),
    ],
)
async def test_each_recipient_has_an_answer_where_the_smarthost_offers_that(
    say: dict[str, Any], heard: str, chunking: bool
) -> None:
    async with LmtpStore(offers=(*ENOUGH, "PRDR")) as smarthost, server(smarthost, chunking=chunking) as front:
        smarthost.say |= say
        assert (await send(front, *OTHERS))[-1].startswith(heard)
        assert smarthost.messages[0].mail.endswith(b" PRDR\r\n")
        smarthost.say.clear()
        assert (await send(front, *OTHERS))[-1].startswith("250 2.0.0 Saved 2 ")


async def test_answers_one_by_one_that_nobody_asked_for_are_none() -> None:
    async with LmtpStore(offers=("PIPELINING", "CHUNKING")) as smarthost, server(smarthost) as front:
        smarthost.say["content"] = b"353 One by one\r\n" + b"250 2.0.0 Ok\r\n" * 2
        assert (await send(front))[-1].startswith("451 4.4.2 The next mail server did not say")


@pytest.mark.parametrize(
    ("offers", "sender", "body", "heard"),
    [
        (("SIZE 100",), "", b"x" * 100, "552 5.3.4 "),
        (("SMTPUTF8",), "", "ö".encode(), "554 5.6.3 "),
        (("8BITMIME", "SMTPUTF8"), "", "ö".encode(), "250 "),
    ],
)
async def test_smarthost_that_cannot_take_the_message_gets_none(
    offers: tuple[str, ...], sender: str, body: bytes, heard: str
) -> None:
    async with LmtpStore(offers=offers) as smarthost, server(smarthost) as front:
        answers = await (await user(front)).send(b"Subject: x\r\n\r\n" + body, sender=sender, recipients=OTHERS[:1])
        assert answers[-1].startswith(heard)
        assert len(smarthost.messages) == (heard == "250 ")


@pytest.mark.parametrize("utf8", [True, False])
async def test_smtputf8_is_offered_as_long_as_the_smarthost_offers_it(utf8: bool) -> None:
    async with LmtpStore(offers=("SMTPUTF8",) if utf8 else ()) as smarthost, server(smarthost) as front:
        talk = await user(front)
        assert (b"SMTPUTF8" in await talk.say(b"EHLO client.test\r\n")) is utf8


# Logging in

LONG = "x" * 255


@pytest.mark.parametrize(
    ("offer", "options", "commands", "credentials"),
    [
        ("AUTH LOGIN PLAIN", LOGS_IN, ["AUTH"], [b"\0us\0correct horse"]),
        ("auth plain", LOGS_IN, ["AUTH"], [b"\0us\0correct horse"]),
        ("AUTH CRAM-MD5 LOGIN", LOGS_IN, ["AUTH"], [b"us", b"correct horse"]),
        ("AUTH PLAIN", {"user": LONG, "password": LONG}, ["AUTH"], [f"\0{LONG}\0{LONG}".encode()]),
        ("AUTH PLAIN", {"user": "ü", "password": "ß"}, ["AUTH"], ["\0ü\0ß".encode()]),
        ("AUTH PLAIN", {}, [], []),
    ],
)
async def test_we_log_in_before_mail_is_sent(
    offer: str, options: dict[str, str], commands: list[str], credentials: list[bytes]
) -> None:
    async with LmtpStore(offers=(*ENOUGH, offer)) as smarthost, server(smarthost, **options) as front:
        for _ in range(2):
            assert (await send(front))[-1].startswith("250 ")
        (visit,) = smarthost.visits
        assert visit.verbs == ["EHLO", *commands, *["MAIL", "RCPT", "BDAT"] * 2]
        assert visit.credentials == credentials
        assert all(len(command) <= 512 for command in visit.commands)
        # Who our user is stays with us.
        assert smarthost.messages[0].mail.endswith(b" AUTH=<>\r\n" if options else b" BODY=8BITMIME\r\n")


@pytest.mark.parametrize(
    ("offer", "key", "say", "problem"),
    [
        ("AUTH PLAIN", "AUTH", b"535 5.7.8 Wrong: AHVzAGNvcnJlY3QgaG9yc2U=\r\n", "answers AUTH PLAIN with 535 5.7.8"),
        ("AUTH LOGIN", "AUTH", b"535 5.7.8 Wrong: correct horse\r\n", "answers AUTH LOGIN with 535 5.7.8"),
        ("AUTH PLAIN", "AUTH", b"250 2.0.0 correct horse\r\n", "answers AUTH PLAIN with 250 2.0.0"),
        ("AUTH PLAIN", "AUTH", b"334 \r\n", "answers AUTH PLAIN with 334"),
        ("AUTH LOGIN", "prompt", b"235 2.7.0 correct horse\r\n", "answers AUTH LOGIN with 235 2.7.0"),
        ("AUTH CRAM-MD5", "AUTH", b"", "neither AUTH PLAIN nor AUTH LOGIN"),
        ("8BITMIME", "AUTH", b"", "neither AUTH PLAIN nor AUTH LOGIN"),
    ],
)
async def test_login_that_fails_is_our_trouble_and_tells_nobody_the_password(
    offer: str, key: str, say: bytes, problem: str
) -> None:
    async with LmtpStore(offers=(offer,)) as smarthost:
        smarthost.say[key] = say
        async with server(smarthost, **LOGS_IN) as front:
            assert (await send(front))[0].startswith("451 4.4.1 ")
            assert problem in str(await front.agents["smarthost"].health())
            said = json.dumps(front.log) + repr(front.agents["smarthost"].options)
            assert problem in said
            assert "horse" not in said
            assert "AHVzAG" not in said
        assert all("MAIL" not in visit.verbs for visit in smarthost.visits)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_login_comes_behind_tls(tls: str, certificates: Certificates) -> None:
    smarthost = LmtpStore(offers=("AUTH PLAIN",), tls=context(certificates), implicit=tls == "implicit")
    async with smarthost, server(smarthost, tls=tls, ca_file=certificates.ca_file, **LOGS_IN) as front:
        assert (await send(front))[-1].startswith("250 ")
        begin = ["EHLO", "STARTTLS", "EHLO"] if tls == "starttls" else ["EHLO"]
        assert smarthost.visits[0].verbs == [*begin, "AUTH", "MAIL", "RCPT", "DATA"]


@pytest.mark.parametrize("fault", ["nothing offered", "unknown authority", "refused", "injected"])
async def test_password_is_not_said_where_tls_does_not_begin(fault: str, certificates: Certificates) -> None:
    smarthost = LmtpStore(offers=("AUTH PLAIN",), tls=None if fault == "nothing offered" else context(certificates))
    if fault in ("refused", "injected"):
        say = b"454 4.7.0 Not now\r\n" if fault == "refused" else b"220 2.0.0 Go\r\n235 2.7.0 Welcome\r\n"
        smarthost.say["STARTTLS"] = say
    ca_file = None if fault == "unknown authority" else certificates.ca_file
    async with smarthost, server(smarthost, tls="starttls", ca_file=ca_file, **LOGS_IN) as front:
        assert (await send(front))[0].startswith("451 4.4.1 ")
        assert smarthost.visits
        assert not any(visit.credentials or "AUTH" in visit.verbs for visit in smarthost.visits)


@pytest.mark.parametrize(
    ("tls", "port_is", "problem"),
    [
        ("starttls", "implicit", 'does not greet; where TLS begins with the connection, as on port 465, tls has'),
        ("off", "implicit", 'does not greet; where TLS begins with the connection, as on port 465, tls has to be'),
        ("implicit", "plain", '; where TLS begins later, as on port 587, tls has to be "starttls"'),
        ("implicit", "gone", ' hung up; where TLS begins later, as on port 587, tls has to be "starttls"'),
        ("off", "starttls", 'nor AUTH LOGIN before STARTTLS, so tls has to be "starttls"'),
    ],
)
async def test_wrong_kind_of_tls_is_explained(tls: str, port_is: str, problem: str, certificates: Certificates) -> None:
    smarthost = LmtpStore(
        offers=("8BITMIME",), tls=None if port_is in ("plain", "gone") else context(certificates),
        implicit=port_is == "implicit",
    )  # fmt: skip
    if port_is == "gone":
        smarthost.say["greeting"] = CLOSE
    options = {"connect_timeout": 0.5} if port_is == "implicit" else {}  # both wait for the other to begin
    async with smarthost, server(smarthost, tls=tls, ca_file=certificates.ca_file, **options, **LOGS_IN) as front:
        assert problem in str(await front.agents["smarthost"].health())


async def test_smarthost_that_never_answers_the_login_is_given_up() -> None:
    async with LmtpStore(offers=("AUTH PLAIN",)) as smarthost:
        smarthost.say["AUTH"] = HANG
        async with server(smarthost, connect_timeout=0.05, **LOGS_IN) as front:
            assert (await send(front))[0].startswith("451 4.4.2 ")


# Options


@pytest.mark.parametrize(
    "table",
    [
        {"address": "smtp.example.net:25"}, {"address": "127.0.0.1:10025", **LOGS_IN},
        {"address": "[::1]:10025", **LOGS_IN}, {"address": "localhost:10025", **LOGS_IN},
        {"address": "unix:/run/smarthost", **LOGS_IN}, {"address": "192.0.2.1:587", "tls": "starttls", **LOGS_IN},
    ],
)  # fmt: skip
def test_options_that_make_sense(table: dict[str, Any]) -> None:
    assert Relay.Options.model_validate({"type": "relay", **table}).address == table["address"]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"address": "192.0.2.1:587", **LOGS_IN}, "must not be heard"),
        ({"address": "smtp.example.net:587", **LOGS_IN}, "must not be heard"),
        ({"address": "localhost.example.net:587", **LOGS_IN}, "must not be heard"),
        ({"address": "unix:/x", "tls": "starttls"}, "needs an address with a host"),
        ({"address": "h:465", "tls": "implicit", "user": "us"}, "belong together"),
        ({"address": "h:465", "tls": "implicit", "password": "x"}, "belong together"),
        ({"address": "h:465", "tls": "implicit", "user": "u\0s", "password": "x"}, "no NUL"),
        ({"address": "h:465", "tls": "implicit", "user": "us", "password": "a\0b"}, "no NUL"),
        ({"address": "h:465", "tls": "implicit", "user": "us", "password": "ß" * 128}, "1 to 255 octets"),
        ({"address": "h:465", "tls": "implicit", "user": "us", "password": ""}, "1 to 255 octets"),
        ({"address": "h"}, "must look like"),
        ({"address": "h:٢٥"}, "must look like"),
    ],
)
def test_options_that_make_no_sense_are_refused(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        Relay.Options.model_validate({"type": "relay", **table})
    assert "ßß" not in str(caught.value)


async def test_smarthost_behind_a_unix_socket(directory: Path) -> None:
    async with LmtpStore(path=directory / "smarthost") as smarthost, server(smarthost) as front:
        assert (await send(front))[-1].startswith("250 ")
