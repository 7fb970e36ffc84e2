import ctypes
import errno
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from delivery_agents import syncing
from delivery_agents.syncing import SLOTS, Syncer

Call = Callable[..., int]
# Without the system calls nothing can be together, and the tests of that are skipped.
NUMBERS = syncing._NUMBERS.get(platform.machine(), syncing._NUMBERS["x86_64"])


class Kernel:
    """The genuine system calls, noted; a test may put another function in the place of one."""

    def __init__(self) -> None:
        self._genuine = syncing._library_call()
        self.called: list[int] = []
        self.instead: dict[int, Call] = {}

    def __call__(self, number: int, *arguments: Any) -> int:
        self.called.append(number)
        return self.instead.get(number, self.genuine)(number, *arguments)

    def genuine(self, number: int, *arguments: Any) -> int:
        return self._genuine(number, *arguments)


@pytest.fixture
def kernel() -> Kernel:
    if sys.platform != "linux" or platform.machine() not in syncing._NUMBERS:
        pytest.skip("files cannot be synced together here")
    kernel, context = Kernel(), ctypes.c_ulong(0)
    try:
        kernel(NUMBERS.setup, ctypes.c_long(1), ctypes.byref(context))
    except OSError as error:
        pytest.skip(f"no asynchronous I/O here: {error}")
    kernel(NUMBERS.destroy, context)
    kernel.called.clear()
    return kernel


@pytest.fixture
def together(kernel: Kernel, tmp_path: Path) -> Iterator[Syncer]:
    syncer = Syncer(str(tmp_path), system_call=kernel)
    syncer.open()
    assert syncer.is_together
    kernel.called.clear()
    yield syncer
    syncer.close()


@pytest.fixture
def one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncer]:
    monkeypatch.setattr(platform, "machine", lambda: "unknown")
    syncer = Syncer(str(tmp_path))
    syncer.open()
    assert not syncer.is_together
    yield syncer
    syncer.close()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    """Descriptors of files with unwritten content, and of the directory that holds them."""
    opened = [os.open(tmp_path / str(number), os.O_WRONLY | os.O_CREAT) for number in range(20)]
    for descriptor in opened:
        os.write(descriptor, b"x" * 5000)
    opened.append(os.open(tmp_path, os.O_RDONLY))
    yield opened
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture
def refused() -> Iterator[dict[int, int]]:
    """Descriptors that cannot be synced, and why: one that is closed, and a pipe."""
    reader, writer = os.pipe()
    closed = os.dup(reader)
    os.close(closed)
    # Far above those that the test opens later.
    yield {closed + 10_000: errno.EBADF, reader: errno.EINVAL}
    os.close(reader)
    os.close(writer)


def codes(results: Sequence[OSError | None]) -> list[int | None]:
    return [None if failure is None else failure.errno for failure in results]


