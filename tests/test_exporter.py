import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as some
from pydantic import SecretStr

from smtpd import exporter as module
from smtpd.config import LogOptions
from smtpd.exporter import MAX_CONNECTIONS, MAX_HEAD, Exporter, parse_request
from smtpd.log import Log
from smtpd.metrics import Counter, Metrics


@dataclass(frozen=True)
class Options:
    enabled: bool = True
    address: str = "127.0.0.1:0"
    path: str = "/metrics"
    token: SecretStr | None = None
    cert_file: str | None = None
    key_file: str | None = None


class Site:
    """Exporters of one test, and what they ask for readiness."""

    def __init__(self, log_file: Path) -> None:
        self.problems: list[str] = []
        self.checks = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.metrics = Metrics()
        self.log_file = log_file
        self.log = Log(LogOptions(to=f"file:{log_file}"))
        self.running: list[Exporter] = []

    async def ready(self) -> list[str]:
        self.checks += 1
        await self.gate.wait()
        return self.problems

    async def start(self, options: Options = Options()) -> Exporter:
        exporter = Exporter(options, self.metrics, self.ready, self.log)
        await exporter.start()
        self.running.append(exporter)
        return exporter


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path / "log")
    yield site
    for exporter in site.running:
        await exporter.stop()
    site.log.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens inside the exporter
            await asyncio.sleep(0)


async def send(exporter: Exporter, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    name = "localhost" if context else None
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", exporter.port, ssl=context, server_hostname=name)
        writer.write(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


async def get(exporter: Exporter, path: str, *fields: str, method: str = "GET") -> tuple[int, bytes, bytes]:
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", "")
    head, _, body = (await send(exporter, "\r\n".join(lines).encode())).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, body


async def test_numbers_are_served(site: Site) -> None:
    site.metrics.counter(Counter("hits_total", "Hits.")).labels().inc(7)
    status, head, body = await get(await site.start(), "/metrics?name=x")
    assert status == 200
    assert b"Content-Type: text/plain; version=0.0.4" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"\nhits_total 7.0\n" in body


async def test_openmetrics_is_served_when_asked_for(site: Site) -> None:
    _, head, body = await get(await site.start(), "/metrics", "accept: application/openmetrics-text; version=1.0.0")
    assert b"Content-Type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


async def test_head_answers_without_body(site: Site) -> None:
    status, head, body = await get(await site.start(), "/healthz", method="HEAD")
    assert (status, body) == (200, b"")
    assert b"Content-Length: 3" in head


async def test_the_path_can_be_chosen(site: Site) -> None:
    exporter = await site.start(Options(path="/numbers"))
    assert (await get(exporter, "/numbers"))[0] == 200
    assert (await get(exporter, "/metrics"))[0] == 404


async def test_nothing_listens_when_switched_off(site: Site) -> None:
    assert (await site.start(Options(enabled=False))).port == 0


async def test_ipv6_addresses_work(site: Site) -> None:
    exporter = await site.start(Options(address="[::1]:0"))
    _, writer = await asyncio.open_connection("::1", exporter.port)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("Authorization: Bearer s3cret", 200),
        ("authorization: bearer s3cret", 200),
        ("Authorization: Bearer wrong", 401),
        ("Authorization: Bearer s\xe9cret", 401),
        ("Authorization: Basic s3cret", 401),
        ("Authorization: Bearer", 401),
        ("X-Nothing: here", 401),
    ],
)
async def test_numbers_want_the_token(site: Site, field: str, status: int) -> None:
    exporter = await site.start(Options(token=SecretStr("s3cret")))
    found, head, _ = await get(exporter, "/metrics", field)
    assert found == status
    assert (b"WWW-Authenticate: Bearer" in head) is (status == 401)


async def test_probes_need_no_token_but_reasons_do(site: Site) -> None:
    site.problems = ["agent mailstore: refused"]
    exporter = await site.start(Options(token=SecretStr("s3cret")))
    assert (await get(exporter, "/healthz"))[0] == 200
    status, _, body = await get(exporter, "/readyz")
    assert status == 503
    assert b"mailstore" not in body
    assert b"mailstore" in (await get(exporter, "/readyz", "Authorization: Bearer s3cret"))[2]


async def test_health_needs_no_backend(site: Site) -> None:
    site.problems = ["agent mailstore: refused"]
    status, _, body = await get(await site.start(), "/healthz")
    assert (status, body, site.checks) == (200, b"ok\n", 0)


async def test_ready_when_nothing_is_wrong(site: Site) -> None:
    assert (await get(await site.start(), "/readyz"))[0] == 200


async def test_not_ready_tells_one_safe_line_per_reason(site: Site) -> None:
    site.problems = ["agent mailstore: connection refused", "filter x:\r\nforged \x1b[2J"]
    status, _, body = await get(await site.start(), "/readyz")
    assert status == 503
    assert body == b"agent mailstore: connection refused\nfilter x:?forged ?[2J\n"


async def test_not_ready_while_draining(site: Site) -> None:
    exporter = await site.start()
    exporter.draining = True
    status, _, body = await get(exporter, "/readyz")
    assert (status, site.checks) == (503, 0)
    assert b"shutting down" in body
    assert (await get(exporter, "/healthz"))[0] == 200


async def test_checks_that_take_too_long_mean_not_ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_SECONDS", 0.01)
    site.gate.clear()
    status, _, body = await get(await site.start(), "/readyz")
    assert (status, body) == (503, b"the checks took longer than 0.01 s\n")


