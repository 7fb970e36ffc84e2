"""Find the line of every key in a TOML text that `tomllib` has already accepted.

`tomllib` says where a syntax error is, but not where a value stood; an operator wants a line number
for a wrong value, too.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator

from smtpd.config.problems import Path

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL)
_KEY = re.compile(r'(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|[ \t]*\.[ \t]*)+')
_PLAIN = re.compile(r"[^,\]}\n#]+")


def key_lines(text: str) -> dict[Path, int]:
    """Line, counted from 1, of every table header and key; list items have their position as key."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.key_position = 0
        self.lines: dict[Path, int] = {}
        self.lengths: dict[Path, int] = {}
        self.starts = [match.end() for match in re.finditer("\n", text)]

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self._take("[["):
                table = self._array_header()
            elif self._take("["):
                table = self._remember((), self._key())
                self._skip_blank()
                self._take("]")
            else:
                self._pair(table)
        return self.lines

    def _array_header(self) -> Path:
        name = self._remember((), self._key())
        self._skip_blank()
        self._take("]]")
        number = self.lengths.get(name, 0)
        self.lengths[name] = number + 1
        return self._remember(name, (number,))

    def _pair(self, table: Path) -> None:
        path = self._remember(table, self._key())
        self._skip_blank()
        self._take("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip_blank()
        if self._take("["):
            for number in self._items("]"):
                self._value(self._remember(path, (number,)))
        elif self._take("{"):
            for _ in self._items("}"):
                self._pair(path)
        elif match := (_STRING.match(self.text, self.position) or _PLAIN.match(self.text, self.position)):
            self.position = match.end()

    def _items(self, end: str) -> Iterator[int]:
        number = 0
        while self._skip_blank() and not self._take(end):
            yield number
            number += 1
            self._skip_blank()
            self._take(",")

    def _key(self) -> Path:
        self._skip_blank()
        match = _KEY.match(self.text, self.position)
        assert match, "tomllib accepted this text"
        self.key_position = self.position
        self.position = match.end()
        found: object = tomllib.loads(f"{match[0]} = 0")
        path: list[str] = []
        while isinstance(found, dict):
            path += found
            found = found[path[-1]]
        return tuple(path)

    def _remember(self, table: Path, key: Path) -> Path:
        """Note the line of each key on the way; what is written twice counts where it came first."""
        if key and isinstance(key[0], int):
            self.key_position = self.position
        path = table
        for number, part in enumerate(key, start=1):
            path = (*path, part)
            if path in self.lengths and number < len(key):  # below the newest item of an array of tables
                path = (*path, self.lengths[path] - 1)
            self.lines.setdefault(path, bisect_right(self.starts, self.key_position) + 1)
        return path

    def _skip_blank(self) -> bool:
        match = _BLANK.match(self.text, self.position)
        assert match, "the pattern matches nothing, too"
        self.position = match.end()
        return self.position < len(self.text)

    def _take(self, token: str) -> bool:
        if not self.text.startswith(token, self.position):
            return False
        self.position += len(token)
        return True
