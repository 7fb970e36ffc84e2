"""The last seconds of the process: what a plug-in left running must not keep it.

A thread cannot be stopped from outside, nor a task that swallows its cancellation; asyncio and the interpreter wait for
both without end. When this begins, all mail is settled: whatever goes on has been told to stop, and its time was up.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType

LEAVE_SECONDS = 10.0  # from the end of the server on; systemd waits 60 and more for the whole


def leave_in_time(status: int, tell: Callable[[list[str]], None]) -> None:
    """End the process with this status when it has not ended by itself by then; `tell` hears what keeps it."""
    timer = threading.Timer(LEAVE_SECONDS, _leave, (status, tell))
    timer.name, timer.daemon = "leaving", True
    timer.start()


def _leave(status: int, tell: Callable[[list[str]], None]) -> None:
    try:
        tell(_running())
    finally:
        os._exit(status)


def _running() -> list[str]:
    """Where each thread is that the end waits for: the last line of a program below those of the interpreter."""
    frames = sys._current_frames()
    places = []
    for thread in threading.enumerate():
        if not thread.daemon and thread.ident in frames:
            places.append(f"{thread.name}: {_place(frames[thread.ident])}")
    return places


def _place(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None and len(names) < 3:
        code = frame.f_code
        names.append(f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(names)
