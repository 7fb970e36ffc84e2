"""Whether the machine has what a configuration names: the user to become, files that can be read, certificates."""

import grp
import pwd
from collections.abc import Iterator
from pathlib import Path as FilePath

from smtpd.config.models import Config, LogOptions
from smtpd.config.problems import Finding, Path
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.options import ExistingFile, Options, WrittenFile
from smtpd.tls import Certificates, TlsError, combinations


class _Nowhere:
    """Takes the lines that nobody wants to read."""

    def write(self, data: bytes) -> int:
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def find_gaps(config: Config, *, is_whole: bool) -> Iterator[Finding]:
    """What is missing here; nothing is made, started or written. Not `is_whole`: parts with mistakes were left out."""
    yield from _identity(config)
    for group, tables in (("agents", config.agents), ("filters", config.filters), ("auth", config.auth.tables)):
        for name, options in tables.items():
            yield from _files((group, name), options)
    yield from _directory(("log", "to"), config.log.to, "file:")
    yield from _directory(("state", "url"), config.state.url, "sqlite:")
    if is_whole:
        yield from _certificates(config)


def _identity(config: Config) -> Iterator[Finding]:
    try:
        if config.user is not None:
            pwd.getpwnam(config.user)
    except KeyError:
        yield Finding(("user",), f'there is no user "{config.user}"')
    try:
        if config.group is not None:
            grp.getgrnam(config.group)
    except KeyError:
        yield Finding(("group",), f'there is no group "{config.group}"')


def _files(path: Path, table: object) -> Iterator[Finding]:
    if not isinstance(table, Options):
        return
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        is_named = value != "" or field.default != ""  # where "" is the default it means that there is no file
        for mark in field.metadata if is_named else ():
            problem = _problem_of_file(mark, value)
            if problem:
                yield Finding((*path, name), problem)
        yield from _files((*path, name), value)


def _problem_of_file(mark: object, name: str) -> str:
    file = FilePath(name) if isinstance(mark, ExistingFile | WrittenFile) else None
    if file is None:
        return ""
    if isinstance(mark, ExistingFile):
        return "" if file.is_file() else f"there is no such file: {name}"
    if file.is_dir():
        return f"is a directory: {name}"
    return "" if file.parent.is_dir() else f"there is no such directory: {file.parent}"


def _certificates(config: Config) -> Iterator[Finding]:
    if config.tls is None or not config.tls.cert_file:
        return
    try:
        wanted = combinations(config) if config.tls.client_ca_file else ()
        Certificates(config.tls, Log(LogOptions(), sink=_Nowhere()), Metrics(), combinations=wanted)
    except TlsError as error:
        # Whoever checks may be somebody else than the server, and keys are private.
        if not isinstance(error.__cause__, PermissionError):
            yield Finding(("tls",), str(error))


def _directory(path: Path, value: str, prefix: str) -> Iterator[Finding]:
    """The directory of a file that is made when it is not there."""
    if value.startswith(prefix):
        directory = FilePath(value.removeprefix(prefix)).parent
        if not directory.is_dir():
            yield Finding(path, f"there is no such directory: {directory}")
