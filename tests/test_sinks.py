import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from manual_clock import ManualClock

from smtpd import sinks
from smtpd.sinks import MAX_BACKLOG, PIPE_ROOM, Complaints, FileSink, Output, StreamSink, SyslogSink, open_sink


class Reluctant:
    """A sink with `room` octets left; without room it is full, or broken when it has an error."""

    def __init__(self, room: int, error: OSError | None = None) -> None:
        self.room = room
        self.error = error
        self.data = b""

    def write(self, data: bytes) -> int:
        if self.error is not None and not self.room:
            raise self.error
        taken = data[: self.room]
        self.room -= len(taken)
        self.data += taken
        return len(taken)

    def reopen(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        pass


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Complaints]:
    descriptor = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    yield Complaints(descriptor)
    os.close(descriptor)


def complaints_of(tmp_path: Path) -> str:
    return (tmp_path / "stderr").read_text()


def lost(count: int) -> str:
    return f"lost {count}\n"


def test_what_did_not_fit_is_written_later_without_a_gap(quiet: Complaints) -> None:
    sink = Reluctant(3)
    output = Output(sink, quiet, lost)
    output.add("first\n")
    output.add("second\n")
    sink.room = 100
    output.add("third\n")
    assert sink.data == b"first\nsecond\nthird\n"


