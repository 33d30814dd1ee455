"""`llmenergy-report route`, as people run it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pytest_llmenergy.cli import main

WORKLOADS = Path(__file__).parents[2].parent / "shared" / "workloads"
SHARES = "llama-2-7b=0.05,llama-2-13b=0.2,llama-2-70b=0.75"
COEFFICIENTS = """model,metric,form,coefficient,value
llama-2-7b,gpu_energy_j,paper,tokens_in,-0.5
llama-2-7b,gpu_energy_j,paper,tokens_out,30
llama-2-7b,runtime_s,paper,tokens_out,0.08
llama-2-13b,gpu_energy_j,paper,tokens_in,1
llama-2-13b,gpu_energy_j,paper,tokens_out,55
llama-2-13b,runtime_s,paper,tokens_out,0.14
llama-2-70b,gpu_energy_j,paper,tokens_in,2
llama-2-70b,gpu_energy_j,paper,tokens_out,410
llama-2-70b,runtime_s,paper,tokens_out,0.7
"""


@pytest.fixture
def fits(tmp_path):
    path = tmp_path / "coefficients.csv"
    path.write_text(COEFFICIENTS)
    return path


@pytest.fixture
def workload(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "workload.csv"
    pl.DataFrame({"tokens_in": rng.integers(5, 60, 200), "tokens_out": rng.geometric(0.01, 200)}).write_csv(
        path
    )
    return path


@pytest.fixture
def route(fits, workload, capsys):
    """Run the command on the small workload; status, what was printed, what was complained of."""

    def run(*arguments, fits=fits, workload=workload):
        with pytest.raises(SystemExit) as ended:
            main(["route", "--fits", str(fits), "--workload", str(workload), *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def fit_document(path, **changes):
    """A hand-written fits.json with the fields the format promises and no other."""
    fits = [
        {
            "model": name,
            "system": "node",
            "metric": metric,
            "form": "paper",
            "chosen": True,
            "intercept": False,
            "coefficients": {
                "tokens_out": {"value": value, "se": 0.1, "ci_low": 0, "ci_high": 1, "unit": "J"}
            },
            "n": 81,
            "is_usable": True,
            "reasons": [],
            **changes,
        }
        for name, energy, runtime in (("mistral-7b", 20.0, 0.05), ("mixtral-8x7b", 60.0, 0.1))
        for metric, value in (("energy_j", energy), ("runtime_s", runtime))
    ]
    path.write_text(json.dumps({"schema": "llmenergy.fits/1", "fits": fits}))
    return path


def test_plan_document_has_the_fields_that_must_hold(route, tmp_path):
    """Points with their proof, and the baselines of Figure 3."""
    status, out, _ = route("--zeta", "0,0.5,1", "--share", SHARES, "--json", tmp_path / "plan.json")
    assert status == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["schema"] == "llmenergy.plan/1"
    assert (plan["queries"], plan["models"]) == (200, ["llama-2-7b", "llama-2-13b", "llama-2-70b"])
    assert [point["zeta"] for point in plan["points"]] == [0.0, 0.5, 1.0]
    for point in plan["points"]:
        assert point["counts"] == {"llama-2-7b": 10, "llama-2-13b": 40, "llama-2-70b": 150}
        assert point["gap"] == 0
        assert point["objective"] == pytest.approx(point["dual_bound"])
        assert point["solve_s"] > 0
        assert 0 < point["accuracy"] < 1
    assert [b["name"] for b in plan["baselines"]] == [*plan["models"], "round-robin", "random"]
    assert "Every plan is optimal" in out
    assert "dual bound" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_energy_is_what_the_coefficients_say(route, tmp_path, workload):
    """Every query of the written plan, priced by hand, adds up to the plan's energy and accuracy."""
    _, _, _ = route("--zeta", "0.4", "--json", tmp_path / "p.json", "-o", tmp_path / "plan.csv")
    plan = pl.read_csv(tmp_path / "plan.csv")
    assert plan.select("tokens_in", "tokens_out").equals(pl.read_csv(workload))
    rates = {
        "llama-2-7b": (-0.5, 30, 0.5097),
        "llama-2-13b": (1, 55, 0.5569),
        "llama-2-70b": (2, 410, 0.6452),
    }
    energy = sum(max(0, rates[m][0] * t + rates[m][1] * n) for t, n, m in plan.rows())
    accuracy = sum(rates[m][2] * (t + n) for t, n, m in plan.rows()) / sum(t + n for t, n, _ in plan.rows())
    point = json.loads((tmp_path / "p.json").read_text())["points"][0]
    assert point["energy_j"] == pytest.approx(energy)
    assert point["accuracy"] == pytest.approx(accuracy)


