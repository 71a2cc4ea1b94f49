"""Activations where a probe reads them: one row per position, for every site from one pass."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.batches import batches
from interp.model_adapter import HookedModel, activations_alone
from interp.sites import Site, SiteLike
from tasks.errors import InputError
from tasks.prompts import Prompts

At = Literal["scored", "all"] | Callable[[Prompts], Bool[Tensor, "batch pos"]]
"""Which positions are read: those that are scored, all, or a mask made from the prompts."""


_HELD_OUT = 0.25


def residual_sites(model: HookedModel, sites: Sequence[SiteLike] | None) -> list[Site]:
    """The sites, checked against the model; by default the embedding and the residual stream after every layer.

    Raises:
        InputError: a site that does not exist, is named twice, or says positions itself.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> [str(site) for site in residual_sites(model, None)]
    ['L0.resid_pre', 'L0.resid_post', 'L1.resid_post']
    """
    if sites is None:
        return [Site(0, "resid_pre"), *(Site(layer, "resid_post") for layer in range(model.cfg.n_layers))]
    parsed = [Site.parse(site) for site in sites]
    if not parsed:
        raise InputError("sites is empty: name at least one site, L1.resid_post say")
    for site in parsed:
        site.check(model.cfg.n_layers, model.cfg.n_heads)
        if site.positions is not None:
            raise InputError(f"{site} says positions itself: leave them out and choose positions with at=")
        if parsed.count(site) > 1:
            raise InputError(f"sites names {site} twice: name each once")
    return parsed


def positions_read(prompts: Prompts, at: At, which: str) -> Bool[Tensor, "batch pos"]:
    """The mask of positions that a probe reads.

    Raises:
        InputError: fewer than two prompts have such a position, or the mask is none.
    """
    if isinstance(at, str):
        if at not in ("scored", "all"):
            raise InputError(f"at = {at!r} is unknown: choose 'scored', 'all' or a function of the prompts")
        mask = prompts.scored if at == "scored" else torch.ones_like(prompts.scored)
    else:
        mask = at(prompts)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != prompts.scored.shape:
        raise InputError(f"at= must give a boolean mask [batch, pos] like scored, {list(prompts.scored.shape)}")
    if int(mask.any(dim=1).sum()) < 2:
        raise InputError(f"{which} has {int(mask.any(dim=1).sum())} prompts with a position to read: give at least 2")
    return mask


def features_at(
    model: HookedModel, prompts: Prompts, sites: Sequence[Site], at: Bool[Tensor, "batch pos"], batch_size: int
) -> dict[Site, Float[Tensor, "row width"]]:
    """The clean activation at each site, one row per position of the mask, float64 on the CPU.

    Raises:
        InputError: a site that the model does not have, or an activation that is not finite.
    """
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows in batches(prompts, batch_size):
        clean = activations_alone(model, prompts.inputs[rows], [site.hook_name for site in sites])
        for site in sites:
            activation = clean[site.hook_name]
            kept[site].append(activation[site.index(activation)][at[rows]].cpu().double())
    features = {site: torch.cat(parts) for site, parts in kept.items()}
    for site, values in features.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"the activation at {site} holds NaN or infinity: look at the model before probing it")
    return features


def prompt_of_rows(at: Bool[Tensor, "batch pos"]) -> tuple[Int[Tensor, "row"], int]:
    """Which prompt each row belongs to, and how many prompts there are."""
    return at.nonzero()[:, 0].cpu(), len(at)


def held_out_rows(prompt: Int[Tensor, "row"], n_prompts: int, rng: np.random.Generator) -> Bool[Tensor, "row"]:
    """The rows on which a ridge is chosen: those of a quarter of the prompts that have any, at least one, never all."""
    reading = np.unique(prompt.numpy())
    held = rng.permutation(reading)[: max(1, round(_HELD_OUT * len(reading)))]
    mask = torch.zeros(n_prompts, dtype=torch.bool)
    mask[torch.from_numpy(held)] = True
    return mask[prompt]
