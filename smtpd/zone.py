"""The DNS in memory: for tests of filters and policies, and to replay what was recorded.

    ["example.org"]
    MX = ["10 mx.example.org"]
    TXT = ["v=spf1 mx -all"]
    A = []                              # nodata: the name exists, but has no address
    ["mx.example.org"]
    A = ["192.0.2.1"]
    AAAA = "tempfail: timeout"          # nobody knows; "nxdomain" says that there is no such name
    ["www.example.org"]
    CNAME = ["example.org"]             # followed by lookups of other types
    ["*.bl.example"]
    A = ["127.0.0.2"]                   # every name below bl.example that is not here itself
    ["gone.example"]
    nxdomain = true                     # for all types; `tempfail = true` likewise

A type that stands at a name wins over its CNAME. What is not here does not exist ("nxdomain"), unless a
longer name that ends in it is here ("nodata"). `ttl = 60` and `authentic = true` hold for all records of a
name. TXT is text in UTF-8; `{ hex = "ff00" }` stands for other octets, and a list for the strings of which
one record is made. Records are in the notation of zone files, names without or with their last dot.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from smtpd.dns.answer import (
    INVALID,
    NODATA,
    NXDOMAIN,
    TYPES,
    Answer,
    Record,
    Txt,
    Type,
    format_record,
    normal_name,
    parse_record,
    tempfail,
    text_record,
)

TTL = 300.0
MAX_CNAMES = 8  # one after the other
MAX_FILE = 16 << 20  # bytes

_LOOP = tempfail("cname loop")
_FAILED = "tempfail"
_NO_ANSWER = "no answer"


class ZoneError(ValueError):
    """Something in a zone cannot be understood; the text says at which name and what."""


class Zone:
    """Answers from tables as at the top of this file, by name. ZoneError for what is none.

    With `cached=False` it knows nothing at once (`peek`), like a server that was just started.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, object]] | None = None, *, cached: bool = True) -> None:
        self._cached = cached
        self._names: dict[str, dict[Type, Answer]] = {}
        self._defaults: dict[str, Answer] = {}
        self._parents: dict[str, int] = {}
        for name, table in (tables or {}).items():
            self.put(name, **table)

    @classmethod
    def parse(cls, text: str, *, cached: bool = True) -> Self:
        """A zone from TOML."""
        try:
            return cls(_tables(tomllib.loads(text)), cached=cached)
        except tomllib.TOMLDecodeError as error:
            raise ZoneError(f"is no TOML: {error}") from None

    @classmethod
    def load(cls, path: str | Path, *, cached: bool = True) -> Self:
        """A zone from a file; OSError when it cannot be read."""
        with open(path, "rb") as file:
            octets = file.read(MAX_FILE + 1)
        if len(octets) > MAX_FILE:
            raise ZoneError(f"is larger than {MAX_FILE} bytes")
        try:
            return cls.parse(octets.decode(), cached=cached)
        except UnicodeDecodeError:
            raise ZoneError("is not UTF-8") from None

    @classmethod
    def from_answers(cls, answers: Mapping[tuple[str, Type], Answer], *, cached: bool = True) -> Self:
        """A zone that gives these answers, as recorded."""
        zone = cls(cached=cached)
        for (name, kind), answer in answers.items():
            zone._entry(name)[kind] = answer
        return zone

    def put(self, name: str, /, **table: object) -> None:
        """Replace everything at a name: `zone.put("example.org", A=["192.0.2.1"], ttl=60)`; without types: nodata."""
        normal = normal_name(name)
        if normal is None:
            raise ZoneError(f"{name!r}: is no name")
        self.remove(normal)
        try:
            answers, default = _read(table)
        except ValueError as error:
            raise ZoneError(f"{name}: {error}") from None
        self._entry(normal).update(answers)
        if default is not None:
            self._defaults[normal] = default

    def remove(self, name: str) -> None:
        """Take a name away, if it is there."""
        normal = normal_name(name)
        if normal is None or self._names.pop(normal, None) is None:
            return
        self._defaults.pop(normal, None)
        for parent in _parents(normal):
            self._parents[parent] -= 1
            if not self._parents[parent]:
                del self._parents[parent]

    def peek(self, name: str, kind: Type) -> Answer | None:
        """See Resolver."""
        return self.ask(name, kind) if self._cached else None

    async def resolve(self, name: str, kind: Type, timeout: float | None = None) -> Answer:
        """See Resolver. Never waits."""
        return self.ask(name, kind)

    def ask(self, name: str, kind: Type) -> Answer:
        """The answer."""
        normal = normal_name(name)
        if normal is None:
            return INVALID
        for _ in range(MAX_CNAMES + 1):
            answers = self._answers_at(normal)
            if answers is None:
                return NODATA if normal in self._parents else NXDOMAIN
            if kind in answers:
                return answers[kind]
            alias = answers.get("CNAME")
            if alias is None or not alias.texts:
                return self._defaults.get(normal, NODATA)
            normal = alias.texts[0]
        return _LOOP

    async def start(self) -> None:
        """See Resolver."""

    async def stop(self) -> None:
        """See Resolver."""

    async def health(self) -> str | None:
        """Never ill."""
        return None

    def to_toml(self) -> str:
        """The zone as text that `parse` takes."""
        return "\n".join(self._section(name, answers) for name, answers in self._names.items())

    def _entry(self, name: str) -> dict[Type, Answer]:
        if name not in self._names:
            for parent in _parents(name):
                self._parents[parent] = self._parents.get(parent, 0) + 1
        return self._names.setdefault(name, {})

    def _answers_at(self, name: str) -> Mapping[Type, Answer] | None:
        if name in self._names:
            return self._names[name]
        if name in self._parents:
            return None
        for parent in _parents(name):
            # The closest name above that exists decides (RFC 4592's closest encloser), wildcard or not.
            if f"*.{parent}" in self._names:
                return self._names[f"*.{parent}"]
            if parent in self._names or parent in self._parents:
                return None
        return None

    def _section(self, name: str, answers: Mapping[Type, Answer]) -> str:
        lines = [f"[{_quoted(name)}]"]
        default = self._defaults.get(name)
        if default is not None:
            lines.append(f"{default.status} = true")
        found = [answer for answer in answers.values() if answer.found]
        if found and any(answer.ttl != TTL for answer in found):
            lines.append(f"ttl = {min(answer.ttl for answer in found):g}")
        if found and all(answer.authentic for answer in found):
            lines.append("authentic = true")
        lines += [f"{kind} = {_written(answer)}" for kind, answer in answers.items()]
        return "\n".join(lines) + "\n"


def _parents(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[start:]) for start in range(1, len(labels))]


def _tables(document: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    for name, table in document.items():
        if not isinstance(table, dict):
            raise ZoneError(f'{name}: must be a table such as ["example.org"]')
    return {name: table for name, table in document.items() if isinstance(table, dict)}


def _read(table: Mapping[str, object]) -> tuple[dict[Type, Answer], Answer | None]:
    ttl, authentic = table.get("ttl", TTL), table.get("authentic", False)
    if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not 0 <= ttl < 1 << 31:
        raise ValueError("ttl must be a number of seconds")
    if not isinstance(authentic, bool):
        raise ValueError("authentic must be true or false")
    answers: dict[Type, Answer] = {}
    default = None
    for key, value in table.items():
        kind = next((kind for kind in TYPES if kind == key), None)
        if kind is not None:
            answers[kind] = _answer(kind, value, float(ttl), authentic)
        elif key in ("nxdomain", _FAILED):
            if value is not True:
                raise ValueError(f"{key} must be true, or not there")
            default = NXDOMAIN if key == "nxdomain" else tempfail(_NO_ANSWER)
        elif key not in ("ttl", "authentic"):
            raise ValueError(f"knows no {key!r}; types are {', '.join(TYPES)}")
    return answers, default


def _answer(kind: Type, value: object, ttl: float, authentic: bool) -> Answer:
    if value == "nxdomain":
        return NXDOMAIN
    if isinstance(value, str) and value.partition(":")[0] == _FAILED:
        return tempfail(value.partition(":")[2].strip() or _NO_ANSWER)
    items = value if isinstance(value, list | tuple) else [value]
    try:
        records = tuple(_record(kind, item) for item in items)
    except ValueError as error:
        raise ValueError(f"{kind} {error}") from None
    return Answer("ok", records, ttl, authentic=authentic) if records else NODATA


def _record(kind: Type, item: object) -> Record:
    if kind == "TXT" and isinstance(item, list | tuple):
        return Txt(tuple(_octets(part) for part in item))
    if kind == "TXT":
        return text_record(_octets(item))
    if isinstance(item, str):
        return parse_record(kind, item)
    raise ValueError("must be a list of text")


def _octets(item: object) -> bytes:
    match item:
        case str():
            return item.encode()
        case bytes():
            return item
        case {"hex": str(digits), **others} if not others:
            return bytes.fromhex(digits)
    raise ValueError('must be text, a list of text, or {hex = "..."}')


def _written(answer: Answer) -> str:
    if answer.status == _FAILED:
        return _quoted(f"{_FAILED}: {answer.reason}" if answer.reason else _FAILED)
    if answer.status == "nxdomain":
        return _quoted(answer.status)
    return "[" + ", ".join(_written_record(record) for record in answer.records) + "]"


def _written_record(record: Record) -> str:
    if not isinstance(record, Txt):
        return _quoted(format_record(record))
    if record == text_record(bytes(record)):
        return _written_octets(bytes(record))
    return "[" + ", ".join(_written_octets(part) for part in record.parts) + "]"


def _written_octets(octets: bytes) -> str:
    try:
        return _quoted(octets.decode())
    except UnicodeDecodeError:
        return f'{{hex = "{octets.hex()}"}}'


def _quoted(text: str) -> str:
    # TOML takes JSON's strings, but for DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
