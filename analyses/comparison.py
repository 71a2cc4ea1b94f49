"""How the model does beside reference algorithms, and which of them it acts like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.batches import batches
from analyses.figures import grouped_bars
from analyses.metrics import CleanOutputs, Metric, MetricLike, Outputs, SumsAndCounts, as_metrics, groups, loss_unit
from analyses.result import Result, notes_on_intervals
from interp.model_adapter import HookedModel, outputs, refuse_other
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Predictor


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """The model and predictors on the same prompts.

    Columns: source ("model" or the predictor's name), metric, the label split by (if any), value, ci_low, ci_high,
    n_prompts. The metric "distance" is the mean distance from the model's outputs: total variation between the
    distributions of the next token (0 to 1), or the squared difference of predictions; 0 for the model itself.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "predictors"

    def plot(self) -> go.Figure:
        """Every source's value with its interval, one panel per metric."""
        return grouped_bars(
            self.frame, title=self.title, by=self.settings.get("by"), loss_unit=self.settings["loss_unit"]
        )


def compare_predictors(
    model: HookedModel,
    prompts: Prompts,
    predictors: Mapping[str, Predictor],
    *,
    metric: MetricLike | Sequence[MetricLike] = "loss",
    by: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> Comparison:
    """How well the model and each predictor do on the same prompts, and how far each is from the model.

    Raises:
        InputError: a predictor called "model", or outputs of another shape than the model's.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> uniform = compare_predictors(model, prompts, {"uniform": lambda prompts: torch.zeros(len(prompts), 6, 5)})
    >>> uniform.frame[uniform.frame["source"] == "uniform"]["value"].round(2).tolist()[0]
    1.61
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if "model" in predictors:
        raise InputError("a predictor is called 'model', which names the model itself: call it something else")
    metrics, parts = as_metrics(metric), list(groups(prompts, by))
    sources = ["model", *predictors]
    measured: dict[str, list[tuple[Tensor, Tensor]]] = {source: [] for source in sources}
    for rows in batches(prompts, batch_size):
        batch = prompts[rows]
        with torch.no_grad():
            of_model = outputs(model, batch.inputs)
            outputs_of = {"model": of_model} | {name: predict(batch) for name, predict in predictors.items()}
        scored = [part.of(prompts).scored[rows] for part in parts]
        for source in sources:
            check_shape(source, outputs_of[source], of_model)
            every = [*metrics, Metric("distance", output_distance)]
            sums = [
                one.measure(outputs_of[source], batch.score_only(mask), of_model) for one in every for mask in scored
            ]
            measured[source].append(
                (torch.stack([s.double() for s, _ in sums], 1), torch.stack([c.double() for _, c in sums], 1))
            )
    kinds = [(name, part.value) for name in [*(one.name for one in metrics), "distance"] for part in parts]
    table: list[dict[str, Any]] = []
    for source in sources:
        sums, counts = (torch.cat(part).cpu().numpy() for part in zip(*measured[source], strict=True))
        interval = ratio_interval(sums, counts, confidence=confidence, seed=seed)
        for k, (name, value) in enumerate(kinds):
            row: dict[str, Any] = {"source": source, "metric": name} | ({} if by is None else {by: value})
            row |= {"value": interval.estimate[k], "ci_low": interval.low[k], "ci_high": interval.high[k]}
            table.append(row | {"n_prompts": int((counts[:, k] > 0).sum())})
    frame = pd.DataFrame(table)
    settings = {"by": by, "confidence": confidence, "seed": seed, "n_prompts": len(prompts)}
    settings |= {"prompts_seed": prompts.seed, "loss_unit": loss_unit(prompts)}
    return Comparison(frame, "The model beside reference predictors", settings, notes_on_intervals(frame))


def check_shape(source: str, outputs: Tensor, of_model: Tensor) -> None:
    """Raise InputError if a predictor's outputs have another shape than the model's."""
    if outputs.squeeze(-1).shape != of_model.squeeze(-1).shape:
        raise InputError(
            f"predictor {source!r} returned {list(outputs.shape)}, the model {list(of_model.shape)}: "
            "a predictor outputs what the model would"
        )


def output_distance(outputs: Outputs, prompts: Prompts, of_model: CleanOutputs) -> SumsAndCounts:
    """The distance of two outputs, summed over scored positions, and their number, per prompt.

    The squared difference of predictions, or the total variation ½ Σ_v |p_v − q_v| of next-token distributions.

    >>> prompts = Prompts.from_tensors(torch.ones(1, 2, 3), torch.zeros(1, 2))
    >>> output_distance(torch.tensor([[1.0, 2.0]]), prompts, torch.tensor([[1.0, 5.0]]))
    (tensor([9.]), tensor([2]))
    """
    if prompts.targets.is_floating_point():
        apart = (outputs.squeeze(-1) - of_model.squeeze(-1)).square()
    else:
        apart = (outputs.softmax(-1) - of_model.softmax(-1)).abs().sum(-1) / 2
    return torch.where(prompts.scored, apart, 0.0).sum(dim=1), prompts.scored.sum(dim=1)
