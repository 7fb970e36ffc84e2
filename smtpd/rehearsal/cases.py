"""Files of policy tests: cases, each with a client, an envelope, a message, the DNS, a time, and what must come of it.

Keys at the top of a file hold for all its cases, unless a case says otherwise; tables are laid over each other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from smtpd.config import ConfigError, Problem
from smtpd.config.lines import key_lines
from smtpd.config.problems import Path as KeyPath
from smtpd.config.problems import closest
from smtpd.config.validation import plain_words
from smtpd.model import plain_ip
from smtpd.options import Options, as_tuple
from smtpd.rehearsal.script import Client

MAX_FILE = 4 << 20  # bytes; our own choice

Table = dict[str, object]


def _moment(value: object) -> object:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError("must be a time such as 2026-11-21T10:00:00Z, or seconds since 1970")


def _address(value: object) -> object:
    return plain_ip(ip_address(value)) if isinstance(value, str) else value


def _texts(value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(item, str) for item in values):
        raise ValueError("must be text, or a list of texts")
    return tuple(values)


def _pattern(value: object) -> object:
    """Blanks at the ends, or behind the "!" of what must not be there, count for nothing: nobody sees them."""
    if not isinstance(value, str):
        return value
    words = value.strip()
    mark = "!" if words.startswith("!") else ""
    words = words.removeprefix("!").lstrip()
    if not words:
        raise ValueError("must not be empty; leave out what may be anything")
    return mark + words


def _patterns(value: object) -> object:
    return tuple(map(_pattern, _texts(value)))


def _patterns_by_name(value: object) -> object:
    return {key: _patterns(item) for key, item in value.items()} if isinstance(value, dict) else value


Moment = Annotated[float, BeforeValidator(_moment), Field(ge=0, lt=253_402_300_800)]  # up to the year 9999
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""A text, or a list of texts."""
Pattern = Annotated[str, BeforeValidator(_pattern)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_patterns)]
PatternsByName = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_patterns_by_name)]
Tables = dict[str, Table]


class ClientTable(Options):
    """Who connects."""

    ip: Annotated[IPv4Address | IPv6Address, BeforeValidator(_address)] = Client().ip
    """Its address."""
    helo: str = Client().helo
    """What it calls itself."""
    tls: bool = False
    """As if the connection were encrypted."""
    login: str | None = None
    """As if this user had logged in."""


class Expectation(Options):
    """What must come of a case; what is left out may be anything.

    A reply is given by its first words, `...` stands for anything: "550 5.7.1", "550 ... may not send".
    How many blanks stand between words, or at the ends, makes no difference.
    """

    outcome: Literal["accepted", "partly accepted", "deferred", "refused"] | None = None
    """What becomes of the message."""
    connect: Pattern | None = None
    """The banner, or what is said in its place."""
    helo: Pattern | None = None
    """The last line of the reply to EHLO."""
    mail: Pattern | None = None
    """The reply to MAIL."""
    rcpt: Patterns = ()
    """The reply to each RCPT; a single one holds for all."""
    data: Patterns = ()
    """The reply behind the content (with LMTP one for each recipient, of which a single one holds for all), or to DATA
    when that is refused."""
    headers: Patterns = ()
    """Fields that we put on top, unfolded: "Name: words ... words"; "!Name:" must not be there."""
    results: PatternsByName = {}
    """Results of methods as in Authentication-Results; a list names all of one method."""
    labels: Patterns = ()
    """Labels of the message or of a recipient; "!name" must not be there."""
    filters: PatternsByName = {}
    """Words about a filter that one of its decisions has: "refused", "spf-fail", "observed spf-fail", "not asked"."""


class Surroundings(Options):
    """What a file says for all its cases, and a case for itself."""

    config_file: str | None = None
    """Configuration file, relative to this one."""
    config: Table = {}
    """Tables below `[smtpd]`, laid over the configuration."""
    listener: str = ""
    """Listener whose rules hold; the first one by default."""
    client: Table = {}
    """The table of a client: `ip`, `helo`, `tls`, `login`."""
    zone_file: str | None = None
    """A zone, relative to this file."""
    zone: Tables = {}
    """Names and their records, laid over the zone; without any zone no name exists."""
    time: Moment | None = None
    """Time of day that filters see; now by default."""


class Case(Surroundings):
    """One message and what must come of it."""

    name: str
    """A sentence."""
    mail_from: str = ""
    """Sender; empty for <>."""
    rcpt: Texts
    """Recipients."""
    message: str | None = None
    """The message; its line ends become CRLF."""
    message_file: str | None = None
    """A file with the message, relative to this one."""
    expect: Expectation
    """What must come of it."""


