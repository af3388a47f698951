"""How a list is made beyond the plain case: what a request, or the arm of an experiment, may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from afterclick.api import Policy, SamplingPolicy


@dataclass(frozen=True)
class Options:
    """What makes a list; the defaults change nothing."""

    policy: Policy = Policy.BLEND
    explore: float = 0.0
    """The probability that a place of the list explores."""
    draw: SamplingPolicy = SamplingPolicy.UNIFORM
    diversity: float = 0.0
    """0 to 1: what an item loses for being like one above it, in ranges of the scores."""
    weights: tuple[tuple[str, float], ...] = ()
    """What parts of the score are multiplied by."""
    model: str | None = None
    """The version of the model that makes it; the one that serves by default."""

    @cached_property
    def label(self) -> str:
        """The policy as impressions name it, as in `blend explore=0.1/uniform`."""
        words = [str(self.policy)]
        if self.explore:
            words.append(f"explore={self.explore:g}/{self.draw}")
        if self.diversity:
            words.append(f"diversity={self.diversity:g}")
        if self.model:
            words.append(f"model={self.model}")
        words += [f"{part}*{weight:g}" for part, weight in self.weights]
        return " ".join(words)


PLAIN = Options()


@dataclass(frozen=True)
class Page:
    """Which stretch of the list."""

    offset: int = 0
    """Places that are left out."""
    shown: tuple[str, ...] = ()
    """Items of the pages before, as the cursor names them."""
    follow: bool = False
    """Whether the answer is to have the cursor of the next page."""

    @property
    def start(self) -> int:
        """The first place of this page, from 0."""
        return self.offset + len(self.shown)


FIRST_PAGE = Page()
