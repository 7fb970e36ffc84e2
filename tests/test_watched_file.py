import os
from pathlib import Path

import pytest

from smtpd.watched_file import CHECK_SECONDS, WatchedFile


class Watch:
    """A file of words, a clock that is moved by hand, and what was complained about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 100.0
        self.complaints: list[str] = []
        self.file: WatchedFile[list[str]] = WatchedFile(
            path, _words, [], clock=lambda: self.now, complain=lambda error: self.complaints.append(str(error))
        )

    def write(self, text: str, *, rested: bool = True) -> None:
        self.path.write_text(text)
        if rested:  # nobody has touched it for a while
            os.utime(self.path, (long_ago := self.path.stat().st_mtime - 60, long_ago))

    async def look(self, seconds: float = 2.0) -> list[str]:
        """The content that long after the last look."""
        self.now += seconds
        await self.file.refresh()
        return self.file.content


def _words(content: bytes) -> list[str]:
    if b"?" in content:
        raise ValueError("a question")
    return content.decode().split()


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    watch = Watch(tmp_path / "words")
    watch.write("one two")
    watch.file.load()
    return watch


async def test_change_is_seen_but_not_looked_for_all_the_time(watch: Watch) -> None:
    assert await watch.look() == ["one", "two"]
    watch.write("three")
    assert await watch.look(CHECK_SECONDS / 2) == ["one", "two"]
    assert await watch.look(CHECK_SECONDS) == ["three"]
    assert watch.file.is_settled


async def test_content_holds_while_somebody_writes(watch: Watch) -> None:
    watch.write("thr", rested=False)
    assert await watch.look() == ["one", "two"]
    assert not watch.file.is_settled
    watch.write("three")
    assert await watch.look() == ["three"]
    assert watch.file.is_settled


@pytest.mark.parametrize(("content", "said"), [("why?", "a question"), ("", "holds no address any more")])
async def test_content_that_makes_no_sense_is_complained_about_once(watch: Watch, content: str, said: str) -> None:
    watch.write(content)
    for _ in range(3):
        assert await watch.look() == ["one", "two"]
    assert len(watch.complaints) == 1
    assert said in watch.complaints[0]


async def test_file_that_is_gone_is_complained_about_once_and_read_when_it_is_back(watch: Watch) -> None:
    watch.path.unlink()
    for _ in range(3):
        assert await watch.look() == ["one", "two"]
    assert len(watch.complaints) == 1
    watch.write("three")
    assert await watch.look() == ["three"]


def test_first_reading_says_what_is_wrong(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "words")
    with pytest.raises(FileNotFoundError):
        watch.file.load()
    watch.write("why?")
    with pytest.raises(ValueError, match="a question"):
        watch.file.load()
