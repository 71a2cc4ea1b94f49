"""Effects split by whether a coordinate is in a prompt's support, with a permutation test."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.statistics import percentile_ends, resampled_ratios


def split_by_support(
    effects: Float[ndarray, "prompt head"],
    counts: Float[ndarray, "prompt 1"],
    support: Bool[ndarray, "prompt d"],
    *,
    n_permutations: int,
    confidence: float,
    seed: int,
) -> dict[str, ndarray]:
    """Each head's effect on prompts with a coordinate in their support, and on the others, as columns [head, d].

    delta_in, delta_out: Σ effects / Σ counts over either part; contrast: delta_in − delta_out, with the ends of its
    bootstrap interval (contrast_ci_low, contrast_ci_high; missing below 2 prompts in either part) and p_value, the rank
    of |contrast| among ``n_permutations`` with the supports dealt out anew and itself; n_in, n_out: prompts.

    >>> effects, support = np.array([[3.0], [3.0], [1.0], [1.0]]), np.array([[True], [True], [False], [False]])
    >>> split = split_by_support(effects, np.ones((4, 1)), support, n_permutations=99, confidence=0.95, seed=0)
    >>> split["contrast"], split["n_in"]
    (array([[2.]]), array([[2]]))
    """
    inside, outside = support.astype(float), (~support).astype(float)
    n_in, n_out = ((part * (counts > 0)).sum(axis=0).astype(int) for part in (inside, outside))
    shape = (effects.shape[1], support.shape[1])

    def of_both(sums: ndarray, totals: ndarray) -> ndarray:
        """[…, 2 · head · d] as the effect inside and outside, [2, …, head, d]."""
        with np.errstate(invalid="ignore"):
            return np.moveaxis((sums / totals).reshape(*sums.shape[:-1], 2, *shape), -3, 0)

    def products(part: ndarray) -> ndarray:
        return (effects[:, :, None] * part[:, None, :]).reshape(len(effects), -1)

    sums = np.concatenate([products(inside), products(outside)], axis=1)
    totals = np.concatenate([np.tile(counts * part, shape[0]) for part in (inside, outside)], axis=1)
    delta_in, delta_out = of_both(sums.sum(axis=0), totals.sum(axis=0))
    resampled = of_both(resampled_ratios(sums, totals, seed=seed), np.array(1.0))
    contrasts = resampled[0] - resampled[1]
    ends = np.full((2, *shape), np.nan)
    for j in np.flatnonzero((n_in > 1) & (n_out > 1)):
        ends[:, :, j] = percentile_ends(contrasts[:, :, j], int(min(n_in[j], n_out[j])), confidence=confidence)
    contrast = delta_in - delta_out
    columns = {"delta_in": delta_in, "delta_out": delta_out, "contrast": contrast}
    columns |= {"contrast_ci_low": ends[0], "contrast_ci_high": ends[1]}
    columns["p_value"] = _p_values(effects, counts, inside, contrast, n_permutations, seed)
    return columns | {name: np.tile(n, (shape[0], 1)) for name, n in (("n_in", n_in), ("n_out", n_out))}


def _p_values(
    effects: Float[ndarray, "prompt head"],
    counts: Float[ndarray, "prompt 1"],
    inside: Float[ndarray, "prompt d"],
    contrast: Float[ndarray, "head d"],
    n_permutations: int,
    seed: int,
) -> Float[ndarray, "head d"]:
    """Rank of |contrast| among those with the supports dealt out anew, the measured one included."""
    rng = np.random.default_rng(seed)
    total, n = effects.sum(axis=0)[:, None], counts.sum()
    # ties are ties in spite of rounding: an idle head's contrasts are all 0, and its p-value 1
    threshold = np.abs(contrast) * (1 - 1e-9)
    at_least = np.ones_like(contrast)
    for _ in range(n_permutations):
        dealt = inside[rng.permutation(len(inside))]
        sum_in, n_in = effects.T @ dealt, counts.T @ dealt
        with np.errstate(invalid="ignore", divide="ignore"):
            at_least += np.abs(sum_in / n_in - (total - sum_in) / (n - n_in)) >= threshold
    return np.where(np.isnan(contrast), np.nan, at_least / (1 + n_permutations))
