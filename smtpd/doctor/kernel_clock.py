"""What the kernel says of its clock: adjtimex(2), which changes nothing when it is asked like this."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_TIME_ERROR = 5  # what adjtimex returns while nobody keeps the clock in step


@dataclass(frozen=True, slots=True)
class ClockState:
    """What the kernel says; `max_error` in seconds."""

    is_synchronised: bool
    max_error: float


class _Timex(ctypes.Structure):
    # The head of Linux's struct timex; the rest is room that the kernel fills, too.
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),  # microseconds
        ("rest", ctypes.c_byte * 512),
    ]


def read_clock() -> ClockState | None:
    """Ask the kernel, changing nothing; None when it cannot be asked."""
    if not sys.platform.startswith("linux"):
        return None
    state = _Timex()
    try:
        result: int = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if result < 0 else ClockState(result != _TIME_ERROR, state.max_error / 1_000_000)
