"""How one line of the log is written: time, level, event, then the given fields in their order.

As JSON or as text for eyes. Whatever a client sends is escaped to printable ASCII, so it can never forge a line;
what must not be readable at all is for `log.py` to say.
"""

from __future__ import annotations

import json
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal, Protocol, TypeGuard

Level = Literal["debug", "info", "warning", "error"]

MAX_TEXT = 2000  # characters of one value
MAX_ITEMS = 100  # of a list or table in one field
MAX_TRACEBACK = 16_000  # characters
MAX_NAMES = 1000  # field and event names remembered; ours are far fewer
HUGE = 1 << 64  # printing really big numbers is slow, and refused by Python
LEVELS: Mapping[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # RFC 5424 §6.2.1
FACILITY_MAIL = 2 << 3  # RFC 5424 §6.2.1

_MILLISECONDS = [f"{number:03}" for number in range(1000)] + ["999"]
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quote, equals sign and backslash
_ODD_NAME = re.compile(r"[^A-Za-z0-9_.\-]+")
_RESERVED = frozenset(("time", "level", "event"))
_OF_A_MESSAGE = ("session", "listener", "ip", "helo", "trace", "sender", "recipients")


class Discretion(Protocol):
    """What may be read in a log."""

    def is_plain(self, name: str) -> bool:
        """Whether any text in a field of this name can be written as it is."""

    def shown(self, name: str, value: object) -> object:
        """The value as something JSON can hold and everybody may read."""

    def text(self, text: str) -> str:
        """The same for free text."""


class Lines:
    """Makes lines. The fast way is for names seen before whose values are text or numbers.

    What every message has is written out in `message` and `client`, to the octet as `fields` would write it; where
    all the texts together are no longer than one may be, none of them has to be cut.
    """

    def __init__(
        self, shape: Literal["json", "console"], clock: Callable[[], float], discretion: Discretion, *, syslog: bool
    ) -> None:
        self._json = shape == "json"
        self._syslog = syslog
        self._clock = clock
        self._discretion = discretion
        self._quote: Callable[[str], str] = quoted if self._json else _console_text
        self._end = "}\n" if self._json else "\n"
        self._second = -1
        self._heads: dict[Level, str] = {}
        self._events: dict[tuple[Level, str], str] = {}
        self._plain_names: dict[str, str] = {}
        self._is_plain_json = self._json and all(map(discretion.is_plain, _OF_A_MESSAGE))
        self._message_head = ""
        self._message_opening = self._opening("info", "message")

    def line(
        self,
        level: Level,
        event: str,
        fields: dict[str, object],
        exception: BaseException | None,
        common: str = "",
    ) -> str:
        """One whole line; `common` comes from `fields`."""
        now = self._clock()
        second = int(now)
        if second != self._second:
            self._begin_second(second)
        opening = self._events.get((level, event)) or self._opening(level, event)
        stack = "" if exception is None else self._traceback(exception)
        start = f"{self._heads[level]}{_MILLISECONDS[int((now - second) * 1000)]}{opening}{common}"
        return f"{start}{self.fields(fields)}{stack}{self._end}"

    def message(
        self,
        common: str,
        trace: str,
        sender: str,
        recipients: list[str],
        size: int,
        seconds: float,
        more: dict[str, object] | None,
    ) -> str:
        """The line of one message; `common` comes from `fields` or `client`."""
        if self._is_plain_json and len(recipients) == 1:
            envelope = f',"trace":{quoted(trace)},"sender":{quoted(sender)},"recipients":[{quoted(recipients[0])}]'
            if len(envelope) <= MAX_TEXT:
                now = self._clock()
                second = int(now)
                if second != self._second:
                    self._begin_second(second)
                rest = self.fields(more) if more else ""
                return (
                    f"{self._message_head}{_MILLISECONDS[int((now - second) * 1000)]}{self._message_opening}{common}"
                    f'{envelope},"size":{size},"seconds":{seconds:.6f}{rest}}}\n'
                )
        fields = {"trace": trace, "sender": sender, "recipients": recipients, "size": size, "seconds": seconds}
        return self.line("info", "message", {**fields, **(more or {})}, None, common)

    def client(self, session: str, listener: str, ip: str, helo: str) -> str:
        """What `fields` makes of the fields that every client has."""
        if self._is_plain_json:
            client = (
                f',"session":{quoted(session)},"listener":{quoted(listener)},"ip":{quoted(ip)},"helo":{quoted(helo)}'
            )
            if len(client) <= MAX_TEXT:
                return client
        return self.fields({"session": session, "listener": listener, "ip": ip, "helo": helo})

    def fields(self, fields: dict[str, object]) -> str:
        """The part of a line that shows these fields."""
        parts: list[str] = []
        add = parts.append
        names, quote = self._plain_names, self._quote
        for name, value in fields.items():
            start = names.get(name) or self._learned(name)
            if start is None:
                add(self._careful(name, value))
            elif isinstance(value, str) and len(value) <= MAX_TEXT:
                add(start + quote(value))
            elif type(value) is int and -HUGE < value < HUGE:
                add(f"{start}{value}")
            elif type(value) is float and -HUGE < value < HUGE:
                add(f"{start}{value:.6f}")
            elif type(value) is list and self._json and _is_short_text(value):
                add(f"{start}[{','.join(map(quote, value))}]")
            else:
                add(self._careful(name, value))
        return "".join(parts)

    def _begin_second(self, second: int) -> None:
        self._second = second
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))  # RFC 3339 §5.6
        syslog = f"{time.strftime('%b %e %H:%M:%S', time.localtime(second))} smtpd[{os.getpid()}]: "
        for level, severity in LEVELS.items():
            head = f'{{"time":"{stamp}' if self._json else stamp
            self._heads[level] = f"<{FACILITY_MAIL + severity}>{syslog}{head}" if self._syslog else head
        self._message_head = self._heads["info"]

    def _opening(self, level: Level, event: str) -> str:
        if self._json:
            text = f'Z","level":"{level}","event":{quoted(event[:MAX_TEXT])}'
        else:
            text = f"Z {level:7} {_console_text(event[:MAX_TEXT])}"
        if len(self._events) < MAX_NAMES:
            self._events[level, event] = text
        return text

    def _careful(self, name: str, value: object) -> str:
        start = self._plain_names.get(name) or self._start(name)
        value = self._discretion.shown(name, value)
        if isinstance(value, str):
            return start + self._quote(value)
        return start + _ENCODER.encode(value)

    def _learned(self, name: str) -> str | None:
        """How a field begins whose values need no redaction; None for all others, and when there are too many."""
        if len(self._plain_names) >= MAX_NAMES or not self._discretion.is_plain(name):
            return None
        return self._plain_names.setdefault(name, self._start(name))

    def _start(self, name: str) -> str:
        shown = _ODD_NAME.sub("_", name[:MAX_TEXT])
        shown = f"{shown}_" if shown in _RESERVED else shown
        return f',"{shown}":' if self._json else f" {shown}="

    def _traceback(self, exception: BaseException) -> str:
        text = "".join(traceback.format_exception(exception)).rstrip("\n")
        if len(text) > MAX_TRACEBACK:
            text = f"{text[: MAX_TRACEBACK // 2]}\n...\n{text[-MAX_TRACEBACK // 2 :]}"
        text = self._discretion.text(text)
        if self._json or self._syslog:
            return (',"exception":' if self._json else " exception=") + self._quote(text)
        # A quoted and unquoted line is escaped; the indent keeps it apart from lines of ours.
        return "".join(f"\n    {quoted(line)[1:-1]}" for line in text.split("\n"))


def _is_short_text(values: list[object]) -> TypeGuard[list[str]]:
    for value in values:
        if type(value) is not str or len(value) > MAX_TEXT:
            return False
    return len(values) <= MAX_ITEMS


def _console_text(text: str) -> str:
    return text if _BARE.fullmatch(text) else quoted(text)
