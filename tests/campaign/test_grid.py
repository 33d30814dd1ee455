"""Which cells, in which order."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy.campaign.grid import GRIDS, Place, open_grid, shuffled
from pytest_llmenergy.errors import RequestError


def test_the_papers_grids_are_the_papers() -> None:
    """Sections 5.1.1, 5.1.2 and 6.1: 8 to 2048 in, 8 to 4096 out, 81 cells in the grid."""
    assert GRIDS["paper-input"].input.points[0] == (8, 32)
    assert GRIDS["paper-input"].input.points[-1] == (2048, 32)
    assert GRIDS["paper-output"].output.points[-1] == (32, 4096)
    assert len(GRIDS["paper-grid"].grid.points) == 81


def test_given_axes_replace_the_grids() -> None:
    """--llm-energy-tokens-in and -out override."""
    grid = open_grid("paper-grid", tokens_in=(5,), tokens_out=(6, 7))
    assert grid.grid.points == [(5, 6), (5, 7)]
    assert grid.input is None


def test_a_grid_file_is_read(tmp_path: Path) -> None:
    """A table a sweep."""
    path = tmp_path / "mine.toml"
    path.write_text("[output]\ntokens_in = [4]\ntokens_out = [1, 2]\n")
    assert open_grid(str(path)).output.points == [(4, 1), (4, 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[output]\ntokens_in = [4]\n", "missing required field `tokens_out`"),
        ("[outputs]\n", "unknown field `outputs`"),
        ("[grid]\ntokens_in = [0]\ntokens_out = [1]\n", "token counts of at least 1"),
        ("[grid]\ntokens_in = []\ntokens_out = [1]\n", "token counts of at least 1"),
        ("", "has no sweep"),
        ("[grid", "is not a grid"),
    ],
)
def test_a_wrong_grid_file_is_one_clear_message(tmp_path: Path, content: str, message: str) -> None:
    """Whatever is wrong, the message names the file or the field."""
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(RequestError, match=message):
        open_grid(str(path))


@pytest.mark.parametrize("name", ["huge", "none.toml"])
def test_an_unknown_grid_is_refused(name: str) -> None:
    """A name that is neither a grid nor a file."""
    with pytest.raises(RequestError, match=r"unknown grid|cannot be read"):
        open_grid(name)


PLACES = st.builds(Place, st.sampled_from(["a", "b", "c"]), st.integers(1, 9), st.integers(1, 9))


@given(st.lists(PLACES), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_depends_on_the_set_of_cells_and_the_seed_alone(
    places: list[Place], seed: int, random: object
) -> None:
    """So a resumed campaign, or one collected in another order, goes on in the same order."""
    again = list(places)
    random.shuffle(again)
    ordered = shuffled(places, seed=seed, models=["b"])
    assert ordered == shuffled(again, seed=seed, models=["b"])
    assert sorted(ordered, key=repr) == sorted(set(places), key=repr)


@given(st.lists(PLACES), st.integers(0, 5))
def test_a_models_cells_stand_together(places: list[Place], seed: int) -> None:
    """Each model is loaded once."""
    models = [place.model for place in shuffled(places, seed=seed, models=["c", "a", "b"])]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes == max(0, len(set(models)) - 1)
    assert list(dict.fromkeys(models)) == [m for m in "cab" if m in models]


def test_the_seed_changes_the_order() -> None:
    """Two seeds, two orders; and neither is the ascending one."""
    places = [Place("m", t_in, t_out) for t_in in range(1, 5) for t_out in range(1, 5)]
    one, other = (shuffled(places, seed=seed, models=[]) for seed in (0, 1))
    assert one != other
    assert one != places
