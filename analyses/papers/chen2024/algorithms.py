"""Ridge, gradient descent and preprocess-then-optimise on equal terms: each tuned on the same other prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.papers.chen2024.checkpoints import task_with
from analyses.papers.chen2024.setting import JUDGED, TEST_SEED, TUNED
from tasks import Ridge, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.regression_layout import regression_pairs
from tasks.regression_predictors import Values, second_moments

RIDGE, DESCENT, PREPROCESSED = "ridge", "gradient descent", "preprocess-then-optimise"
STEPS = tuple(sorted({round(1.13**k) for k in range(50)}))
"""1 to 399 steps, at most a seventh apart from nine on."""
CANDIDATES: dict[str, Values] = {RIDGE: Ridge.candidates, DESCENT: STEPS, PREPROCESSED: STEPS}
"""What each algorithm's one number is chosen from."""
_ROUNDING = 1e-14  # of the largest eigenvalue: below it there is no direction


class TunedRisk(NamedTuple):
    """An algorithm's excess risk with the λ or the number of steps that was best on other prompts."""

    risk: float
    chosen: float


def tuned_risks(task: SparseRegression, n_prompts: int, *, seed: int) -> dict[str, TunedRisk]:
    """The excess risk of every algorithm at the number that is best on as many other prompts.

    For x ~ N(0, I) the excess risk of ŵ is ‖ŵ − w*‖² exactly, so that no queries are drawn: ⟨ŵ − w*, x⟩² has that mean.

    Raises:
        InputError: a task whose x has another covariance.

    >>> risks = tuned_risks(SparseRegression(d=4, sparsity=1, n_context=40, weights="signs"), 200, seed=0)
    >>> sorted(risks, key=lambda name: risks[name].risk)[0]
    'preprocess-then-optimise'
    """
    if task.covariance != "identity" or task.active_dims is not None:
        raise InputError("the risk is ‖ŵ − w*‖² for x ~ N(0, I) only: give a task with covariance = 'identity'")
    to_tune, found = (
        risks_of_candidates(*problems_of(task.sample(n_prompts, seed=(TEST_SEED, purpose, seed))))
        for purpose in (TUNED, JUDGED)
    )
    risks = {}
    for name, candidates in CANDIDATES.items():
        best = int(to_tune[name].argmin())
        risks[name] = TunedRisk(float(found[name][best]), float(candidates[best]))
    return risks


def compared(
    *, seed: int, d: int, sparsities: Sequence[int], contexts: Sequence[int], noises: Sequence[float], n_prompts: int
) -> pd.DataFrame:
    """Every algorithm in every setting of one dimension: columns draw, d, s, n, noise, algorithm, risk, …"""
    rows = []
    for sparsity in sparsities:
        for n in contexts:
            for noise in noises:
                task = SparseRegression(d=d, sparsity=sparsity, n_context=n, noise=noise, weights="signs")
                facts = {"draw": seed, "d": d, "s": sparsity, "n": n, "noise": noise}
                for name, found in tuned_risks(task, n_prompts, seed=seed).items():
                    rows.append(facts | {"algorithm": name} | found._asdict())
    return pd.DataFrame(rows)


def risk_by_algorithm(*, seed: int, contexts: Sequence[int], n_prompts: int) -> pd.DataFrame:
    """Every algorithm on the task of the models, by number of pairs: columns n, algorithm, risk, chosen."""
    rows = []
    for n in contexts:
        for name, found in tuned_risks(task_with(n), n_prompts, seed=seed).items():
            rows.append({"n": n, "algorithm": name} | found._asdict())
    return pd.DataFrame(rows)


def problems_of(
    prompts: Prompts,
) -> tuple[Float[Tensor, "batch n d"], Float[Tensor, "batch n"], Float[Tensor, "batch d"]]:
    """x and y of the context, and w*, in float64."""
    x, y, _ = regression_pairs(prompts)
    return x[:, : y.shape[1]].double(), y.double(), prompts.latents["w_star"].double()


def risks_of_candidates(
    x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], w: Float[Tensor, "batch d"]
) -> dict[str, Float[Tensor, "value"]]:
    """The mean of ‖ŵ − w*‖² for every candidate of every algorithm; float64.

    What ``path`` of the predictors gives step by step, from one eigendecomposition for all: with XᵀX/n = V Λ Vᵀ and
    c = Vᵀ Xᵀy/n, ridge is V (Λ + λ/n)⁻¹ c, and t steps of descent with η = 1/λ_max are V (1 − (1 − ηΛ)ᵗ) Λ⁻¹ c.
    Preprocessed, x is R x, and what descent finds is multiplied by R.
    """
    n = x.shape[1]
    gram, moment = second_moments(x, y)
    values, vectors = torch.linalg.eigh(gram)
    lam = torch.tensor(CANDIDATES[RIDGE], dtype=x.dtype)
    steps = torch.tensor(STEPS, dtype=x.dtype)
    along = torch.einsum("bde,bd->be", vectors, moment)[..., None]
    ridge = vectors @ (along / (values.clamp(min=0)[..., None] + lam / n))
    descent = vectors @ (along * _descended(values, steps))
    preprocessed_values, preprocessed = torch.linalg.eigh(moment[:, :, None] * gram * moment[:, None, :])
    along = torch.einsum("bde,bd->be", preprocessed, moment.square())[..., None]
    then = moment[..., None] * (preprocessed @ (along * _descended(preprocessed_values, steps)))
    fitted = {RIDGE: ridge, DESCENT: descent, PREPROCESSED: then}
    return {name: (one - w[..., None]).square().sum(dim=1).mean(dim=0) for name, one in fitted.items()}


def _descended(values: Float[Tensor, "batch d"], steps: Float[Tensor, "t"]) -> Float[Tensor, "batch d t"]:
    """(1 − (1 − ηλ)ᵗ) / λ with η = 1/λ_max; ηt where λ is 0."""
    values = values.clamp(min=0)
    rate = 1 / values[:, -1:].clamp(min=torch.finfo(values.dtype).tiny)
    share = (rate * values)[..., None]
    moved = share > _ROUNDING
    of_rate = torch.where(moved, -torch.expm1(steps * torch.log1p(-share)) / torch.where(moved, share, 1.0), steps)
    return rate[..., None] * of_rate
