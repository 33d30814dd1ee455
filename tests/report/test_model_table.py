"""What a person reads before choosing a model."""

import json
import subprocess
import sys

from pytest_llmenergy.report.model_table import model_rows, model_table
from pytest_llmenergy.report.tables import render


def test_the_papers_counts_are_in_the_rows():
    """For GPUs of 40 GB the rows have Table 1's counts; for larger ones fewer."""
    at_40 = {row.model: row.n_gpus for row in model_rows(40)}
    assert (at_40["falcon-40b"], at_40["llama-2-70b"], at_40["mixtral-8x7b"], at_40["mistral-7b"]) == (
        3,
        4,
        3,
        1,
    )
    at_141 = {row.model: row.n_gpus for row in model_rows(141)}
    assert at_141["llama-2-70b"] == 2
    assert at_141["mixtral-8x7b"] == 1


def test_the_table_reads_at_80_columns():
    """One line a model, none cut, active parameters where they differ."""
    lines = render([model_table(model_rows())])
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    (mixtral,) = (line.split() for line in lines if "mixtral-8x7b" in line)
    assert mixtral == ["mixtral-8x7b", "46.7B", "12.9B", "93.4", "GB", "131", "kB", "32,768", "3", "68.47"]
    (falcon,) = (line.split() for line in lines if "falcon-7b" in line)
    assert falcon[1:3] == ["6.92B", "all"]


def test_doctor_lists_the_models_on_a_machine_without_torch(tmp_path):
    """`llmenergy-report doctor --models` prints the table and writes it; torch is not imported."""
    path = tmp_path / "models.json"
    code = (
        "import sys; from pytest_llmenergy.cli import main\n"
        f"try: main(['doctor', '--models', '--gpu-memory', '80', '--json', {str(path)!r}])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "80 GB GPUs" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
    document = json.loads(path.read_text())
    assert document["schema"] == "llmenergy.models/1"
    (falcon,) = (model for model in document["models"] if model["model"] == "falcon-40b")
    assert (falcon["parameters"], falcon["n_gpus"]) == (41_303_293_952, 2)
