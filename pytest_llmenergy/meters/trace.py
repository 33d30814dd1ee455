"""The power of every domain over time, kept on request."""

from __future__ import annotations

import io
from array import array
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pytest_llmenergy.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_llmenergy.meters import Meter
    from pytest_llmenergy.meters.sampler import Scheduler

PERIOD_S = 0.1


@runtime_checkable
class Traceable(Protocol):
    """A meter that knows its domains' power."""

    def power_w(self) -> Mapping[str, float]:
        """Power of each domain, in W: now, or over the time since the last call."""
        ...


class Trace:
    """Samples of power: time in s of the meters' clock, domain, W."""

    def __init__(self, meters: Iterable[Meter], scheduler: Scheduler) -> None:
        self._meters = [meter for meter in meters if isinstance(meter, Traceable)]
        self._domains: dict[str, int] = {}
        self._numbers = array("H")
        self._times_s = array("d")
        self._powers_w = array("d")
        scheduler.add(self._sample)

    def __len__(self) -> int:
        return len(self._times_s)

    def _sample(self, now_s: float) -> float:
        for meter in self._meters:
            for domain, power_w in meter.power_w().items():
                self._numbers.append(self._domains.setdefault(domain, len(self._domains)))
                self._times_s.append(now_s)
                self._powers_w.append(power_w)
        return now_s + PERIOD_S

    def parquet(self, since_s: float = 0.0) -> bytes:
        """The samples as a Parquet file: time_s (since `since_s`), domain, power_w.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        arrow = require("pyarrow", feature="a power trace", extra="trace")
        parquet = require("pyarrow.parquet", feature="a power trace", extra="trace")
        count = len(self._times_s)  # the sampler may be adding to them
        domains = arrow.DictionaryArray.from_arrays(
            arrow.array(self._numbers[:count], arrow.uint16()),
            arrow.array(list(self._domains), arrow.string()),
        )
        table = arrow.table(
            {
                "time_s": arrow.array(
                    [time_s - since_s for time_s in self._times_s[:count]], arrow.float64()
                ),
                "domain": domains,
                "power_w": arrow.array(self._powers_w[:count], arrow.float64()),
            }
        )
        content = io.BytesIO()
        parquet.write_table(table, content, compression="zstd")
        return content.getvalue()
