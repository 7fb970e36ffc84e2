"""What belongs to the filters: signed messages, their nameserver, and the measurements that are theirs alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import filter_costs
import letters
import nameserver
import stall
from filter_costs import Costs
from hostile import Hostile
from hostile import measure as measure_hostile
from nameserver import Nameserver
from servers import MAILDIR_DOMAIN
from stall import Stall
from works import COSTS, HOSTILE, STALL, Letters

_WARM = 200  # messages in the file
_COLD_RATE = 2000  # messages per second, more than anybody takes, so that no domain comes twice
_OCTETS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is needed to measure filters."""

    nameserver: Nameserver
    directory: Path
    series: Iterator[int] = field(default_factory=count)

    def file(self, kind: Letters, seconds: float) -> Path:
        """Messages for a run of that length; cold ones are from domains that never come again."""
        path = self.directory / f"{kind}.letters"
        if kind == "cold":
            number = int(_COLD_RATE * max(seconds, 1))
            return letters.write(path, letters.cold(next(self.series), number, _OCTETS, MAILDIR_DOMAIN))
        if path.exists():
            return path
        number, octets = (_WARM, _OCTETS) if kind == "warm" else (1, stall.OCTETS)
        return letters.write(path, letters.warm(number, octets, MAILDIR_DOMAIN))


@dataclass(slots=True)
class Checks:
    """What was measured besides the kinds of work."""

    costs: Costs = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    hostile: dict[str, Hostile] = field(default_factory=dict)

    def measure(self, name: str, directory: Path, material: Material, seconds: float, rounds: int) -> None:
        """One of COSTS, STALL, HOSTILE; NotMeasured, TimeoutError, OSError."""
        if name == COSTS:
            self.costs = filter_costs.measure(
                directory, material.nameserver, material.file("warm", seconds), seconds, rounds
            )
        elif name == STALL:
            self.stalls = stall.measure(directory, material.nameserver, material.file("big", seconds), seconds, rounds)
        elif name == HOSTILE:
            self.hostile = measure_hostile()

    def as_json(self) -> dict[str, object]:
        """Every single figure."""
        return {
            COSTS: {"+".join(step) or "none": [asdict(run) for run in runs] for step, runs in self.costs.items()},
            STALL: [asdict(found) for found in self.stalls],
            HOSTILE: {name: asdict(found) for name, found in self.hostile.items()},
        }


@contextmanager
def material(directory: Path) -> Iterator[Material]:
    """Start the nameserver that knows the keys of the messages; NotMeasured."""
    with nameserver.nameserver(letters.key_record()) as server:
        yield Material(nameserver=server, directory=directory)
