"""Variables `SMTPD__TABLE__KEY=value` override the file; secrets come from files named by `NAME_file`.

Two underscores go one table down, upper or lower case does not matter. Lists and tables are JSON:
`SMTPD__DOMAINS='{"example.com": "mailstore"}'`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from pydantic import ValidationError

from smtpd.config.problems import Finding, Origins, Path
from smtpd.config.schema import Tree, adapter_at, secret_fields, table_class

PREFIX = "SMTPD__"
MAX_SECRET = 65536  # bytes; our own choice, keys and tokens are far smaller


def apply_environment(environ: Mapping[str, str], tree: Tree, origins: Origins) -> Iterator[Finding]:
    """Lay the variables over the file's tables; yield what is wrong with their names."""
    names = [name for name in environ if name.upper().startswith(PREFIX)]
    # Whole tables before their keys, and a plug-in's type before the options it explains.
    for name in sorted(names, key=lambda name: (name.count("__"), not name.upper().endswith("__TYPE"), name)):
        parts = name[len(PREFIX) :].lower().split("__")
        path = _existing(tree, parts)
        origins.set_variable(path, name)
        if not all(parts):
            yield Finding(path, "the name has an empty part")
        elif not _put(tree, path, _value(tree, path, environ[name])):
            yield Finding(path, "a value stands where this name needs a table")


def _existing(tree: Tree, parts: list[str]) -> Path:
    """Spell each key as the file does, for names of the operator's own in mixed case."""
    table: object = tree
    path: list[str] = []
    for part in parts:
        known = [key for key in table if key.lower() == part] if isinstance(table, dict) else []
        path.append(known[0] if known else part)
        table = table.get(path[-1]) if isinstance(table, dict) else None
    return tuple(path)


def _put(tree: Tree, path: Path, value: object) -> bool:
    table = tree
    for key in path[:-1]:
        inner = table.setdefault(str(key), {})
        if not isinstance(inner, dict):
            return False
        table = inner
    table[str(path[-1])] = value
    return True


def _value(tree: Tree, path: Path, text: str) -> object:
    """The text itself where the option takes text, else what it means as JSON."""
    candidates: list[object] = [text]
    try:
        candidates.append(json.loads(text.lower() if text.lower() in ("true", "false") else text))
    except (ValueError, RecursionError):
        return text
    adapter = adapter_at(path, tree)
    if adapter is None or table_class(path, tree) is not None:
        return candidates[-1]
    for candidate in candidates:
        try:
            adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
        return candidate
    return candidates[-1]


def read_secrets(tree: Tree, origins: Origins) -> Iterator[Finding]:
    """Put the first line of every `NAME_file` in the place of the secret NAME."""
    for path, table in list(_tables(tree, ())):
        options = table_class(path, tree)
        if options is None:
            continue
        for name in secret_fields(options):
            twin = f"{name}_file"
            file = table.get(twin) if twin in options.model_fields else table.pop(twin, None)
            if file is None:
                continue
            if name in table:
                yield Finding((*path, twin), f"stands beside {name}; only one of them can be right")
            elif isinstance(file, str):
                origins.set_same((*path, name), (*path, twin))
                origins.secrets[(*path, twin)] = file
                table[name], problem = _read_secret(FilePath(file))
                if problem:
                    yield Finding((*path, twin), problem)
            else:
                yield Finding((*path, twin), "must be the path of a file")


def _tables(table: Tree, path: Path) -> Iterator[tuple[Path, Tree]]:
    yield path, table
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _tables(value, (*path, key))


def _read_secret(file: FilePath) -> tuple[str, str]:
    """The secret and "", or a stand-in and what is wrong; never a word of what the file holds."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_SECRET + 1)
        secret = content.decode("utf-8").strip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        return "unreadable", f"cannot be read: {reason}"
    if not secret or len(content) > MAX_SECRET or "\n" in secret:
        return "unreadable", f"must name a file with one line of at most {MAX_SECRET} bytes"
    return secret, ""
