"""The DNS behind the filters: answers TXT questions by UDP, from a rule instead of a list of names.

Every sender below `.test` has an SPF record that names 127.0.0.1, a DKIM key, and a DMARC record. As a program:
ADDRESS, and the key record on standard input; it prints its port. A question for ASKED is
answered with the number of questions so far.
"""

import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import machine
from generator import NotMeasured

COLD = "cold.test"
WARM = "warm.test"
ASKED = "asked.nameserver.invalid"
SPF_RECORD = "v=spf1 ip4:127.0.0.0/8 -all"
DMARC_RECORD = "v=DMARC1; p=reject; adkim=s; aspf=s"

_TTL = 3600
_TXT = 16
_ANSWER, _NO_SUCH_NAME = 0x8580, 0x8583  # RFC 1035 section 4.1.1: QR AA RD RA, and the response code
_HEADER = struct.Struct("!6H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nameserver:
    """One that runs."""

    address: str
    port: int

    def questions(self) -> int:
        """How many it was asked so far, this one not counted. TimeoutError."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as questioner:
            questioner.settimeout(machine.PATIENCE)
            name = b"".join(bytes([len(label)]) + label.encode() for label in ASKED.split("."))
            question = _HEADER.pack(1, 0x100, 1, 0, 0, 0) + name + b"\0" + struct.pack("!2H", _TXT, 1)
            questioner.sendto(question, (self.address, self.port))
            return int(questioner.recv(512)[len(question) + 13 :])  # behind name, type, class, TTL and two lengths


@contextmanager
def nameserver(key_record: str) -> Iterator[Nameserver]:
    """On the generator's core, on port 53 of an address of its own if we may: resolv.conf knows no other port."""
    address = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"
    command = [sys.executable, str(Path(__file__).resolve()), address]
    process = machine.start(command, machine.cores()[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(key_record + "\n")
        process.stdin.flush()
        port = process.stdout.readline()
        if not port:
            raise NotMeasured("the nameserver does not start")
        yield Nameserver(address=address, port=int(port))
    finally:
        machine.stop(process)
        process.stdin.close()
        process.stdout.close()


def _listen(address: str) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        server.bind((address, 53))
    except PermissionError:
        server.bind((address, 0))
    return server


def _text(name: str, key_record: str, asked: int) -> str:
    """The record of a name; empty: there is none."""
    if name == ASKED:
        return str(asked)
    if not name.endswith(".test"):
        return ""
    if "._domainkey." in name:
        return key_record
    if name.startswith("_dmarc."):
        return DMARC_RECORD if name.count(".") > 2 else ""
    return SPF_RECORD


def _name_in(question: bytes) -> tuple[str, int]:
    """The name asked for, in lower case, and where it ends."""
    labels, place = [], _HEADER.size
    while length := question[place]:
        labels.append(question[place + 1 : place + 1 + length].decode("ascii", "replace").lower())
        place += 1 + length
    return ".".join(labels), place + 1


def _reply(question: bytes, end: int, text: str) -> bytes:
    """The answer: the record as one text, or that there is none."""
    (kind,) = struct.unpack_from("!H", question, end)
    answers = int(kind == _TXT and bool(text))
    head = _HEADER.pack(*struct.unpack_from("!H", question), _ANSWER if text else _NO_SUCH_NAME, 1, answers, 0, 0)
    reply = head + question[_HEADER.size : end + 4]
    if answers:
        parts = (text[start : start + 255].encode() for start in range(0, len(text), 255))
        strings = b"".join(bytes([len(part)]) + part for part in parts)
        reply += struct.pack("!3HIH", 0xC00C, _TXT, 1, _TTL, len(strings)) + strings  # a pointer to the question's name
    return reply


def main() -> None:
    """Answer until somebody ends us."""
    key_record = sys.stdin.readline().strip()
    server = _listen(sys.argv[1])
    print(server.getsockname()[1], flush=True)
    asked = 0
    while True:
        question, client = server.recvfrom(4096)
        try:
            name, end = _name_in(question)
            reply = _reply(question, end, _text(name, key_record, asked))
        except (IndexError, struct.error):
            continue
        server.sendto(reply, client)
        asked += name != ASKED


if __name__ == "__main__":
    main()
