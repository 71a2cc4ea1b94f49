"""Linear probes as functions of numbers: fitted in closed form, their strength chosen on rows that were held out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tasks.errors import InputError

RIDGES = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for the ridge, in units of the features' mean variance; the first is as good as none in float32."""
_LEAST_RIDGE = 1e-12  # of a discriminant: a direction in which the classes differ but never vary has variance 0


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """h ↦ h W + b, and the ridge it was fitted with (in units of the features' mean variance, one per column)."""

    weight: Float[Tensor, "width k"]
    intercept: Float[Tensor, "k"]
    ridge: Float[Tensor, "k"]

    def __call__(self, features: Float[Tensor, "row width"]) -> Float[Tensor, "row k"]:
        """The probe's outputs."""
        return features @ self.weight + self.intercept


def checked_ridges(ridge: float | Sequence[float]) -> list[float]:
    """One ridge or several as a list.

    Raises:
        InputError: none, or one that is negative or not finite.

    >>> checked_ridges(0.1)
    [0.1]
    """
    ridges = [float(one) for one in (ridge if isinstance(ridge, Sequence) else [ridge])]
    if not ridges or not all(math.isfinite(one) and one >= 0 for one in ridges):
        raise InputError(f"ridge = {ridge!r} must be a finite number, at least 0, or several of them")
    return ridges


