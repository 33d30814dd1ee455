"""NVIDIA GPUs, against a driver whose energy is known; nvidia-ml-py and pyJoules are the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pyJoules.device.nvidia_device import NvidiaGPUDevice

from pytest_llmenergy import accounting
from pytest_llmenergy.errors import MeterUnavailableError, RequestError, Unavailable
from pytest_llmenergy.meters.nvml import NvmlMeter, open_nvml
from pytest_llmenergy.meters.nvml_boards import unit_of
from pytest_llmenergy.meters.window import Meters, Window
from pytest_llmenergy.records import DomainEnergy, MeterSource, Provenance

if TYPE_CHECKING:
    from tests.doubles.nvml import NvmlDouble
    from tests.doubles.powercurve import ManualScheduler

A100 = "gpu NVIDIA_A100 latch_ms=100 phase_ms=37"
STEP = "power 0 0 60\npower 0 10 300\npower 0 12 60\n"


class Bench:
    """A meter on the double's clock."""

    def __init__(self, nvml: NvmlDouble, scheduler: ManualScheduler) -> None:
        self._nvml = nvml
        self._scheduler = scheduler

    def open(self, scenario: str, self_check_s: float = 2.0) -> Meters:
        self._nvml.load(f"clock manual\n{scenario}\n")
        self.meter: NvmlMeter = open_nvml(self._scheduler, self_check_s=self_check_s)
        return Meters([self.meter], clock=self._scheduler.clock)

    def window(self, meters: Meters, start_s: float, end_s: float) -> Window:
        self._scheduler.advance(start_s - self._scheduler.now_s)
        with meters.window() as window:
            self._scheduler.advance(end_s - start_s)
        return window


@pytest.fixture
def bench(nvml: NvmlDouble, scheduler: ManualScheduler) -> Bench:
    return Bench(nvml, scheduler)


@pytest.mark.parametrize("latch_ms", [20, 100])
@pytest.mark.parametrize(("runtime_s", "error"), [(0.05, 0.15), (0.5, 0.02), (2.0, 0.005)])
def test_a_window_has_the_energy_that_was_used(
    bench: Bench, nvml: NvmlDouble, latch_ms: int, runtime_s: float, error: float
) -> None:
    """A window that is shorter than the counter's tick reads true as well, within its bound."""
    power = f"power 0 0 60\npower 0 10.013 300\npower 0 {10.013 + runtime_s} 60"
    meters = bench.open(f"gpu NVIDIA_A100 latch_ms={latch_ms} phase_ms=7\n{power}")
    (found,) = bench.window(meters, 10.013, 10.013 + runtime_s).domains
    truth_j = nvml.energy_j(0, 10.013, 10.013 + runtime_s)
    assert found.domain == "gpu:0"
    assert found.provenance is Provenance.MEASURED
    assert found.energy_j == pytest.approx(truth_j, rel=error)
    assert abs(found.energy_j - truth_j) <= found.bound_j


def test_without_the_self_check_the_counter_is_read_at_the_edges_alone(
    bench: Bench, nvml: NvmlDouble
) -> None:
    """Then the bound is the counter's period at the board's power limit."""
    meters = bench.open(f"{A100}\n{STEP}", self_check_s=0)
    (found,) = bench.window(meters, 10, 12).domains
    assert found.bound_j == pytest.approx(0.1 * 400)
    assert abs(found.energy_j - nvml.energy_j(0, 10, 12)) <= found.bound_j


def test_a_counter_that_did_not_move_is_too_short_and_not_zero(bench: Bench) -> None:
    meters = bench.open(f"{A100}\n{STEP}", self_check_s=0)
    (found,) = bench.window(meters, 10.04, 10.09).domains
    assert found.energy_j is None
    assert found.provenance is Provenance.UNAVAILABLE
    assert "too short" in (found.reason or "")


def test_a_board_without_a_counter_is_metered_by_its_power(bench: Bench, nvml: NvmlDouble) -> None:
    """A vGPU, or a GPU before Volta."""
    meters = bench.open(f"gpu Tesla_P100 arch=4 counter=0 averaging_ms=10\n{STEP}")
    (found,) = bench.window(meters, 9, 13).domains
    truth_j = nvml.energy_j(0, 9, 13)
    assert found.provenance is Provenance.MEASURED
    assert abs(found.energy_j - truth_j) <= found.bound_j
    assert found.energy_j == pytest.approx(truth_j, rel=0.05)


