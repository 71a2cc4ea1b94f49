"""How much of what can be gained over a reference algorithm the model gains: the share of the gap to Bayes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from analyses.algorithm_distance import MODEL, PredictorLike, named_sets, predictors_for
from analyses.argument_checks import check_seed
from analyses.batches import batches
from analyses.comparison import check_shape
from analyses.layer_figures import layer_lines
from analyses.metrics import Metric
from analyses.result import Result
from interp.model_adapter import HookedModel, outputs, refuse_other
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import CLEAN_TARGET, Prompts
from tasks.protocol import Predictor


@dataclass(frozen=True, eq=False)
class GapClosed(Result):
    """The share of the gap between each reference and the Bayes predictor that the model closes.

    Columns: prompts (the name of the set), reference, metric, share, ci_low, ci_high, gap (risk of the reference less
    that of Bayes), gap_low, gap_high, model_risk, reference_risk, bayes_risk, n_prompts. A share of 0 is no
    better than the reference, 1 as good as can be; it is missing where the gap's interval reaches 0.
    """

    value_column = "share"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "gap_closed"

    def plot(self) -> go.Figure:
        """Share of the gap by set of prompts, one symbol per reference."""
        rows = self.frame.rename(columns={"share": "value"}).assign(panel="share of the gap closed")
        return layer_lines(rows, series="reference", x="prompts", panels="panel", title=self.title, joined=False)


def gap_closed(
    model: HookedModel,
    prompts: Prompts | Mapping[str, Prompts],
    predictors: Mapping[str, PredictorLike],
    *,
    bayes: str,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> GapClosed:
    """What share of the way from each reference algorithm to the best possible does the model go?

    share = (risk_reference − risk_model) / (risk_reference − risk_Bayes): a ratio of sums over the same prompts, whose
    interval resamples them for all three at once. The risk is the excess risk where w* is known, else the loss.

    Args:
        prompts: prompts, or several sets by name (other noise, other lengths of context …).
        predictors: the references and the Bayes predictor by name; one that must differ between sets, as the Bayes
            predictor where the noise does, is a mapping from set to predictor.
        bayes: which of the predictors is the best possible.

    Raises:
        InputError: ``bayes`` is none of the predictors or the only one, one lacks a set of prompts, outputs of another
            shape than the model's.

    >>> from interp.constructions.regression import gradient_descent_transformer
    >>> from tasks import BayesSparse, GradientDescent, SparseRegression
    >>> task = SparseRegression(d=4, sparsity=1, n_context=20)
    >>> model = gradient_descent_transformer(d=4, n_ctx=21, steps=3, step_size=0.1)
    >>> predictors = {"3 steps": GradientDescent(3, step_size=0.1), "Bayes": BayesSparse(task)}
    >>> closed = gap_closed(model, task.sample(50, seed=0), predictors, bayes="Bayes")
    >>> abs(round(closed.frame["share"].item(), 5))
    0.0
    """
    refuse_other(model)
    check_seed(seed)
    if bayes not in predictors:
        raise InputError(f"bayes = {bayes!r} is none of the predictors: choose {', '.join(predictors) or 'none'}")
    if len(predictors) < 2:
        raise InputError(f"predictors holds {bayes!r} alone: name at least one reference beside it")
    rows: list[dict[str, Any]] = []
    sets = named_sets(prompts)
    for set_name, part in sets.items():
        metric = "excess_risk" if CLEAN_TARGET in part.labels else "loss"
        risks, counts = _risks(model, part, predictors_for(set_name, predictors), Metric.of(metric), batch_size)
        own, best = risks.pop(MODEL), risks.pop(bayes)
        names = list(risks)
        reference = np.stack(list(risks.values()), axis=1)
        gap = reference - best[:, None]
        count = np.repeat(counts[:, None], len(names), axis=1)
        closed = ratio_interval(reference - own[:, None], gap, confidence=confidence, seed=seed)
        width = ratio_interval(gap, count, confidence=confidence, seed=seed)
        for k, name in enumerate(names):
            exists = width.low[k] > 0  # the ratio of something to nothing has no interval
            row: dict[str, Any] = {"prompts": set_name, "reference": name, "metric": metric}
            share = (closed.estimate[k], closed.low[k], closed.high[k]) if exists else (np.nan,) * 3
            row |= dict(zip(("share", "ci_low", "ci_high"), share, strict=True))
            row |= {"gap": width.estimate[k], "gap_low": width.low[k], "gap_high": width.high[k]}
            row |= {"model_risk": own.sum() / counts.sum(), "reference_risk": reference[:, k].sum() / counts.sum()}
            rows.append(row | {"bayes_risk": best.sum() / counts.sum(), "n_prompts": int((counts > 0).sum())})
    frame = pd.DataFrame(rows)
    settings = {"bayes": bayes, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": {name: len(part) for name, part in sets.items()}}
    settings |= {"prompts_seed": {name: part.seed for name, part in sets.items()}}
    return GapClosed(frame, f"Share of the gap to {bayes} that the model closes", settings, _notes(frame, bayes))


def _risks(
    model: HookedModel, prompts: Prompts, predictors: Mapping[str, Predictor], metric: Metric, batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each source's risk summed over the scored positions of every prompt, and their number."""
    sums: dict[str, list[np.ndarray]] = {source: [] for source in (MODEL, *predictors)}
    for rows in batches(prompts, batch_size):
        batch = prompts[rows]
        with torch.no_grad():
            of_model = outputs(model, batch.inputs)
            every = {MODEL: of_model} | {name: predict(batch) for name, predict in predictors.items()}
        for source, output in every.items():
            check_shape(source, output, of_model)
            sums[source].append(metric.measure(output, batch, of_model)[0].double().numpy(force=True))
    counts = prompts.scored.sum(dim=1).double().numpy(force=True)
    return {source: np.concatenate(parts) for source, parts in sums.items()}, counts


def _notes(frame: pd.DataFrame, bayes: str) -> tuple[str, ...]:
    return tuple(
        f"on {row['prompts']} {row['reference']} is not distinguishably worse than {bayes}: there is no gap to close"
        for row in frame.loc[frame["share"].isna()].to_dict("records")
    )
