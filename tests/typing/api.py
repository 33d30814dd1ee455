"""What a user of the public names may rely on; checked by mypy, never run."""

from pathlib import Path

from pytest_llmenergy import Energy, Settings, open_campaign, read_results


def test_user(energy: Energy) -> None:
    record = energy.cell(model="tiny-llama", tokens_in=8, tokens_out=8)
    assert record.summary is not None
    per_token: float | None = record.summary.energy_j_per_token
    window_record = energy(len, "abc", tokens_out=3)
    runtime_s: float | None = window_record.runtime_s
    with energy.window("load") as window:
        pass
    print(per_token, runtime_s, window.domains[0].energy_j)


def run_without_pytest() -> None:
    runner = open_campaign(Settings(models=("tiny-llama",)))
    record = runner.cell("tiny-llama", 8, 8)
    print(record.label, runner.finish(complete=True).name)
    print(read_results(Path("reports")).cells[0].tokens_generated)
