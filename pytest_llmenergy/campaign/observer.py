"""Whoever wants to show how a campaign goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_llmenergy.campaign.grid import Place
    from pytest_llmenergy.campaign.trials import Trials
    from pytest_llmenergy.records import CellRecord, Trial


class Observer(Protocol):
    """Whoever wants to show progress."""

    def loading(self, model: str) -> None:
        """A model is being loaded."""
        ...

    def begins(self, place: Place) -> None:
        """A cell is about to be measured."""
        ...

    def trial(self, trials: Trials, trial: Trial) -> None:
        """A trial is done."""
        ...

    def ends(self, place: Place, record: CellRecord) -> None:
        """A cell has been measured."""
        ...

    def notice(self, text: str) -> None:
        """Something a person should know, which stops nothing."""
        ...


class Silent:
    """Shows nothing."""

    def loading(self, model: str) -> None:
        """Say nothing."""

    def begins(self, place: Place) -> None:
        """Say nothing."""

    def trial(self, trials: Trials, trial: Trial) -> None:
        """Say nothing."""

    def ends(self, place: Place, record: CellRecord) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """Say nothing."""