def failing(number: int) -> Call:
    def fail(*arguments: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("way", ["together", "one_by_one"])
def test_each_file_has_its_own_result(
    way: str, request: pytest.FixtureRequest, files: list[int], refused: dict[int, int]
) -> None:
    syncer: Syncer = request.getfixturevalue(way)
    assert codes(syncer.sync(files)) == [None] * len(files)
    closed, pipe = refused
    mixed = [closed, *files[:5], pipe, *files[5:], closed]
    expected = [refused.get(descriptor) for descriptor in mixed]
    assert codes(syncer.sync(mixed)) == expected
    assert codes(syncer.sync(mixed[::-1])) == expected[::-1]
    assert syncer.sync([]) == []


def test_files_are_handed_over_in_one_call_and_a_single_one_not_at_all(
    together: Syncer, kernel: Kernel, files: list[int]
) -> None:
    together.sync(files)
    assert kernel.called == [NUMBERS.submit, NUMBERS.getevents]
    together.sync(files[:1])
    assert len(kernel.called) == 2


def test_more_files_than_are_handed_over_at_once(
    together: Syncer, kernel: Kernel, files: list[int], refused: dict[int, int]
) -> None:
    many = (files * SLOTS)[: 2 * SLOTS + 7]
    for position, descriptor in zip((0, SLOTS - 1, SLOTS, 2 * SLOTS + 6), [*refused, *refused], strict=True):
        many[position] = descriptor
    assert codes(together.sync(many)) == [refused.get(descriptor) for descriptor in many]
    assert kernel.called.count(NUMBERS.getevents) == 3


def test_queue_that_is_full_leaves_the_rest_to_be_synced_one_by_one(
    together: Syncer, kernel: Kernel, files: list[int], refused: dict[int, int]
) -> None:
    def submit(number: int, context: object, count: object, orders: object) -> int:
        if kernel.called.count(NUMBERS.submit) % 3 == 2:
            raise BlockingIOError(errno.EAGAIN, "full")
        return kernel.genuine(number, context, ctypes.c_long(1), orders)

    kernel.instead[NUMBERS.submit] = submit
    mixed = [*files, *refused]
    for turn in range(3):
        turned = mixed[turn:] + mixed[:turn]
        assert codes(together.sync(turned)) == [refused.get(descriptor) for descriptor in turned]
    assert together.is_together


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_kernel_that_takes_nothing_does_not_matter(
    together: Syncer, kernel: Kernel, files: list[int], refused: dict[int, int], number: int
) -> None:
    kernel.instead[NUMBERS.submit] = failing(number)
    assert codes(together.sync([*files, *refused])) == [None] * len(files) + list(refused.values())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_kernel_without_asynchronous_io_does_not_matter(
    kernel: Kernel, tmp_path: Path, files: list[int], refused: dict[int, int], number: int
) -> None:
    kernel.instead[NUMBERS.setup] = failing(number)
    syncer = Syncer(str(tmp_path), system_call=kernel)
    syncer.open()
    assert not syncer.is_together
    assert codes(syncer.sync([*files, *refused])) == [None] * len(files) + list(refused.values())
    syncer.close()


def test_failed_write_is_reported_for_its_file_and_not_asked_for_again(
    together: Syncer, kernel: Kernel, files: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def getevents(number: int, context: object, least: object, most: object, events: Any, limit: object) -> int:
        found = kernel.genuine(number, context, least, most, events, limit)
        for event in events[:found]:
            if syncing._Order.from_address(event.order).descriptor == files[3]:
                event.result = -errno.EIO
        return found

    kernel.instead[NUMBERS.getevents] = getevents
    monkeypatch.setattr(os, "fsync", failing(errno.EXDEV))
    assert codes(together.sync(files)) == [errno.EIO if number == 3 else None for number in range(len(files))]


@pytest.mark.parametrize("lost", [1, 5])
def test_file_whose_result_never_comes_is_not_called_durable(
    together: Syncer, kernel: Kernel, files: list[int], refused: dict[int, int], lost: int
) -> None:
    def getevents(number: int, context: object, least: object, most: object, events: Any, limit: object) -> int:
        if kernel.called.count(NUMBERS.getevents) > 1:
            return 0  # as when the time is up
        return kernel.genuine(number, context, least, most, events, limit) - lost

    kernel.instead[NUMBERS.getevents] = getevents
    results = codes(together.sync([*files, *refused]))
    assert results[len(files) :] == list(refused.values())
    assert sorted(code or 0 for code in results[: len(files)]) == [0] * (len(files) - lost) + [errno.ETIMEDOUT] * lost

    # From now on one by one; and the queue is not given back, because the kernel would wait.
    assert not together.is_together
    kernel.called.clear()
    assert codes(together.sync(files)) == [None] * len(files)
    assert not kernel.called


def test_broken_queue_is_not_used_again(together: Syncer, kernel: Kernel, files: list[int]) -> None:
    kernel.instead[NUMBERS.getevents] = failing(errno.EINVAL)
    assert codes(together.sync(files)) == [errno.EINVAL] * len(files)
    assert not together.is_together


def test_interrupted_wait_goes_on(together: Syncer, kernel: Kernel, files: list[int]) -> None:
    def getevents(number: int, context: object, least: object, most: object, events: Any, limit: object) -> int:
        calls = kernel.called.count(NUMBERS.getevents)
        if calls < 3:
            raise InterruptedError(errno.EINTR, "a signal")
        few = ctypes.c_long(2 if calls == 3 else 100)
        return kernel.genuine(number, context, ctypes.c_long(1), few, events, limit)

    kernel.instead[NUMBERS.getevents] = getevents
    assert codes(together.sync(files)) == [None] * len(files)
    assert together.is_together


def test_result_of_an_earlier_set_is_not_taken_for_one_of_this(
    together: Syncer, kernel: Kernel, files: list[int]
) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    def fail_the_earlier(number: int, context: object, least: object, most: object, events: Any, limit: object) -> int:
        found = kernel.genuine(number, context, least, most, events, limit)
        for event in events[:found]:
            if event.data < boundary:
                event.result = -errno.EIO
                seen.append(event.data)
        return found

    seen: list[int] = []
    for _ in range(100):  # the kernel may be so late with the earlier set that nothing of it shows
        kernel.instead[NUMBERS.getevents] = interrupted
        with pytest.raises(KeyboardInterrupt):
            together.sync(files)
        assert together._together is not None
        boundary = together._together._serial
        kernel.instead[NUMBERS.getevents] = fail_the_earlier
        assert codes(together.sync(files)) == [None] * len(files)
        if seen:
            break
    assert seen


@pytest.mark.parametrize("name", ["missing", "mail"])
def test_directory_need_not_be_there_yet_and_nothing_is_left_in_it(kernel: Kernel, tmp_path: Path, name: str) -> None:
    (tmp_path / "mail").mkdir()
    syncer = Syncer(str(tmp_path / name), system_call=kernel)
    syncer.open()
    assert syncer.is_together
    syncer.close()
    assert not syncer.is_together
    assert not list((tmp_path / "mail").iterdir())
    assert kernel.called[-1] == NUMBERS.destroy


def test_kernel_that_does_not_answer_the_probe_is_not_used(kernel: Kernel, tmp_path: Path) -> None:
    kernel.instead[NUMBERS.getevents] = lambda *arguments: 0
    syncer = Syncer(str(tmp_path), system_call=kernel)
    syncer.open()
    assert not syncer.is_together


def test_without_a_place_for_the_probe_files_are_synced_one_by_one(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(errno.EROFS))
    syncer = Syncer(str(tmp_path), system_call=kernel)
    syncer.open()
    assert not syncer.is_together
    assert kernel.called == [NUMBERS.setup, NUMBERS.destroy]


def test_queue_that_cannot_be_given_back_is_left_to_the_kernel(together: Syncer, kernel: Kernel) -> None:
    kernel.instead[NUMBERS.destroy] = failing(errno.EINVAL)
    together.close()
    assert not together.is_together