def test_power_that_was_not_read_for_a_while_gives_no_energy(bench: Bench) -> None:
    """Failing reads, or a machine that slept: trapezoids over a hole would be an invention."""
    meters = bench.open(
        "gpu Tesla_P100 arch=4 counter=0 averaging_ms=10\npower 0 0 50\n"
        "error nvmlDeviceGetPowerUsage 0 15 10 12"
    )
    lost, slept = bench.window(meters, 9, 13), bench.window(meters, 20, 21)
    assert lost.domains[0].energy_j is None
    assert "GPU is lost" in (lost.domains[0].reason or "")
    assert slept.domains[0].energy_j == pytest.approx(50)
    with meters.window() as window:
        bench._scheduler.now_s += 30  # no task runs meanwhile
    assert window.domains[0].energy_j is None
    assert "not read for" in (window.domains[0].reason or "")


def test_of_two_gpus_one_may_have_no_counter(bench: Bench, nvml: NvmlDouble) -> None:
    meters = bench.open(
        f"{A100}\ngpu Tesla_P100 arch=4 counter=0 averaging_ms=10\npower 0 0 100\npower 1 0 50\n"
    )
    found = {part.domain: part for part in bench.window(meters, 10, 14).domains}
    assert found["gpu:0"].energy_j == pytest.approx(400, rel=0.01)
    assert found["gpu:1"].energy_j == pytest.approx(200, rel=0.01)
    methods = {domain: details["method"] for domain, details in bench.meter.source.details.items()}
    assert methods == {"gpu:0": "counter", "gpu:1": "sampled power"}


def test_a_reset_counter_spoils_its_window_alone(bench: Bench) -> None:
    meters = bench.open(f"{A100}\npower 0 0 100\nreset 0 11\n")
    before, across, after = (bench.window(meters, start_s, start_s + 2) for start_s in (7, 10, 14))
    assert before.domains[0].energy_j == pytest.approx(200, rel=0.01)
    assert across.domains[0].energy_j is None
    assert "reset" in (across.domains[0].reason or "")
    assert after.domains[0].energy_j == pytest.approx(200, rel=0.01)


def test_a_reset_counter_that_has_passed_its_former_reading_is_noticed(bench: Bench) -> None:
    """It was 1000 J at the window's start, began anew, and is 1900 J at its end."""
    meters = bench.open("gpu A first_mj=0\npower 0 0 100\nreset 0 11\n", self_check_s=0)
    (found,) = bench.window(meters, 10, 30).domains
    assert found.energy_j is None
    assert "reset" in (found.reason or "")


def test_a_sensor_that_averages_over_a_second_is_read_half_a_second_later(
    bench: Bench, nvml: NvmlDouble
) -> None:
    """Work of 2 s between idle times still loses a tenth to its ends; read at once it would lose a fifth."""
    meters = bench.open(f"gpu NVIDIA_A40 arch=7 counter=0 averaging_ms=1000\nerror field 0 3 0 1e9\n{STEP}")
    (found,) = bench.window(meters, 10, 12).domains
    assert found.energy_j == pytest.approx(nvml.energy_j(0, 10, 12), rel=0.12)
    assert abs(found.energy_j - nvml.energy_j(0, 10, 12)) <= found.bound_j


