"""What an ablation writes: means over reference prompts, or another prompt's activations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.argument_checks import refuse_no_prompts
from analyses.batches import batches
from interp.edits import Edit, Replace, Zero
from interp.model_adapter import HookedModel, activations_alone
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

Method = Literal["zero", "mean", "resample", "counterfactual"]
MeanOver = Literal["batch", "batch_pos"]
Target = tuple[Site, ...]
"""The sites that are ablated together."""
EditOfRows = Callable[[slice], Edit]
"""The edit for a batch, given which of the prompts are in it."""


def ablation_edits(
    model: HookedModel,
    prompts: Prompts,
    targets: Sequence[Target],
    method: Method | Edit,
    *,
    reference: Prompts | None = None,
    over: MeanOver = "batch",
    seed: int = 0,
    batch_size: int = 512,
) -> dict[Site, EditOfRows]:
    """What the method writes at every site of the targets, given which prompts are running.

    An edit (``interp.edits``, or any function) is written as it is.

    Raises:
        InputError: a method that does not exist, reference prompts that cannot serve, no counterfactual, or an
            ``over`` without a mean.
    """
    if method != "mean" and over != "batch":
        raise InputError(f"over = {over!r} says what a mean is taken over: drop it, or choose method = 'mean'")
    sites = sorted({site for target in targets for site in target}, key=str)
    if callable(method) or method in ("zero", "counterfactual"):
        if reference is not None:
            raise InputError(f"method = {method_name(method)!r} takes no reference prompts: drop reference=")
        if method == "counterfactual":
            found = site_activations(model, carried_counterfactual(prompts), sites, batch_size)
            return {site: partial(_rows_of, activation) for site, activation in found.items()}
        return dict.fromkeys(sites, partial(_constant, method if callable(method) else Zero()))
    source = prompts if reference is None else reference
    refuse_no_prompts(source, "reference")
    if source.targets.shape[1] != prompts.targets.shape[1]:
        raise InputError(
            f"reference has {source.targets.shape[1]} positions, the prompts {prompts.targets.shape[1]}: "
            "activations are compared position by position"
        )
    if method == "mean":
        means = mean_activations(model, source, sites, over, batch_size)
        return {site: partial(_constant, Replace(mean)) for site, mean in means.items()}
    if method == "resample":
        if len(source) != len(prompts):
            raise InputError(f"reference has {len(source)} prompts where {len(prompts)} are needed, one for each")
        order = derangement(len(source), seed)
        found = site_activations(model, source, sites, batch_size)
        return {site: partial(_rows_of, activation[order]) for site, activation in found.items()}
    raise InputError(
        f"method = {method!r} is unknown: choose 'zero', 'mean' or 'resample' (or 'counterfactual', or an edit)"
    )


def method_name(method: str | Edit) -> str:
    """The name of a method, or of an edit's class or function.

    >>> method_name("mean"), method_name(Zero())
    ('mean', 'Zero')
    """
    return method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)


def carried_counterfactual(prompts: Prompts) -> Prompts:
    """The counterfactual that the prompts carry, for methods that are not given one.

    Raises:
        InputError: they carry none, or it is not aligned with them.
    """
    if prompts.counterfactual is None:
        raise InputError(
            "these prompts carry no counterfactual: attach one, "
            "dataclasses.replace(prompts, counterfactual=task.counterfactual(prompts, seed=1))"
        )
    return counterfactual_of(prompts)


def counterfactual_of(prompts: Prompts, counterfactual: Prompts | Task | None = None, *, seed: int = 0) -> Prompts:
    """The prompts' counterfactual: given, drawn by the task that made them (with ``seed``), or the one they carry.

    Raises:
        InputError: there is none, or it is not aligned with the prompts.
    """
    if isinstance(counterfactual, Prompts):
        other = counterfactual
    elif counterfactual is not None:
        if not isinstance(counterfactual, Task):
            kind = type(counterfactual).__name__
            raise InputError(f"counterfactual is a {kind}: give prompts, or the task that made these")
        other = counterfactual.counterfactual(prompts, seed=seed)
    elif prompts.counterfactual is not None:
        other = prompts.counterfactual
    else:
        raise InputError("these prompts carry no counterfactual: give counterfactual=, prompts or their task")
    mine, theirs = prompts.inputs, other.inputs
    if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
        raise InputError(
            f"the counterfactual is {theirs.dtype} {list(theirs.shape)} on {theirs.device}, the prompts {mine.dtype} "
            f"{list(mine.shape)} on {mine.device}: the two are aligned prompt by prompt and position by position"
        )
    return other


def _constant(edit: Edit, _rows: slice) -> Edit:
    return edit


def _rows_of(values: Tensor, rows: slice) -> Edit:
    return Replace(values[rows])


def site_activations(
    model: HookedModel, prompts: Prompts, sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "batch pos *rest"]]:
    """The clean activation at each site, over all prompts."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in batches(prompts, batch_size):
        clean = activations_alone(model, prompts.inputs[rows], [site.hook_name for site in sites])
        for site in sites:
            at_point = clean[site.hook_name]
            parts[site].append(at_point[site.index(at_point)].contiguous())
    return {site: torch.cat(kept) for site, kept in parts.items()}


def mean_activations(
    model: HookedModel, reference: Prompts, sites: Sequence[Site], over: MeanOver, batch_size: int
) -> dict[Site, Float[Tensor, "*pos d"]]:
    """The mean activation at each site: per position, [pos, d], over the batch; or one [d] over batch and positions.

    Raises:
        InputError: no reference prompts, or an ``over`` that does not exist.
    """
    if not len(reference):
        raise InputError("reference holds 0 prompts: a mean over nothing does not exist, sample some")
    if over not in ("batch", "batch_pos"):
        raise InputError(f"over = {over!r} is unknown: choose 'batch' (per position) or 'batch_pos' (one mean)")
    totals: dict[Site, Tensor] = {}
    for rows in batches(reference, batch_size):
        for site, activation in site_activations(model, reference[rows], sites, batch_size).items():
            summed = activation.sum(dim=0 if over == "batch" else (0, 1), dtype=torch.float64)
            totals[site] = totals[site] + summed if site in totals else summed
            n_each, dtype = (1 if over == "batch" else activation.shape[1]), activation.dtype
    return {site: (total / (n_each * len(reference))).to(dtype) for site, total in totals.items()}


def derangement(n: int, seed: int) -> Int[Tensor, "n"]:
    """A uniformly drawn permutation that leaves nothing in place.

    Raises:
        InputError: n < 2, where there is none.

    >>> bool((derangement(5, seed=0) == torch.arange(5)).any())
    False
    """
    if n < 2:
        raise InputError(f"resampling among {n} reference prompts would put each in its own place: give at least 2")
    rng = np.random.default_rng(seed)
    while True:  # a random permutation is a derangement with probability about 1/e
        order = rng.permutation(n)
        if (order != np.arange(n)).all():
            return torch.from_numpy(order)
