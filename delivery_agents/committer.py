"""Puts messages into Maildirs so that they survive a crash: one thread, many messages per sync.

Writing is quick and syncing is slow, and one sync of the filesystem's journal covers everything written
before it. So a single thread takes what has gathered while it was busy, writes all of it into tmp/,
syncs, moves all of it into new/, syncs each directory once, and answers all waiters at once.

A crash at any moment leaves the complete file in new/ or rubbish in tmp/, nothing else. A message for
several mailboxes is one file with several links, and goes into all of them or into none: what was
made is removed again before the failure is reported, so a retry doubles nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Literal

from delivery_agents.directories import MAX_OPEN, Access, Box, Folders
from delivery_agents.quota import OverQuota, Quota
from delivery_agents.syncing import Syncer
from smtpd.model import Message

MAX_BATCH = 256  # messages
_MAX_PIECES = 512  # of one writev; IOV_MAX is 1024
_MAX_WRITE = 1 << 20  # octets gathered for one writev

_NO_LINK = frozenset({errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS})
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

Sync = Literal["file", "filesystem"]


class Job:
    """One message on its way, with the future of the one who waits for it."""

    __slots__ = ("boxes", "descriptors", "failure", "future", "message", "moved", "name", "size", "top", "written")

    def __init__(
        self, top: bytes, message: Message, boxes: Sequence[Box], future: asyncio.Future[Exception | None]
    ) -> None:
        self.top = top
        self.message = message
        self.boxes = boxes
        self.future = future
        self.size = len(top) + message.size
        self.name = ""
        self.descriptors: list[int] = []
        self.written = 0
        """How many of `boxes` have the file in tmp/."""
        self.moved = 0
        """How many of `boxes` have it in new/."""
        self.failure: Exception | None = None


class Committer:
    """The thread, and the way in and out of it."""

    def __init__(self, host: str, syncer: Syncer, *, sync: Sync, access: Access, quota: Quota | None) -> None:
        self._names = _Names(host)
        self._syncer = syncer
        self._sync = sync
        self._access = access
        self._quota = quota
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Begin to work; call it on the event loop that will wait for the answers."""
        self._loop = asyncio.get_running_loop()
        # A daemon, so that a program that forgets `stop` can still end.
        self._thread = threading.Thread(target=self._run, name="maildir", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Finish everything that was handed over, then end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            # Not join: with a disk that hangs, the process could not end before the thread of an executor that waits.
            await self._ended.wait()

    @property
    def is_running(self) -> bool:
        """Whether `store` can work."""
        return self._thread is not None and self._thread.is_alive()

    def store(self, top: bytes, message: Message, boxes: Sequence[Box]) -> asyncio.Future[Exception | None]:
        """Store a message in all boxes (at least one, all different), `top` above it.

        The result is None when it is durable in all of them, else why it is in none: OSError, OverQuota,
        or the exception of a bug.
        """
        assert self._loop is not None
        future: asyncio.Future[Exception | None] = self._loop.create_future()
        if self._thread is None:
            future.set_result(OSError(errno.ESHUTDOWN, "the agent has stopped"))
        else:
            self._queue.put(Job(top, message, boxes, future))
        return future

    def _run(self) -> None:
        assert self._loop is not None
        try:
            self._work(self._loop)
        finally:
            with suppress(RuntimeError):  # the loop was closed without `stop`
                self._loop.call_soon_threadsafe(self._ended.set)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        self._syncer.open()
        while batch := self._next_batch():
            _Batch(batch, self._names, self._syncer, self._sync, self._access, self._quota).commit()
            try:
                loop.call_soon_threadsafe(_answer, batch)
            except RuntimeError:  # the loop was closed without `stop`: nobody waits any more
                break
        self._syncer.close()

    def _next_batch(self) -> list[Job]:
        """Everything that waits, at most MAX_BATCH; empty at the end."""
        if self._stopping:
            return []
        job = self._queue.get()
        # The event loop may be in the middle of a round: what it still hands over then costs no batch of its own.
        os.sched_yield()
        batch: list[Job] = []
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch
            try:
                job = self._queue.get_nowait()
            except Empty:
                return batch
        self._stopping = True
        return batch


def _answer(batch: list[Job]) -> None:
    for job in batch:
        if not job.future.done():  # whoever waited may be gone; the message is stored all the same
            job.future.set_result(job.failure)


class _Batch:
    """The five steps, each for all jobs; a job that fails is undone and takes no further part."""

    __slots__ = ("_access", "_coming", "_folders", "_jobs", "_names", "_quota", "_sync", "_syncer")

    def __init__(
        self, jobs: list[Job], names: _Names, syncer: Syncer, sync: Sync, access: Access, quota: Quota | None
    ) -> None:
        self._jobs = jobs
        self._names = names
        self._syncer = syncer
        self._sync = sync
        self._access = access
        self._quota = quota
        self._folders = Folders(access)
        self._coming: dict[str, int] = {}  # octets for each mailbox that its quota does not know of yet

    def commit(self) -> None:
        try:
            jobs = self._each(self._jobs, self._write)
            if self._sync == "filesystem":
                self._sync_filesystems(jobs)
            else:
                self._sync_files(jobs)
            jobs = self._each(self._alive(jobs), self._move)
            self._sync_directories(jobs)
            if self._quota is not None:
                self._each(self._alive(jobs), self._count)
        except Exception as exception:  # a bug of ours must not end the thread
            for job in self._alive(self._jobs):
                self._fail(job, exception)
        finally:
            for job in self._jobs:
                self._close(job)
            self._folders.close()

    def _each(self, jobs: list[Job], step: Callable[[Job], None]) -> list[Job]:
        done = []
        for job in jobs:
            try:
                step(job)
            except Exception as exception:
                self._fail(job, exception)
            else:
                done.append(job)
        return done

    def _alive(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.failure is None]

    def _write(self, job: Job) -> None:
        box = job.boxes[0]
        if self._quota is not None:
            self._take_room(job, self._quota)
        job.name = self._names.make(job.size)
        first = self._folders.open(box).tmp
        self._write_file(job, first)
        for box in job.boxes[1:]:
            folder = self._folders.open(box)
            first = self._folders.open(job.boxes[0]).tmp
            try:
                os.link(job.name, job.name, src_dir_fd=first, dst_dir_fd=folder.tmp, follow_symlinks=False)
                job.written += 1
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self._write_file(job, folder.tmp)

    def _take_room(self, job: Job, quota: Quota) -> None:
        coming = self._coming
        if len(job.boxes) == 1 and quota.is_full(job.boxes[0].path, coming.get(job.boxes[0].path, 0) + job.size):
            raise OverQuota
        for box in job.boxes:
            coming[box.path] = coming.get(box.path, 0) + job.size

    def _write_file(self, job: Job, directory: int) -> None:
        descriptor = os.open(job.name, _CREATE, self._access.file, dir_fd=directory)
        job.descriptors.append(descriptor)
        job.written += 1
        if self._access.beats_umask:
            os.fchmod(descriptor, self._access.file)
        pieces, gathered, total = [job.top], len(job.top), 0
        for piece in job.message.chunks():
            pieces.append(piece)
            gathered += len(piece)
            if gathered >= _MAX_WRITE or len(pieces) >= _MAX_PIECES:
                _write_all(descriptor, pieces, gathered)
                total += gathered
                pieces, gathered = [], 0
        if pieces:
            _write_all(descriptor, pieces, gathered)
        if total + gathered != job.size:
            raise OSError(errno.EIO, "the message changed its size while it was stored")

    def _sync_files(self, jobs: list[Job]) -> None:
        files = [(job, descriptor) for job in jobs for descriptor in job.descriptors]
        if len(files) > 1 and not self._syncer.is_together:
            # Start writing everywhere before waiting anywhere; files handed over together need no such hint.
            for _, descriptor in files:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        failures = self._syncer.sync([descriptor for _, descriptor in files])
        for (job, _), failure in zip(files, failures, strict=True):
            if failure is not None:
                self._fail(job, failure)
        for job in jobs:
            self._close(job)

    def _sync_filesystems(self, jobs: list[Job]) -> None:
        by_device: dict[int, list[Job]] = {}
        for job in jobs:
            for box in job.boxes:
                device = os.fstat(self._folders.open(box).tmp).st_dev
                by_device.setdefault(device, []).append(job)
        for device_jobs in by_device.values():
            try:
                _syncfs(self._folders.open(device_jobs[0].boxes[0]).tmp)
            except OSError as error:
                for job in device_jobs:
                    self._fail(job, error)

    def _move(self, job: Job) -> None:
        name = job.name
        for box in job.boxes:
            folder = self._folders.open(box)
            os.rename(name, name, src_dir_fd=folder.tmp, dst_dir_fd=folder.new)
            job.moved += 1

    def _sync_directories(self, jobs: list[Job]) -> None:
        if self._sync == "filesystem":
            self._sync_filesystems(jobs)
            return
        by_box: dict[Box, list[Job]] = {}
        for job in jobs:
            for box in job.boxes:
                by_box.setdefault(box, []).append(job)
        boxes = list(by_box)
        for start in range(0, len(boxes), MAX_OPEN):
            part = boxes[start : start + MAX_OPEN]
            for box, failure in zip(part, self._sync_new(part), strict=True):
                for job in by_box[box] if failure is not None else ():
                    assert failure is not None
                    self._fail(job, failure)

    def _sync_new(self, boxes: list[Box]) -> list[OSError | None]:
        """Sync new/ of each, at most MAX_OPEN: why one is not synced, in the same order."""
        opened: list[int | OSError] = []
        for box in boxes:
            try:
                opened.append(self._folders.open(box).new)
            except OSError as error:
                opened.append(error)
        failures = iter(self._syncer.sync([each for each in opened if isinstance(each, int)]))
        return [next(failures) if isinstance(each, int) else each for each in opened]

    def _count(self, job: Job) -> None:
        assert self._quota is not None
        for box in job.boxes:
            self._quota.add(box.path, job.size)

    def _fail(self, job: Job, failure: Exception) -> None:
        """Remember why, and remove what was made: a retry must not double anything."""
        if job.failure is not None:
            return
        job.failure = failure
        self._close(job)
        for number, box in enumerate(job.boxes[: job.written]):
            try:
                folder = self._folders.open(box)
                os.unlink(job.name, dir_fd=folder.new if number < job.moved else folder.tmp)
            except OSError as error:
                failure.add_note(f"and {box.path}: {error}")

    def _close(self, job: Job) -> None:
        while job.descriptors:
            try:
                os.close(job.descriptors.pop())
            except OSError:  # NFS says here, too, what a write or the sync has said; it is closed all the same
                continue


class _Names:
    """Unique file names as the Maildir specification wants them, with the size Maildir++ reads from them."""

    def __init__(self, host: str) -> None:
        # Random, because process ids repeat in containers that share a filesystem and a host name.
        self._middle = f"P{os.getpid()}R{os.urandom(4).hex()}Q"
        self._host = re.sub(r"[^A-Za-z0-9._-]", _octal, host)[:100] or "localhost"
        self._serial = itertools.count(1)

    def make(self, size: int) -> str:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return f"{seconds}.M{nanoseconds // 1000}{self._middle}{next(self._serial)}.{self._host},S={size}"


def _octal(match: re.Match[str]) -> str:
    """The Maildir way to write what must not stand in a file name: "/" becomes "\\057"."""
    return "".join(f"\\{octet:03o}" for octet in match[0].encode())


def _write_all(descriptor: int, pieces: list[bytes], size: int) -> None:
    written = os.writev(descriptor, pieces)
    if written != size:
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def _syncfs(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)  # the os module has no syncfs
    if library.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