def test_a_pyjoules_that_counts_in_microjoules_reads_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sources do so since the version that can be installed; only the version differs here."""
    released = NvidiaGPUDevice.get_energy
    monkeypatch.setattr(
        NvidiaGPUDevice, "get_energy", lambda self: [1000 * energy for energy in released(self)]
    )
    meters = bench.open(f"{A100}\npower 0 0 100\n")
    assert bench.meter.source.details["gpu:0"]["unit_check"] == "passed: pyJoules counts in µJ"
    assert bench.window(meters, 10, 12).domains[0].energy_j == pytest.approx(200, rel=0.01)


@pytest.mark.parametrize("self_check_s", [0, 2.0])
def test_a_lost_gpu_is_a_window_without_a_reading_and_with_the_reason(
    bench: Bench, self_check_s: float
) -> None:
    scenario = f"{A100}\npower 0 0 100\nerror nvmlDeviceGetTotalEnergyConsumption 0 15 11 13\n"
    meters = bench.open(scenario, self_check_s=self_check_s)
    lost, back = (bench.window(meters, start_s, start_s + 2) for start_s in (10, 16))
    assert lost.domains[0].energy_j is None
    assert "GPU is lost" in (lost.domains[0].reason or "")
    assert back.domains[0].energy_j == pytest.approx(200, rel=0.05)


def test_the_self_check_says_where_the_counter_differs_from_power(bench: Bench) -> None:
    """Such a counter is not followed from tick to tick, and the difference stands in the record."""
    bench.open(f"{A100}\npower 0 0 100\nscale 0 0.7\n")
    details = bench.meter.source.details["gpu:0"]
    assert details["self_check"].startswith("failed")
    assert details["self_check_difference"] == pytest.approx(-0.3, abs=0.02)


def test_a_counter_that_polling_disturbs_is_not_polled(bench: Bench, nvml: NvmlDouble) -> None:
    """Some boards lose energy with each read: the self-check finds it, and polling ends."""
    bench.open(f"{A100}\npower 0 0 100\npollloss 0 0.013\n")
    assert bench.meter.source.details["gpu:0"]["self_check"].startswith("failed")
    before = nvml.calls("nvmlDeviceGetTotalEnergyConsumption")
    bench._scheduler.advance(60)
    assert nvml.calls("nvmlDeviceGetTotalEnergyConsumption") - before <= 6 + 1


def test_the_self_check_of_a_true_counter_passes(bench: Bench) -> None:
    bench.open(f"{A100}\npower 0 0 100\n")
    details = bench.meter.source.details["gpu:0"]
    assert details["self_check"].startswith("passed")
    assert details["update_period_s"] == pytest.approx(0.1, rel=0.02)
    assert details["unit_check"].startswith("passed")


def test_following_a_counter_reads_it_rarely(bench: Bench, nvml: NvmlDouble) -> None:
    """A few times a tick, also while windows are open."""
    meters = bench.open(f"{A100}\npower 0 0 100\n")
    began_s, before = bench._scheduler.now_s, nvml.calls("nvmlDeviceGetTotalEnergyConsumption")
    bench.window(meters, 10, 20)
    ticks = (bench._scheduler.now_s - began_s) / 0.1
    assert nvml.calls("nvmlDeviceGetTotalEnergyConsumption") - before < 6 * ticks


@pytest.mark.parametrize(
    ("visible", "domains"),
    [
        ("1", ["gpu:1"]),
        ("1,0", ["gpu:0", "gpu:1"]),
        ("GPU-b", ["gpu:1"]),
        ("0,-1,1", ["gpu:0"]),
        ("MIG-77", ["gpu:1"]),
        ("MIG-78-", ["gpu:1"]),  # shortened
        ("MIG-GPU-bbb/1/0", ["gpu:1"]),
        ("MIG-77,MIG-78", ["gpu:1"]),  # two instances of one board
        ("0,MIG-78", ["gpu:0", "gpu:1"]),
        ("0,0", ["gpu:0"]),
    ],
)
def test_only_visible_gpus_are_metered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, visible: str, domains: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meters = bench.open(
        "gpu A uuid=GPU-aaa\ngpu B uuid=GPU-bbb mig=1\nmigdevice 1 MIG-77\nmigdevice 1 MIG-78-5\n"
        "power 0 0 9\npower 1 0 9"
    )
    assert list(meters.sources[0].domains) == domains


def test_a_mig_instance_says_that_its_board_is_shared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-77")
    meters = bench.open("gpu A mig=1\nmigdevice 0 MIG-77\npower 0 0 100")
    (found,) = bench.window(meters, 10, 12).domains
    assert found.energy_j == pytest.approx(200, rel=0.02)
    assert "MIG-77" in (found.reason or "")


def test_a_board_in_mig_mode_says_so_also_where_no_instance_was_named(bench: Bench) -> None:
    """CUDA takes one of its instances then; the board's sensor sees them all."""
    meters = bench.open("gpu A mig=1\nmigdevice 0 MIG-77\ngpu B\npower 0 0 100\npower 1 0 100")
    mig, plain = bench.window(meters, 10, 12).domains
    assert "MIG instances" in (mig.reason or "")
    assert plain.reason is None


@pytest.mark.parametrize("visible", ["0", "GPU-aaa", "MIG-77"])
def test_a_lost_gpu_is_no_reason_to_do_without_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meters = bench.open(
        "gpu A uuid=GPU-aaa\ngpu B\nmigdevice 0 MIG-77\npower 0 0 100\npower 1 0 100\n"
        "error nvmlDeviceGetHandleByIndex_v2 1 15 0 1e9"
    )
    (found,) = bench.window(meters, 10, 12).domains
    assert found.energy_j == pytest.approx(200, rel=0.02)


def test_a_visible_gpu_that_was_lost_before_makes_the_sum_unknown_and_not_smaller(bench: Bench) -> None:
    meters = bench.open(
        "gpu A\ngpu B\npower 0 0 100\npower 1 0 100\nerror nvmlDeviceGetHandleByIndex_v2 1 15 0 1e9"
    )
    domains = bench.window(meters, 10, 12).domains
    total = accounting.gpu_energy(domains)
    assert [part.domain for part in domains] == ["gpu:0", "gpu:1"]
    assert "GPU is lost" in (domains[1].reason or "")
    assert total is not None
    assert total.energy_j is None