def test_a_sweep_has_both_its_ends(route, tmp_path):
    """0:1:0.01 is a hundred and one points."""
    status, _, _ = route("--zeta", "0:1:0.01", "--json", tmp_path / "plan.json", "--no-baselines")
    assert status == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [p["zeta"] for p in plan["points"]] == [round(i / 100, 2) for i in range(101)]
    assert plan["baselines"] == []
    assert 0 < plan["between_points"] < 1


def test_pulp_gives_the_same_plan(route, tmp_path):
    """The reference, its program saved."""
    route("--zeta", "0.3", "--json", tmp_path / "ours.json")
    status, _, _ = route(
        "--zeta", "0.3", "--solver", "pulp", "--lp", tmp_path / "x.lp", "--json", tmp_path / "pulp.json"
    )
    assert status == 0
    ours, pulp = (json.loads((tmp_path / f"{n}.json").read_text())["points"][0] for n in ("ours", "pulp"))
    assert pulp["objective"] == pytest.approx(ours["objective"], rel=1e-9)
    assert "Binaries" in (tmp_path / "x.lp").read_text()


def test_demands_choose_zeta(route, tmp_path):
    """The least energy for an accuracy, the most accuracy for an energy."""
    status, out, _ = route("--accuracy-at-least", "0.6", "--json", tmp_path / "a.json")
    assert status == 0
    assert "just meets it" in out
    point = json.loads((tmp_path / "a.json").read_text())["points"][0]
    assert point["accuracy"] >= 0.6
    assert point["accuracy"] == pytest.approx(0.6, abs=0.002)
    _, _, _ = route("--energy-at-most", "1 kWh", "--json", tmp_path / "e.json")
    point = json.loads((tmp_path / "e.json").read_text())["points"][0]
    assert point["energy_j"] <= 3.6e6


def test_operators_constraints_are_solved_with_a_gap(route, tmp_path):
    """Capacities, hosting and windows by their options."""
    status, out, _ = route(
        "--zeta", 0.1, "--capacity-tokens", "llama-2-70b=5000", "--json", tmp_path / "c.json"
    )
    assert status == 0
    assert "of the bound that no plan can be below" in out or "optimal" in out
    status, out, _ = route(
        "--zeta",
        0.1,
        "--gpu-budget",
        8,
        "--horizon",
        2000,
        "--gpus",
        "llama-2-7b=1,llama-2-13b=1,llama-2-70b=4",
        "--json",
        tmp_path / "h.json",
    )
    assert status == 0
    hosting = json.loads((tmp_path / "h.json").read_text())["hosting"][0]
    assert sum(entry["gpus"] for entry in hosting.values()) <= 8
    assert "GPUs in use" in out
    (tmp_path / "w.csv").write_text("start_s,end_s,price_per_kwh\n0,10,0.3\n10,20,0.1\n")
    status, out, _ = route(
        "--windows", tmp_path / "w.csv", "-o", tmp_path / "plan.csv", "--json", tmp_path / "w.json"
    )
    assert status == 0
    assert set(pl.read_csv(tmp_path / "plan.csv")["window"]) == {1}
    assert "in its first window" in out


