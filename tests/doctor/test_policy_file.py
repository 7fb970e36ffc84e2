import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trustme

from smtpd.doctor.policy_file import MAX_OCTETS, PolicyError, fetch_policy
from smtpd.zone import Zone

ZONE = Zone({"mta-sts.example.com": {"A": ["127.0.0.1"]}})
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"


class Web:
    """A web server that says the same to everybody; nothing at all for None."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.port = 0
        self.asked: list[bytes] = []
        self.trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def running(answer: bytes | None, name: str = "mta-sts.example.com") -> AsyncIterator[Web]:
    web, authority = Web(answer), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    authority.configure_trust(web.trust)
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0, ssl=context)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        await server.wait_closed()


async def fetch(web: Web, seconds: float = 30.0) -> str:
    return await fetch_policy(ZONE, "example.com", trust=web.trust, port=web.port, seconds=seconds)


async def test_a_policy_is_fetched_from_its_well_known_place() -> None:
    async with running(HEAD + b"version: STSv1\r\n") as web:
        assert await fetch(web) == "version: STSv1\r\n"
    assert web.asked[0].startswith(b"GET /.well-known/mta-sts.txt HTTP/1.0\r\nHost: mta-sts.example.com\r\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\n\r\n", "answers 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nx", "answers 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nx", "not text/html"),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "missing"),
        (b"HTTP/1.1 200 OK\r\n", "no HTTP"),
        (b"220 mx ESMTP\r\n\r\n", "no HTTP"),
        (b"", "no HTTP"),
        (HEAD + b"x" * MAX_OCTETS, f"more than {MAX_OCTETS} octets"),
    ],
)
async def test_what_is_no_policy_is_not_taken(answer: bytes, said: str) -> None:
    async with running(answer) as web:
        with pytest.raises(PolicyError, match=said):
            await fetch(web)
    assert len(web.asked) == 1


async def test_a_certificate_for_another_name_does_not_count() -> None:
    async with running(HEAD, "www.example.com") as web:
        with pytest.raises(PolicyError, match="certificate does not count"):
            await fetch(web)
    assert web.asked == []


async def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    async with running(None) as web:
        with pytest.raises(PolicyError, match="did not answer"):
            await fetch(web, 0.5)


@pytest.mark.parametrize("record", [[], "tempfail: timeout"])
async def test_a_host_without_address_has_no_policy(record: object) -> None:
    with pytest.raises(PolicyError, match="has no address"):
        await fetch_policy(Zone({"mta-sts.example.com": {"A": record}}), "example.com")
