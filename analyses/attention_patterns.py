"""What heads look at: scores of attention patterns, each against the same score in untrained twins of the model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.batches import batches
from analyses.figures import effect_figure
from analyses.metrics import Group, groups
from analyses.result import Result, notes_on_intervals
from interp import HookedTransformer
from interp.model_adapter import HookedModel, activations_alone, refuse_other
from interp.statistics import ratio_interval
from tasks.errors import InputError
from tasks.prompts import Prompts

_N_NULL = 39  # heads of untrained twins: being first of 40 has probability 0.025 by chance
_NULL_PROMPTS = 64
_NULL_SEED = 1_000_000  # far from the seeds people give their runs, so that a twin is never the model itself

Relation = Callable[[Prompts], Bool[Tensor, "batch dest src"]]
"""Which (dest, src) pairs a score looks at."""


@dataclass(frozen=True)
class _Score:
    name: str
    question: str
    relation: Relation
    needs_triggers: bool = False


@dataclass(frozen=True, eq=False)
class AttentionScores(Result):
    """How much attention each head pays along known relations.

    Columns: layer, head, component, metric (the score's name), question, score (mean attention paid to the related
    positions, over destinations that have one), ci_low, ci_high, top (share of those destinations whose largest
    attention lies on the relation), uniform (the score of a head that attends evenly), p_value and significant
    (against untrained twins; missing where none can be made), n_prompts.
    """

    value_column = "score"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "attention_scores"

    def plot(self) -> go.Figure:
        """Score of every head, one panel per relation."""
        return effect_figure(self.frame, value="score", title=self.title, by=self.settings.get("by"))


def score_attention_patterns(
    model: HookedModel,
    prompts: Prompts,
    *,
    by: str | None = None,
    confidence: float = 0.95,
    batch_size: int = 128,
    seed: int = 0,
) -> AttentionScores:
    """Which heads look at the previous token, the induction target, duplicates, the first token.

    With triggers labelled (bigram prompts), also the two scores of Bietti et al.: attention to the previous token
    right after a trigger, and attention from a trigger to what followed it before.

    A p-value is the rank of a head's score among the heads of the same layer of untrained twins: models of the
    same config with other initial seeds, 39 heads in all, on the same (at most 64) prompts. For a model that
    learned nothing the ranks are uniform, so p < 0.05, which only the first of 40 has, is true of 2.5 % of its scores.
    ``by`` splits every score by a label of the attending position, scored or not.

    Raises:
        InputError: real-valued prompts, or none; a label that does not exist.

    Source: Olsson et al. (2022), In-context Learning and Induction Heads (scores); Bietti et al. (2023), section 4
    (trigger-conditioned probes).

    >>> from interp import HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0)))
    >>> score_attention_patterns(model, prompts).frame["metric"].tolist()
    ['previous_token', 'induction', 'duplicate', 'first_token']
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if prompts.targets.is_floating_point():
        raise InputError("attention scores need tokens: these prompts have real-valued inputs")
    if not len(prompts):
        raise InputError("prompts holds 0 prompts: sample some")
    everywhere = replace(prompts, scored=torch.ones_like(prompts.scored))
    scores = [
        _ScoreOfPart(score, part)
        for score in _SCORES
        if not score.needs_triggers or "trigger" in prompts.labels
        for part in groups(everywhere, by)
    ]
    paid = _attention_paid(model, prompts, scores, batch_size)
    null = _null(model, prompts[:_NULL_PROMPTS], scores, batch_size)
    rows = [
        {**row, **({} if by is None else {by: one.part.value})}
        for k, one in enumerate(scores)
        for row in _rows(one.score, paid.of(k), null, k, confidence, seed)
    ]
    absent = [one.name for k, one in enumerate(scores) if not paid.counts[:, k].any()]
    frame = pd.DataFrame(rows)
    settings = {"by": by, "confidence": confidence, "seed": seed}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed}
    notes = notes_on_intervals(frame)
    if absent:
        notes += (f"no position has the relation of {', '.join(absent)}: left out",)
    if null is None:
        notes += ("no p-values: untrained twins can be made of a HookedTransformer only",)
    return AttentionScores(frame, "Attention along known relations", settings, notes)


@dataclass(frozen=True, eq=False)
class _ScoreOfPart:
    """A score, taken over the attending positions of one group."""

    score: _Score
    part: Group

    @property
    def name(self) -> str:
        """In words, for a note."""
        return self.score.name if self.part.mask is None else f"{self.score.name} ({self.part.value})"

    def relation(self, batch: Prompts, rows: slice) -> Bool[Tensor, "batch dest src"]:
        """The pairs to look at, for the prompts of these rows."""
        related = self.score.relation(batch)
        return related if self.part.mask is None else related & self.part.mask[rows][:, :, None]


@dataclass(frozen=True, eq=False)
class _Paid:
    """Attention paid along relations, summed over the destinations that have one."""

    sums: Float[Tensor, "batch relation layer head"]
    tops: Float[Tensor, "batch relation layer head"]
    counts: Float[Tensor, "batch relation"]
    even: Float[Tensor, "batch relation"]

    def of(self, k: int) -> "_Paid":
        """One relation, its axis kept."""
        return _Paid(*(part[:, k : k + 1] for part in (self.sums, self.tops, self.counts, self.even)))

    def mean(self) -> Float[Tensor, "relation layer head"]:
        """The score of every head."""
        return self.sums.sum(0) / self.counts.sum(0)[:, None, None]


