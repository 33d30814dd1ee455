"""What may be compared: joules of one machine, one driver, one power limit, one set of meters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmenergy.errors import RequestError
from pytest_llmenergy.records import Provenance

if TYPE_CHECKING:
    from pytest_llmenergy.analysis.gate.readings import Reading, Session
    from pytest_llmenergy.records import Environment


def differences(base: Environment, head: Environment) -> list[str]:
    """What makes two machines' joules incomparable, in words; what either does not say is no difference."""

    def gpus(environment: Environment) -> str:
        return ", ".join(gpu.name for gpu in environment.gpus)

    def limits(environment: Environment) -> str:
        return ", ".join(f"{gpu.power_limit_w:g} W" for gpu in environment.gpus if gpu.power_limit_w)

    pairs = {
        "machine": (base.hostname, head.hostname),
        "CPU": (base.cpu_model, head.cpu_model),
        "GPUs": (gpus(base), gpus(head)),
        "driver": (base.driver, head.driver),
        "power limit": (limits(base), limits(head)),
    }
    return [f"{name}: {a} against {b}" for name, (a, b) in pairs.items() if a and b and a != b]


def refuse_incomparable(base: Session, head: Session) -> None:
    """Refuse a baseline whose joules are not of the same kind.

    Raises:
        RequestError: naming every difference: machine, driver, power limit, meter, metric, or estimated
            against measured.
    """
    found = differences(base.campaign.environment, head.campaign.environment)
    for cell in base.readings.keys() & head.readings.keys():
        before, after = base.readings[cell], head.readings[cell]
        if before.logs and after.logs:
            found += [f"{text} (in '{cell.label}')" for text in _reading_differences(before, after)][:1]
    # Every cell tells the same difference; three are enough to act on.
    kinds = {text.partition(" (in ")[0]: text for text in sorted(found, reverse=True)}
    if kinds:
        raise RequestError(
            f"{base.name} cannot be the baseline of {head.name}:\n"
            + "\n".join(f"  {text}" for text in sorted(kinds.values()))
            + "\nMeasure a baseline with the same machine, settings and meters"
            + (
                ", or compare what both have with --metric gpu_energy_j."
                if "counted" in "".join(kinds)
                else "."
            )
        )


def _reading_differences(before: Reading, after: Reading) -> list[str]:
    if before.provenance is not after.provenance:
        estimated = (before.provenance, after.provenance)
        words = ["estimated" if which is Provenance.ESTIMATED else "measured" for which in estimated]
        return [f"energy: {words[0]} against {words[1]}"]
    if before.metric != after.metric:
        return [f"energy counted: {before.metric} against {after.metric}"]
    if before.sources and after.sources and before.sources != after.sources:
        a, b = (_sources(reading) for reading in (before, after))
        return [f"meter: {a} against {b}"]
    return []


def _sources(reading: Reading) -> str:
    return ", ".join(f"{meter} ({domain})" for domain, meter in sorted(reading.sources))
