"""The Bayes-optimal predictor of sparse regression: the posterior mean of w*, by enumerating every support."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tasks.errors import InputError
from tasks.regression_predictors import LinearPredictor
from tasks.sparse_regression import SparseRegression

MAX_HYPOTHESES = 100_000
"""Most supports (times sign patterns) that are enumerated per prompt: a bound on time, not on exactness."""
NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class BayesSparse(LinearPredictor):
    """E[w* | context] under the task's own prior: no predictor has a lower excess risk on that task's prompts.

    Gaussian weights of variance τ², per support S with A_S = X_SᵀX_S + (σ²/τ²) I and b_S = X_Sᵀ y:
    log p(y | S) = ½ b_SᵀA_S⁻¹b_S / σ² − ½ log det A_S + const, E[w_S | S] = A_S⁻¹ b_S. Signs: every w of the prior is
    one hypothesis, log p(y | w) = (bᵀw − ½ wᵀXᵀX w) / σ² + const. Exact, since x does not depend on w*.

    Raises:
        InputError: the task has no noise (the posterior is then degenerate), or more than 100,000 hypotheses.

    >>> BayesSparse(SparseRegression(d=8, sparsity=2)).n_hypotheses
    28
    """

    task: SparseRegression

    def __post_init__(self) -> None:
        if self.task.noise == 0:
            raise InputError("noise = 0 leaves BayesSparse no likelihood to weigh supports by: take noise above 0")
        if self.n_hypotheses > MAX_HYPOTHESES:
            raise InputError(
                f"BayesSparse would enumerate {self.n_hypotheses} hypotheses for d = {self.task.dims}, sparsity = "
                f"{self.task.sparsity}, weights = {self.task.weights!r}: the limit is {MAX_HYPOTHESES}, "
                "take a smaller d or sparsity"
            )

    @property
    def n_hypotheses(self) -> int:
        """C(d, s) supports, times 2^s sign patterns for signs."""
        supports = math.comb(self.task.dims, self.task.sparsity)
        return supports * 2**self.task.sparsity if self.task.weights == "signs" else supports

    def fit(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """The posterior mean."""
        if x.shape[-1] != self.task.d:
            raise InputError(f"the prompts have d = {x.shape[-1]} but BayesSparse's task has d = {self.task.d}")
        gram, moment = x.mT @ x, torch.einsum("bnd,bn->bd", x, y)
        supports = list(itertools.combinations(range(self.task.dims), self.task.sparsity))
        posterior_mean = self._from_signs if self.task.weights == "signs" else self._from_gaussians
        return posterior_mean(gram, moment, torch.tensor(supports, device=x.device))

    def _from_gaussians(
        self, gram: Float[Tensor, "batch d d"], moment: Float[Tensor, "batch d"], supports: Int[Tensor, "support s"]
    ) -> Float[Tensor, "batch d"]:
        variance = self.task.noise**2
        prior = (
            variance / self.task.weight_scale**2 * torch.eye(supports.shape[1], dtype=gram.dtype, device=gram.device)
        )
        means = []
        for rows in _slices(len(gram), numbers_each=supports.shape[0] * supports.shape[1] ** 2):
            G, b = gram[rows], moment[rows]
            factor = torch.linalg.cholesky(G[:, supports[:, :, None], supports[:, None, :]] + prior)
            b_S = b[:, supports]
            w_S = torch.cholesky_solve(b_S[..., None], factor)[..., 0]
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
            belief = ((b_S * w_S).sum(dim=-1) / (2 * variance) - log_det / 2).softmax(dim=1)
            mean = torch.zeros_like(b)
            mean.index_add_(1, supports.flatten(), (belief[..., None] * w_S).flatten(start_dim=1))
            means.append(mean)
        return torch.cat(means)

    def _from_signs(
        self, gram: Float[Tensor, "batch d d"], moment: Float[Tensor, "batch d"], supports: Int[Tensor, "support s"]
    ) -> Float[Tensor, "batch d"]:
        s = supports.shape[1]
        size = self.task.weight_scale / math.sqrt(s)
        patterns = size * torch.tensor(list(itertools.product([-1, 1], repeat=s)), dtype=gram.dtype, device=gram.device)
        means = []
        for rows in _slices(len(gram), numbers_each=supports.shape[0] * (len(patterns) + s**2)):
            G, b = gram[rows], moment[rows]
            linear = b[:, supports] @ patterns.T
            products = (patterns[:, :, None] * patterns[:, None, :]).flatten(start_dim=1)
            square = G[:, supports[:, :, None], supports[:, None, :]].flatten(start_dim=2) @ products.T
            belief = ((linear - square / 2) / self.task.noise**2).flatten(start_dim=1).softmax(dim=1)
            w_S = belief.unflatten(1, (len(supports), len(patterns))) @ patterns
            mean = torch.zeros_like(b)
            mean.index_add_(1, supports.flatten(), w_S.flatten(start_dim=1))
            means.append(mean)
        return torch.cat(means)


def _slices(n_prompts: int, *, numbers_each: int) -> Iterator[slice]:
    """Prompts in groups small enough for memory."""
    size = max(1, NUMBERS_AT_ONCE // numbers_each)
    return (slice(first, first + size) for first in range(0, n_prompts, size))
