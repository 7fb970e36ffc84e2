"""A file that somebody else writes and that is read again when it has changed, without anybody waiting for it.

One that cannot be used leaves the old content in force and is reported. One that cannot be read is tried again, one
that makes no sense, or has lost everything, is left alone until it changes. While somebody writes into it the old
content holds, and of what is not in it nobody can say whether it will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized
from pathlib import Path

from smtpd import files

MAX_FILE = 64 << 20  # octets; our own choice
CHECK_SECONDS = 1.0  # between two looks at whether a file has changed


class WatchedFile[Content: Sized]:
    """The content of a file as `parse` understands it; `parse` raises ValueError for what makes no sense."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], Content],
        nothing: Content,
        *,
        clock: Callable[[], float],
        complain: Callable[[Exception], None],
    ) -> None:
        """`nothing` is the content before `load`; `clock` gives seconds; `complain` hears what is wrong later on."""
        self.content = nothing
        self.is_settled = True
        """Nobody is writing into the file, as far as anybody can tell."""
        self._path = path
        self._parse = parse
        self._clock = clock
        self._complain = complain
        self._stamp: files.Stamp | None = None
        self._looked = 0.0
        self._problem = ""
        self._reading = asyncio.Lock()
        self._rest = files.Rest(clock)

    def load(self) -> None:
        """Read the file now; OSError when it cannot be read, ValueError when it makes no sense."""
        self.content, self._stamp = self._read()

    async def refresh(self) -> None:
        """Look for a change, at most once per CHECK_SECONDS; reading is done in a thread."""
        if self._clock() - self._looked < CHECK_SECONDS or self._reading.locked():
            return
        async with self._reading:
            self._looked = self._clock()
            found = files.stamp(self._path)
            self.is_settled = found is None or found == self._stamp or self._rest.has_come(found)
            if found == self._stamp or not self.is_settled:
                return
            try:
                await asyncio.to_thread(self._replace)
            except ValueError as exception:
                self._stamp = found
                self._complain(exception)
            except OSError as exception:  # it may be over in a moment, such as too many open files
                if str(exception) != self._problem:
                    self._complain(exception)
                self._problem = str(exception)
            else:
                self._problem = ""

    def _replace(self) -> None:
        content, stamp = self._read()
        if files.stamp(self._path) != stamp:  # somebody has begun to write again
            self.is_settled = False
            return
        if self.content and not content:
            raise ValueError(f"{self._path} holds no address any more")
        self.content, self._stamp = content, stamp

    def _read(self) -> tuple[Content, files.Stamp]:
        content, stamp = files.read(self._path, max_bytes=MAX_FILE)
        return self._parse(content), stamp
