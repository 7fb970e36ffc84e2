"""Programs of others: `run` one to its end, or keep one running as a `Daemon`."""

import re
import subprocess
import threading
from dataclasses import dataclass

from tests.conftest import PATIENCE


@dataclass(frozen=True)
class Ran:
    """A program that has ended; `output` is what it wrote to standard output and standard error."""

    code: int
    output: str


def run(*words: object, letter: bytes = b"", expect: int | None = 0, **options: object) -> Ran:
    """Run a program with `letter` as its input; `expect` is its exit status, None for any."""
    command = [str(word) for word in words]
    ended = subprocess.run(
        command, input=letter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=2 * PATIENCE, check=False, **options,
    )  # fmt: skip
    ran = Ran(ended.returncode, ended.stdout.decode("utf-8", "backslashreplace"))
    assert expect is None or ran.code == expect, f"exit status {ran.code}: {command}\n{ran.output}"
    return ran


class Daemon:
    """A process in the foreground that writes its log to standard output; `wait_for` finds lines in it."""

    def __init__(self, *words: object, **options: object) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def found(self, pattern: str) -> list[str]:
        """The lines so far in which a regular expression is found."""
        with self._changed:
            return [line for line in self.lines if re.search(pattern, line)]

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until the expression was found in so many lines."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.found(pattern)) >= count, PATIENCE)
        found = self.found(pattern)
        assert len(found) >= count, f"{pattern!r} not found {count} times in\n{''.join(self.lines)}"
        return found

    def stop(self) -> int:
        """End it with SIGTERM, by force if need be; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode
