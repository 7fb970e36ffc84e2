"""One metric: its description, and the numbers behind it.

Plain slotted objects without locks: everything is counted on the event loop's thread, and counting
from another thread is not allowed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OTHER = "other"
MAX_SERIES = 20_000  # of one metric; a net below careless labels of plug-ins
SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that only grows; the name ends in `_total`."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.endswith("_total"):
            raise ValueError(f"counter {self.name} must end in _total")


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number that goes up and down."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """A distribution; `buckets` are the upper bounds, ascending, without infinity."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS_BUCKETS

    def __post_init__(self) -> None:
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)) or math.isinf(self.buckets[-1]):
            raise ValueError(f"histogram {self.name} needs finite ascending buckets")


Description = Counter | Gauge | Histogram


class CounterChild:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Count; ValueError below zero."""
        if amount < 0:
            raise ValueError("a counter only grows")
        self.value += amount


class GaugeChild:
    """One series of a gauge."""

    __slots__ = ("_function", "_value")

    def __init__(self) -> None:
        self._value: float = 0
        self._function: Callable[[], float] | None = None

    def inc(self, amount: float = 1) -> None:
        """Go up by `amount`, or down when it is negative."""
        self._value += amount

    def set(self, value: float) -> None:
        """Stand at `value`."""
        self._value = value

    def set_function(self, function: Callable[[], float]) -> None:
        """Ask `function` at each scrape, on the event loop's thread; if it raises, the value is NaN."""
        self._function = function

    @property
    def value(self) -> float:
        """What a scrape sees."""
        if self._function is None:
            return self._value
        try:
            return float(self._function())
        except Exception:  # a plug-in's function must not take all other numbers away
            return math.nan


class HistogramChild:
    """One series of a histogram; `counts` are per bucket, not cumulated, the last one is above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float) -> None:
        """Put one value into its bucket."""
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1


class Family[Child: (CounterChild, GaugeChild, HistogramChild)]:
    """All series of one metric."""

    __slots__ = ("_children", "_make", "description")

    def __init__(self, description: Description, make: Callable[[], Child]) -> None:
        self.description = description
        self._make: Callable[[], Child] = make
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        """The series with these label values, in the order of the description; keep it when counting often.

        ValueError when their number is wrong. Beyond `MAX_SERIES` series all new ones are one: "other".
        """
        child = self._children.get(values)
        return child if child is not None else self._add(values)

    def series(self) -> Iterator[tuple[tuple[str, ...], Child]]:
        """Every series there is: its label values, and its child."""
        yield from self._children.items()

    def __len__(self) -> int:
        return len(self._children)

    def _add(self, values: tuple[str, ...]) -> Child:
        names = self.description.labels
        if len(values) != len(names):
            raise ValueError(f"{self.description.name} has the labels {names}, got {len(values)} values")
        if len(self._children) >= MAX_SERIES:
            values = (OTHER,) * len(names)
        return self._children.setdefault(values, self._make())


AnyFamily = Family[CounterChild] | Family[GaugeChild] | Family[HistogramChild]