class PolicyTests(Surroundings):
    """A whole file."""

    case: Annotated[tuple[Case, ...], BeforeValidator(as_tuple)]
    """The cases, `[[case]]` each."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A file that was read; `lines` are those of its keys."""

    path: Path
    cases: tuple[Case, ...]
    lines: Mapping[KeyPath, int]

    def problem(self, number: int, key: str, message: str) -> Problem:
        """A mistake in a case that shows only when it is played."""
        known = [path for path in (("case", number, key), (key,), ("case", number)) if path in self.lines]
        return Problem(str(self.path), self.lines[known[0]] if known else None, key, message)

    def label_problems(self, number: int, known: frozenset[str]) -> list[Problem]:
        """Labels of a case that are not `known`: to expect that one is not there could never fail."""
        problems = []
        place: KeyPath = ("case", number, "expect", "labels")
        for position, pattern in enumerate(self.cases[number].expect.labels):
            label = pattern.removeprefix("!")
            if label in known:
                continue
            guess, message = closest(label, known), f'no filter gives a label "{label}"'
            if guess is None:
                message += f"; there are {', '.join(sorted(known))}" if known else ", and there is no other"
            line = _line((*place, position), self.lines)
            problems.append(Problem(str(self.path), line, "expect.labels", message, guess))
        return problems


def read_tests(path: Path) -> PolicyFile:
    """Read a file; each case has everything that holds for it. ConfigError with every mistake at once."""
    try:
        text = _read(path)
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([Problem(str(path), None, "", f"cannot be read: {error.strerror}")]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem(str(path), None, "", f"cannot be read: {error}")]) from None
    lines = key_lines(text)
    try:
        tests = PolicyTests.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_problems(path, error.errors(include_url=False), lines)) from None
    cases = tuple(_complete(tests, case) for case in tests.case)
    if problems := list(_mistakes(path, cases, lines)):
        raise ConfigError(problems)
    return PolicyFile(path, cases, lines)


def client_of(case: Case) -> Client:
    """The client of a case that was read."""
    table = ClientTable.model_validate(case.client)
    return Client(table.ip, table.helo, table.tls, table.login)


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two tables in one, table by table."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _complete(tests: PolicyTests, case: Case) -> Case:
    given = case.model_fields_set
    taken: dict[str, object] = {
        key: getattr(tests, key) for key in ("config_file", "listener", "zone_file", "time") if key not in given
    }
    for key in ("config", "client", "zone"):
        taken[key] = laid_over(getattr(tests, key), getattr(case, key))
    return case.model_copy(update=taken)


def _mistakes(path: Path, cases: tuple[Case, ...], lines: Mapping[KeyPath, int]) -> Iterator[Problem]:
    if not cases:
        yield Problem(str(path), _line(("case",), lines), "case", "there is none")
    names: set[str] = set()
    for number, case in enumerate(cases):
        place: KeyPath = ("case", number)
        if case.name in names:
            yield Problem(str(path), _line((*place, "name"), lines), "name", f'there are two cases "{case.name}"')
        names.add(case.name)
        if (case.message is None) == (case.message_file is None):
            yield Problem(str(path), _line(place, lines), "message", "needs either message or message_file")
        if not any(getattr(case.expect, key) for key in Expectation.model_fields):
            where, sentence = (*place, "expect"), "expects nothing, so this case could never fail"
            yield Problem(str(path), _line(where, lines), "expect", sentence)
        if len(case.expect.rcpt) not in (0, 1, len(case.rcpt)):
            where = (*place, "expect", "rcpt")
            yield Problem(str(path), _line(where, lines), "expect.rcpt", "must be one reply, or one for each recipient")
        try:
            ClientTable.model_validate(case.client)
        except ValidationError as error:
            inside = _problems(path, error.errors(include_url=False), lines, (*place, "client"), ClientTable)
            yield from inside


def _problems(
    path: Path,
    errors: list[ErrorDetails],
    lines: Mapping[KeyPath, int],
    inside: KeyPath = (),
    table: type[Options] | None = None,
) -> list[Problem]:
    found: dict[KeyPath, Problem] = {}
    for details in errors:
        place = _written((*inside, *details["loc"]), lines)
        missing = details["type"] == "missing"
        message, guess = plain_words(details["msg"]), None
        if missing:
            place, message = (*place, details["loc"][-1]), "must be set"
        elif details["type"] == "extra_forbidden":
            known = (table or _table_of(details["loc"])).model_fields
            message, guess = "unknown key", closest(details["loc"][-1], known)
        elif details["type"] in ("dict_type", "model_type", "model_attributes_type"):
            message = "must be a table"
        elif details["type"] == "is_instance_of":
            message = "must be an IPv4 or IPv6 address"
        elif details["type"] == "value_error":
            message = str(details.get("ctx", {}).get("error", message))
        found.setdefault(place, Problem(str(path), _line(place, lines), _dotted(place), message, guess))
    return sorted(found.values(), key=lambda problem: problem.line or 0)


def _table_of(place: tuple[int | str, ...]) -> type[Options]:
    if "expect" in place[:-1]:
        return Expectation
    return Case if place[0] == "case" and len(place) > 1 else PolicyTests


def _written(place: tuple[int | str, ...], lines: Mapping[KeyPath, int]) -> KeyPath:
    """The part of pydantic's place that the author wrote: it also names members of unions."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return place[:length]
    return ()


def _line(place: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    return next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)


def _dotted(place: KeyPath) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def _read(path: Path) -> str:
    with path.open("rb") as stream:
        octets = stream.read(MAX_FILE + 1)
    if len(octets) > MAX_FILE:
        raise ValueError(f"it is bigger than {MAX_FILE} bytes")
    return octets.decode("utf-8").replace("\r\n", "\n")
