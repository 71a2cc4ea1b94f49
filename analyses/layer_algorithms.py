"""Which algorithm each layer's prediction acts like, and after how many steps: the model read out layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.algorithm_distance import AlgorithmDistances, measure_distances, predictors_for, tidy
from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.linear_probe import RIDGES, LinearProbe, checked_ridges, fit_ridge
from analyses.probe_features import (
    features_at,
    held_out_rows,
    positions_read,
    prompt_of_rows,
    residual_sites,
)
from analyses.probe_targets import answer_of
from analyses.result import notes_on_intervals
from analyses.separate_prompts import refuse_same_prompts
from interp.interventions import Intervention, Replace, intervene
from interp.model_adapter import HookedModel, Inputs, activations, outputs_from, refuse_other
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Predictor

UNEMBEDDING, PROBE = "unembedding", "probe"


def measure_layer_distances(
    model: HookedModel,
    prompts: Prompts,
    predictors: Mapping[str, Predictor],
    *,
    fit_prompts: Prompts | None = None,
    ridge: float | Sequence[float] = RIDGES,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> AlgorithmDistances:
    """Which algorithm does each layer's prediction lie closest to, and after how many of its steps?

    A layer's prediction is read in two ways: by the model's own unembedding (and final LayerNorm), applied to the
    residual stream after the layer in place of the last; and, with ``fit_prompts``, by a linear probe for the answer
    that is fitted on those prompts. The first asks what the model would say if it stopped there, the second what could
    be said. A probe scales an unfinished answer up, so it need not lie at any step of an algorithm: which step a layer
    holds, whatever the scale, is what ``probe_layers`` with the steps as targets finds out.

    Rows have the columns layer, component, reading ("unembedding" or "probe") in place of source; the others are those
    of ``AlgorithmDistances``. Steps of descent are algorithms of their own:
    ``{f"t = {t}": GradientDescent(t, step_size=0.1) for t in range(9)}``; the target as a "predictor" gives the risk.

    Raises:
        InputError: no predictor, outputs of another shape than the model's; fitting prompts that are the prompts or
            share their seed, or have tokens for targets.

    Source: the unembedding of early layers: nostalgebraist (2020), the logit lens (from memory).

    >>> from interp.constructions.regression import gradient_descent_transformer
    >>> from tasks import GradientDescent, SparseRegression
    >>> prompts = SparseRegression(d=4, sparsity=2, n_context=20).sample(30, seed=0)
    >>> steps = {str(t): GradientDescent(t, step_size=0.1) for t in range(4)}
    >>> model = gradient_descent_transformer(d=4, n_ctx=21, steps=3, step_size=0.1)
    >>> measure_layer_distances(model, prompts, steps).closest()[["component", "steps"]].values.tolist()
    [['L0.resid_pre', 0], ['L0.resid_post', 1], ['L1.resid_post', 2], ['L2.resid_post', 3]]
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    sites = residual_sites(model, None)
    probes: dict[Site, LinearProbe] = {}
    if fit_prompts is not None:
        refuse_same_prompts(fit_prompts, prompts, "fit_prompts")
        probes = _answer_probes(model, fit_prompts, sites, checked_ridges(ridge), batch_size, seed)
    readings = [UNEMBEDDING, *([PROBE] if probes else [])]
    sources = [
        {"layer": site.layer, "component": str(site), "reading": reading} for reading in readings for site in sites
    ]
    algorithms = predictors_for("prompts", predictors)
    ((_, distances),) = measure_distances(
        _read_out(model, sites, probes), sources, prompts, algorithms, by=None, batch_size=batch_size
    )
    frame = pd.DataFrame(distances.rows({}, confidence, seed, between=False))
    settings: dict[str, Any] = {"name": "layer_distances", "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed}
    if fit_prompts is not None:
        settings |= {"n_fit_prompts": len(fit_prompts), "fit_prompts_seed": fit_prompts.seed}
    return AlgorithmDistances(tidy(frame), "Distance of each layer's prediction", settings, notes_on_intervals(frame))


def unembedded(
    model: HookedModel, inputs: Inputs, resid: Float[Tensor, "batch pos d_model"], before_last: Tensor
) -> Float[Tensor, "batch pos *d_out"]:
    """The outputs of the model if ``resid`` were its residual stream after the last layer.

    ``before_last`` is the residual stream before the last layer, which then runs for nothing: this way every model
    that has hooks can be read, whatever stands between its last layer and its outputs.
    """
    last = model.cfg.n_layers - 1
    with torch.no_grad(), intervene(model, [Intervention(Site(last, "resid_post"), Replace(resid))]):
        return outputs_from(model, inputs, last, before_last)


def _read_out(
    model: HookedModel, sites: Sequence[Site], probes: Mapping[Site, LinearProbe]
) -> Callable[[Prompts], list[Tensor]]:
    """The outputs of every site by the unembedding, then by its probe."""
    last = Site(model.cfg.n_layers - 1, "resid_pre")

    def outputs_of(batch: Prompts) -> list[Tensor]:
        final, clean = activations(model, batch.inputs, [site.hook_name for site in [*sites, last]])
        before_last = clean[last.hook_name]
        read = [
            final if site is sites[-1] else unembedded(model, batch.inputs, clean[site.hook_name], before_last)
            for site in sites
        ]
        for site, probe in probes.items():
            features = clean[site.hook_name].cpu().double()
            read.append(probe(features.flatten(0, 1)).unflatten(0, features.shape[:2]).to(final.device))
        return read

    return outputs_of


def _answer_probes(
    model: HookedModel, prompts: Prompts, sites: Sequence[Site], ridges: list[float], batch_size: int, seed: int
) -> dict[Site, LinearProbe]:
    if not prompts.targets.is_floating_point():
        raise InputError("fit_prompts have tokens for targets: probes for the answer need real ones, leave them out")
    at = positions_read(prompts, "scored", "fit_prompts")
    answers = answer_of(prompts)[at][:, None].cpu().double()
    held_out = held_out_rows(*prompt_of_rows(at), np.random.default_rng(seed))
    features = features_at(model, prompts, sites, at, batch_size)
    return {site: fit_ridge(features.pop(site), answers, ridges, held_out) for site in sites}
