"""One structured line per event.

Every line has `time`, `level` and `event`, then the given fields in their order, as JSON or as text
for eyes. Whatever a client sends is escaped to printable ASCII, so it can never forge a line; what must not
be readable at all is decided in `redaction.py`. Lines are written together, errors at once, others within
10 ms (see `sinks.py` for what a crash can lose).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from copy import copy
from json.encoder import encode_basestring_ascii as quoted
from typing import Literal, Protocol, TypeGuard

from smtpd.redaction import HUGE, MAX_ITEMS, MAX_TEXT, Redaction
from smtpd.sinks import Complaints, Output, Sink, open_sink

Level = Literal["debug", "info", "warning", "error"]

MAX_TRACEBACK = 16_000  # characters
MAX_FOREIGN = 50  # lines of other libraries in one second, all of them different
MAX_NAMES = 1000  # field and event names remembered; ours are far fewer
LEVELS: Mapping[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # RFC 5424 §6.2.1
FACILITY_MAIL = 2 << 3  # RFC 5424 §6.2.1

_MILLISECONDS = [f"{number:03}" for number in range(1000)] + ["999"]
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quote, equals sign and backslash
_ODD_NAME = re.compile(r"[^A-Za-z0-9_.\-]+")
_RESERVED = frozenset(("time", "level", "event"))


class LogOptions(Protocol):
    """What the log needs to be told: the table `[smtpd.log]`."""

    @property
    def format(self) -> Literal["json", "console"]:
        """JSON for machines, console for eyes."""

    @property
    def to(self) -> str:
        """ "stdout", "stderr", "syslog" or "file:PATH"."""

    @property
    def level(self) -> Level:
        """The least important lines that are still written."""

    @property
    def connections(self) -> bool:
        """Whether connections are worth a line."""

    @property
    def privacy(self) -> bool:
        """Whether people are written as a hash."""


class Log:
    """The log of one server. Logging never raises and never waits.

    OSError from the constructor: the file cannot be opened. `salt` keys the hashes of `privacy`; without
    one they change with every start.
    """

    def __init__(
        self,
        options: LogOptions,
        *,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.time,
        salt: bytes | None = None,
    ) -> None:
        threshold = LEVELS[options.level]
        self._clock = clock
        self.wants_debug = threshold >= LEVELS["debug"]
        self.wants_connections = options.connections and threshold >= LEVELS["info"]
        self._wants_info = threshold >= LEVELS["info"]
        self._wants_warning = threshold >= LEVELS["warning"]
        self._lines = _Lines(options, clock, Redaction(options.privacy, salt))
        complain = Complaints()
        self._output = Output(sink or open_sink(options.to, complain), complain, self._lost_line)

    def debug(self, event: str, /, *, exception: BaseException | None = None, **fields: object) -> None:
        """Something only a developer wants to know."""
        if self.wants_debug:
            self._output.add(self._lines.line("debug", event, fields, exception))

    def info(self, event: str, /, *, exception: BaseException | None = None, **fields: object) -> None:
        """Something happened as it should, refusals included."""
        if self._wants_info:
            self._output.add(self._lines.line("info", event, fields, exception))

    def bind(self, **fields: object) -> str:
        """Fields that many lines have in common, made ready for `message`."""
        return self._lines.fields(fields)

    def bind_client(self, session: str, listener: str, ip: str, helo: str) -> str:
        """What `bind` does, for the fields that every client has."""
        return self._lines.client(session, listener, ip, helo)

    def message(
        self,
        common: str,
        trace: str,
        sender: str,
        recipients: list[str],
        size: int,
        seconds: float,
        more: dict[str, object] | None = None,
    ) -> None:
        """What `info` does, for the line that counts: of one message, with bound fields first and `more` at its end."""
        if self._wants_info:
            self._output.add(self._lines.message(common, trace, sender, recipients, size, seconds, more))

    def warning(self, event: str, /, *, exception: BaseException | None = None, **fields: object) -> None:
        """Something the operator should look at, some day."""
        if self._wants_warning:
            self._output.add(self._lines.line("warning", event, fields, exception))

    def error(self, event: str, /, *, exception: BaseException | None = None, **fields: object) -> None:
        """Something is broken; `exception` brings its traceback. Written at once."""
        self._output.add(self._lines.line("error", event, fields, exception))
        self._output.flush()

    def without_connections(self) -> Log:
        """The same log, where opening and closing a connection is worth no line."""
        quieter = copy(self)
        quieter.wants_connections = False
        return quieter

    def flush(self) -> None:
        """Write what has been collected."""
        self._output.flush()

    def reopen(self) -> None:
        """Go on in a new file after the old one was moved away; when that fails, in the old one."""
        self._output.reopen()

    def close(self) -> None:
        """Write the rest and close the file; nothing can be logged afterwards."""
        self._output.close()

    def capture_stdlib(self) -> logging.Handler:
        """Route warnings and errors of all `logging` loggers here; give the handler back to remove it again.

        For the command line only: an embedded server leaves the logging of its process alone.
        """
        handler = _Handler(self, self._clock)
        logging.getLogger().addHandler(handler)
        return handler

    def _lost_line(self, count: int) -> str:
        return self._lines.line("warning", "log-lines-lost", {"lines": count}, None)


class _Handler(logging.Handler):
    """Nothing bounds what libraries say: asyncio a thousand times a second that there are no descriptors left."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._clock = clock
        self._second = -1
        self._said: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)  # a format string that does not fit its values
        if self._is_too_much(record.name, text[:MAX_TEXT]):
            return
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        exception = record.exc_info[1] if record.exc_info else None
        write("python-log", logger=record.name, text=text, exception=exception)

    def _is_too_much(self, logger: str, text: str) -> bool:
        second, said = int(self._clock()), self._said
        if second != self._second:
            self._second = second
            said.clear()
        if (logger, text) in said or len(said) >= MAX_FOREIGN:
            return True
        said.add((logger, text))
        return False


class _Lines:
    """Makes lines. The fast way is for names seen before whose values are text or numbers.

    What every message has is written out in `message` and `client`, to the octet as `fields` would write it; where
    all the texts together are no longer than one may be, none of them has to be cut.
    """

    def __init__(self, options: LogOptions, clock: Callable[[], float], redaction: Redaction) -> None:
        self._json = options.format == "json"
        self._syslog = options.to == "syslog"
        self._clock = clock
        self._redaction = redaction
        self._quote: Callable[[str], str] = quoted if self._json else _console_text
        self._end = "}\n" if self._json else "\n"
        self._second = -1
        self._heads: dict[Level, str] = {}
        self._events: dict[tuple[Level, str], str] = {}
        self._plain_names: dict[str, str] = {}
        self._is_plain_json = self._json and not options.privacy
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
        value = self._redaction.shown(name, value)
        if isinstance(value, str):
            return start + self._quote(value)
        return start + _ENCODER.encode(value)

    def _learned(self, name: str) -> str | None:
        """How a field begins whose values need no redaction; None for all others, and when there are too many."""
        if len(self._plain_names) >= MAX_NAMES or not self._redaction.is_plain(name):
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
        text = self._redaction.text(text)
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
