"""Standard input, output and error, which whoever starts us may have closed."""

from __future__ import annotations

import os


def hold_places() -> None:
    """Put something useless into the place of those that are closed, so that nothing else gets their numbers.

    A connection with such a number would make uvloop abort the process when it ends, and what is written to standard
    error would reach a client. What stands in is not open for writing: who logs there is told that it is closed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free
            os.set_inheritable(descriptor, True)