def test_where_every_gpu_is_lost_the_remedy_is_to_reset_it(bench: Bench) -> None:
    with pytest.raises(MeterUnavailableError, match="GPU is lost") as caught:
        bench.open("gpu A\npower 0 0 100\nerror nvmlDeviceGetHandleByIndex_v2 0 15 0 1e9")
    assert caught.value.reason is Unavailable.READ_FAILED
    assert "reset" in caught.value.remedy


def test_of_two_gpus_the_one_that_is_lost_in_mid_window_has_no_reading(bench: Bench) -> None:
    meters = bench.open(
        f"{A100}\ngpu Tesla_P100 arch=4 counter=0 averaging_ms=10\npower 0 0 100\npower 1 0 50\n"
        "error nvmlDeviceGetPowerUsage 1 15 11 12"
    )
    found = {part.domain: part for part in bench.window(meters, 10, 14).domains}
    assert found["gpu:0"].energy_j == pytest.approx(400, rel=0.01)
    assert found["gpu:1"].energy_j is None
    assert "GPU is lost" in (found["gpu:1"].reason or "")


def test_a_visible_gpu_that_is_not_there_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-zzz")
    with pytest.raises(RequestError, match=r"GPU-zzz.*GPU-aaa"):
        bench.open("gpu A uuid=GPU-aaa\npower 0 0 9")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (9, Unavailable.NO_DEVICE),
        (18, Unavailable.NOT_INSTALLED),
        (4, Unavailable.NO_PERMISSION),
    ],
)
def test_a_driver_that_does_not_answer_is_explained(bench: Bench, code: int, reason: Unavailable) -> None:
    with pytest.raises(MeterUnavailableError) as caught:
        bench.open(f"gpu A\npower 0 0 9\nerror nvmlInitWithFlags -1 {code} 0 1e9")
    assert caught.value.reason is reason
    assert caught.value.remedy


def test_a_gpu_that_gives_no_reading_at_all_is_not_available(bench: Bench) -> None:
    """NVML starts on such a machine, and every reading fails: a Jetson, a vGPU guest."""
    with pytest.raises(MeterUnavailableError) as caught:
        bench.open(
            "gpu Jetson counter=0\npower 0 0 9\n"
            "error nvmlDeviceGetPowerUsage 0 3 0 1e9\nerror field 0 3 0 1e9"
        )
    assert caught.value.reason is Unavailable.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("through_pyjoules", "direct_mj", "unit"),
    [(5e6, 5e6, "mJ"), (5e9, 5e6, "µJ"), (5e3, 5e6, None), (10, 0, None), (1040, 1000, "mJ")],
)
def test_the_unit_of_pyjoules_is_found_and_not_believed(
    through_pyjoules: float, direct_mj: float, unit: str | None
) -> None:
    assert unit_of(through_pyjoules, direct_mj) == unit


class SlowMeter:
    """A meter whose readings take long; `cpu_s` is what a meter has that runs a process of its own."""

    source = MeterSource(name="slow", available=True)

    def __init__(self, scheduler: ManualScheduler) -> None:
        self._scheduler = scheduler

    def begin(self) -> None:
        self._scheduler.advance(0.03)

    def end(self, _: None) -> tuple[DomainEnergy, ...]:
        self._scheduler.advance(0.03)
        return ()

    def close(self) -> None:
        """Nothing is held."""


class SlowProcess(SlowMeter):
    cpu_s = 0.0


@pytest.mark.parametrize("self_check_s", [0, 2.0])
def test_what_lies_between_a_reading_and_the_block_is_in_the_bound(
    bench: Bench, nvml: NvmlDouble, scheduler: ManualScheduler, self_check_s: float
) -> None:
    """Here another meter takes 30 ms at either end; a busy machine may as well."""
    bench.open(f"{A100}\npower 0 0 300\n", self_check_s=self_check_s)
    (alone,) = bench.window(Meters([bench.meter], clock=scheduler.clock), 10, 11).domains
    (found,) = bench.window(
        Meters([bench.meter, SlowMeter(scheduler)], clock=scheduler.clock), 12, 13
    ).domains
    assert abs(found.energy_j - 300) <= found.bound_j
    assert found.bound_j - alone.bound_j == pytest.approx(0.06 * 400, abs=1)


def test_a_meter_with_a_process_of_its_own_is_begun_first_and_ended_last(
    bench: Bench, scheduler: ManualScheduler
) -> None:
    """Whichever was named first: what it does takes long."""
    bench.open(f"{A100}\npower 0 0 300\n")
    meters = Meters([bench.meter, SlowProcess(scheduler)], clock=scheduler.clock)
    (found,) = bench.window(meters, 12, 13).domains
    assert found.energy_j == pytest.approx(300, rel=0.005)
    assert found.bound_j < 3