def test_held_out_and_unknown_lengths(route, tmp_path, workload):
    """Both reports stand in the document."""
    status, out, _ = route("--held-out", "--json", tmp_path / "p.json")
    assert status == 0
    assert "held out" in out
    assert json.loads((tmp_path / "p.json").read_text())["held_out"][0]["queries"] == 100
    (tmp_path / "prompts.csv").write_text(
        "tokens_in\n" + "\n".join(str(5 + i % 50) for i in range(120)) + "\n"
    )
    status, out, _ = route(
        "--lengths-from",
        workload,
        "--json",
        tmp_path / "b.json",
        "-o",
        tmp_path / "plan.csv",
        workload=tmp_path / "prompts.csv",
    )
    assert status == 0
    assert "expectations" in out
    assert pl.read_csv(tmp_path / "plan.csv")["tokens_out"].null_count() == 120


def test_a_hand_written_fits_document_is_enough(route, tmp_path):
    """Fits with the promised fields only; accuracies from Table 1; energy in all where it is known."""
    status, _, _ = route("--json", tmp_path / "p.json", fits=fit_document(tmp_path / "fits.json"))
    assert status == 0
    plan = json.loads((tmp_path / "p.json").read_text())
    assert plan["metric"] == "energy_j"
    assert plan["accuracies"] == {"mistral-7b": pytest.approx(0.6097), "mixtral-8x7b": pytest.approx(0.6847)}


def test_unusable_fits_are_refused_until_allowed(route, tmp_path):
    """With the reason they give of themselves."""
    path = fit_document(tmp_path / "fits.json", is_usable=False, reasons=["negative in 17 cells"])
    status, _, err = route(fits=path)
    assert status == 2
    assert "not usable: negative in 17 cells" in err
    assert "--allow-unusable" in err
    assert route("--allow-unusable", fits=path)[0] == 0


def test_queries_outside_the_fitted_range_are_said(route, tmp_path):
    """Counted, with their share."""
    path = fit_document(tmp_path / "fits.json", tokens_in_range=[8, 2048], tokens_out_range=[8, 2048])
    status, out, _ = route(fits=path, workload=_csv(tmp_path, "tokens_in,tokens_out,count\n7,9,1\n8,8,3\n"))
    assert status == 0
    assert "Warning: 1 query (25.0 %) outside the token counts" in " ".join(out.split())


