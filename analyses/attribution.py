"""Which components write the answer: direct logit attribution of embeddings, positions, heads, MLPs and biases."""

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.batches import batches
from analyses.figures import effect_figure
from analyses.metrics import groups
from analyses.result import Result, notes_on_intervals
from interp import HookedTransformer
from interp.components import LayerNorm
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts

Answer = Literal["logit", "logit_diff"]


@dataclass(frozen=True, eq=False)
class AttributionResult(Result):
    """How much of the answer's logit each component writes, in logits; the rows of a metric sum to the logit.

    Columns: layer (missing for embeddings, positions and the unembedding's bias), head, component, method,
    metric ("logit" or "logit_diff"), the label split by (if any), attribution, ci_low, ci_high, n_prompts.
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "attribution"

    def plot(self) -> go.Figure:
        """Attribution of each component with its interval."""
        return effect_figure(self.frame, value="attribution", title=self.title, by=self.settings.get("by"))


def attribute_heads(
    model: HookedTransformer,
    prompts: Prompts,
    *,
    answer: Answer = "logit",
    by: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 512,
    seed: int = 0,
) -> AttributionResult:
    """How much each component adds directly to the logit of the answer, as a mean over scored positions.

    A component that writes c to the residual stream adds c · (W_U[:, target] − W_U[:, wrong]) to the logit
    difference (without the second term for ``answer="logit"``). With a final LayerNorm the direction is taken
    through it at the scale that the prompt gave, so that the rows sum to the logit all the same; what a component
    does through later layers is not seen.

    Raises:
        InputError: real-valued targets, a ``logit_diff`` without ``wrong`` answers, an unknown label.

    Source: direct logit attribution as in Elhage et al. (2021), A Mathematical Framework for Transformer Circuits.

    >>> from interp import HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> attribute_heads(model, prompts).frame["component"].tolist()
    ['embed', 'pos_embed', 'L0H0', 'bias']
    """
    if answer not in ("logit", "logit_diff"):
        raise InputError(f"answer = {answer!r} is unknown: choose 'logit' or 'logit_diff'")
    if prompts.targets.is_floating_point():
        raise InputError("attribution to a logit needs token targets: these prompts have real-valued ones")
    if answer == "logit_diff" and prompts.wrong is None:
        raise InputError("answer = 'logit_diff' needs a wrong answer to compare with: give the prompts wrong=")
    components = _components(model)
    parts = list(groups(prompts, by))
    sums, counts = [], []
    for rows_of_batch in batches(prompts, batch_size):
        batch = prompts[rows_of_batch]
        masks = [batch.scored if part.mask is None else part.mask[rows_of_batch] & batch.scored for part in parts]
        attributed = direct_attributions(model, batch, answer)
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
            row["metric"] = answer
            if by is not None:
                row[by] = part.value
            row |= {"attribution": interval.estimate[k], "ci_low": interval.low[k], "ci_high": interval.high[k]}
            rows.append(row | {"n_prompts": n_prompts[k]})
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    settings = {"answer": answer, "by": by, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed}
    what = "the answer's logit" if answer == "logit" else "the answer's logit minus the wrong answer's"
    return AttributionResult(frame, f"Direct contributions to {what}", settings, notes_on_intervals(frame))


def direct_attributions(
    model: HookedTransformer, prompts: Prompts, answer: Answer = "logit"
) -> Float[Tensor, "batch pos component"]:
    """What each component adds to the answer's logit at every position; over components it sums to the logit.

    The components are, in this order: embed, pos_embed (if any), then layer by layer its heads and its MLP (if
    any), and last all biases together.
    """
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.inputs, names_filter=_points(model))
        direction = model.W_U[:, prompts.targets].movedim(0, -1)
        if answer == "logit_diff":
            assert prompts.wrong is not None
            direction = direction - model.W_U[:, prompts.wrong].movedim(0, -1)
        resid = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        direction, constant = _through_final_norm(model, resid, direction)
        columns = [(cache["hook_embed"] * direction).sum(-1)]
        if model.has_positions:
            columns.append((cache["hook_pos_embed"] * direction).sum(-1))
        for layer, block in enumerate(model.blocks):
            # in head space: W_O · direction first, so that no [batch, pos, head, d_model] is ever made
            seen = torch.einsum("hdm,bpm->bphd", block.attn.W_O, direction)
            columns += ((cache[f"blocks.{layer}.attn.hook_z"] * seen).sum(-1)).unbind(-1)
            if block.attn.b_O is not None:
                constant = constant + direction @ block.attn.b_O
            if block.has_mlp:
                columns.append((cache[f"blocks.{layer}.hook_mlp_out"] * direction).sum(-1))
        if model.b_U is not None:
            constant = constant + model.b_U[prompts.targets]
            if answer == "logit_diff" and prompts.wrong is not None:
                constant = constant - model.b_U[prompts.wrong]
        return torch.stack([*columns, constant], dim=-1)


def _through_final_norm(
    model: HookedTransformer, resid: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, "batch pos d_model"]
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos"]]:
    """The direction as the residual stream before the final LayerNorm sees it, and the shift's constant part."""
    constant = torch.zeros_like(resid[..., 0])
    norm = model.ln_final
    if not isinstance(norm, LayerNorm):
        return direction, constant
    centred = resid - resid.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.b is not None and norm.w is not None:
        constant = direction @ norm.b
        direction = direction * norm.w
    return (direction - direction.mean(-1, keepdim=True)) / scale, constant


def _points(model: HookedTransformer) -> list[str]:
    points = ["hook_embed", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    points += ["hook_pos_embed"] * model.has_positions
    for layer, block in enumerate(model.blocks):
        points.append(f"blocks.{layer}.attn.hook_z")
        points += [f"blocks.{layer}.hook_mlp_out"] * block.has_mlp
    return points


def _components(model: HookedTransformer) -> list[tuple[str, int | None, int | None]]:
    """Name, layer and head of every column of ``direct_attributions``."""
    components: list[tuple[str, int | None, int | None]] = [("embed", None, None)]
    components += [("pos_embed", None, None)] * model.has_positions
    for layer, block in enumerate(model.blocks):
        components += [(f"L{layer}H{head}", layer, head) for head in range(model.cfg.n_heads)]
        components += [(f"L{layer}.mlp", layer, None)] * block.has_mlp
    return [*components, ("bias", None, None)]
