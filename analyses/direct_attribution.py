"""Direct logit attribution: what embeddings, positions, heads, MLPs and biases add to the answer's logit."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.batches import batches
from analyses.contributions import Contributions
from analyses.metrics import Group
from interp.model_adapter import HookedModel, activations, final_norm, needed_weight, reached_points, weight
from tasks.errors import InputError
from tasks.prompts import Prompts

LinearMetric = Literal["logit", "logit_diff"]


def direct_contributions(
    model: HookedModel, prompts: Prompts, metric: str, parts: Sequence[Group], batch_size: int
) -> Contributions:
    """What each component adds to the logit, summed over the scored positions of each prompt.

    Raises:
        InputError: real-valued targets, a metric that no component adds to, or a ``logit_diff`` without wrong answers.
    """
    if metric not in ("logit", "logit_diff"):
        raise InputError(f"metric = {metric!r} is unknown: choose 'logit' or 'logit_diff'")
    if prompts.targets.is_floating_point():
        raise InputError("attribution to a logit needs token targets: these prompts have real-valued ones")
    if metric == "logit_diff" and prompts.wrong is None:
        raise InputError("metric = 'logit_diff' needs a wrong answer to compare with: give the prompts wrong=")
    components = [one for wrote in _writers(model) for one in wrote.components] + [("bias", None, None)]
    sums, counts = [], []
    for rows in batches(prompts, batch_size):
        batch = prompts[rows]
        masks = torch.stack(
            [batch.scored if part.mask is None else part.mask[rows] & batch.scored for part in parts]
        )  # [part, batch, pos]
        attributed = direct_attributions(model, batch, metric)
        sums.append(torch.einsum("bpc,gbp->bcg", attributed.double(), masks.double()))
        counts.append(masks.sum(dim=2).T)
    return Contributions(components, torch.cat(sums).cpu().numpy(), torch.cat(counts).cpu().numpy())


def direct_attributions(
    model: HookedModel, prompts: Prompts, metric: LinearMetric = "logit"
) -> Float[Tensor, "batch pos component"]:
    """What each component adds to the answer's logit at every position; over components it sums to the logit.

    The components are, in this order: embed, pos_embed (if any), then layer by layer its heads and its MLP (if
    any), and last all biases together.

    Raises:
        InputError: they do not sum to the logit, because the model computes more than it shows (a soft cap, say).
    """
    W_U, W_O = needed_weight(model, "W_U"), needed_weight(model, "W_O")
    b_U, b_O = weight(model, "b_U"), weight(model, "b_O")
    writers = _writers(model)
    with torch.no_grad():
        last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        logits, clean = activations(model, prompts.inputs, [*(wrote.point for wrote in writers), last])
        direction = W_U[:, prompts.targets].movedim(0, -1)
        if metric == "logit_diff":
            assert prompts.wrong is not None
            direction = direction - W_U[:, prompts.wrong].movedim(0, -1)
        direction, constant = _through_final_norm(model, clean[last], direction)
        if b_O is not None:
            constant = constant + direction @ b_O.sum(dim=0)
        if b_U is not None:
            constant = constant + _answer_of(b_U.expand(*prompts.targets.shape, -1), prompts, metric)
        columns = []
        for wrote in writers:
            if wrote.heads_of is None:
                columns.append((clean[wrote.point] * direction).sum(-1))
            else:
                # in head space: W_O · direction first, so that no [batch, pos, head, d_model] is ever made
                seen = torch.einsum("hdm,bpm->bphd", W_O[wrote.heads_of], direction)
                columns += (clean[wrote.point] * seen).sum(-1).unbind(-1)
        attributed = torch.stack([*columns, constant], dim=-1)
        _refuse_another_sum(attributed, _answer_of(logits, prompts, metric))
    return attributed


def _answer_of(
    logits: Float[Tensor, "batch pos vocab"], prompts: Prompts, metric: LinearMetric
) -> Float[Tensor, "batch pos"]:
    of_target = logits.gather(-1, prompts.targets[..., None])[..., 0]
    if metric == "logit" or prompts.wrong is None:
        return of_target
    return of_target - logits.gather(-1, prompts.wrong[..., None])[..., 0]


def _refuse_another_sum(attributed: Float[Tensor, "batch pos component"], expected: Float[Tensor, "batch pos"]) -> None:
    """Whatever the architecture: either its components are all here, or their contributions mean nothing."""
    apart = float((attributed.sum(dim=-1) - expected).abs().max())
    rounding = torch.finfo(attributed.dtype).eps ** 0.5 * max(1.0, float(attributed.abs().sum(dim=-1).max()))
    if not apart <= rounding:
        raise InputError(
            f"the components' contributions miss the answer's logit by up to {apart:.2g}: the model computes more "
            "between the residual stream and the logits than a LayerNorm and an unembedding (a soft cap, say)"
        )


def _through_final_norm(
    model: HookedModel, resid: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos"]]:
    """The direction as the residual stream before the final LayerNorm sees it, and the shift's constant part."""
    constant = torch.zeros_like(resid[..., 0])
    norm = final_norm(model)
    if norm is None:
        return direction, constant
    centred = resid - resid.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.shift is not None:
        constant = direction @ norm.shift
    if norm.gain is not None:
        direction = direction * norm.gain
    return (direction - direction.mean(-1, keepdim=True)) / scale, constant


class _Writers(NamedTuple):
    """What one hook point shows being written: one component, or the heads of a layer."""

    point: str
    components: Sequence[tuple[str, int | None, int | None]]
    """Name, layer and head of each, in the order of the columns."""
    heads_of: int | None = None


def _writers(model: HookedModel) -> list[_Writers]:
    reached = reached_points(model)
    writers = [_Writers("hook_embed", [("embed", None, None)]), _Writers("hook_pos_embed", [("pos_embed", None, None)])]
    for layer in range(model.cfg.n_layers):
        heads = [(f"L{layer}H{head}", layer, head) for head in range(model.cfg.n_heads)]
        writers.append(_Writers(f"blocks.{layer}.attn.hook_z", heads, heads_of=layer))
        writers.append(_Writers(f"blocks.{layer}.hook_mlp_out", [(f"L{layer}.mlp", layer, None)]))
    return [wrote for wrote in writers if wrote.point in reached]
