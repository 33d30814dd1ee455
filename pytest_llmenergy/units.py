"""Every conversion and every human format; the only powers of ten in the package.

Inside, energies are joules, powers watts, times seconds. A meter converts once, here.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Context

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_MINUTE_S = 60.0
_HOUR_S = 3600.0
_KILOSECOND_S = 1e3
_ROUNDING = 1e-9  # 1.00e-4 / 1e-6 is a little less than 100
UNKNOWN = "-"


def joules_from_millijoules(energy_mj: float) -> float:
    """NVML counts in mJ."""
    return energy_mj / 1e3


def joules_from_microjoules(energy_uj: float) -> float:
    """Powercap counts in µJ."""
    return energy_uj / 1e6


def watts_from_milliwatts(power_mw: float) -> float:
    """NVML gives mW."""
    return power_mw / 1e3


def seconds_from_milliseconds(time_ms: float) -> float:
    """AMD uProf takes and prints ms."""
    return time_ms / 1e3


def watt_hours_from_joules(energy_j: float) -> float:
    """1 Wh is 3600 J."""
    return energy_j / _HOUR_S


def kilowatt_hours_from_joules(energy_j: float) -> float:
    """1 kWh is 3.6 MJ."""
    return energy_j / (_HOUR_S * 1e3)


def bytes_from_gigabytes(size_gb: float) -> float:
    """1 GB is 10^9 bytes."""
    return size_gb * 1e9


def parse_energy(text: str) -> float:
    """Read `5e6`, `5 MJ` or `1.4kWh` as J.

    Raises:
        ValueError: the text is no energy.
    """
    text = text.strip()
    for unit, joules in (("Wh", _HOUR_S), ("J", 1.0)):
        if text.endswith(unit):
            number = text[: -len(unit)].strip()
            for scale, prefix in _PREFIXES:
                if prefix and number.endswith(prefix):
                    return float(number[: -len(prefix)]) * scale * joules
            return float(number) * joules
    return float(text)


def percent(fraction: float) -> float:
    """0.05 is 5 %."""
    return fraction * 1e2


def fraction_from_percent(share_pct: float) -> float:
    """5 % is 0.05."""
    return share_pct / 1e2


def parse_fraction(text: str) -> float:
    """Read `5%` or `0.05` as 0.05.

    Raises:
        ValueError: the text is no number.
    """
    text = text.strip()
    return float(text[:-1]) / 1e2 if text.endswith("%") else float(text)


def round_up(value: float, digits: int = 4) -> float:
    """The next number with so many significant digits: a limit that may be typed as it is printed."""
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(value))))


def round_down(value: float, digits: int = 4) -> float:
    """The last number with so many significant digits."""
    return -round_up(-value, digits)


def format_count(count: int, one: str, many: str) -> str:
    """Write a count with its noun: `1 query`, `3 queries`."""
    return f"{count} {one if count == 1 else many}"


def format_quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """Write a value with an SI prefix and so many significant digits: `1.23 mJ`; `-` when unknown."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return f"0 {unit}"
    # The prefix is chosen on the rounded value, so that 999.6 mJ reads 1.00 J and not 1000 mJ.
    rounded = abs(float(f"{value:.{digits - 1}e}"))
    scale, prefix = next(((s, p) for s, p in _PREFIXES if rounded >= s), _PREFIXES[-1])
    mantissa = value / scale
    before_point = len(str(int(rounded / scale + _ROUNDING)))
    return f"{mantissa:.{max(0, digits - before_point)}f} {prefix}{unit}"


def format_energy(energy_j: float | None) -> str:
    """Write an energy: `1.23 mJ`, `45.6 kJ`."""
    return format_quantity(energy_j, "J")


def format_power(power_w: float | None) -> str:
    """Write a power: `312 W`."""
    return format_quantity(power_w, "W")


def format_runtime(runtime_s: float | None) -> str:
    """Write a measured time: `4.21 ms`, `203 s`; seconds keep no prefix above one."""
    if runtime_s is not None and round(abs(runtime_s)) >= _KILOSECOND_S:
        return f"{runtime_s:.0f} s"
    return format_quantity(runtime_s, "s")


def format_wait(wait_s: float) -> str:
    """Write how long something will take, coarsely: `12 s`, `3 min`, `2 h 05 min`."""
    if round(wait_s) < _MINUTE_S:
        return f"{wait_s:.0f} s"
    hours, minutes = divmod(round(wait_s / _MINUTE_S), round(_MINUTE_S))
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def format_percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage: `1.3 %`; `-` when unknown."""
    return UNKNOWN if fraction is None else f"{percent(fraction):.{digits}f} %"
