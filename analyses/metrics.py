"""How an output is judged: named metrics and one's own, in all or by the values of a label."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tasks.errors import InputError
from tasks.prompts import Prompts

Outputs = Float[Tensor, "batch pos *d_out"]
CleanOutputs = Float[Tensor, "batch pos *d_clean"]  # a predictor may leave out the axis of one that a model has
OwnMetric = Callable[[Outputs, Prompts], Float[Tensor, "batch"]]
MetricLike = Literal["loss", "accuracy", "excess_risk", "logit_diff", "prob", "kl"] | OwnMetric
SumsAndCounts = tuple[Tensor, Tensor]
"""Sum over scored positions and their number, each [batch]; an estimate is the ratio of their totals."""

# Columns of the analyses' tables: a label or a metric of one's own under such a name would overwrite them.
_COLUMNS = ("layer", "head", "component", "method", "metric", "source", "baseline", "ablated", "delta", "attribution")
_COLUMNS += ("value", "ci_low", "ci_high", "n_prompts")
_COLUMNS += ("pos", "other", "patched", "effect", "effect_low", "effect_high", "through")
_COLUMNS += tuple(f"{role}{what}" for role in ("sender", "receiver") for what in ("", "_layer", "_head"))


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric with a name; called with outputs, prompts and the clean outputs of the same prompts."""

    name: str
    measure: Callable[[Outputs, Prompts, CleanOutputs], SumsAndCounts]
    worse: Literal[1, -1] = 1
    """The sign of a change for the worse: a loss rises, an accuracy falls; one's own is taken to rise."""

    @classmethod
    def of(cls, metric: MetricLike) -> "Metric":
        """A metric by name, or from a function ``(outputs, prompts) -> [batch]`` of one's own.

        Raises:
            InputError: no metric has that name, or one's own is called like a column of the table.
        """
        if isinstance(metric, str):
            if metric not in _NAMED:
                raise InputError(f"metric = {metric!r} is unknown: choose {', '.join(_NAMED)} or give a function")
            return cls(metric, _NAMED[metric], -1 if metric in _FALLING else 1)
        if not callable(metric):
            raise InputError(f"metric = {metric!r} is neither a name nor a function (outputs, prompts) -> [batch]")
        name = getattr(metric, "__name__", "own metric")
        if name in _COLUMNS:
            raise InputError(f"the metric is called {name!r}, like a column of the table: give it another __name__")
        return cls(name, _own(metric))


def loss_unit(prompts: Prompts) -> str:
    """What the metric "loss" of these prompts is measured in, in words.

    >>> loss_unit(Prompts.from_tensors(torch.tensor([[0, 1]])))
    'nats'
    """
    return "squared units of y" if prompts.targets.is_floating_point() else "nats"


def as_metrics(metric: MetricLike | Sequence[MetricLike]) -> list[Metric]:
    """One metric or several, each once.

    Raises:
        InputError: none at all, a metric that does not exist, or two of one name.
    """
    several = metric if isinstance(metric, Sequence) and not isinstance(metric, str) else [metric]
    metrics = [Metric.of(cast(MetricLike, one)) for one in several]
    if not metrics:
        raise InputError(f"metric is empty: choose {', '.join(_NAMED)} or give a function")
    names = [one.name for one in metrics]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"two metrics are called {twice[0]!r}: name each once, and give functions a __name__ of their own"
        )
    return metrics


@dataclass(frozen=True, eq=False)
class Group:
    """The scored positions that share a value of a label (or all of them), with the value in words."""

    value: Any
    mask: Bool[Tensor, "batch pos"] | None

    def of(self, prompts: Prompts) -> Prompts:
        """The prompts, judged on this group only."""
        return prompts if self.mask is None else prompts.score_only(self.mask)


def groups(prompts: Prompts, by: str | None) -> Iterator[Group]:
    """The groups of scored positions that ``by`` makes; one group of everything if it is None.

    Raises:
        InputError: the prompts have no such label (the message lists those they have) or one called like a column,
            or nothing of them is scored.
    """
    if not prompts.scored.any():
        raise InputError(f"none of the {len(prompts)} prompts has a scored position: there is nothing to measure")
    if by is None:
        yield Group("all", None)
        return
    if not isinstance(by, str) or by not in prompts.labels:
        raise InputError(f"by = {by!r} is no label of these prompts: choose {', '.join(prompts.labels) or 'none'}")
    if by in _COLUMNS:
        raise InputError(f"by = {by!r} is also a column of the table: rename the label")
    label = prompts.labels[by]
    names = prompts.label_names.get(by, ())
    for value in label[prompts.scored].unique().tolist():
        yield Group(names[value] if 0 <= value < len(names) else value, label == value)


def _loss(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
    return prompts.loss(outputs)


def _accuracy(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
    return prompts.accuracy(outputs)


def _excess_risk(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
    return prompts.excess_risk(outputs)


def _logit_diff(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
    if prompts.wrong is None:
        raise InputError("metric = 'logit_diff' needs a wrong answer to compare with: give the prompts wrong=")
    return _summed(_picked(outputs, prompts.targets) - _picked(outputs, prompts.wrong), prompts)


def _prob(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
    return _summed(_picked(outputs.softmax(dim=-1), prompts.targets), prompts)


def _kl(outputs: Outputs, prompts: Prompts, clean: CleanOutputs) -> SumsAndCounts:
    if prompts.targets.is_floating_point():
        raise InputError("metric = 'kl' needs token targets: these prompts have real-valued ones, use 'loss'")
    log_p, log_q = clean.log_softmax(dim=-1), outputs.log_softmax(dim=-1)
    return _summed((log_p.exp() * (log_p - log_q)).sum(dim=-1), prompts)


def _own(metric: OwnMetric) -> Callable[[Outputs, Prompts, CleanOutputs], SumsAndCounts]:
    def measure(outputs: Outputs, prompts: Prompts, _clean: CleanOutputs) -> SumsAndCounts:
        values = metric(outputs, prompts)
        if not isinstance(values, Tensor) or values.shape != (len(prompts),):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"the metric returned {got}: return one value per prompt, [{len(prompts)}]")
        return values, torch.ones_like(values)

    return measure


def _picked(per_token: Float[Tensor, "batch pos vocab"], tokens: Tensor) -> Float[Tensor, "batch pos"]:
    if tokens.is_floating_point():
        raise InputError("this metric needs token targets: these prompts have real-valued ones, use 'loss'")
    return per_token.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _summed(values: Float[Tensor, "batch pos"], prompts: Prompts) -> SumsAndCounts:
    # where, not multiplication: an infinity at a position that nobody scores must not spread
    return torch.where(prompts.scored, values, 0.0).sum(dim=1), prompts.scored.sum(dim=1)


_NAMED: dict[str, Callable[[Outputs, Prompts, CleanOutputs], SumsAndCounts]] = {
    "loss": _loss,
    "accuracy": _accuracy,
    "excess_risk": _excess_risk,
    "logit_diff": _logit_diff,
    "prob": _prob,
    "kl": _kl,
}
_FALLING = ("accuracy", "logit_diff", "prob")
