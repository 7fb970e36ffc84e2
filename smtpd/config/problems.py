"""Mistakes of the operator: where they are, what is wrong, what was probably meant.

ConfigError    all mistakes of one configuration at once
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

Path = tuple[str | int, ...]
"""Keys and list positions that lead to a value, below `[smtpd]`."""

ENVIRONMENT = "environment"

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake; `line` counts from 1, None where there is no line (environment, missing file)."""

    file: str
    line: int | None
    key: str
    message: str
    suggestion: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = ": ".join(part for part in (place, self.key, self.message) if part)
        return f'{text}, did you mean "{self.suggestion}"?' if self.suggestion else text


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds every mistake, str() one line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake before it has a place: the path below `[smtpd]`, and what is wrong there."""

    path: Path
    message: str
    suggestion: str | None = None


class Origins:
    """Where every value came from: a line of the file, or a variable of the environment."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file = file
        self._lines = {_folded(path): line for path, line in lines.items()}
        self._variables: dict[Path, str] = {}
        self._same: dict[Path, Path] = {}
        self.secrets: dict[Path, str] = {}
        """Files that secrets were read from."""

    def set_variable(self, path: Path, name: str) -> None:
        """Remember that the environment said it."""
        self._variables[path] = name

    def set_same(self, path: Path, source: Path) -> None:
        """Remember that a value was made from another one (a secret from the file named there)."""
        self._same[path] = source

    def problem(self, finding: Finding) -> Problem:
        """Give a finding its place: the innermost key that is known."""
        path = self._same.get(finding.path, finding.path)
        for length in range(len(path), 0, -1):
            name = self._variables.get(path[:length])
            if name is not None:
                return Problem(ENVIRONMENT, None, name, finding.message, finding.suggestion)
        if _folded(("smtpd", *path)) not in self._lines:  # a table that only a variable has made
            for made, name in self._variables.items():
                if made[: len(path)] == path:
                    return Problem(ENVIRONMENT, None, name, finding.message, finding.suggestion)
        line = self._line(path)
        return Problem(self.file, line, dotted(path), finding.message, finding.suggestion)

    def _line(self, path: Path) -> int | None:
        for length in range(len(path), -1, -1):
            line = self._lines.get(_folded(("smtpd", *path[:length])))
            if line is not None:
                return line
        return None


def _folded(path: Path) -> Path:
    """Domains are normalised before some mistakes show, so upper and lower case must not matter."""
    return tuple(key.lower() if isinstance(key, str) else key for key in path)


def dotted(path: Path) -> str:
    """A path as an operator writes it: `smtpd.domains."example.com"`, list positions as [0]."""
    text = "smtpd"
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _BARE.fullmatch(key):
            text += f".{key}"
        else:
            text += f'."{key}"'
    return text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text


def closest(word: object, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    folded = {name.lower(): name for name in known}
    matches = get_close_matches(word.lower(), list(folded), n=1, cutoff=0.65) if isinstance(word, str) else []
    return folded[matches[0]] if matches else None
