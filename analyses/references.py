"""What an ablation writes: means over reference prompts, or another prompt's activations."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooked_model import HookedModel
from interp.sites import Site
from tasks.errors import InputError
from tasks.prompts import Prompts

MeanOver = Literal["batch", "batch_pos"]


def site_activations(
    model: HookedModel, prompts: Prompts, sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "batch pos *rest"]]:
    """The clean activation at each site, over all prompts."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def keep(site: Site):
        def observe(activation: Tensor, hook) -> None:  # noqa: ARG001 — TransformerLens' call
            parts[site].append(activation[site.index(activation)].detach().clone())

        return observe

    with torch.no_grad(), model.hooks(fwd_hooks=[(site.hook_name, keep(site)) for site in sites]):
        for start in range(0, len(prompts), batch_size):
            model(prompts.inputs[start : start + batch_size])
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
    axes = 0 if over == "batch" else (0, 1)
    activations = site_activations(model, reference, sites, batch_size)
    return {site: activation.mean(dim=axes) for site, activation in activations.items()}


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
