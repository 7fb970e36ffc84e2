"""The machine under the servers: two cores, processor time and memory of processes, free ports."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PATIENCE = 30.0  # seconds for a server to start or to stop
TICKS = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """The core of the servers and the core of the generator; the same one where there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def start(
    command: list[str], core: int, *, environment: Mapping[str, str] | None = None, **keywords: object
) -> subprocess.Popen:
    """Start a program that stays on one core, with all that it starts itself."""
    return subprocess.Popen(
        command,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # this program has no threads
        env={**os.environ, **(environment or {})},
        **keywords,
    )


def stop(process: subprocess.Popen) -> None:
    """End a program that `start` began."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port for programs that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(is_done: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Ask until it is so; TimeoutError."""
    end = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    """Whether a server answers connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def keep_apart(directory: Path) -> None:
    """Let ext4 put each directory made in this one into inode groups of its own, chosen by its name.

    For some minutes after files were removed, creating files in the same group is up to ten times
    slower, and Postfix removes a file from its queue for each message that it delivers. Elsewhere
    than on ext4 this changes nothing.
    """
    if shutil.which("chattr"):
        subprocess.run(["chattr", "+T", str(directory)], check=False, stderr=subprocess.DEVNULL)


def family(process: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def processor_seconds(process: int) -> float:
    """User and system time of a process and its descendants, of those that have ended, too."""
    total = 0
    for member in family(process):
        if fields := _stat(member):
            total += sum(int(field) for field in fields[11:15])  # utime stime cutime cstime, see proc(5)
    return total / TICKS


def memory_kib(process: int) -> int:
    """Resident memory of a process, KiB. Its share of what it has in common with others would move with them."""
    return _status(process, "VmRSS")


def peak_memory_kib(process: int) -> int:
    """The most that it had since it started, or since `forget_peak`, KiB."""
    return _status(process, "VmHWM")


def forget_peak(process: int) -> None:
    """From now on the peak is that of what comes; what start-up needed would hide growth."""
    Path(f"/proc/{process}/clear_refs").write_text("5")  # see proc_pid_clear_refs(5)


def _status(process: int, field: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise ProcessLookupError(process)


def _stat(process: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty when the process is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
