"""Where an interrupt may end a campaign: in the work it measures, never in the bookkeeping around it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Interrupts:
    """Ctrl-C, or a batch system's time limit.

    A `KeyboardInterrupt` at any line may leave a lock taken, or a trial measured but not noted. So it is
    raised at once in the work, and otherwise as the work is next taken up.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._is_allowed = False

    def ask(self) -> None:
        """End what runs; whoever asks twice is not kept waiting.

        Raises:
            KeyboardInterrupt: it may end here.
        """
        again, self.is_asked = self.is_asked, True
        if self._is_allowed or again:
            raise KeyboardInterrupt

    def hear(self) -> None:
        """Take it that who asked has been heard: asking again is a new wish."""
        self.is_asked = False

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Work, which an interrupt ends at once.

        Raises:
            KeyboardInterrupt: somebody has asked before.
        """
        before = self._is_allowed
        try:
            self._is_allowed = True
            if self.is_asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_allowed = before

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Bookkeeping, which is done first.

        Raises:
            KeyboardInterrupt: somebody asked meanwhile, of a caller who may be interrupted.
        """
        before, self._is_allowed = self._is_allowed, False
        try:
            yield
        finally:
            self._is_allowed = before
        if self.is_asked and before:
            raise KeyboardInterrupt
