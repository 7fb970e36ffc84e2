"""Dialog files: what they hold, and how one is played in memory or over a socket. See dialogs/README.md."""

import asyncio
import re
import shutil
import socket
import ssl
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtpd.memory import Talk
from smtpd.model import TlsInfo
from smtpd.service import Service

FOLDER = Path(__file__).resolve().parent / "dialogs"
PATIENCE = 10.0  # seconds for one answer over a socket; only a failing test waits that long
ENCRYPTED = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
STARTS = {
    "connected": [],
    "greeted": [b""],
    "ehlo": [b"", b"EHLO client.test\r\n"],
    "rcpt": [b"", b"EHLO client.test\r\n", b"MAIL FROM:<joe@client.test>\r\n", b"RCPT TO:<ann@example.test>\r\n"],
}
CONFIG = {
    "max_message_size": 4000,
    "max_recipients": 3,
    "max_received": 3,
    "max_text_line": 1000,
    "limits": {"errors_per_session": 5, "messages_per_session": 3},
    "recipients": {"nobody@example.test": "deny"},
    "relay": {"agent": "mailstore"},
    "log": {"connections": True},
}
_LISTENERS: dict[str, dict[str, Any]] = {
    "smtp": {"mode": "smtp"},
    "submission": {"mode": "submission"},
    "alt": {"mode": "alt"},
    "normalise": {"mode": "smtp", "bare_line_ends": "normalise"},
    "bare": {"mode": "smtp", "tls": "off", "chunking": False, "smtputf8": False, "pipelining": False,
             "prdr": False},
    "lmtp": {"mode": "lmtp"},
    "lenient": {"mode": "alt", "auth": "off"},
    "fronted": {"mode": "alt", "auth": "off", "xclient": ["127.0.0.1", "192.0.2.1"]},
    "fronted-login": {"mode": "submission", "xclient": ["127.0.0.1", "192.0.2.1"]},
}

_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([rnt0\\]))|\{([0-9]+)\*([^}]+)\}")
_ESCAPED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0", b"\\": b"\\"}


def listeners() -> dict[str, dict[str, Any]]:
    """Every listener on a free port, and its twin with TLS from the first octet."""
    made = {"smtps": {"mode": "smtps", "address": "127.0.0.1:0"}}
    for name, table in _LISTENERS.items():
        made[name] = {"address": "127.0.0.1:0", **table}
        if table.get("tls") != "off":
            made[f"{name}-tls"] = {"address": "127.0.0.1:0", **table, "tls": "implicit"}
    return made


@dataclass
class Turn:
    """What the client says at once, what it then does, and what it hears until it speaks again."""

    says: bytes = b""
    does: str = ""
    hears: list[str] = field(default_factory=list)
    ends: bool = False


@dataclass
class Dialog:
    """One file."""

    path: Path
    listener: str = "smtp"
    start: str = "ehlo"
    tls: str = "either"
    config: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stored: list[str] | None = None

    @property
    def tables(self) -> dict[str, Any]:
        """What `# config:` lines add below `[smtpd]`."""
        return tomllib.loads("\n".join(self.config))

    @property
    def twin(self) -> str:
        """The listener that does the same with TLS from the first octet."""
        return self.listener if self.listener == "smtps" else f"{self.listener}-tls"


def unescape(text: str) -> bytes:
    """The octets of a `C` line: `\\r \\n \\t \\0 \\\\ \\x7f`, and `{40*ab}` for 40 times "ab"."""

    def replaced(match: re.Match[bytes]) -> bytes:
        if match[3]:
            return unescape(match[4].decode()) * int(match[3])
        return bytes.fromhex(match[1].decode()) if match[1] else _ESCAPED[match[2]]

    return _ESCAPE.sub(replaced, text.encode("utf-8"))


def read(path: Path) -> Dialog:
    """Read one dialog file; ValueError for a line that is none of it."""
    dialog = Dialog(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        kind, text = line[:2], line[3:]
        if line.startswith("# ") and number > 1 and (header := re.fullmatch(r"# (listener|start|tls): (\S+)", line)):
            setattr(dialog, header[1], header[2])
        elif line.startswith("# config: "):
            dialog.config.append(line.removeprefix("# config: "))
        elif kind in ("C:", "C-"):
            _client(dialog, kind, text)
        elif kind == "S:":
            _server(dialog, text)
        elif kind == "M:":
            dialog.stored = [*(dialog.stored or []), text]
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}, line {number}: {line!r} is no line of a dialog")
    if dialog.start not in STARTS or dialog.tls not in ("either", "no", "yes", "starts"):
        raise ValueError(f"{path.name}: a header has an unknown value")
    return dialog


def _client(dialog: Dialog, kind: str, text: str) -> None:
    turns = dialog.turns
    if not turns or turns[-1].hears or turns[-1].ends or turns[-1].does:
        turns.append(Turn())
    if text.startswith("(") and kind == "C:":
        turns[-1].does = text.strip("()")
    else:
        turns[-1].says += unescape(text) + (b"\r\n" if kind == "C:" else b"")


def _server(dialog: Dialog, text: str) -> None:
    if not dialog.turns:
        dialog.turns.append(Turn())
    if text == "(closes)":
        dialog.turns[-1].ends = True
    else:
        dialog.turns[-1].hears.append(text)


def pattern(text: str) -> re.Pattern[str]:
    """A line with `...` for anything."""
    return re.compile(".*".join(map(re.escape, text.split("..."))))


