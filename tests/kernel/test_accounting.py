"""What is added to what."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pytest_llmenergy import accounting
from pytest_llmenergy.records import DomainEnergy, Provenance

MEASURED, ESTIMATED, UNAVAILABLE = Provenance


def part(domain: str, energy_j: float | None, provenance: Provenance = MEASURED) -> DomainEnergy:
    return DomainEnergy(domain=domain, energy_j=energy_j, provenance=provenance, bound_j=0.1)


def test_one_estimated_part_makes_the_sum_estimated() -> None:
    """A sum is only as good as its worst part."""
    found = accounting.energy([part("gpu:0", 10.0), part("cpu:attributed", 1.0, ESTIMATED)])
    assert found is not None
    assert (found.energy_j, found.provenance) == (11.0, ESTIMATED)


def test_one_unknown_part_makes_the_sum_unknown() -> None:
    """Unknown is not zero."""
    found = accounting.energy([part("gpu:0", 10.0), part("gpu:1", None, UNAVAILABLE)])
    assert found is not None
    assert (found.energy_j, found.provenance) == (None, UNAVAILABLE)


def test_a_machine_without_a_gpu_has_no_gpu_energy() -> None:
    """Not zero joules: none at all, and the total is the CPU's."""
    domains = [part("cpu:package-0", 5.0), part("cpu:package-1", 6.0), part("dram:0", 1.0)]
    assert accounting.gpu_energy(domains) is None
    assert accounting.energy(domains).energy_j == 12.0


def test_cores_and_psys_are_never_added_to_the_packages_that_hold_them() -> None:
    """A joule is counted once."""
    domains = [part("cpu:package-0", 5.0), part("cpu:core-3", 1.0), part("cpu:psys", 9.0)]
    assert accounting.cpu_energy(domains).energy_j == 5.0


def test_measured_attributed_cores_are_the_cpu_energy_beside_their_package() -> None:
    """The paper's CPU energy is that of the cores the process ran on."""
    domains = [part("cpu:package-0", 50.0), part("cpu:attributed", 3.0)]
    assert accounting.cpu_energy(domains).energy_j == 3.0


def test_an_estimate_never_takes_the_place_of_a_measured_package() -> None:
    """Measured before estimated."""
    domains = [part("cpu:package-0", 50.0), part("cpu:attributed", 3.0, ESTIMATED)]
    found = accounting.cpu_energy(domains)
    assert (found.energy_j, found.provenance) == (50.0, MEASURED)


@given(
    st.lists(
        st.tuples(st.sampled_from(["gpu:0", "gpu:1", "cpu:package-0", "dram:0"]), st.floats(0, 1e6)),
        unique_by=lambda pair: pair[0],
        min_size=1,
    )
)
def test_the_order_of_domains_does_not_matter(pairs: list[tuple[str, float]]) -> None:
    """Sums are the same however the meters are listed."""
    sums = {
        round(accounting.energy([part(d, e) for d, e in order]).energy_j, 6)
        for order in itertools.permutations(pairs)
    }
    assert max(sums) - min(sums) <= 1e-5
