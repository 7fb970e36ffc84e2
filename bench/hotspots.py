"""Where the time goes in our server: py-spy looks at it while it works."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import generator
import machine
import store as stores
from generator import NotMeasured
from servers import STORE_DOMAIN, ours
from works import WORKS, Work

RATE = 400  # samples per second
TOP = 25
_HEAD_START = 0.5  # seconds of work before py-spy looks


def show(
    directory: Path, names: tuple[str, ...], seconds: float, *, family: stores.Family = "inet", native: bool = False
) -> int:
    """Print the functions that most time is spent in, for each kind of work; stacks go to out/NAME.stacks."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if program is None:
        raise NotMeasured("py-spy is not installed")
    works = [work for work in WORKS if work.name in names]
    with ExitStack() as stack:
        place = ""
        if any(work.domain == STORE_DOMAIN for work in works):
            place = stack.enter_context(stores.lmtp_store(directory, family)).place
        server = stack.enter_context(ours(directory, store=place))
        for work in works:
            stacks = generator.OUT / f"{work.name}.stacks"
            command = [program, "record", "--pid", str(server.process), "--format", "raw", "--rate", str(RATE)]
            command += ["--duration", str(max(1, round(seconds))), "--output", str(stacks), "--nonblocking"]
            per_message = _record(command + ["--native"] * native, work, seconds, server.port, server.process)
            print(*_lines(work, stacks, per_message), "", sep="\n", flush=True)
    return 0


def _record(command: list[str], work: Work, seconds: float, port: int, process: int) -> float:
    """Microseconds of our server's processor time per message, while it is looked at."""
    generator.run(work.load, port, work.domain, _HEAD_START, process)
    spy = machine.start(command, machine.cores()[1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        run = generator.run(work.load, port, work.domain, seconds + _HEAD_START, process)
        _, complaint = spy.communicate(timeout=machine.PATIENCE)
    finally:
        machine.stop(spy)
    if spy.returncode != 0:
        raise NotMeasured(f"py-spy: {complaint.strip()}")
    return run.cpu_per_message


def _lines(work: Work, stacks: Path, per_message: float) -> Iterator[str]:
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        below.update(dict.fromkeys(frames, int(count)))
    total = sum(own.values())
    yield f"{work.name}: {work.title}; {per_message:.0f} us of CPU per message, {total} samples"
    yield "   own  us/message   with all it calls"
    for function, count in own.most_common(TOP):
        share = count / total
        yield f"{share:6.1%}  {share * per_message:10.1f}   {below[function] / total:6.1%}  {function}"


def _function(frame: str) -> str:
    """ "run (smtpd/wire.py:12)" without the line."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rpartition(':')[0]})" if ":" in place else frame
