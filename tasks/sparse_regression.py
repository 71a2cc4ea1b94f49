"""In-context sparse linear regression: y = ⟨w*, x⟩ + noise, where w* has few non-zero entries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tasks.errors import InputError
from tasks.field_checks import check_choice, check_real, check_whole
from tasks.prompts import Prompts, Seed
from tasks.regression_layout import Layout, regression_pairs, regression_prompts

LARGEST = 1e15
"""Of scales and table entries: squares and their sums still fit single precision."""
# One stream of random numbers per purpose, so that equal seeds never make x and a new w* dependent.
_SAMPLE, _COUNTERFACTUAL, _FRAME = range(3)


@dataclass(frozen=True)
class SparseRegression:
    """Prompts of ``n_context`` pairs y = ⟨w*, x⟩ + noise · N(0, 1) and a query x, with w* drawn per prompt.

    w* has ``sparsity`` non-zero entries on a uniformly drawn support: ``weight_scale`` · N(0, 1) each
    (``weights="gaussian"``) or ± ``weight_scale`` / √sparsity (``"signs"``); x ~ N(0, Σ). Prompts carry w* in
    ``latents["w_star"]`` [batch, d] and its support in ``latents["support"]``; labels and layouts are those of
    ``regression_prompts``. The query's target is noisy as well: ``prompts.excess_risk`` judges without that noise.

    Attributes:
        d: number of features; a position is d + 1 numbers wide (``d_in``).
        covariance: Σ: "identity"; "power", diagonal with Σ_jj = j^-``covariance_exponent`` (j = 1 … d); or a
            symmetric positive definite matrix as a tuple of row tuples.
        n_queries: queries per prompt, each a question of its own about the same context (query layout only). More of
            them teach a model more per prompt; it needs ``attention_dir="query_masked"`` with the same number.
        n_context_min: if given, every batch draws its own number of pairs uniformly from n_context_min … n_context.
        active_dims: if given, only the first so many features are non-zero, in x as in w*.
        curriculum_steps: if given, ``at_step`` grows the problem to full size over so many steps, from
            ``curriculum_dims`` active features and ``curriculum_context`` pairs (either may stay None: no growth).

    Raises:
        InputError: a field is out of its range, or depends on another that is missing.

    Source: Chen, Zhao and Zou 2024, experiments; the defaults d = 16 and sparsity = 4 are [mem, weak], the others
    are ours. Curriculum and interleaved layout: Garg et al. 2022 [code].

    >>> task = SparseRegression(d=3, sparsity=1, n_context=5)
    >>> prompts = task.sample(2, seed=0)
    >>> prompts.inputs.shape, (prompts.latents["w_star"] != 0).sum(dim=1)
    (torch.Size([2, 6, 4]), tensor([1, 1]))
    """

    name: ClassVar[str] = "sparse-regression"
    d_out: ClassVar[int] = 1

    d: int = 16
    sparsity: int = 4
    n_context: int = 32
    noise: float = 0.5
    weights: Literal["gaussian", "signs"] = "gaussian"
    weight_scale: float = 1.0
    covariance: Literal["identity", "power"] | tuple[tuple[float, ...], ...] = "identity"
    covariance_exponent: float | None = None
    layout: Layout = "query"
    n_queries: int = 1
    n_context_min: int | None = None
    active_dims: int | None = None
    curriculum_steps: int | None = None
    curriculum_dims: int | None = None
    curriculum_context: int | None = None

    def __post_init__(self) -> None:
        check_whole("d", self.d, 1)
        check_whole("active_dims", self.active_dims, 1, self.d, optional=True)
        check_whole("sparsity", self.sparsity, 1, self.dims)
        check_whole("n_context", self.n_context, 1)
        check_whole("n_queries", self.n_queries, 1)
        check_whole("n_context_min", self.n_context_min, 1, self.n_context, optional=True)
        check_real("noise", self.noise, zero_allowed=True)
        check_real("weight_scale", self.weight_scale)
        for name in ("noise", "weight_scale"):
            if getattr(self, name) > LARGEST:
                raise InputError(f"{name} = {getattr(self, name)} leaves single precision: take at most {LARGEST:g}")
        check_choice("weights", self.weights, ("gaussian", "signs"))
        check_choice("layout", self.layout, ("query", "interleaved"))
        if self.n_queries > 1 and self.layout != "query":
            raise InputError(f"n_queries = {self.n_queries} needs layout = 'query': interleaved asks at every x")
        self._check_covariance()
        self._check_curriculum()

    @property
    def n_ctx(self) -> int:
        """Positions of the longest prompt."""
        return self.n_context + self.n_queries if self.layout == "query" else 2 * self.n_context + 1

    @property
    def d_vocab(self) -> None:
        """None: the inputs are real vectors."""
        return None

    @property
    def d_in(self) -> int:
        """Numbers per position: the features of x, then y."""
        return self.d + 1

    @property
    def dims(self) -> int:
        """Features that are not held at zero."""
        return self.d if self.active_dims is None else self.active_dims

    def sample(self, n: int, *, seed: Seed) -> Prompts:
        """Draw n prompts; the same seed gives the same prompts.

        Shapes: inputs [n, pos, d + 1], targets and scored [n, pos], where pos is ``n_ctx`` or, with
        ``n_context_min``, what this batch drew.

        Raises:
            InputError: n is below 1, or the seed is no non-negative integer (or tuple of them).

        >>> SparseRegression().sample(4, seed=1).targets.shape
        torch.Size([4, 33])
        """
        check_whole("n", n, 1)
        rng = _generator(seed, _SAMPLE)
        n_context = self.n_context
        if self.n_context_min is not None:
            n_context = int(rng.integers(self.n_context_min, self.n_context, endpoint=True))
        # One draw for x and the noise: nearly all the time goes into these numbers.
        draws = rng.standard_normal((n, n_context + self.n_queries, self.d + 1), dtype=np.float32)
        x = self._with_covariance(draws[..., : self.d])
        w_star = self._draw_weights(rng, n)
        clean = np.matmul(x, w_star[..., None])[..., 0]
        y = clean + np.float32(self.noise) * draws[..., self.d]
        return regression_prompts(
            torch.from_numpy(x),
            torch.from_numpy(y),
            layout=self.layout,
            n_queries=self.n_queries,
            clean=torch.from_numpy(clean),
            latents=_latents(torch.from_numpy(w_star)),
            seed=seed,
        )

    def counterfactual(self, prompts: Prompts, *, seed: Seed) -> Prompts:
        """The same x and the same noise with another w* of this task: aligned position by position, for patching.

        Raises:
            InputError: the prompts carry no w*, or differ from the task in d or layout.

        >>> task = SparseRegression(d=3, sparsity=1, n_context=5)
        >>> prompts = task.sample(2, seed=0)
        >>> other = task.counterfactual(prompts, seed=1)
        >>> torch.equal(other.inputs[..., :3], prompts.inputs[..., :3]), torch.equal(other.targets, prompts.targets)
        (True, False)
        """
        if "w_star" not in prompts.latents or "clean_target" not in prompts.labels:
            raise InputError("counterfactual needs prompts whose w* is known: make them with SparseRegression.sample")
        x, y, layout = regression_pairs(prompts)
        if (x.shape[-1], layout) != (self.d, self.layout):
            raise InputError(
                f"the prompts have d = {x.shape[-1]}, layout = {layout!r} but the task has d = {self.d}, "
                f"layout = {self.layout!r}: use the task that made them"
            )
        w_star = self._draw_other_weights(prompts.latents["w_star"].numpy(force=True), seed).to(x.device)
        pair = prompts.labels["position"] if layout == "query" else prompts.labels["position"] // 2
        clean = torch.einsum("bnd,bd->bn", x, w_star).gather(1, pair)
        noise = prompts.targets - prompts.labels["clean_target"]
        targets = clean + noise
        inputs = prompts.inputs.clone()
        if layout == "query":
            inputs[:, : y.shape[1], -1] = targets[:, : y.shape[1]]
        else:
            inputs[:, 1::2, -1] = targets[:, 1::2]
        return replace(
            prompts,
            inputs=inputs,
            targets=targets,
            labels={**prompts.labels, "clean_target": clean},
            latents={**prompts.latents, **_latents(w_star)},
            counterfactual=None,
            seed=seed,
        )

    def from_frame(self, frame: pd.DataFrame, target: str, n: int, *, seed: Seed) -> Prompts:
        """Draw n prompts of this task's shape whose rows come from a real table, in place of drawn x, w* and noise.

        Every column but ``target`` is a feature, in the table's order. All columns are standardised over the whole
        table (mean 0, population standard deviation 1), so units are standard deviations. The rows of a prompt are
        drawn without replacement; different prompts may share rows. w* is unknown: there is no ``clean_target``.

        Raises:
            InputError: the target is no column, the features are not d in number, the rows fewer than
                n_context + n_queries, or a column is constant, not numeric, or holds NaN or infinity.

        >>> frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "price": [3.0, 5.0, 4.0]})
        >>> SparseRegression(d=1, sparsity=1, n_context=2).from_frame(frame, "price", 4, seed=0).inputs.shape
        torch.Size([4, 3, 2])
        """
        check_whole("n", n, 1)
        x, y = self._standardised(frame, target)
        rng = _generator(seed, _FRAME)
        rows = np.stack([rng.choice(len(y), self.n_context + self.n_queries, replace=False) for _ in range(n)])
        x_rows, y_rows = torch.from_numpy(x[rows]), torch.from_numpy(y[rows])
        return regression_prompts(x_rows, y_rows, layout=self.layout, n_queries=self.n_queries, seed=seed)

    def at_step(self, step: int) -> "SparseRegression":
        """The task as the curriculum has it at a training step; without a curriculum, or after it, the full task.

        Active features and pairs grow linearly from their start to their full number, rounded down.

        Raises:
            InputError: the step is negative.

        >>> task = SparseRegression(d=16, n_context=32, curriculum_steps=100, curriculum_dims=4)
        >>> [task.at_step(step).dims for step in (0, 50, 100)]
        [4, 10, 16]
        """
        check_whole("step", step, 0)
        if self.curriculum_steps is None:
            return self

        def grown(start: int | None, full: int) -> int:
            return full if start is None else start + (full - start) * min(step, total) // total

        total = self.curriculum_steps
        n_context = grown(self.curriculum_context, self.n_context)
        return replace(
            self,
            n_context=n_context,
            n_context_min=None if self.n_context_min is None else min(self.n_context_min, n_context),
            active_dims=grown(self.curriculum_dims, self.dims),
            curriculum_steps=None,
            curriculum_dims=None,
            curriculum_context=None,
        )

    def config(self) -> dict[str, Any]:
        """Every field as JSON values.

        >>> SparseRegression.from_config(SparseRegression(d=8).config(), {}) == SparseRegression(d=8)
        True
        """
        config = asdict(self)
        if not isinstance(self.covariance, str):
            config["covariance"] = [list(row) for row in self.covariance]
        return config

    def files(self) -> Mapping[str, bytes]:
        """Nothing: the fields say all."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> "SparseRegression":
        """The task that ``config`` describes.

        Raises:
            InputError: an unknown key or file, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(config) - set(known)):
            raise InputError(f"sparse-regression has no field {unknown[0]!r}: its fields are {', '.join(known)}")
        if files:
            raise InputError(f"sparse-regression has no use for the file {min(files)!r}: remove it")
        values = dict(config)
        if isinstance(values.get("covariance"), list | tuple):
            values["covariance"] = tuple(tuple(row) if isinstance(row, list) else row for row in values["covariance"])
        return cls(**values)

    def _draw_weights(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """w* [n, d], float32. The smallest of iid uniforms sit on a uniformly distributed support, exactly."""
        support = rng.random((n, self.dims)).argpartition(self.sparsity - 1, axis=1)[:, : self.sparsity]
        if self.weights == "gaussian":
            values = rng.standard_normal(support.shape, dtype=np.float32)
        else:
            values = (2 * rng.integers(0, 2, support.shape) - 1) / np.sqrt(self.sparsity)
        w_star = np.zeros((n, self.d), dtype=np.float32)
        np.put_along_axis(w_star, support, (self.weight_scale * values).astype(np.float32), axis=1)
        return w_star

    def _draw_other_weights(self, w_star: np.ndarray, seed: Seed) -> Float[Tensor, "batch d"]:
        """New w* for every prompt, none of them the old one (signs on a small d would repeat it by chance)."""
        rng = _generator(seed, _COUNTERFACTUAL)
        other = self._draw_weights(rng, len(w_star))
        while (same := (other == w_star).all(axis=1)).any():
            other[same] = self._draw_weights(rng, int(same.sum()))
        return torch.from_numpy(other)

    def _with_covariance(self, z: np.ndarray) -> np.ndarray:
        """x ~ N(0, Σ) from z ~ N(0, I), with the inactive features at zero."""
        if self.covariance == "power":
            assert self.covariance_exponent is not None
            z = z * np.arange(1, self.d + 1, dtype=np.float32) ** (-self.covariance_exponent / 2)
        elif self.covariance != "identity":
            z = z @ np.linalg.cholesky(np.array(self.covariance)).T.astype(np.float32)
        if self.dims < self.d:
            z = np.where(np.arange(self.d) < self.dims, z, np.float32(0))
        return z

    def _standardised(self, frame: pd.DataFrame, target: str) -> tuple[np.ndarray, np.ndarray]:
        if target not in frame.columns:
            raise InputError(f"target = {target!r} is no column: the table has {', '.join(map(str, frame.columns))}")
        features = [column for column in frame.columns if column != target]
        if len(features) != self.d:
            raise InputError(f"the table has {len(features)} features beside {target!r} but the task has d = {self.d}")
        needed = self.n_context + self.n_queries
        if len(frame) < needed:
            raise InputError(f"the table has {len(frame)} rows: a prompt needs n_context + n_queries = {needed}")
        if not frame.columns.is_unique:
            raise InputError("two columns of the table share a name: rename one")
        for column in frame.columns:
            if not pd.api.types.is_numeric_dtype(frame[column]):
                raise InputError(f"column {column!r} is {frame[column].dtype}, not numeric: encode or drop it")
            values = frame[column].to_numpy(float)
            if not np.isfinite(values).all():
                raise InputError(f"column {column!r} holds NaN or infinity: drop or fill those rows")
            if np.abs(values).max() > LARGEST:
                raise InputError(f"column {column!r} holds values beyond {LARGEST:g}: rescale it")
            if np.ptp(values) == 0:
                raise InputError(f"column {column!r} is constant and cannot be standardised: drop it")
        table = frame.astype(float)
        table = ((table - table.mean()) / table.std(ddof=0)).astype(np.float32)
        return table[features].to_numpy(), table[target].to_numpy()

    def _check_covariance(self) -> None:
        if isinstance(self.covariance, str):
            check_choice("covariance", self.covariance, ("identity", "power"))
        elif not _is_covariance(self.covariance, self.d):
            raise InputError(
                "covariance is neither 'identity' nor 'power' nor "
                f"a symmetric positive definite {self.d} × {self.d} matrix as a tuple of row tuples"
            )
        if (self.covariance == "power") != (self.covariance_exponent is not None):
            raise InputError(
                f"covariance_exponent = {self.covariance_exponent} with covariance = {str(self.covariance)[:20]!r}: "
                "give the exponent with covariance = 'power', and only there"
            )
        if self.covariance_exponent is not None:
            check_real("covariance_exponent", self.covariance_exponent, zero_allowed=True)

    def _check_curriculum(self) -> None:
        starts = (self.curriculum_dims, self.curriculum_context)
        if (self.curriculum_steps is None) != (starts == (None, None)):
            raise InputError(
                f"curriculum_steps = {self.curriculum_steps} with curriculum_dims, curriculum_context = {starts}: "
                "a curriculum needs its steps and at least one start value"
            )
        check_whole("curriculum_steps", self.curriculum_steps, 1, optional=True)
        check_whole("curriculum_dims", self.curriculum_dims, self.sparsity, self.dims, optional=True)
        check_whole("curriculum_context", self.curriculum_context, 1, self.n_context, optional=True)


def _is_covariance(value: object, d: int) -> bool:
    if not isinstance(value, tuple) or not all(isinstance(row, tuple) for row in value):
        return False
    try:
        matrix = np.array(value, dtype=float)
        np.linalg.cholesky(matrix)  # which reads the lower triangle only, so symmetry is a check of its own
    except (TypeError, ValueError, np.linalg.LinAlgError):
        return False
    return matrix.shape == (d, d) and np.array_equal(matrix, matrix.T)


def _latents(w_star: Float[Tensor, "batch d"]) -> dict[str, Tensor]:
    return {"w_star": w_star, "support": w_star != 0}


def _generator(seed: Seed, purpose: int) -> np.random.Generator:
    parts = seed if isinstance(seed, tuple) else (seed,)
    if not parts or not all(isinstance(part, int) and part >= 0 for part in parts):
        raise InputError(f"seed = {seed!r} is no seed: give a non-negative integer, or a tuple of them")
    return np.random.default_rng(np.random.SeedSequence(parts, spawn_key=(purpose,)))
