"""One structured line per event; what must not be readable in a log is decided here and nowhere else.

Every line has `time`, `level` and `event`, then the given fields in their order, as JSON or as text
for eyes. Whatever a client sends is escaped to printable ASCII, so it can never forge a line.

- Passwords, tokens and the like are written as "***", bytes only by their number.
- With `privacy` the local parts of addresses, logins and HELO names are written as a keyed hash: equal
  ones stay recognisable within one run, the people behind them do not.
- Lines are written together, errors at once, others within 10 ms (see `sinks.py` for what a crash can lose).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from copy import copy
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Literal, Protocol, TypeGuard

from smtpd.sinks import Complaints, Output, Sink, open_sink

Level = Literal["debug", "info", "warning", "error"]

MAX_TEXT = 2000  # characters of one value
MAX_TRACEBACK = 16_000  # characters
MAX_ITEMS = 100  # of a list or table in one field
MAX_DEPTH = 4
MAX_FOREIGN = 50  # lines of other libraries in one second, all of them different
MAX_NAMES = 1000  # field and event names remembered; ours are far fewer
LEVELS: Mapping[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # RFC 5424 §6.2.1
FACILITY_MAIL = 2 << 3  # RFC 5424 §6.2.1

_MILLISECONDS = [f"{number:03}" for number in range(1000)] + ["999"]
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_SECRET = re.compile(r"passw|passphrase|token|secret|credential|private_key|authorization", re.IGNORECASE)
_PEOPLE = frozenset(("sender", "recipient", "recipients", "login", "user", "account", "mailbox", "helo"))
_NOT_PEOPLE = frozenset(("message_id", "trace", "id"))
_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(\"(?:[^\"\\]|\\.)*+\"|[^\s<>()\",;:@\[\]]++)@(?=[\w\[])")
# What was too long for a reply may have lost the "@" that tells an address.
_CUT_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(?:\"(?:[^\"\\]|\\.)*|[^\s<>()\",;:@\[\]]+)\.\.\.")
_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # printable ASCII without space, quote, equals sign and backslash
_ODD_NAME = re.compile(r"[^A-Za-z0-9_.\-]+")
_HUGE = 1 << 64  # printing really big numbers is slow, and refused by Python
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
        self._lines = _Lines(options, clock, _Redaction(options.privacy, salt))
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

    def message(self, event: str = "message", common: str = "", /, **fields: object) -> None:
        """The line of one message or refusal: what `info` does, on the path that counts, with bound fields first."""
        if self._wants_info:
            self._output.add(self._lines.line("info", event, fields, None, common))

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
    """Makes lines. The fast way is for names seen before whose values are text or numbers."""

    def __init__(self, options: LogOptions, clock: Callable[[], float], redaction: _Redaction) -> None:
        self._json = options.format == "json"
        self._syslog = options.to == "syslog"
        self._clock = clock
        self._redaction = redaction
        self._quote: Callable[[str], str] = encode_basestring_ascii if self._json else _console_text
        self._end = "}\n" if self._json else "\n"
        self._second = -1
        self._heads: dict[Level, str] = {}
        self._events: dict[tuple[Level, str], str] = {}
        self._plain_names: dict[str, str] = {}

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
            elif type(value) is int and -_HUGE < value < _HUGE:
                add(f"{start}{value}")
            elif type(value) is float and -_HUGE < value < _HUGE:
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

    def _opening(self, level: Level, event: str) -> str:
        if self._json:
            text = f'Z","level":"{level}","event":{encode_basestring_ascii(event[:MAX_TEXT])}'
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
        return "".join(f"\n    {encode_basestring_ascii(line)[1:-1]}" for line in text.split("\n"))


class _Redaction:
    def __init__(self, privacy: bool, salt: bytes | None) -> None:
        self._privacy = privacy
        self._salt = blake2b(salt if salt is not None else os.urandom(16), digest_size=32).digest()

    def is_plain(self, name: str) -> bool:
        """Whether any text in a field of this name can be written as it is."""
        return not self._privacy and _SECRET.search(name) is None

    def shown(self, name: str, value: object, depth: int = 0) -> object:
        """The value as something JSON can hold, without secrets and, with privacy, without people."""
        if value is None or isinstance(value, bool):
            return value
        if _SECRET.search(name) is not None or hasattr(value, "get_secret_value"):
            return "***"
        if isinstance(value, int):
            return int(value) if -_HUGE < value < _HUGE else _cut(hex(value))
        if isinstance(value, float):
            return round(value, 6) if value - value == 0 else None  # JSON has no infinity and no NaN
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(value)} octets>"
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            return self._collection(name, value, depth)
        return self._person_or_text(name, value if isinstance(value, str) else _as_text(value))

    def text(self, text: str) -> str:
        """Free text, with privacy without the local parts in it."""
        if not self._privacy:
            return text
        if "..." in text:
            text = _CUT_ADDRESS.sub("***...", text)
        return _ADDRESS.sub(self._hidden, text) if "@" in text else text

    def _collection(self, name: str, value: Mapping[object, object] | Collection[object], depth: int) -> object:
        if depth >= MAX_DEPTH:
            return "..."
        if isinstance(value, Mapping):
            pairs = list(value.items())[:MAX_ITEMS]
            return {self.text(_cut(_as_text(key))): self.shown(_as_text(key), item, depth + 1) for key, item in pairs}
        items = [self.shown(name, item, depth + 1) for item in list(value)[:MAX_ITEMS]]
        if isinstance(value, set | frozenset):
            items.sort(key=str)
        more = len(value) - len(items)
        return [*items, f"and {more} more"] if more else items

    def _person_or_text(self, name: str, text: str) -> str:
        text = _cut(text)
        if not self._privacy or name in _NOT_PEOPLE:
            return text
        if name not in _PEOPLE:
            return self.text(text)
        local, at, domain = text.rpartition("@")
        return f"{self._hash(local)}@{domain}" if at else self._hash(domain)

    def _hidden(self, match: re.Match[str]) -> str:
        return f"{self._hash(match[1])}@"

    def _hash(self, local: str) -> str:
        if local in ("", "<>"):
            return local
        folded = local.strip("<\"'").lower().encode("utf-8", "backslashreplace")
        return blake2b(folded, digest_size=4, key=self._salt).hexdigest()


def _is_short_text(values: list[object]) -> TypeGuard[list[str]]:
    for value in values:
        if type(value) is not str or len(value) > MAX_TEXT:
            return False
    return len(values) <= MAX_ITEMS


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a foreign object's own bug must not break what is being logged
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _console_text(text: str) -> str:
    return text if _BARE.fullmatch(text) else encode_basestring_ascii(text)