def fit_ridge(
    features: Float[Tensor, "row width"],
    targets: Float[Tensor, "row k"],
    ridges: Sequence[float],
    held_out: Bool[Tensor, "row"],
    groups: Sequence[int] | None = None,
) -> LinearProbe:
    """Ridge regression with an intercept, its strength chosen on the rows held out, then fitted to all rows.

    W, b minimise (1/rows) Σ ‖y − h W − b‖² + λ v ‖W‖², where v is the mean variance of the features: scikit-learn's
    Ridge(alpha = λ v · rows). The λ with the least squared error on ``held_out`` wins, the largest of equals.
    ``groups`` holds the number of columns that choose together (default: all). With a single ridge nothing is chosen.

    Source: ridge regression through the eigenvectors of the covariance, Hastie, Tibshirani and Friedman (2009), The
    Elements of Statistical Learning, section 3.4.1 (from memory).

    >>> h = torch.arange(4.0, dtype=torch.float64)[:, None]
    >>> probe = fit_ridge(h, 2 * h + 1, [0.0], torch.zeros(4, dtype=torch.bool))
    >>> probe.weight.round(decimals=9), probe.intercept.round(decimals=9)
    (tensor([[2.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    columns = [targets.shape[1]] if groups is None else list(groups)
    ascending = sorted(ridges)
    chosen = torch.zeros(len(columns), dtype=torch.int64)
    if len(ascending) > 1:
        kept = ~held_out
        trials = _ridge_path(features[kept], targets[kept], ascending)
        errors = torch.stack([(trial(features[held_out]) - targets[held_out]).square().sum(dim=0) for trial in trials])
        by_group = torch.stack([part.sum(dim=1) for part in errors.split(columns, dim=1)])
        chosen = _last_best(by_group)
    of_column = chosen.repeat_interleave(torch.tensor(columns))
    fits = _ridge_path(features, targets, ascending)
    column = torch.arange(targets.shape[1])
    return LinearProbe(
        weight=torch.stack([fit.weight for fit in fits])[of_column, :, column].T,
        intercept=torch.stack([fit.intercept for fit in fits])[of_column, column],
        ridge=torch.tensor(ascending, dtype=targets.dtype)[of_column],
    )


def fit_discriminant(
    features: Float[Tensor, "row width"],
    classes: Int[Tensor, "row"],
    n_classes: int,
    ridges: Sequence[float],
    held_out: Bool[Tensor, "row"],
) -> LinearProbe:
    """Linear discriminant analysis: its outputs are the classes' log-probabilities, up to a constant per row.

    δ_c(h) = hᵀ Σ⁻¹ μ_c − ½ μ_cᵀ Σ⁻¹ μ_c + log π_c with the covariance within classes Σ + λ v I, where v is the
    features' mean variance. It is linear, has a closed form, and does not miss a class whose mean lies between two
    others, as least squares on one-hot targets does. The λ with the most rows of ``held_out`` right wins, the largest
    of equals. A class without rows is never predicted.

    Source: Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, sections 4.2 (the masked
    class) and 4.3 (from memory).

    >>> h = torch.tensor([[0.0], [0.1], [1.0], [1.1], [2.0], [2.1]], dtype=torch.float64)
    >>> classes = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> fit_discriminant(h, classes, 3, [1e-3], torch.zeros(6, dtype=torch.bool))(h).argmax(dim=1)
    tensor([0, 0, 1, 1, 2, 2])
    """
    ascending = sorted(ridges)
    best = 0
    if len(ascending) > 1:
        trials = _discriminants(features[~held_out], classes[~held_out], n_classes, ascending)
        right = [(trial(features[held_out]).argmax(dim=1) == classes[held_out]).sum() for trial in trials]
        best = int(_last_best(-torch.stack(right)[None])[0])
    return _discriminants(features, classes, n_classes, [ascending[best]])[0]


def _last_best(losses: Float[Tensor, "group ridge"] | Int[Tensor, "group ridge"]) -> Int[Tensor, "group"]:
    """The last of the smallest losses: among equals the strongest ridge."""
    return losses.shape[1] - 1 - losses.flip(dims=(1,)).argmin(dim=1)


def _ridge_path(
    features: Float[Tensor, "row width"], targets: Float[Tensor, "row k"], ridges: Sequence[float]
) -> list[LinearProbe]:
    """The fit for each ridge, all from one eigendecomposition."""
    at, level = features.mean(dim=0), targets.mean(dim=0)
    centred = features - at
    variance, direction = _principal(centred)
    moment = direction.T @ (centred.T @ (targets - level)) / len(features)
    # directions that only rounding spans carry nothing: with ridge 0 this is the pseudo-inverse
    spanned = variance > variance[-1] * len(variance) * torch.finfo(variance.dtype).eps
    probes = []
    for ridge in ridges:
        gain = torch.where(spanned, 1 / (variance + ridge * variance.mean()), 0.0)
        weight = direction @ (gain[:, None] * moment)
        probes.append(LinearProbe(weight, level - at @ weight, torch.full_like(level, ridge)))
    return probes


def _discriminants(
    features: Float[Tensor, "row width"], classes: Int[Tensor, "row"], n_classes: int, ridges: Sequence[float]
) -> list[LinearProbe]:
    count = torch.bincount(classes, minlength=n_classes).to(features.dtype)
    sums = torch.zeros(n_classes, features.shape[1], dtype=features.dtype).index_add(0, classes, features)
    means = sums / count.clamp(min=1)[:, None]
    variance, direction = _principal(features - means[classes])
    scale = features.var(dim=0, correction=0).mean().clamp(min=torch.finfo(features.dtype).tiny)
    turned = means @ direction
    probes = []
    for ridge in ridges:
        weight = turned / (variance.clamp(min=0) + max(ridge, _LEAST_RIDGE) * scale)
        intercept = (count / count.sum()).log() - (weight * turned).sum(dim=1) / 2
        probes.append(LinearProbe((weight @ direction.T).T, intercept, torch.full_like(count, ridge)))
    return probes


def _principal(centred: Float[Tensor, "row width"]) -> tuple[Float[Tensor, "width"], Float[Tensor, "width width"]]:
    """Variances in ascending order, and their directions as columns."""
    return torch.linalg.eigh(centred.T @ centred / len(centred))


def auc_by_prompt(
    scores: Float[Tensor, "row k"], truth: Bool[Tensor, "row k"], prompt: Int[Tensor, "row"], n_prompts: int
) -> Float[Tensor, "prompt"]:
    """The area under the ROC curve as a mean over prompts, so that an interval over prompts can be drawn.

    AUC = P(a true entry scores higher than a false one), ties counting half, over all pairs of entries. It is no mean
    over prompts, but its first-order change with the weight of each prompt is: the values are AUC + n · influence of
    the prompt, and their mean is the AUC itself. Entries of one prompt may depend on each other.

    Raises:
        InputError: all entries are true, or none is.

    Source: DeLong, DeLong and Clarke-Pearson (1988), clustered as by Obuchowski (1997) (from memory).

    >>> scores, truth = torch.tensor([[0.9, 0.1], [0.8, 0.7]]), torch.tensor([[True, False], [False, True]])
    >>> auc_by_prompt(scores, truth, torch.tensor([0, 1]), 2).mean()
    tensor(0.7500, dtype=torch.float64)
    """
    owner = prompt[:, None].expand(truth.shape)
    true, false = scores[truth].double(), scores[~truth].double()
    if not len(true) or not len(false):
        raise InputError(f"a yes-or-no target is {bool(len(true))} everywhere: there is nothing to tell apart")
    above = _share_below(true, false)
    below = 1 - _share_below(false, true)
    auc = above.mean()
    values = torch.full((n_prompts,), float(auc), dtype=torch.float64)
    values.index_add_(0, owner[truth], (above - auc) * (n_prompts / len(true)))
    return values.index_add(0, owner[~truth], (below - auc) * (n_prompts / len(false)))


def _share_below(values: Float[Tensor, "value"], others: Float[Tensor, "other"]) -> Float[Tensor, "value"]:
    """For each value the share of the others that lie below it, ties counting half."""
    ordered = others.sort().values
    strictly, with_ties = (torch.searchsorted(ordered, values, right=side) for side in (False, True))
    return (strictly + with_ties).double() / (2 * len(others))