def _attention_paid(model: HookedModel, prompts: Prompts, scores: list[_ScoreOfPart], batch_size: int) -> _Paid:
    paid = []
    causal = model.cfg.attention_dir == "causal"
    with torch.no_grad():
        for rows in batches(prompts, batch_size):
            batch = prompts[rows]
            pattern = _pattern(model, batch)
            paid.append([_paid_along(one.relation(batch, rows), pattern, causal) for one in scores])
    # batches of relations of (sums, tops, counts, even) → four tensors [batch, relation, ...]
    return _Paid(
        *(torch.cat([torch.stack([one[part] for one in batch], dim=1) for batch in paid]) for part in range(4))
    )


def _paid_along(
    relation: Bool[Tensor, "batch dest src"], pattern: Float[Tensor, "batch layer head dest src"], causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_pos = pattern.shape[-1]
    visible = torch.ones(n_pos, n_pos, dtype=torch.bool, device=pattern.device)
    visible = visible.tril() if causal else visible
    related = relation & visible
    exists = related.any(dim=-1)
    sums = torch.einsum("blhqk,bqk->blh", pattern, related.to(pattern.dtype))
    best = pattern.argmax(dim=-1, keepdim=True)
    on_top = related[:, None, None].expand(pattern.shape).gather(-1, best).squeeze(-1)
    even = (related / visible.sum(dim=-1, keepdim=True)).sum(dim=(-1, -2))
    return sums.double(), on_top.sum(-1).double(), exists.sum(-1).double(), even.double()


def _pattern(model: HookedModel, batch: Prompts) -> Float[Tensor, "batch layer head dest src"]:
    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    patterns = activations_alone(model, batch.inputs, points)
    return torch.stack([patterns[point] for point in points], dim=1)


def _null(
    model: HookedModel, prompts: Prompts, scores: list[_ScoreOfPart], batch_size: int
) -> tuple[Float[Tensor, "relation layer head"], Float[Tensor, "relation layer null_head"]] | None:
    """The model's own scores on these prompts, and those of its untrained twins' heads."""
    if not isinstance(model, HookedTransformer):
        return None
    twins = [
        _attention_paid(
            HookedTransformer(replace(model.cfg, seed=_NULL_SEED + k)).to(prompts.inputs.device),
            prompts,
            scores,
            batch_size,
        ).mean()
        for k in range(-(-_N_NULL // model.cfg.n_heads))
    ]
    return _attention_paid(model, prompts, scores, batch_size).mean(), torch.cat(twins, dim=-1)[..., :_N_NULL]


def _rows(
    score: _Score,
    paid: _Paid,
    null: tuple[Tensor, Tensor] | None,
    index: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    if not paid.counts.any():
        return []
    n_heads = paid.sums.shape[-1]
    sums = paid.sums.flatten(1).cpu().numpy()
    interval = ratio_interval(
        sums, paid.counts.expand(-1, sums.shape[1]).cpu().numpy(), confidence=confidence, seed=seed
    )
    top = (paid.tops.sum(0) / paid.counts.sum()).flatten()
    rows = []
    for k in range(len(interval.estimate)):
        layer, head = divmod(k, n_heads)
        p_value = None
        if null is not None:
            own, twins = null[0][index, layer, head], null[1][index, layer]
            if own.isfinite():  # no number where none of the prompts that the twins saw has the relation
                p_value = float((1 + (twins >= own).sum()) / (1 + len(twins)))
        rows.append(
            {
                "layer": layer,
                "head": head,
                "component": f"L{layer}H{head}",
                "metric": score.name,
                "question": score.question,
                "score": interval.estimate[k],
                "ci_low": interval.low[k],
                "ci_high": interval.high[k],
                "top": float(top[k]),
                "uniform": float(paid.even.sum() / paid.counts.sum()),
                "p_value": p_value,
                "significant": None if p_value is None else p_value < 0.05,
                "n_prompts": int((paid.counts > 0).sum()),
            }
        )
    return rows


def _previous_token(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    n_batch, n_pos = prompts.inputs.shape
    position = torch.arange(n_pos, device=prompts.inputs.device)
    return (position[:, None] - position == 1).expand(n_batch, -1, -1)


def _duplicate(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    tokens = prompts.inputs
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1)


def _induction(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    return pad(_duplicate(prompts), (1, 0))[:, :, :-1]  # one behind the earlier occurrence


def _first_token(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    related = torch.zeros_like(_duplicate(prompts))
    related[:, 1:, 0] = True
    return related


def _previous_after_trigger(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    after = pad(prompts.labels["trigger"][:, :-1], (1, 0))
    return _previous_token(prompts) & after[:, :, None]


def _induction_at_trigger(prompts: Prompts) -> Bool[Tensor, "batch dest src"]:
    return _induction(prompts) & prompts.labels["trigger"][:, :, None]


_SCORES = (
    _Score("previous_token", "attention to the token just before", _previous_token),
    _Score("induction", "attention to what followed the same token before", _induction),
    _Score("duplicate", "attention to the same token before", _duplicate),
    _Score("first_token", "attention to the first token", _first_token),
    _Score(
        "previous_token_after_trigger",
        "attention to the trigger, right after it",
        _previous_after_trigger,
        needs_triggers=True,
    ),
    _Score(
        "induction_at_trigger",
        "attention from a trigger to what followed it before",
        _induction_at_trigger,
        needs_triggers=True,
    ),
)
