"""Whether the machine has what a configuration names: the user to become, certificates, files that it may use."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from smtpd.config.checks import named_files
from smtpd.config.listeners import combinations, split_address
from smtpd.config.models import Config, LogOptions
from smtpd.config.problems import Finding, Path
from smtpd.config.rights import Rights, lacks
from smtpd.log import Log
from smtpd.metrics import Metrics
from smtpd.options import ExistingFile, Options, WrittenFile
from smtpd.tls import Certificates, TlsError


class _Nowhere:
    """Takes the lines that nobody wants to read."""

    def write(self, data: bytes) -> int:
        return len(data)

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def find_gaps(config: Config, *, is_whole: bool) -> Iterator[Finding]:
    """What is missing here; nothing is made, started or written. Not `is_whole`: parts with mistakes were left out."""
    yield from _identity(config)
    rights = Rights(config)
    if rights.problem:
        yield Finding(("user",), rights.problem)
    for path, table in _parts(config):
        yield from _files(path, table, rights)
    yield from _unix_sockets(config)
    yield from _written(("log", "to"), config.log.to, "file:", rights)
    yield from _written(("state", "url"), config.state.url, "sqlite:", rights)
    yield from _closed(config, rights)
    if is_whole:
        yield from _certificates(config)


def find_trouble_ahead(config: Config, file: FilePath, secrets: Mapping[Path, str]) -> Iterator[Finding]:
    """What the server can start with, as root reads it then, but not be reloaded with; and what cannot be seen."""
    rights = Rights(config)
    if not rights.are_known and config.user is not None and os.geteuid() != 0:
        yield Finding(("user",), f"only {config.user} and root can see what {config.user} may read and write")
    for path, name in (((), str(file)), *secrets.items()) if os.geteuid() == 0 else ():
        if problem := rights.reading(FilePath(name)):
            yield Finding(path, f"{problem}: every reload (SIGHUP) will be refused")


def _parts(config: Config) -> Iterator[tuple[Path, Options]]:
    running = {name: options for name, options in config.filters.items() if options.mode != "off"}
    asked = {name: options for name, options in config.auth.tables.items() if name in config.auth.providers}
    for group, tables in (("agents", config.agents), ("filters", running), ("auth", asked)):
        for name, options in tables.items():
            yield (group, name), options


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


def _files(path: Path, table: object, rights: Rights) -> Iterator[Finding]:
    if not isinstance(table, Options):
        return
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        is_named = bool(value) or field.default not in ("", None)  # those say that there is no file
        for mark in field.metadata if is_named else ():
            problem = _problem_of_file(mark, value, rights)
            if problem:
                yield Finding((*path, name), problem)
        yield from _files((*path, name), value, rights)


def _problem_of_file(mark: object, name: str, rights: Rights) -> str:
    if isinstance(mark, ExistingFile):
        file = FilePath(name)
        return rights.reading(file) or (f"there is no such file: {name}" if rights.lacks_file(file) else "")
    return _problem_of_written(FilePath(name), rights) if isinstance(mark, WrittenFile) else ""


def _problem_of_written(file: FilePath, rights: Rights) -> str:
    if os.path.isdir(file):
        return f"is a directory: {file}"
    with rights.held():
        target = FilePath(os.path.realpath(file)) if os.path.islink(file) else file  # it is made where a link leads
        if os.path.islink(target):
            return f"is a link that leads back to itself: {file}"
    missing = f"there is no such directory: {target.parent}" if rights.lacks_directory(target.parent) else ""
    return rights.writing(file) or missing


def _written(path: Path, value: str, prefix: str, rights: Rights) -> Iterator[Finding]:
    """A file that is made when it is not there."""
    if not value.startswith(prefix):
        return
    file = FilePath(value.removeprefix(prefix))
    if problem := _problem_of_written(file.absolute() if prefix == "sqlite:" else file, rights):  # as the store does
        yield Finding(path, problem)


def _unix_sockets(config: Config) -> Iterator[Finding]:
    for name, listener in config.listeners.items():
        for address in listener.address:
            kind, place, _ = split_address(address)
            if kind == "unix" and lacks(FilePath(place).parent, stat.S_ISDIR):
                yield Finding(("listeners", name, "address"), f"there is no such directory: {FilePath(place).parent}")


def _closed(config: Config, rights: Rights) -> Iterator[Finding]:
    """What is there, but not for the user that the server runs as."""
    for path, name in named_files(config):
        is_used = config.metrics.enabled or path[0] != "metrics"
        if is_used and (problem := rights.reading(FilePath(name))):
            yield Finding(path, problem)
    if config.spool is not None and (problem := rights.making_in(FilePath(config.spool))):
        yield Finding(("spool",), problem)
    if problem := _closed_database(config.state.url, rights):
        yield Finding(("state", "url"), problem)
    if config.metrics.enabled and (problem := rights.listening(split_address(config.metrics.address)[2])):
        yield Finding(("metrics", "address"), problem)
    for path, options in _parts(config) if rights.are_known else ():
        try:
            with rights.held():
                obstacles = list(options.obstacles())
        except (Exception, SystemExit) as error:  # whatever a stranger's options raise
            obstacles = [("type", f"cannot be examined: {error}")]
        for key, problem in obstacles:
            yield Finding((*path, key), f"{problem} (seen by user {rights.user})")


def _closed_database(url: str, rights: Rights) -> str:
    """SQLite has two more files beside the database, which come and go."""
    if not url.startswith("sqlite:"):
        return ""
    with rights.held():
        file = FilePath(os.path.realpath(url.removeprefix("sqlite:")))  # they stand where a link leads
        is_there = os.path.isfile(file)
    if not is_there:
        return ""
    problems = (rights.writing(file.with_name(file.name + end)) for end in ("-wal", "-shm"))
    return next(filter(None, problems), "")


def _certificates(config: Config) -> Iterator[Finding]:
    if config.tls is None or not config.tls.cert_file:
        return
    try:
        wanted = combinations(config.listeners.values()) if config.tls.client_ca_file else ()
        Certificates(config.tls, Log(LogOptions(), sink=_Nowhere()), Metrics(), combinations=wanted)
    except TlsError as error:
        # Whoever checks may be somebody else than the server, and keys are private.
        if not isinstance(error.__cause__, PermissionError):
            yield Finding(("tls",), str(error))