def _csv(tmp_path, text):
    path = tmp_path / "other.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--share", "llama-2-7b=0.5,llama-2-13b=0.2,llama-2-70b=0.2"), "sum to 0.9, not 1"),
        (("--share", "llama-2-7b=1"), "nothing for llama-2-13b"),
        (("--share", "mixtral=1"), "no such model"),
        (("--zeta", "1.5"), "zeta is 1.5"),
        (("--zeta", "nan"), "zeta is nan"),
        (("--zeta", "0:1:0"), "is not ZETA"),
        (("--zeta", "much"), "is not ZETA"),
        (("--zeta", "0:inf:0.1"), "is not ZETA"),
        (("--zeta", "0:1:1e-9"), "asks for 1e+09 plans; 10000 is the most"),
        (("--capacity-tokens", "llama-2-70b=nan"), "is not MODEL=NUMBER"),
        (("--capacity-tokens", "llama-2-70b=inf"), "is not MODEL=NUMBER"),
        (("--gpus", "llama-2-70b=1.5"), "is not MODEL=WHOLE NUMBER"),
        (("--models", "mixtral"), "no fit of mixtral"),
        (("--models", "llama-2-7b"), "Add the fit of another model"),
        (("--metric", "energy_j"), "no fit of energy_j for llama-2-7b"),
        (("--accuracy", "llama-2-7b=61"), "a fraction of 1, or a percentage"),
        (("--accuracy", "gpt=0.5"), "no such model"),
        (("--accuracy-at-least", "0.7"), "the most is 0.64"),
        (
            ("--energy-at-most", "1 Wh"),
            "no plan needs as little as 1.000 Wh: within the shares the least is 1",
        ),
        (("--energy-at-most", "nan"), "an energy of nan J"),
        (("--zeta", "0.5", "--accuracy-at-least", "0.6"), "Give one"),
        (("--accuracy-at-least", "0.6", "--capacity-tokens", "llama-2-7b=5"), "cannot be combined"),
        (("--zeta", "0,1", "-o", "plan.csv"), "-o writes one plan"),
        (("--latency-at-most", "0.001"), "no model at all"),
        (("--lp", "x.lp"), "Add --solver pulp"),
        (("--confidence", "1"), "Try 0.95"),
        (("--capacity-tokens", "llama-2-70b"), "is not MODEL=NUMBER"),
        (("--min-share", "llama-2-7b=0.1", "--min-share", "llama-2-7b=0.2"), "given twice"),
        (("--gpu-budget", "4"), "how many GPUs one instance of llama-2-7b takes is not known"),
        (("--windows", "none.csv"), "there is no such file"),
    ],
)
def test_wrong_requests_end_with_one_message(route, arguments, words, monkeypatch, tmp_path):
    """Status 2, no traceback, nothing written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    status, out, err = route(*arguments)
    assert status == 2
    assert words in err
    assert "Traceback" not in err + out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tokens_in,tokens_out\n", "has no queries"),
        ("tokens_in,tokens_out\n3,nan\n", "query 1: tokens_out is nan"),
        ("tokens_in,tokens_out\n3,-4\n", "query 1: tokens_out is -4"),
    ],
)
def test_bad_workloads_end_with_one_message(route, tmp_path, text, words):
    """With the query that is wrong."""
    status, _, err = route(workload=_csv(tmp_path, text))
    assert status == 2
    assert words in err


def test_a_model_nobody_has_rated_needs_an_accuracy(route, tmp_path, fits):
    """With the option that gives it."""
    other = tmp_path / "other.csv"
    other.write_text(fits.read_text().replace("llama-2-7b", "ours-1b"))
    status, _, err = route(fits=other)
    assert status == 2
    assert "--accuracy ours-1b=0.61" in err
    assert route("--accuracy", "ours-1b=40%", fits=other)[0] == 0


def test_a_model_on_two_systems_is_two_hosts(route, tmp_path):
    """Named with their systems, with the accuracy of the model."""
    path = fit_document(tmp_path / "fits.json")
    document = json.loads(path.read_text())
    document["fits"] += [
        {**fit, "system": "other"} for fit in document["fits"] if fit["model"] == "mixtral-8x7b"
    ]
    path.write_text(json.dumps(document))
    status, _, _ = route("--json", tmp_path / "p.json", fits=path)
    assert status == 0
    assert json.loads((tmp_path / "p.json").read_text())["models"] == [
        "mistral-7b",
        "mixtral-8x7b@node",
        "mixtral-8x7b@other",
    ]


def test_the_papers_case_study_by_the_command(route, tmp_path):
    """Section 6.3 on the Alpaca-like workload of 500 queries."""
    if not WORKLOADS.is_dir():
        pytest.skip(f"the published workload is not at {WORKLOADS}")
    status, out, _ = route(
        "--zeta",
        "0,0.5,1",
        "--share",
        SHARES,
        "--json",
        tmp_path / "p.json",
        fits=WORKLOADS / "llama-2-paper-coefficients.csv",
        workload=WORKLOADS / "alpaca-like-500.csv",
    )
    assert status == 0
    points = json.loads((tmp_path / "p.json").read_text())["points"]
    assert [point["counts"]["llama-2-70b"] for point in points] == [375, 375, 375]
    assert points[1]["objective"] == pytest.approx(-36.1377791911, abs=1e-9)
    assert [round(point["accuracy"], 4) for point in points] == [0.6408, 0.5923, 0.5895]
    assert "of the GPUs" in out
