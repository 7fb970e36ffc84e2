"""Messages signed in advance, in the file that `load.c -f` reads: for each a line "sender octets", and its octets.

They are written so that they are their own relaxed form (RFC 6376 section 3.4), but for the case of field names:
every field is one line without double blanks, no line of the body ends with one.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nameserver import COLD, WARM

SELECTOR = "s"
_LINE = b"Mail is a letter that many people read on its way, and one hopes nobody changes."


@cache
def _key() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


def key_record() -> str:
    """What stands in DNS for all domains."""
    octets = _key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(octets).decode()}"


def signature_of(relaxed: str) -> str:
    """What stands behind b=; `relaxed` are the signed fields and the signature field, canonicalised."""
    return base64.b64encode(_key().sign(relaxed.encode(), PKCS1v15(), SHA256())).decode()


def signed(domain: str, octets: int, number: int, recipients: str) -> bytes:
    """A message of about so many octets, without its final dot."""
    fields = {
        "From": f"Sender <sender@{domain}>",
        "To": f"User <user@{recipients}>",
        "Subject": "A message to measure",
        "Date": "Mon, 01 Jun 2026 12:00:00 +0000",
        "Message-ID": f"<{number}@{domain}>",
        "MIME-Version": "1.0",
        "Content-Type": "text/plain; charset=us-ascii",
    }
    body, body_hash = _body(max(0, octets - 850))  # the header has about so many
    value = f"v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain}; s={SELECTOR}; h={':'.join(fields)}; bh={body_hash}; b="
    relaxed = "".join(f"{name.lower()}:{text}\r\n" for name, text in fields.items()) + f"dkim-signature:{value}"
    signature = f"DKIM-Signature: {value}{signature_of(relaxed)}\r\n"
    header = signature + "".join(f"{name}: {text}\r\n" for name, text in fields.items())
    return header.encode() + b"\r\n" + body


@cache
def _body(octets: int) -> tuple[bytes, str]:
    """Lines of text, and their digest."""
    line = _LINE + b"\r\n"
    body = line * (octets // len(line) + 1)
    return body, base64.b64encode(hashlib.sha256(body).digest()).decode()


def warm(count: int, octets: int, recipients: str) -> Iterator[tuple[str, bytes]]:
    """Sender and message, from 20 domains."""
    for number in range(count):
        domain = f"d{number % 20}.{WARM}"
        yield f"sender@{domain}", signed(domain, octets, number, recipients)


def cold(series: int, count: int, octets: int, recipients: str) -> Iterator[tuple[str, bytes]]:
    """Each message from a domain of its own, which is in no other series."""
    for number in range(count):
        domain = f"d{number}.s{series}.{COLD}"
        yield f"sender@{domain}", signed(domain, octets, number, recipients)


def write(path: Path, messages: Iterable[tuple[str, bytes]]) -> Path:
    """The file for the generator; dots at the beginning of lines are for others to double, here are none."""
    with path.open("wb") as file:
        for sender, octets in messages:
            file.write(f"{sender} {len(octets) + 3}\n".encode() + octets + b".\r\n")
    return path