def test_a_full_backlog_drops_whole_lines_and_reports_their_number(quiet: Complaints) -> None:
    sink = Reluctant(5)
    output = Output(sink, quiet, lost)
    line = "x" * (MAX_BACKLOG // 4) + "\n"
    for _ in range(10):
        output.add(line)
    sink.room = 10 * MAX_BACKLOG
    output.flush()
    kept = sink.data.decode().splitlines(keepends=True)
    assert set(kept[:-1]) == {line}
    assert kept[-1] == lost(10 - len(kept[:-1]))
    assert len(sink.data) < 1.5 * MAX_BACKLOG


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_a_broken_sink_never_raises_and_is_complained_about_once(
    quiet: Complaints, tmp_path: Path, error: OSError
) -> None:
    output = Output(Reluctant(0, error), quiet, lost)
    for _ in range(10):
        output.add("line\n")
    output.reopen()
    assert complaints_of(tmp_path) == f"smtpd: the log cannot be written: {error.strerror}\n"


async def test_a_stalled_sink_is_tried_again_by_itself(quiet: Complaints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "RETRY_SECONDS", 0)
    monkeypatch.setattr(sinks, "FLUSH_AFTER", 0)
    sink = Reluctant(2)
    output = Output(sink, quiet, lost)
    output.add("line\n")
    await asyncio.sleep(0.001)
    assert sink.data == b"li"
    sink.room = 100
    async with asyncio.timeout(5):
        while sink.data != b"line\n":  # noqa: ASYNC110 - the sink has no event to wait for
            await asyncio.sleep(0)


def test_complaints_come_once_a_minute(tmp_path: Path) -> None:
    clock = ManualClock(0.0)
    descriptor = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    complain = Complaints(descriptor, clock)
    for clock.now in (0, 59, 61):
        complain(OSError(28, "No space left on device", "a\nb"))
    os.close(descriptor)
    assert complaints_of(tmp_path).splitlines() == [
        "smtpd: the log cannot be written: 'a\\nb': No space left on device"
    ] * 2


def test_a_pipe_nobody_reads_takes_what_fits_and_never_blocks(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = StreamSink(writer)
    data = bytes(range(256)) * 4096
    taken = sink.write(data)
    assert 0 < taken < len(data)
    assert sink.write(data[taken:]) == 0
    assert os.get_blocking(writer)
    received = os.read(reader, 1 << 20)
    taken += sink.write(data[taken:])
    received += os.read(reader, 1 << 20)
    assert received == data[:taken]


def test_a_pipe_whose_reader_is_gone_is_an_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(BrokenPipeError):
        StreamSink(pipe[1]).write(b"line\n" * PIPE_ROOM)


def test_a_socket_nobody_reads_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = StreamSink(ours.fileno())
        assert 0 < sink.write(b"x" * (8 << 20)) < 8 << 20
        assert ours.getblocking()
        sink.close()


def test_a_stream_redirected_to_a_file_takes_everything(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        assert StreamSink(file.fileno()).write(b"x" * 100_000) == 100_000


def test_a_file_is_appended_to(tmp_path: Path, quiet: Complaints) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    sink = open_sink(f"file:{path}", quiet)
    sink.write(b"new\n")
    sink.close()
    assert path.read_text() == "old\nnew\n"


def test_a_new_file_is_closed_to_others(tmp_path: Path, quiet: Complaints) -> None:
    FileSink(str(tmp_path / "log"), quiet).close()
    assert (tmp_path / "log").stat().st_mode & 0o137 == 0


def test_reopen_goes_on_in_a_new_file(tmp_path: Path, quiet: Complaints) -> None:
    path = tmp_path / "log"
    sink = FileSink(str(path), quiet)
    output = Output(sink, quiet, lost)
    output.add("one\n")
    path.rename(tmp_path / "log.1")
    output.reopen()
    output.add("two\n")
    output.close()
    assert (tmp_path / "log.1").read_text() == "one\n"
    assert path.read_text() == "two\n"


def test_a_file_that_was_moved_away_is_noticed_without_being_told(tmp_path: Path, quiet: Complaints) -> None:
    path = tmp_path / "log"
    clock = ManualClock(0.0)
    sink = FileSink(str(path), quiet, clock)
    path.rename(tmp_path / "log.1")
    clock.now = 2.0
    sink.write(b"two\n")
    sink.close()
    assert path.read_text() == "two\n"


def test_a_directory_that_vanished_leaves_the_old_file_in_use(tmp_path: Path, quiet: Complaints) -> None:
    (tmp_path / "logs").mkdir()
    sink = FileSink(str(tmp_path / "logs" / "log"), quiet)
    output = Output(sink, quiet, lost)
    (tmp_path / "logs").rename(tmp_path / "moved")
    output.reopen()
    output.add("still here\n")
    output.close()
    assert (tmp_path / "moved" / "log").read_text() == "still here\n"
    assert "No such file or directory" in complaints_of(tmp_path)


def test_a_named_pipe_without_reader_fails_instead_of_waiting(tmp_path: Path, quiet: Complaints) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo"):
        FileSink(str(tmp_path / "fifo"), quiet)


def test_a_full_disk_is_an_error_not_a_loss_unnoticed(quiet: Complaints) -> None:
    sink = FileSink("/dev/full", quiet)
    with pytest.raises(OSError, match="No space left"):
        sink.write(b"line\n")
    sink.close()


def test_nothing_is_written_after_close(tmp_path: Path, quiet: Complaints) -> None:
    sink = FileSink(str(tmp_path / "log"), quiet)
    sink.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sink.write(b"late\n")


def daemon(path: Path) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(path))
    receiver.setblocking(False)
    return receiver


def test_syslog_gets_one_datagram_per_line(tmp_path: Path) -> None:
    with daemon(tmp_path / "dev-log") as receiver:
        sink = SyslogSink(str(tmp_path / "dev-log"))
        assert sink.write(b"<22>one\n<22>two\n") == 16
        assert [receiver.recv(100), receiver.recv(100)] == [b"<22>one", b"<22>two"]
        sink.close()


def test_syslog_connects_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "dev-log"
    sink = SyslogSink(str(path))
    with daemon(path):
        sink.write(b"one\n")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sink.write(b"lost\n")
    with daemon(path) as receiver:
        assert sink.write(b"two\n") == 4
        assert receiver.recv(100) == b"two"
        sink.close()


def test_a_busy_syslog_takes_whole_lines_and_never_blocks(tmp_path: Path) -> None:
    with daemon(tmp_path / "dev-log") as receiver:
        sink = SyslogSink(str(tmp_path / "dev-log"))
        data = b"line\n" * 10_000
        taken = sink.write(data)
        assert 0 < taken < len(data)
        assert taken % 5 == 0
        assert sink.write(data) == 0
        receiver.recv(100)
        assert sink.write(b"next\n") in (0, 5)
        sink.close()


def test_unknown_places_are_refused(quiet: Complaints) -> None:
    with pytest.raises(ValueError, match="no such place"):
        open_sink("printer", quiet)


def test_a_system_without_syslog_hears_what_is_missing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    sink = SyslogSink(str(tmp_path / "dev-log"))
    with pytest.raises(FileNotFoundError) as caught:
        sink.write(b"a line\n")
    Complaints(writing)(caught.value)
    os.close(writing)
    with open(reading, encoding="ascii") as said:
        assert said.read() == f"smtpd: the log cannot be written: '{tmp_path}/dev-log': No such file or directory\n"
