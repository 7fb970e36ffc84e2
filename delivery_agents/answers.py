"""What a mail server behind us answers: octets in, `Answer`s out, and what our client hears of them.

Pure. The server is ours, but it may be broken or somebody else by now: length and number of lines have
limits, nothing it says is taken for more than text, and what makes no sense raises `Nonsense`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from delivery_agents.failures import Nonsense
from smtpd import replies
from smtpd.replies import Reply

MAX_LINES = 100  # of one answer; an EHLO reply has about 20
MAX_OCTETS = 8 << 10  # of one answer; RFC 5321 §4.5.3.1.5 allows a line 512

CLOSING = 421  # RFC 5321 §3.8
EACH = 353  # "one answer for each recipient follows": PRDR, as Exim does it
_SHOWN = 80  # characters of what makes no sense, in the log

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?", re.DOTALL)
_STATUS = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:[ \t]+|$)")  # RFC 2034 §4
# Our own command was wrong or came at the wrong time, or the server wants us to log in: nothing of that is about
# the mail, and nothing our client could mend (RFC 5321 §4.2.2, RFC 4954 §6).
_ABOUT_US = frozenset((500, 502, 503, 504, 530, 534, 535, 538, 555))


class Answer(NamedTuple):
    """One answer: its code, its enhanced code ("" when it has none) and its text in one piece."""

    code: int
    status: str
    text: str
    lines: tuple[str, ...]
    """The text line by line, enhanced codes included."""

    @property
    def is_positive(self) -> bool:
        """2xx."""
        return self.code < 300

    def __str__(self) -> str:
        return replies.clean(f"{self.code} {' '.join(self.lines)}")


class AnswerReader:
    """Puts answers together, however their octets are cut."""

    __slots__ = ("_buffer", "_code", "_lines", "_octets")

    def __init__(self) -> None:
        self._buffer = b""
        self._code = 0
        self._lines: list[str] = []
        self._octets = 0

    @property
    def is_empty(self) -> bool:
        """Whether no answer has begun that is not complete."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> list[Answer]:
        """Take octets and give the answers they complete; Nonsense when they can be none."""
        *lines, self._buffer = (self._buffer + data if self._buffer else data).split(b"\n")
        answers = []
        for line in lines:
            answer = self._take(line)
            if answer is not None:
                answers.append(answer)
        if self._octets + len(self._buffer) > MAX_OCTETS:
            raise Nonsense(f"an answer of more than {MAX_OCTETS} octets")
        return answers

    def _take(self, line: bytes) -> Answer | None:
        self._octets += len(line) + 1
        match = _LINE.fullmatch(line.removesuffix(b"\r"))
        if match is None:
            raise Nonsense(f"no answer: {_shown(line)}")
        code = int(match[1])
        if self._lines and code != self._code:  # RFC 5321 §4.2.1
            raise Nonsense(f"an answer with two codes: {self._code} and {code}")
        self._code = code
        self._lines.append((match[3] or b"").decode("utf-8", "backslashreplace"))
        if self._octets > MAX_OCTETS or len(self._lines) > MAX_LINES:
            raise Nonsense(f"an answer of more than {MAX_OCTETS} octets or {MAX_LINES} lines")
        if match[2] == b"-":
            return None
        answer = _answer(code, tuple(self._lines))
        self._lines = []
        self._octets = 0
        return answer


def check_verdict(answer: Answer, command: str) -> Answer:
    """Return what can answer MAIL, RCPT or content: 25x, 4xx, or 5xx about the mail; else Nonsense."""
    code = answer.code
    if 250 <= code < 260 or 400 <= code < 500 or (code >= 500 and code not in _ABOUT_US):
        return answer
    raise Nonsense(f"{command} was answered with {answer}")


@lru_cache(maxsize=256)
def as_reply(answer: Answer) -> Reply:
    """What our client hears: class, code and enhanced code of the server, and its text, cleaned and cut.

    421 would end our client's connection, so it becomes 451 4.3.2. Without an enhanced code, or with one of another
    class, it is x.0.0.
    """
    code, status = answer.code, answer.status
    if code == CLOSING:
        code, status = 451, "4.3.2"
    elif not status or status[0] != str(code)[0]:
        status = f"{code // 100}.0.0"
    return replace(replies.STORE_SAID, code=code, status=status, values={"text": replies.clean(answer.text)})


def _answer(code: int, lines: tuple[str, ...]) -> Answer:
    status, texts = "", []
    for line in lines:
        match = _STATUS.match(line)
        if match is not None:
            status = status or match[1]
            line = line[match.end() :]
        texts.append(line.strip())
    return Answer(code, status, " ".join(filter(None, texts)), lines)


def _shown(octets: bytes) -> str:
    return replies.clean(octets[:_SHOWN].decode("ascii", "backslashreplace"))
