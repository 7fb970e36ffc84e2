"""What belongs to the filters: signed messages, their nameserver, and the measurements that are theirs alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
_COLD = 2500  # so that a domain comes again later than the second that its answers are kept for
_OCTETS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is needed to measure filters."""

    nameserver: Nameserver
    files: Mapping[Letters, Path]


@dataclass(slots=True)
class Checks:
    """What was measured besides the kinds of work."""

    costs: Costs = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    hostile: dict[str, Hostile] = field(default_factory=dict)

    def measure(self, name: str, directory: Path, material: Material, seconds: float, rounds: int) -> None:
        """One of COSTS, STALL, HOSTILE; NotMeasured, TimeoutError, OSError."""
        if name == COSTS:
            self.costs = filter_costs.measure(directory, material.nameserver, material.files["warm"], seconds, rounds)
        elif name == STALL:
            self.stalls = stall.measure(directory, material.nameserver, material.files["big"], seconds, rounds)
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
    """Sign messages, and start the nameserver that knows their keys; NotMeasured."""
    files: dict[Letters, Path] = {
        "warm": letters.write(directory / "warm.letters", letters.warm(_WARM, _OCTETS, MAILDIR_DOMAIN)),
        "cold": letters.write(directory / "cold.letters", letters.cold(_COLD, _OCTETS, MAILDIR_DOMAIN)),
        "big": letters.write(directory / "big.letters", letters.warm(4, stall.OCTETS, MAILDIR_DOMAIN)),
    }
    with nameserver.nameserver(letters.key_record()) as server:
        yield Material(nameserver=server, files=files)
