"""Connections to the store: shared, given back, taken away, lost; a store that is down and comes back; TLS."""

import asyncio
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import Certificates
from lmtp_store import CLOSE, ENOUGH, HANG, LmtpStore, until

from delivery_agents.forwarding import FAILURES
from delivery_agents.lmtp import Lmtp
from smtpd.memory import MemoryServer, Talk
from smtpd.plugins import BrokenPlugin

MAIL = b"MAIL FROM:<bob@sender.test>\r\n"
RCPT = b"RCPT TO:<alice@example.test>\r\n"
TEXT = "Subject: x\n\nbody\n"


def server(store: LmtpStore | str, **options: Any) -> MemoryServer:
    address = store if isinstance(store, str) else store.address
    return MemoryServer(agents={"store": (Lmtp, {"address": address, **options})})


async def answer(talk: Talk) -> str:
    """The last answer to one message."""
    return (await talk.send(TEXT))[-1]


async def turns(count: int = 50) -> None:
    """Let the event loop do what there is to do."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_connection_serves_one_message_after_the_other() -> None:
    async with LmtpStore() as store, server(store) as front:
        for _ in range(3):
            assert (await answer(await front.connect())).startswith("250 ")
        assert [visit.verbs for visit in store.visits] == [["LHLO", *["MAIL", "RCPT", "BDAT"] * 3]]
        assert front.count("smtpd_lmtp_connections", agent="store") == 1


async def test_transaction_that_is_given_up_is_reset_at_the_store() -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        await talk.say(MAIL + RCPT)
        await talk.say(b"RSET\r\n")
        await until(lambda: store.visits[0].verbs[-1] == "RSET")
        assert (await answer(talk)).startswith("250 ")
        assert store.visits[0].verbs == ["LHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "BDAT"]


@pytest.mark.parametrize(
    "say", [b"503 5.5.1 What?\r\n", b"250 Ok\r\n250 Ok\r\n", b"xyz\r\n", b"421 4.3.2 Bye\r\n", CLOSE]
)
async def test_connection_that_cannot_be_reset_is_not_used_again(say: bytes) -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["RSET"] = say
        talk = await front.connect()
        await talk.say(MAIL + RCPT)
        await talk.say(b"RSET\r\n")
        await turns()
        assert (await answer(talk)).startswith("250 ")
        assert [visit.verbs[-1] for visit in store.visits] == ["RSET", "BDAT"]


@pytest.mark.parametrize("offers", [ENOUGH, ("8BITMIME",)])
async def test_mail_that_comes_while_a_connection_cannot_be_reset_goes_over_another(offers: tuple[str, ...]) -> None:
    async with LmtpStore(offers=offers) as store, server(store, connections=1) as front:
        slow, quick = await front.connect(), await front.connect()
        await slow.say(MAIL + RCPT)
        store.say["RSET"] = b"554 5.5.1 Too many nonmail commands\r\n" + CLOSE
        assert (await answer(quick)).startswith("250 2.0.0 Saved 1 ")
        assert (await slow.say(b"DATA\r\n")).startswith(b"354 ")
        assert (await slow.say(b"Hello\r\n.\r\n")).startswith(b"250 2.0.0 Saved 2 ")


@pytest.mark.parametrize("octets", [b"421 4.4.2 Idle\r\n", b"250 2.0.0 What?\r\n", b"x", b"\r\n"])
async def test_connection_on_which_the_store_speaks_unasked_is_not_used_again(octets: bytes) -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        await answer(talk)
        store.shout(octets)
        await until(lambda: not front.count("smtpd_lmtp_connections", agent="store"))
        assert (await answer(talk)).startswith("250 2.0.0 Saved 2 ")
        assert len(store.visits) == 2


async def test_connection_that_the_store_has_closed_meanwhile_is_replaced() -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        await answer(talk)
        said = iter([CLOSE, b"250 2.1.0 Ok\r\n"])
        store.say["MAIL"] = lambda line: next(said)
        assert (await answer(talk)).startswith("250 2.0.0 Saved 2 ")
        assert len(store.visits) == 2


@pytest.mark.parametrize("offers", [ENOUGH, ("8BITMIME",)])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
async def test_connection_that_has_served_enough_is_replaced(verb: str, offers: tuple[str, ...]) -> None:
    async with LmtpStore(offers=offers) as store, server(store) as front:
        talk = await front.connect()
        await answer(talk)
        said = iter([b"421 4.7.0 Too many messages in this connection\r\n"])
        store.say[verb] = lambda line: next(said, b"250 2.1.0 Ok\r\n")
        assert (await answer(talk)).startswith("250 2.0.0 Saved 2 ")
        assert len(store.visits) == 2


async def test_recipient_to_whom_the_store_closes_a_used_connection_is_asked_for_on_another() -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        await answer(talk)
        await talk.say(MAIL + RCPT)
        said = iter([b"421 4.3.2 Shutting down\r\n"])
        store.say["RCPT"] = lambda line: next(said, b"250 2.1.5 Ok\r\n")
        assert (await talk.say(b"RCPT TO:<ann@example.test>\r\n")).startswith(b"250 ")
        assert (await talk.say(b"DATA\r\n")).startswith(b"354 ")
        assert (await talk.say(b"Hello\r\n.\r\n")).startswith(b"250 2.0.0 Saved 2 ")
        assert [len(message.recipients) for message in store.messages] == [1, 2]


async def test_store_that_closes_a_fresh_connection_is_believed() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["MAIL"] = b"421 4.3.2 Shutting down\r\n"
        store.say["RCPT"] = b"503 5.5.1 MAIL first\r\n"
        talk = await front.connect()
        assert b"\r\n451 4.3.2 Shutting down [" in await talk.say(MAIL + RCPT)
        assert len(store.visits) == 2, "the connection from the start had waited, this one had not"


async def test_client_that_vanishes_at_rcpt_leaves_nothing_out_of_step() -> None:
    async with LmtpStore() as store, server(store, connections=1) as front:
        asked = asyncio.Event()

        def hang(line: bytes) -> bytes:
            asked.set()
            return HANG

        store.say["RCPT"] = hang
        talk = await front.connect()
        waiting = asyncio.create_task(talk.say(MAIL + RCPT))
        await asked.wait()
        await talk.hang_up()
        await waiting
        store.say.clear()
        assert (await answer(await front.connect())).startswith("250 2.0.0 Saved 1 ")
        assert len(store.visits) == 2


async def test_clients_that_take_their_time_keep_no_connection_from_others() -> None:
    async with LmtpStore() as store, server(store, connections=2) as front:
        talks = {f"user{number}@example.test": await front.connect() for number in range(5)}
        for address, talk in talks.items():
            assert (await talk.say(MAIL + f"RCPT TO:<{address}>\r\n".encode())).endswith(b"250 2.1.5 Recipient ok\r\n")
        for address, talk in talks.items():
            content = f"x: {address}\r\n".encode()
            assert (await talk.say(b"BDAT %d LAST\r\n%b" % (len(content), content))).startswith(b"250 2.0.0 Saved")
            assert store.messages[-1].recipients == [f"RCPT TO:<{address}>\r\n".encode()]
            assert store.messages[-1].content.endswith(content)
        assert len(store.visits) == 2


async def test_busy_connections_are_waited_for() -> None:
    async with LmtpStore() as store, server(store, connections=1) as front:
        store.may_read = asyncio.Event()
        first, second = await front.connect(), await front.connect()
        sent = [asyncio.create_task(answer(talk)) for talk in (first, second)]
        await turns()
        store.may_read.set()
        assert sorted(heard[:17] for heard in await asyncio.gather(*sent)) == ["250 2.0.0 Saved 1", "250 2.0.0 Saved 2"]
        assert len(store.visits) == 1


async def test_who_waits_too_long_for_a_connection_is_put_off() -> None:
    async with LmtpStore() as store, server(store, connections=1, reply_timeout=0.05) as front:
        store.may_read = asyncio.Event()
        first, second = await front.connect(), await front.connect()
        sent = asyncio.create_task(answer(first))
        await until(lambda: store.visits[0].verbs[-1] == "BDAT")
        assert (await second.send(TEXT))[1].startswith("451 4.4.2 ")
        store.may_read.set()
        assert (await sent).startswith("250 ")


async def test_idle_connections_are_closed_with_quit() -> None:
    async with LmtpStore() as store, server(store, idle_timeout=0.02) as front:
        await answer(await front.connect())
        await until(lambda: store.visits[0].verbs[-1] == "QUIT")
        assert front.count("smtpd_lmtp_connections", agent="store") == 0
        assert (await answer(await front.connect())).startswith("250 ")


async def test_end_of_the_server_takes_leave_of_the_store() -> None:
    async with LmtpStore() as store:
        async with server(store) as front:
            await answer(await front.connect())
        await until(lambda: store.visits[0].verbs[-1] == "QUIT")


async def test_store_that_is_down_puts_mail_off_and_comes_back() -> None:
    async with LmtpStore() as store, server(store) as front:
        await store.stop()
        talk = await front.connect()
        assert (await talk.send(TEXT))[1].startswith("451 4.4.1 The mail system cannot be reached")
        assert "127.0.0.1" in str(await front.agents["store"].health())
        await store.start()
        assert (await answer(talk)).startswith("250 ")
        assert await front.agents["store"].health() is None


async def test_server_starts_before_the_store(directory: Path) -> None:
    store = LmtpStore(path=directory / "lmtp")
    async with server(store) as front:
        assert not front.agents["store"].carries_utf8
        assert str(directory / "lmtp") in str(await front.agents["store"].health())
        async with store:
            assert await front.agents["store"].health() is None
            assert front.agents["store"].carries_utf8


async def test_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def two_addresses(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1") if host == "store.test" else (host,)
        return [each for address in hosts for each in look_up(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    async with LmtpStore() as store:
        port = int(store.address.rpartition(":")[2])
        with ExitStack() as sockets:
            silent = sockets.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
            for _ in range(4):  # nobody takes them, so there is no room for more
                waiting = sockets.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(silent.getsockname())
            async with server(f"store.test:{port}", connect_timeout=1.0) as front:
                assert (await answer(await front.connect())).startswith("250 ")


async def test_store_that_fails_again_and_again_is_left_in_peace() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["greeting"] = CLOSE
        await store.stop()
        await store.start()
        talk = await front.connect()
        for _ in range(FAILURES + 3):
            assert (await talk.send(TEXT))[1].startswith("451 4.4.1 ")
        assert len(store.visits) == 1 + FAILURES
        assert front.count("smtpd_lmtp_circuit_open", agent="store") == 1
        events = [line["event"] for line in front.log]
        assert (events.count("backend-failed"), events.count("backend-down")) == (FAILURES - 1, 1)
        assert await front.agents["store"].health() is not None
        store.say.clear()
        assert (await talk.send(TEXT))[1].startswith("451 4.4.1 ")
        assert len(store.visits) == 1 + FAILURES


async def test_agent_that_takes_over_at_a_reload_begins_with_a_closed_circuit() -> None:
    async with LmtpStore() as store, server(store) as front:
        await store.stop()
        talk = await front.connect()
        for _ in range(FAILURES + 1):
            await talk.send(TEXT)
        assert front.count("smtpd_lmtp_circuit_open", agent="store") == 1
        await store.start()
        before = front.agents["store"]
        assert isinstance(before, Lmtp)
        after = Lmtp("store", before.options, before.services)
        await after.start()
        assert front.count("smtpd_lmtp_circuit_open", agent="store") == 0
        await after.stop()


async def test_connection_that_can_be_had_again_ends_the_count_of_failures() -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        for _ in range(2):
            await store.stop()
            for _ in range(FAILURES - 1):
                await talk.send(TEXT)
            await store.start()
            assert await front.agents["store"].health() is None
        assert front.count("smtpd_lmtp_circuit_open", agent="store") == 0


async def test_store_that_answers_wrongly_is_not_taken_for_one_that_is_down() -> None:
    async with LmtpStore() as store, server(store) as front:
        store.say["RCPT"] = b"500 5.5.2 Line too long\r\n"
        talk = await front.connect()
        for _ in range(FAILURES + 1):
            await talk.send(TEXT)
        store.say.clear()
        assert (await answer(talk)).startswith("250 ")


@pytest.mark.parametrize("key", ["greeting", "LHLO"])
@pytest.mark.parametrize(
    "say", [b"554 5.3.2 No\r\n", b"421 4.3.2 Full\r\n", b"250-x\r\n", b"xyz\r\n", b"220 a\r\n250 b\r\n", CLOSE, HANG]
)
async def test_store_that_does_not_welcome_us_is_down(key: str, say: bytes) -> None:
    async with LmtpStore() as store:
        store.say[key] = say
        async with server(store, connect_timeout=0.1) as front:
            heard = (await (await front.connect()).send(TEXT))[1]
            assert heard.startswith("451 4.4.2 " if say in (HANG, b"250-x\r\n") else "451 4.4.1 ")


async def test_answers_are_counted() -> None:
    async with LmtpStore() as store, server(store) as front:
        talk = await front.connect()
        await answer(talk)
        store.say["RCPT"] = b"550 5.1.1 No\r\n"
        await talk.send(TEXT)
        store.say["RCPT"] = CLOSE
        await talk.send(TEXT)
        counts = {
            (at, kind): front.count("smtpd_lmtp_answers_total", agent="store", at=at, **{"class": kind})
            for at in ("rcpt", "content")
            for kind in ("2xx", "5xx", "none")
        }
        assert counts == {
            ("rcpt", "2xx"): 1, ("rcpt", "5xx"): 1, ("rcpt", "none"): 1,
            ("content", "2xx"): 1, ("content", "5xx"): 0, ("content", "none"): 0,
        }  # fmt: skip


def store_context(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert_file, certificates.key_file)
    return context


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_mail_goes_through_tls(tls: str, certificates: Certificates) -> None:
    store = LmtpStore(tls=store_context(certificates), implicit=tls == "implicit")
    async with store, server(store, tls=tls, ca_file=certificates.ca_file) as front:
        assert (await answer(await front.connect())).startswith("250 ")
        begin = ["LHLO", "STARTTLS", "LHLO"] if tls == "starttls" else ["LHLO"]
        assert store.visits[0].verbs == [*begin, "MAIL", "RCPT", "BDAT"]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_store_with_a_certificate_of_nobody_we_know_gets_nothing(tls: str, certificates: Certificates) -> None:
    async with LmtpStore(tls=store_context(certificates), implicit=tls == "implicit") as store:
        async with server(store, tls=tls) as front:
            assert (await (await front.connect()).send(TEXT))[1].startswith("451 4.4.1 ")
            assert "certificate" in str(await front.agents["store"].health()).lower()
        assert store.messages == []


async def test_store_with_a_certificate_for_another_name_gets_nothing(certificates: Certificates) -> None:
    store = LmtpStore(tls=store_context(certificates), host="127.0.0.2")
    async with store, server(store, tls="starttls", ca_file=certificates.ca_file) as front:
        assert (await (await front.connect()).send(TEXT))[1].startswith("451 4.4.1 ")
        assert "mismatch" in str(await front.agents["store"].health())


@pytest.mark.parametrize("say", [b"454 4.7.0 Not now\r\n", b"220 2.0.0 Go\r\n250 2.0.0 injected\r\n"])
async def test_store_that_does_not_begin_tls_properly_gets_nothing(say: bytes, certificates: Certificates) -> None:
    async with LmtpStore(tls=store_context(certificates)) as store:
        store.say["STARTTLS"] = say
        async with server(store, tls="starttls", ca_file=certificates.ca_file) as front:
            assert (await (await front.connect()).send(TEXT))[1].startswith("451 4.4.1 ")


async def test_store_that_hangs_up_instead_of_a_handshake_is_reported(certificates: Certificates) -> None:
    async with LmtpStore(tls=store_context(certificates)) as store:
        store.say["STARTTLS"] = b"220 2.0.0 Go on\r\n" + CLOSE
        async with server(store, tls="starttls", ca_file=certificates.ca_file) as front:
            assert await front.agents["store"].health() == f"{store.address} hung up"


async def test_tls_is_not_given_up_where_the_store_offers_none(certificates: Certificates) -> None:
    async with LmtpStore() as store, server(store, tls="starttls", ca_file=certificates.ca_file) as front:
        assert (await (await front.connect()).send(TEXT))[1].startswith("451 4.4.1 ")
        assert "STARTTLS" in str(await front.agents["store"].health())


async def test_authorities_that_cannot_be_read_keep_the_server_from_starting() -> None:
    with pytest.raises(BrokenPlugin, match=r"agent store: ca_file cannot be used: /nowhere/ca\.pem: No such file"):
        async with server("127.0.0.1:1", tls="implicit", ca_file="/nowhere/ca.pem"):
            pass
