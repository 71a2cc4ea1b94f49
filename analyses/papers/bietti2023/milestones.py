"""When a curve has come halfway."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray


def step_of_passing(steps: Shaped[ndarray, "row"], values: Float[ndarray, "row"], mark: float) -> float:
    """The first step at which the curve, straight between its points, reaches the mark; the last step if it never does.

    So a curve that never gets there counts as if it did at the very end, which understates how late it is.

    >>> step_of_passing(np.array([0, 10, 20]), np.array([0.0, 0.2, 0.6]), 0.4)
    15.0
    """
    reached = np.flatnonzero(values >= mark)
    if len(reached) == 0:
        return float(steps[-1])
    first = int(reached[0])
    if first == 0:
        return float(steps[0])
    before, after = values[first - 1], values[first]
    return float(steps[first - 1] + (steps[first] - steps[first - 1]) * (mark - before) / (after - before))


def lower_bound(what: str, curves: Sequence[Float[ndarray, "row"]], mark: float) -> str:
    """Why a delay of these curves denies nothing, if one of them never reached the mark; empty if all did.

    >>> lower_bound("the recall", [np.array([0.0, 0.2])], 0.5)
    'the recall came to 0.5 in none of 1 seeds before training ended, so that this is a lower bound'
    """
    n_passed, n = sum(bool((curve >= mark).any()) for curve in curves), len(curves)
    passed = f"{what} came to {mark:g} in {n_passed or 'none'} of {n} seeds before training ended"
    return "" if n_passed == n else f"{passed}, so that this is a lower bound"


def log2_ratio(later: float, earlier: float) -> float:
    """How many doublings lie between two steps; both count as at least 1.

    >>> log2_ratio(40, 10), log2_ratio(8, 0)
    (2.0, 3.0)
    """
    return float(np.log2(max(later, 1.0) / max(earlier, 1.0)))
