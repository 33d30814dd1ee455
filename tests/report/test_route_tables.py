"""A plan as people read it."""

import pytest

from pytest_llmenergy.report.route_tables import render_plan


def document(**changes):
    """Ten queries, two models, one point."""
    return {
        "queries": 10,
        "classes": 4,
        "models": ["small", "large"],
        "accuracies": {"small": 0.5, "large": 0.65},
        "metric": "gpu_energy_j",
        "queries_outside_fitted_range": 0,
        "pairs_of_negative_energy": 0,
        "confidence": 0.95,
        "fits": [{"model": "small", "batch_size": 1, "kv_cache": None, "provenance": None}],
        "points": [point()],
        "baselines": [],
        **changes,
    }


def point(**changes):
    return {
        "zeta": 0.5,
        "objective": -3.25,
        "dual_bound": -3.25,
        "gap": 0.0,
        "energy_j": 7_200.0,
        "runtime_s": 25.0,
        "accuracy": 0.61,
        "counts": {"small": 4, "large": 6},
        "energy_low_j": None,
        "energy_high_j": None,
        "coin_toss_queries": None,
        "coin_toss_energy_j": None,
        "coin_toss_between": None,
        "energy_bound_j": None,
        "accuracy_bound": None,
        **changes,
    }


def rows(lines, title):
    """The cells of the table under a title."""
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    found = []
    for line in lines[start + 4 :]:
        if not line.strip():
            break
        found.append(line.split())
    return found


def test_a_plan_reads_in_units_of_a_query_and_of_the_bill():
    """25 s over ten queries, 7,200 J, four of ten queries."""
    lines = render_plan(document())
    assert rows(lines, "Plans") == [["0.5", "2.00", "Wh", "2.5", "0.6100", "-3.2500", "-3.2500", "0"]]
    assert rows(lines, "Queries by model")[0] == ["small", "4", "40.0", "%", "50.00", "%"]
    assert lines[0] == "10 queries, 4 different; 2 models; energy of the GPUs."
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("gap", "told"), [(-1.9e-16, "0"), (2.4e-3, "2.4e-03"), (3.3e-10, "3.3e-10")])
def test_a_gap_is_0_where_only_floats_differ(gap, told):
    """And said as it is where it is one."""
    assert rows(render_plan(document(points=[point(gap=gap)])), "Plans")[0][-1] == told


def test_one_query_is_not_plural():
    """In the head, in the warnings, in the coin toss."""
    pair = {"models": ("small", "large"), "queries": 1, "tokens_in": (5, 5), "tokens_out": (7, 7)}
    unsure = point(
        energy_low_j=1.0,
        energy_high_j=2.0,
        coin_toss_queries=1,
        coin_toss_energy_j=1.0,
        coin_toss_between=[pair],
    )
    lines = render_plan(
        document(queries=1, queries_outside_fitted_range=1, pairs_of_negative_energy=1, points=[unsure])
    )
    text = " ".join(" ".join(lines).split())
    assert "1 query, " in text
    assert "1 query (100.0 %) outside" in text
    assert "1 prediction of" in text
    assert "small or large: 1 query of 5 tokens in, 7 out." in text
    assert "1 queries" not in text


@pytest.mark.parametrize(
    ("saving", "told"), [(0.4567, ["45.7", "%"]), (-0.0001, ["0.0", "%"]), (None, ["-"])]
)
def test_what_is_saved_against_a_baseline(saving, told):
    """Rounded, without a minus before nothing; a dash where there is nothing to compare."""
    baseline = {
        "name": "random",
        "energy_j": 3_600.0,
        "runtime_s": 20.0,
        "accuracy": 0.55,
        "saving_at_equal_accuracy": saving,
    }
    lines = render_plan(document(baselines=[baseline]))
    assert rows(lines, "Without looking")[0] == ["random", "1.00", "Wh", "2", "0.5500", *told]


def test_queries_by_window_are_those_of_all_models():
    """And the price beside what it would be at once."""
    lines = render_plan(
        document(
            windows={"start_s": [0, 10], "end_s": [10, 20], "price_per_kwh": [0.3, 0.1]},
            window_plans=[
                {
                    "zeta": 0.5,
                    "cost": 1.5,
                    "cost_without_waiting": 4.5,
                    "cost_of_best_without_waiting": None,
                    "counts": {"small": [1, 3], "large": [2, 4]},
                }
            ],
        )
    )
    assert rows(lines, "Queries by window") == [["0", "10", "0.3", "3"], ["10", "20", "0.1", "7"]]
    assert "1.5; with every query at the same model in its first window: 4.5." in lines
    assert "The best plan that lets no query wait: does not fit." in lines


def test_the_half_held_out_is_compared_without_a_minus_before_nothing():
    """Both signs, and none that rounds away."""
    half = {"energy_j": 3_600.0, "runtime_s": 1.0, "accuracy": 0.6, "counts": {}}
    result = {"zeta": 0.5, "queries": 5, "routed": half, "optimum": half}
    lines = render_plan(document(held_out=[{**result, "energy_change": -1e-9, "accuracy_change": -0.0012}]))
    assert rows(lines, "The half held out")[0][4:] == ["+0.000", "%", "0.6000", "-0.120", "%"]


def test_a_demand_that_is_just_met_reads_in_wh():
    """As it was asked for."""
    lines = render_plan(document(points=[point(energy_bound_j=7_199.0)]))
    text = " ".join(lines)
    assert "needs less than 1.9997222 Wh (this one: 2.0000000 Wh)" in " ".join(text.split())


def test_fits_that_are_not_of_one_kind_are_told():
    """What a query is differs with the batch, and what it costs with the cache."""
    small = {"model": "small", "batch_size": 32, "kv_cache": False, "provenance": None}
    alike = render_plan(document(fits=[small, {**small, "model": "large"}]))
    assert not any("different" in line for line in alike[1:])
    other = {"model": "large", "batch_size": None, "kv_cache": True, "provenance": None}
    text = " ".join(" ".join(render_plan(document(fits=[small, other]))).split())
    assert "Where a fit does not say its batch, a query is taken for a whole call." in text
    assert "Warning: the fits are of different batch sizes." in text
    assert "Warning: the fits are of different generation modes" in text
