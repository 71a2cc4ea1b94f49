"""Which components write the answer: direct logit attribution of embeddings, positions, heads, MLPs and biases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.batches import batches
from analyses.figures import effect_figure
from analyses.metrics import groups
from analyses.result import Result, notes_on_intervals
from interp.model_adapter import (
    HookedModel,
    activations,
    final_norm,
    needed_weight,
    reached_points,
    refuse_other,
    weight,
)
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts

LinearMetric = Literal["logit", "logit_diff"]


@dataclass(frozen=True, eq=False)
class AttributionResult(Result):
    """How much of the answer's logit each component writes, in logits; the rows of a metric sum to the logit.

    Columns: layer (missing for embeddings, positions and the unembedding's bias), head, component, method,
    metric ("logit" or "logit_diff"), the label split by (if any), attribution, ci_low, ci_high, n_prompts.
    """

    value_column = "attribution"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "attribution"

    def plot(self) -> go.Figure:
        """Attribution of each component with its interval."""
        return effect_figure(self.frame, value="attribution", title=self.title, by=self.settings.get("by"))


def attribute_heads(
    model: HookedModel,
    prompts: Prompts,
    *,
    metric: LinearMetric = "logit",
    by: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> AttributionResult:
    """How much each component adds directly to the logit of the answer, as a mean over scored positions.

    A component that writes c to the residual stream adds c · (W_U[:, target] − W_U[:, wrong]) to the logit
    difference (without the second term for ``metric="logit"``). With a final LayerNorm the direction is taken
    through it at the scale that the prompt gave, so that the rows sum to the logit all the same; what a component
    does through later layers is not seen.

    Raises:
        InputError: real-valued targets, a ``logit_diff`` without ``wrong`` answers, an unknown label; or a model whose
            components do not sum to the logit, because it computes more than it shows (a soft cap, say).

    Source: direct logit attribution as in Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> attribute_heads(model, prompts).frame["component"].tolist()
    ['embed', 'pos_embed', 'L0H0', 'bias']
    """
    refuse_other(model)
    if metric not in ("logit", "logit_diff"):
        raise InputError(f"metric = {metric!r} is unknown: choose 'logit' or 'logit_diff'")
    if prompts.targets.is_floating_point():
        raise InputError("attribution to a logit needs token targets: these prompts have real-valued ones")
    if metric == "logit_diff" and prompts.wrong is None:
        raise InputError("metric = 'logit_diff' needs a wrong answer to compare with: give the prompts wrong=")
    components = [one for wrote in _writers(model) for one in wrote.components] + [("bias", None, None)]
    parts = list(groups(prompts, by))
    sums, counts = [], []
    for rows_of_batch in batches(prompts, batch_size):
        batch = prompts[rows_of_batch]
        masks = [batch.scored if part.mask is None else part.mask[rows_of_batch] & batch.scored for part in parts]
        attributed = direct_attributions(model, batch, metric)
        sums.append(torch.einsum("bpc,gbp->bcg", attributed.double(), torch.stack(masks).double()).flatten(1))
        counts.append(torch.stack(masks).sum(dim=2).T.repeat(1, len(components)))
    interval = ratio_interval(
        torch.cat(sums).cpu().numpy(), torch.cat(counts).cpu().numpy(), confidence=confidence, seed=seed
    )
    n_prompts = (torch.cat(counts) > 0).sum(dim=0).tolist()
    rows: list[dict[str, Any]] = []
    for index, (component, layer, head) in enumerate(components):
        for j, part in enumerate(parts):
            k = index * len(parts) + j
            row: dict[str, Any] = {"layer": layer, "head": head, "component": component, "method": "direct"}
            row["metric"] = metric
            if by is not None:
                row[by] = part.value
            row |= {"attribution": interval.estimate[k], "ci_low": interval.low[k], "ci_high": interval.high[k]}
            rows.append(row | {"n_prompts": n_prompts[k]})
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    settings = {"metric": metric, "by": by, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed}
    what = "the answer's logit" if metric == "logit" else "the answer's logit minus the wrong answer's"
    return AttributionResult(frame, f"Direct contributions to {what}", settings, notes_on_intervals(frame))


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