def compare(expected: list[str], heard: list[str], where: str) -> None:
    """Fail with both sides in full unless every line is as it should be."""
    fits = len(expected) == len(heard)
    fits = fits and all(pattern(one).fullmatch(other) for one, other in zip(expected, heard, strict=True))
    assert fits, "\n".join([where, "should be:", *expected, "but is:", *heard])


def lines(octets: bytes) -> list[str]:
    """What was said, line by line; only CRLF ends a line."""
    assert not octets or octets.endswith(b"\r\n"), f"no whole lines: {octets!r}"
    return octets.decode("utf-8").split("\r\n")[:-1]


class Mailboxes:
    """Everything the mailstore of a server holds."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def clear(self) -> None:
        """Throw everything away, but keep the mailboxes."""
        for path in self.root.glob("*/*/new/*"):
            path.unlink()

    def messages(self) -> dict[str, bytes]:
        """Every message by its id, once, however many mailboxes hold it."""
        found = {}
        for path in self.root.glob("*/*/new/*"):
            octets = path.read_bytes()
            number = re.search(rb"\sid (\w+)", octets)
            assert number is not None, octets
            found[number[1].decode()] = octets
        return found

    def check(self, dialog: Dialog, said: str) -> None:
        """What a client heard of is stored, nothing else is, and it reads as the dialog says."""
        stored = self.messages()
        assert set(re.findall(r"^250 .*delivered \[(\w+)\]\r$", said, re.MULTILINE)) == set(stored)
        if dialog.stored is not None:
            assert len(stored) == 1, "one message should have been stored"
            compare(dialog.stored, lines(received(*stored.values())), "the stored message")


def received(message: bytes) -> bytes:
    """A stored message without the fields we put on top."""
    return re.sub(rb"\A(?:Return-Path:.*\r\n)?(?:Delivered-To:.*\r\n)?Received:.*\r\n(?:[ \t].*\r\n)+", b"", message)


async def play_in_memory(dialog: Dialog, service: Service, *, piece: int) -> str:
    """Play it without a socket, `piece` octets at a time (0: each turn whole); everything the server said."""
    talk = Talk(service, tls=ENCRYPTED if dialog.tls == "yes" else None)
    said = b""
    for opening in STARTS[dialog.start]:
        said += await talk.say(opening)
    for turn in dialog.turns:
        answer = await talk.say(turn.says, piece=piece) if turn.says else await talk.hear()
        if turn.does:
            answer += await talk.hang_up(politely=turn.does == "half-closes")
        said += answer
        compare(turn.hears, lines(answer), f"after {turn.says[-200:]!r}")
        if turn.ends:
            assert talk.is_over, "the server should have closed the connection"
    if not talk.is_over:
        assert await talk.hang_up() == b""
    return said.decode()


class Client:
    """A client with a socket."""

    def __init__(self, port: int, trust: ssl.SSLContext | None) -> None:
        self._socket: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._buffer = b""
        self.said = ""
        if trust is not None:
            self.start_tls(trust)

    def start_tls(self, trust: ssl.SSLContext) -> None:
        """Shake hands."""
        assert not self._buffer
        self._socket = trust.wrap_socket(self._socket, server_hostname="mx.test", suppress_ragged_eofs=True)

    def say(self, octets: bytes) -> None:
        """Send all at once."""
        self._socket.sendall(octets)

    def line(self) -> str:
        """The next line without its end."""
        while b"\r\n" not in self._buffer:
            data = self._socket.recv(65536)
            assert data, f"the connection ended behind {self.said[-500:]!r}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        self.said += line.decode() + "\r\n"
        return line.decode()

    def reply(self) -> None:
        """Hear one whole reply."""
        while self.line()[3:4] == "-":
            continue

    def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        rest, self._buffer = self._buffer, b""
        while data := self._socket.recv(65536):
            rest += data
        self.said += rest.decode()
        return rest

    def half_close(self) -> None:
        """Say that nothing more comes; over TLS there is no other way than to close."""
        if isinstance(self._socket, ssl.SSLSocket):
            self.close()
        else:
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    @property
    def is_open(self) -> bool:
        """Whether this side has not hung up."""
        return self._socket.fileno() >= 0


def play_over_socket(dialog: Dialog, port: int, trust: ssl.SSLContext, *, tls: bool) -> str:
    """Play it with a real server; everything the server said."""
    client = Client(port, trust if tls else None)
    try:
        for opening in STARTS[dialog.start]:
            client.say(opening)
            client.reply()
        for turn in dialog.turns:
            client.say(turn.says)
            if turn.does == "half-closes":
                client.half_close()
            elif turn.does == "hangs up":
                client.close()
            compare(turn.hears, list(_heard(client, turn)), f"after {turn.says[-200:]!r}")
            if turn.does == "starts TLS":
                client.start_tls(trust)
            if turn.ends and client.is_open:
                assert client.rest() == b""
                client.close()
        if client.is_open:
            client.half_close()
        if client.is_open:
            assert client.rest() == b""
    finally:
        client.close()
    return client.said


def _heard(client: Client, turn: Turn) -> Iterator[str]:
    for _ in turn.hears:
        yield client.line()


def every_dialog() -> list[Dialog]:
    """All files, by name."""
    return [read(path) for path in sorted(FOLDER.glob("*.smtp"))]


def new_folder(path: Path) -> Path:
    """An empty folder in the place of whatever was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


async def settle() -> None:
    """Let everything that was spawned run."""
    for _ in range(5):
        await asyncio.sleep(0)
