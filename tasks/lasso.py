"""The lasso as an in-context algorithm: all prompts of a batch solved at once, each to its optimality conditions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError
from tasks.field_checks import check_choice, check_real
from tasks.regression_predictors import How, TunablePredictor, Values, second_moments

SWEEPS_PER_ROUND = 3
MAX_ROUNDS = 500
DAMPING = 1e-13
TOLERANCE = 1e-10
"""Largest violation of the optimality conditions, relative to max_j |Xᵀy|_j / n."""


@dataclass(frozen=True)
class Lasso(TunablePredictor):
    """ŵ minimises (1/2n) ‖y − X w‖² + λ ‖w‖₁, as scikit-learn's Lasso(alpha=λ, fit_intercept=False).

    Solved to the optimality (KKT) conditions of every prompt: with g = Xᵀ(y − Xŵ)/n, g_j = λ sign(ŵ_j) where
    ŵ_j ≠ 0 and |g_j| ≤ λ elsewhere, to 1e-10 of max |Xᵀy|/n.

    Calling it raises InputError if a prompt is not solved within 500 rounds (λ is then vanishingly small).

    >>> Lasso(lam=0.1)
    Lasso(lam=0.1, chosen='given')
    """

    parameter: ClassVar[str] = "lam"
    candidates: ClassVar[Values] = tuple(10 ** (k / 10) for k in range(-40, 1))

    lam: float
    chosen: How = "given"

    def __post_init__(self) -> None:
        check_real("lam", self.lam)
        check_choice("chosen", self.chosen, get_args(How))

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], values: Values
    ) -> Iterator[Float[Tensor, "batch d"]]:
        """The solution for each λ, each started from the one before."""
        gram, moment = second_moments(x, y)
        w = torch.zeros_like(moment)
        for lam in values:
            w = solve_lasso(gram, moment, lam, start=w)
            yield w


def solve_lasso(
    gram: Float[Tensor, "batch d d"], moment: Float[Tensor, "batch d"], lam: float, *, start: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch d"]:
    """argmin ½ wᵀ G w − bᵀ w + λ ‖w‖₁ for each problem of the batch (G = XᵀX/n, b = Xᵀy/n).

    Rounds of coordinate descent, which brings weights in, each followed by Newton steps on the support found, which
    take weights out and reach full precision once it is right. Solved problems leave the batch.

    Raises:
        InputError: a problem is not solved within ``MAX_ROUNDS`` rounds.

    >>> b = torch.tensor([[2.0, 0.5]])
    >>> solve_lasso(torch.eye(2)[None], b, 1.0, start=torch.zeros(1, 2))
    tensor([[1., 0.]])
    """
    solution = start.clone()
    todo = torch.arange(len(moment), device=moment.device)
    for _ in range(MAX_ROUNDS):
        G, b = gram[todo], moment[todo]
        w = _descend_on_support(G, b, lam, _coordinate_descent(G, b, lam, solution[todo]))
        solution[todo] = w
        todo = todo[kkt_violation(G, b, lam, w) > TOLERANCE * b.abs().amax(dim=1)]
        if len(todo) == 0:
            return solution
    raise InputError(
        f"lasso at lam = {lam} is unsolved for {len(todo)} prompts after {MAX_ROUNDS} rounds: "
        "take a larger lam, or LeastSquares for none"
    )


def kkt_violation(
    gram: Float[Tensor, "batch d d"], moment: Float[Tensor, "batch d"], lam: float, w: Float[Tensor, "batch d"]
) -> Float[Tensor, "batch"]:
    """How far each w is from optimal: the largest violation of the lasso's KKT conditions, in units of λ.

    >>> kkt_violation(torch.eye(1)[None], torch.tensor([[2.0]]), 1.0, torch.tensor([[0.5]]))
    tensor([0.5000])
    """
    gradient = moment - torch.einsum("bde,be->bd", gram, w)
    at_zero = (gradient.abs() - lam).clamp(min=0)
    return torch.where(w == 0, at_zero, (gradient - lam * w.sign()).abs()).amax(dim=1)


def _coordinate_descent(gram: Tensor, moment: Tensor, lam: float, w: Tensor) -> Tensor:
    w = w.clone()
    curvature = gram.diagonal(dim1=1, dim2=2)
    for _ in range(SWEEPS_PER_ROUND):
        for j in range(w.shape[1]):
            pull = moment[:, j] - (gram[:, j] * w).sum(dim=1) + curvature[:, j] * w[:, j]
            shrunk = pull.sign() * (pull.abs() - lam).clamp(min=0)
            # A feature that is always 0 in the context has no curvature, no pull, and weight 0.
            w[:, j] = torch.where(curvature[:, j] > 0, shrunk / curvature[:, j], 0)
    return w


def _descend_on_support(gram: Tensor, moment: Tensor, lam: float, w: Tensor) -> Tensor:
    """Newton steps towards the w with these signs whose gradient is λ sign(w); a weight that reaches 0 stays there.

    Where the signs are fixed the objective is quadratic, so each step lowers it, and one that meets no zero ends at
    the minimum. Coordinate descent alone takes tens of thousands of sweeps where n is close to d and λ is small.
    """
    identity = torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    # Keeps a support larger than n, whose equations are singular, on a descent direction.
    damped = gram + DAMPING * gram.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None] * identity
    w = w.clone()
    going = torch.arange(len(w), device=w.device)
    for _ in range(w.shape[1]):
        here = w[going]
        support = here != 0
        on_both = support[:, :, None] & support[:, None, :]
        gap = moment[going] - torch.einsum("bde,be->bd", gram[going], here) - lam * here.sign()
        step = torch.linalg.solve(torch.where(on_both, damped[going], identity), torch.where(support, gap, 0))
        to_zero = torch.where(here * step < 0, -here / step, torch.inf)
        length = to_zero.amin(dim=1, keepdim=True).clamp(max=1)
        w[going] = torch.where(to_zero <= length, 0, here + length * step)
        going = going[length[:, 0] < 1]
        if len(going) == 0:
            break
    return w
