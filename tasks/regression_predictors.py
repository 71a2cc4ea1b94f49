"""Reference in-context algorithms for regression: what each would predict from the context of a prompt.

All of them fit a weight vector ŵ to the pairs of the context, in float64, and predict ⟨ŵ, x⟩, [batch, pos].
Query layout: ŵ is fitted to all n pairs; the scored values are those at the queries, those at the context positions
are in-sample fits. Interleaved layout: the value at x_j comes from the pairs before it (0 where there is none), and
positions that hold a y get 0.

``Lasso`` lives in ``tasks.lasso``, the Bayes-optimal predictor in ``tasks.bayes_sparse``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError
from tasks.field_checks import check_choice, check_real, check_whole
from tasks.prompts import CLEAN_TARGET, Prompts
from tasks.regression_layout import regression_pairs

How = Literal["given", "tuned", "hindsight"]
RANK_TOLERANCE = 1e-12
"""Squared ratio of singular values of X below which a direction counts as absent: the precision of float32 inputs."""
Values = Sequence[float] | Sequence[int]
Family = TypeVar("Family", bound="TunablePredictor")


class LinearPredictor(ABC):
    """Fits ŵ to the context and predicts ⟨ŵ, x⟩; callable on prompts."""

    @abstractmethod
    def fit(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """ŵ of each prompt from its n pairs (n = 0 gives 0); float64 in, float64 out."""

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos"]:
        """Predictions at every position, float64, in units of y.

        Raises:
            InputError: the prompts are no regression prompts.
        """
        return next(_predict(prompts, lambda x, y: iter([self.fit(x, y)])))


@dataclass(frozen=True)
class LeastSquares(LinearPredictor):
    """Ordinary least squares; the solution of least norm where there are several: ŵ = X⁺ y.

    On x ~ N(0, I) and n > d + 1 its excess risk is σ² d / (n − d − 1).

    >>> from tasks.regression_layout import regression_prompts
    >>> prompts = regression_prompts(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2.0, 4.0, 0.0]]))
    >>> LeastSquares()(prompts).round(decimals=9)[:, -1]
    tensor([6.], dtype=torch.float64)
    """

    def fit(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """X⁺ y through the smaller of XᵀX and XXᵀ: one small matrix per prompt, much faster than an SVD of X."""
        wide = x.shape[1] < x.shape[2]
        inverse = torch.linalg.pinv(x @ x.mT if wide else x.mT @ x, hermitian=True, rtol=RANK_TOLERANCE)
        pseudo_inverse = x.mT @ inverse if wide else inverse @ x.mT
        w = torch.einsum("bdn,bn->bd", pseudo_inverse, y)
        # Fitting the residual once more restores the digits that squaring X has cost.
        residual = y - torch.einsum("bnd,bd->bn", x, w)
        return w + torch.einsum("bdn,bn->bd", pseudo_inverse, residual)


@dataclass(frozen=True)
class TunablePredictor(LinearPredictor):
    """A predictor with one number to choose: give it, tune it on other prompts, or pick it in hindsight."""

    parameter: ClassVar[str]
    candidates: ClassVar[Values]

    @abstractmethod
    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], values: Values
    ) -> Iterator[Float[Tensor, "batch d"]]:
        """ŵ for each value of the parameter, in the order given."""

    def fit(self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]) -> Float[Tensor, "batch d"]:
        """ŵ at this predictor's own value."""
        return next(self.path(x, y, [getattr(self, self.parameter)]))

    @classmethod
    def tuned(cls: type[Family], prompts: Prompts, values: Values | None = None, **settings) -> Family:
        """The predictor with the value that is best on ``prompts``, which must not be those it is judged on.

        Best means the least excess risk where w* is known, else the least error against the noisy targets. The
        default ``values`` are the class's ``candidates``; ``settings`` are the other fields.

        Raises:
            InputError: no value is given, or nothing is scored.
        """
        return cls._best(prompts, values, "tuned", settings)

    @classmethod
    def hindsight(cls: type[Family], prompts: Prompts, values: Values | None = None, **settings) -> Family:
        """The predictor with the value that is best on the very prompts it is judged on: a bound, no honest rival.

        Its repr says so. Arguments and errors are those of ``tuned``.
        """
        return cls._best(prompts, values, "hindsight", settings)

    @classmethod
    def _best(cls: type[Family], prompts: Prompts, values: Values | None, how: How, settings: dict) -> Family:
        values = cls.candidates if values is None else values
        if len(values) == 0 or not prompts.scored.any():
            raise InputError(
                f"cannot choose {cls.parameter} of {cls.__name__} from {len(values)} values on "
                f"{int(prompts.scored.sum())} scored positions: give at least one of each"
            )
        # Building each one checks each value, before any work.
        trials = [cls(**{cls.parameter: value}, **settings) for value in values]
        risk = prompts.excess_risk if CLEAN_TARGET in prompts.labels else prompts.loss
        totals = [
            float(risk(predictions)[0].sum())
            for predictions in _predict(prompts, lambda x, y: trials[0].path(x, y, values))
        ]
        return replace(trials[totals.index(min(totals))], chosen=how)


