"""What every method of attribution hands over: a share of the metric per prompt and component."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from numpy import ndarray

from analyses.metrics import Group
from analyses.result import frame_of_rows
from interp.statistics import Interval, ratio_interval

Component = tuple[str, int | None, int | None]
"""Name, layer and head; layer and head are missing where there is none."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """Sums per prompt, whose ratio to the counts is the attribution; a part is a group of scored positions."""

    components: Sequence[Component]
    sums: Float[ndarray, "prompt component part"]
    counts: Shaped[ndarray, "prompt part"]
    sampling_half_widths: Float[ndarray, "component part"] | None = None
    """Half the width of the interval that chance in the method alone gives (permutations drawn), if it has any."""

    def interval(self, *, confidence: float, seed: int) -> Interval:
        """Attributions [component, part] with bootstrap intervals over prompts.

        Chance in the method is independent of the prompts, so that the two widths add as the sides of a right
        triangle: half² = half_prompts² + half_method².
        """
        n_prompts, n_components, n_parts = self.sums.shape
        found = ratio_interval(
            self.sums.reshape(n_prompts, -1), np.tile(self.counts, (1, n_components)), confidence=confidence, seed=seed
        )
        estimate, low, high = (one.reshape(n_components, n_parts) for one in (found.estimate, found.low, found.high))
        if self.sampling_half_widths is not None:
            low = estimate - np.hypot(estimate - low, self.sampling_half_widths)
            high = estimate + np.hypot(high - estimate, self.sampling_half_widths)
        return Interval(estimate, low, high)

    def frame(
        self, parts: Sequence[Group], *, method: str, metric: str, by: str | None, confidence: float, seed: int
    ) -> pd.DataFrame:
        """One row per component and part."""
        interval = self.interval(confidence=confidence, seed=seed)
        n_prompts = (self.counts > 0).sum(axis=0).tolist()
        rows: list[dict[str, Any]] = []
        for index, (component, layer, head) in enumerate(self.components):
            for j, part in enumerate(parts):
                row: dict[str, Any] = {"layer": layer, "head": head, "component": component, "method": method}
                row |= {"metric": metric} | ({} if by is None else {by: part.value})
                row |= {"attribution": interval.estimate[index, j]}
                row |= {"ci_low": interval.low[index, j], "ci_high": interval.high[index, j]}
                rows.append(row | {"n_prompts": n_prompts[j]})
        return frame_of_rows(rows)
