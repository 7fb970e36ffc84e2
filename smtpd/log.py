"""One structured line per event; what must not be readable in a log is decided here and nowhere else.

- Passwords, tokens and the like are written as "***", bytes only by their number.
- With `privacy` the local parts of addresses, logins, HELO names and the paths of mailboxes are written as a keyed
  hash: equal ones stay recognisable within one run, the people behind them do not.
- Lines are written together, errors at once, others within 10 ms (see `sinks.py` for what a crash can lose);
  how one looks is in `lines.py`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from copy import copy
from hashlib import blake2b
from typing import Literal, Protocol

from smtpd.lines import HUGE, LEVELS, MAX_ITEMS, MAX_TEXT, Level, Lines
from smtpd.sinks import Complaints, Output, Sink, open_sink

MAX_DEPTH = 4  # of tables within tables
MAX_FOREIGN = 50  # lines of other libraries in one second, all of them different

_SECRET = re.compile(r"passw|passphrase|token|secret|credential|private_key|authorization", re.IGNORECASE)
_PEOPLE = frozenset(("sender", "recipient", "recipients", "login", "user", "account", "mailbox", "mailboxes", "helo"))
_NOT_PEOPLE = frozenset(("message_id", "trace", "id"))
_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(\"(?:[^\"\\]|\\.)*+\"|[^\s<>()\",;:@\[\]]++)@(?=[\w\[])")
# As domains put it into the address of the page that explains their SPF record (RFC 7208 §7.3, upper-case macros).
_ESCAPED_ADDRESS = re.compile(r"((?:(?!%40)[\w.~%+-])++)%40(?=\w)")
# What was too long for a reply may have lost the "@" that tells an address.
_CUT_ADDRESS = re.compile(r"(?<![^\s<>()\",;:\[\]])(?:\"(?:[^\"\\]|\\.)*|[^\s<>()\",;:@\[\]]+)\.\.\.")


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
        redaction = _Redaction(options.privacy, salt)
        self._lines = Lines(options.format, clock, redaction, syslog=options.to == "syslog")
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


class _Redaction:
    """Says how a value is shown, and whether the values of a field need no look at all."""

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
            return int(value) if -HUGE < value < HUGE else _cut(hex(value))
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
        if "%40" in text:
            text = _ESCAPED_ADDRESS.sub(lambda match: f"{self._hash(match[1])}%40", text)
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
        if "/" in domain:  # the path of a mailbox, with or without the domain in it
            return self._hash(text)
        return f"{self._hash(local)}@{domain}" if at else self._hash(domain)

    def _hidden(self, match: re.Match[str]) -> str:
        return f"{self._hash(match[1])}@"

    def _hash(self, local: str) -> str:
        if local in ("", "<>"):
            return local
        folded = local.strip("<\"'").lower().encode("utf-8", "backslashreplace")
        return blake2b(folded, digest_size=4, key=self._salt).hexdigest()


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # a foreign object's own bug must not break what is being logged
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