async def test_probes_at_the_same_time_share_one_check(site: Site) -> None:
    site.gate.clear()
    exporter = await site.start()
    asked = [asyncio.create_task(exporter._problems()) for _ in range(5)]
    await until(lambda: site.checks > 0)
    site.gate.set()
    assert await asyncio.gather(*asked) == [[]] * 5
    assert site.checks == 1
    assert (await get(exporter, "/readyz"))[0] == 200
    assert site.checks == 2


async def test_a_bug_in_a_check_is_500_and_one_log_line(site: Site) -> None:
    async def broken() -> list[str]:
        raise ValueError("bug")

    exporter = Exporter(Options(), site.metrics, broken, site.log)
    await exporter.start()
    site.running.append(exporter)
    assert (await get(exporter, "/readyz"))[0] == 500
    site.log.flush()
    line = json.loads(site.log_file.read_text())
    assert line["event"] == "exporter-broken"
    assert "ValueError: bug" in line["exception"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics HTTP/2\r\n\r\n", b"400"),
        (b"GET http://x/metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"EHLO there\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nno field\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n folded: x\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"y" * MAX_HEAD + b"\r\n\r\n", b"431"),
    ],
)
async def test_odd_requests_get_a_fitting_status(site: Site, data: bytes, status: bytes) -> None:
    assert (await send(await site.start(), data)).startswith(b"HTTP/1.1 " + status)


async def test_a_slow_request_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.01)
    assert (await send(await site.start(), b"GET /met")).startswith(b"HTTP/1.1 408")


async def test_connections_beyond_the_limit_are_dropped(site: Site) -> None:
    exporter = await site.start()
    held = [await asyncio.open_connection("127.0.0.1", exporter.port) for _ in range(MAX_CONNECTIONS)]
    await until(lambda: len(exporter._requests) == MAX_CONNECTIONS)
    assert await send(exporter, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
    for _, writer in held:
        writer.close()
    await until(lambda: not exporter._requests)
    assert (await get(exporter, "/healthz"))[0] == 200


async def test_stop_ends_what_hangs(site: Site) -> None:
    site.gate.clear()
    exporter = await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", exporter.port)
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    await until(lambda: site.checks > 0)
    async with asyncio.timeout(5):
        await exporter.stop()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_tls_is_spoken_with_a_certificate(site: Site, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    exporter = await site.start(Options(cert_file=str(tmp_path / "pem")))
    answer = await send(exporter, b"GET /healthz HTTP/1.1\r\n\r\n", context)
    assert answer.startswith(b"HTTP/1.1 200")


async def test_handshakes_count_as_connections(site: Site, tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    exporter = await site.start(Options(cert_file=str(tmp_path / "pem")))
    held = [await asyncio.open_connection("127.0.0.1", exporter.port) for _ in range(MAX_CONNECTIONS)]
    await until(lambda: len(exporter._requests) == MAX_CONNECTIONS)
    assert await send(exporter, b"one too many") == b""
    for _, writer in held:
        writer.close()
    await until(lambda: not exporter._requests)


async def test_renewed_certificate_is_used_and_one_that_does_not_fit_is_not(site: Site, tmp_path: Path) -> None:
    authority, context, pem = trustme.CA(), ssl.create_default_context(), tmp_path / "pem"
    authority.configure_trust(context)
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    exporter = await site.start(Options(cert_file=str(pem)))
    with pytest.raises(ssl.SSLCertVerificationError):
        await send(exporter, b"", context)
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    assert (await send(exporter, b"GET /healthz HTTP/1.1\r\n\r\n", context)).startswith(b"HTTP/1.1 200")
    pem.write_bytes(b"half")
    for _ in range(2):
        assert (await send(exporter, b"GET /healthz HTTP/1.1\r\n\r\n", context)).startswith(b"HTTP/1.1 200")
    site.log.flush()
    assert site.log_file.read_text().count('"certificates-kept"') == 1


def leave_one_descriptor(pid: int) -> tuple[int, int]:
    """Let a process open one more and none beside it; the limits that it had."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    return resource.prlimit(
        pid, resource.RLIMIT_NOFILE, (next(free) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def shows_certificate_of(port: int, authority: trustme.CA) -> bool:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        try:
            context.wrap_socket(plain, server_hostname="localhost").close()
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_renewed_certificate_that_could_not_be_read_for_a_moment_is_read_later(
    serve: Callable[..., Any], directory: Path
) -> None:
    old, new, pem = trustme.CA(), trustme.CA(), str(directory / "pem")
    old.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    server = serve({"smtpd": {"metrics": {"cert_file": pem, "key_file": pem}}})
    port, pid = int(server.wait_for("metrics")["address"].rpartition(":")[2]), server.process.pid
    new.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    limits = leave_one_descriptor(pid)
    assert shows_certificate_of(port, old)
    assert "Too many open files" in server.wait_for("certificates-kept")["error"]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert shows_certificate_of(port, new)


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificate_that_cannot_be_used_is_named(site: Site, tmp_path: Path, content: str | None) -> None:
    pem = tmp_path / "pem"
    if content is not None:
        pem.write_text(content)
    with pytest.raises(OSError, match=re.escape(f"{pem}: ")):
        await site.start(Options(cert_file=str(pem)))


@given(some.binary(max_size=200) | some.text(max_size=200).map(lambda text: f"GET /{text} HTTP/1.1\r\n\r\n".encode()))
def test_nothing_but_value_error_leaves_the_parser(head: bytes) -> None:
    try:
        request = parse_request(head)
    except ValueError:
        return
    assert request.path.startswith("/")


async def test_address_that_is_taken_is_named_with_what_it_was_for(site: Site) -> None:
    address = f"127.0.0.1:{(await site.start()).port}"
    with pytest.raises(OSError, match=f"^cannot listen on {address} for the metrics: Address already in use$"):
        await site.start(Options(address=address))
