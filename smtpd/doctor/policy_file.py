"""Fetching an MTA-STS policy over HTTPS (RFC 8461 §3.3): one request, no redirects, a limit on time and size."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from smtpd.dns import Resolver
from smtpd.doctor.own_name import addresses_of

MAX_OCTETS = 64 << 10  # of the whole answer; RFC 8461 §3.3 suggests as much for a policy
SECONDS = 10.0
PORT = 443

_PATH = "/.well-known/mta-sts.txt"


class PolicyError(Exception):
    """There is no policy that counts; the text says why."""


async def fetch_policy(
    resolver: Resolver, domain: str, *, trust: ssl.SSLContext | None = None, port: int = PORT, seconds: float = SECONDS
) -> str:
    """The policy of a domain as text. Raises PolicyError. `trust` decides whose certificates count."""
    host = f"mta-sts.{domain}"
    addresses, failure = await addresses_of(resolver, host)
    if not addresses:
        raise PolicyError(f"{host} has no address{f' ({failure})' if failure else ''}")
    context = trust
    if context is None:
        context = await asyncio.to_thread(ssl.create_default_context)  # it reads hundreds of certificates
    problem = ""
    try:
        async with asyncio.timeout(seconds):
            for address in addresses[:4]:
                try:
                    return _policy_in(await _get(address, port, host, context))
                except OSError as error:  # ssl.SSLError is one
                    problem = problem or f"{host} at {address}: {_reason(error)}"
    except TimeoutError:
        problem = f"{host} did not answer in {seconds:g} s"
    raise PolicyError(problem)


async def _get(address: str, port: int, host: str, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
    try:
        # HTTP/1.0, so that the answer ends where the connection does.
        writer.write(f"GET {_PATH} HTTP/1.0\r\nHost: {host}\r\nAccept: text/plain\r\n\r\n".encode("ascii"))
        answer = bytearray()
        while piece := await reader.read(MAX_OCTETS):
            answer += piece
            if len(answer) > MAX_OCTETS:
                raise PolicyError(f"{host} sends more than {MAX_OCTETS} octets")
        return bytes(answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _policy_in(answer: bytes) -> str:
    head, blank, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    words = status.split(" ", 2)
    if not blank or not words[0].startswith("HTTP/1.") or len(words) < 2:
        raise PolicyError("the answer is no HTTP")
    if words[1] != "200":
        raise PolicyError(f"the server answers {words[1]}, and only 200 counts; redirects are not followed")
    kinds = [value for name, _, value in (field.partition(":") for field in fields) if name.lower() == "content-type"]
    if not kinds or kinds[0].partition(";")[0].strip().lower() != "text/plain":
        raise PolicyError(f"its type must be text/plain, not {kinds[0].strip() if kinds else 'missing'}")
    return body.decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not count: {error.verify_message}"
    return error.strerror or type(error).__name__