@dataclass(frozen=True)
class Ridge(TunablePredictor):
    """Ridge regression: ŵ minimises ‖y − X w‖² + λ ‖w‖², as scikit-learn's Ridge(alpha=λ, fit_intercept=False).

    With w* dense and Gaussian of variance τ², λ = σ² / τ² is Bayes-optimal.

    >>> Ridge(lam=4.0)
    Ridge(lam=4.0, chosen='given')
    """

    parameter: ClassVar[str] = "lam"
    candidates: ClassVar[Values] = tuple(10 ** (k / 10) for k in range(-30, 31))

    lam: float
    chosen: How = "given"

    def __post_init__(self) -> None:
        check_real("lam", self.lam)
        check_choice("chosen", self.chosen, get_args(How))

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], values: Values
    ) -> Iterator[Float[Tensor, "batch d"]]:
        """(XᵀX + λ I)⁻¹ Xᵀ y for each λ."""
        gram, moment = x.mT @ x, torch.einsum("bnd,bn->bd", x, y)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        for lam in values:
            yield torch.linalg.solve(gram + lam * identity, moment)


@dataclass(frozen=True)
class GradientDescent(TunablePredictor):
    """``steps`` steps of gradient descent from 0 on (1/2n) Σ_i (y_i − ⟨w, x_i⟩)².

    w_{t+1} = w_t + η (1/n) Σ_i (y_i − ⟨w_t, x_i⟩) x_i, where η = ``step_size``, or 1 / λ_max(XᵀX / n) of each
    prompt if it is None: a fixed model cannot follow that, so compare a construction at one fixed number.

    >>> GradientDescent(steps=10, step_size=0.1)
    GradientDescent(steps=10, step_size=0.1, chosen='given')
    """

    parameter: ClassVar[str] = "steps"
    candidates: ClassVar[Values] = range(1, 401)

    steps: int
    step_size: float | None = None
    chosen: How = "given"

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)
        if self.step_size is not None:
            check_real("step_size", self.step_size)
        check_choice("chosen", self.chosen, get_args(How))

    def weights(self, prompts: Prompts, steps: Sequence[int] | None = None) -> Float[Tensor, "t batch d"]:
        """The iterates w_t for t in ``steps`` (0 … self.steps if None), as weights on x itself: targets for probes.

        They are fitted to every pair of the context (interleaved layout: those before the last x).

        Raises:
            InputError: the steps are negative or not increasing, or the iterates diverge.

        >>> from tasks.sparse_regression import SparseRegression
        >>> GradientDescent(steps=5).weights(SparseRegression().sample(3, seed=0)).shape
        torch.Size([6, 3, 16])
        """
        x, y, _ = regression_pairs(prompts)
        steps = range(self.steps + 1) if steps is None else steps
        return torch.stack(list(self.path(x[:, : y.shape[1]].double(), y.double(), steps)))

    def preconditioner(self, correlation: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """What multiplies each feature before the descent, given Xᵀy / n: 1."""
        return torch.ones_like(correlation)

    def path(
        self, x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"], values: Values
    ) -> Iterator[Float[Tensor, "batch d"]]:
        """The iterates at the given steps."""
        steps = [int(step) for step in values]
        if not steps or steps[0] < 0 or any(later <= step for step, later in pairwise(steps)):
            raise InputError(f"steps = {steps} must be increasing and at least 0, and at least one of them")
        gram, moment = second_moments(x, y)
        scale = self.preconditioner(moment)
        gram, moment = scale[:, :, None] * gram * scale[:, None, :], scale * moment
        rate = self.step_size or 1 / torch.linalg.eigvalsh(gram)[:, -1:].clamp(min=torch.finfo(x.dtype).tiny)
        wanted = set(steps)
        w = torch.zeros_like(moment)
        for step in range(steps[-1] + 1):
            if step in wanted:
                if not torch.isfinite(w).all():
                    raise InputError(
                        f"gradient descent diverges by step {step} at step_size = {self.step_size}: "
                        "take one below 2 / λ_max of every prompt, or None for 1 / λ_max"
                    )
                yield scale * w
            w = w + rate * (moment - torch.einsum("bde,be->bd", gram, w))


@dataclass(frozen=True)
class PreprocessThenOptimize(GradientDescent):
    """Scale each feature by its correlation with y, then ``steps`` steps of gradient descent on the scaled data.

    r_j = (1/n) Σ_i x_ij y_i; x̃ = r ∘ x for context and query; gradient descent as in ``GradientDescent`` on x̃, with
    ``step_size`` or 1 / λ_max of the preprocessed problem; prediction ⟨w̃_t, x̃_q⟩ = ⟨r ∘ w̃_t, x_q⟩.

    Source: Chen, Zhao and Zou 2024, the algorithm that a multi-head first layer and single-head later layers
    implement [abs][mem].

    >>> PreprocessThenOptimize(steps=36)
    PreprocessThenOptimize(steps=36, step_size=None, chosen='given')
    """

    def preconditioner(self, correlation: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """r, the correlation of each feature with y."""
        return correlation


def second_moments(
    x: Float[Tensor, "batch n d"], y: Float[Tensor, "batch n"]
) -> tuple[Float[Tensor, "batch d d"], Float[Tensor, "batch d"]]:
    """XᵀX / n and Xᵀy / n, all that squared error knows of the context; 0 for an empty context.

    >>> second_moments(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[2.0, 2.0]]))
    (tensor([[[5.]]]), tensor([[4.]]))
    """
    n = max(x.shape[1], 1)
    return x.mT @ x / n, torch.einsum("bnd,bn->bd", x, y) / n


def _predict(
    prompts: Prompts, path: Callable[[Tensor, Tensor], Iterator[Float[Tensor, "batch d"]]]
) -> Iterator[Float[Tensor, "batch pos"]]:
    """Predictions for each ŵ along a path, with the context that each position may see."""
    x, y, layout = regression_pairs(prompts)
    x, y = x.double(), y.double()
    if layout == "query":
        for w in path(x[:, : y.shape[1]], y):
            yield torch.einsum("bnd,bd->bn", x, w)
        return
    n_pairs = x.shape[1]
    paths = [path(x[:, :n], y[:, :n]) for n in range(n_pairs)]
    for fits in zip(*paths, strict=True):
        predictions = x.new_zeros(len(prompts), 2 * n_pairs - 1)
        predictions[:, 0::2] = torch.einsum("bnd,nbd->bn", x, torch.stack(fits))
        yield predictions
