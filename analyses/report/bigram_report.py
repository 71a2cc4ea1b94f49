"""What is measured on a bigram run, and how its report is laid out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.ablation import AblationResult, ablate_heads, ablate_mlps
from analyses.attention_patterns import AttentionScores, score_attention_patterns
from analyses.attribution import AttributionResult, attribute_heads
from analyses.comparison import Comparison, compare_predictors
from analyses.memory import memory_recall
from analyses.memory_result import MemoryRecallResult
from analyses.report.findings import Finding, find_copying, find_heads, find_memories
from analyses.report.remembering import Remembering
from analyses.report.skill import Skill
from interp import HookedTransformer
from interp.interventions import Zero
from interp.sites import Site
from tasks.bigram import BigramICL
from tasks.bigram_predictors import BayesOptimal, CurrentToken, GlobalBigram, InContextCopy, InContextUnigram
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Predictor

SEGMENT = "segment"
IN_CONTEXT = "in_context"
ATTENTION_PROMPTS = 128
"""Attention is scored on the first so many prompts: each adds dozens of destinations, and patterns are large."""
CHANCE, COUNTING, OPTIMAL = "current token", "in-context unigram", "Bayes optimal"


@dataclass(frozen=True, eq=False)
class BigramMeasurements:
    """All results on one set of prompts, and the findings made of them."""

    prompts: Prompts
    skill: Skill
    findings: tuple[Finding, ...]
    comparison: Comparison
    not_absorbed: Comparison | None
    zero: AblationResult
    mean: AblationResult
    mlps: AblationResult | None
    attribution: AttributionResult
    attention: AttentionScores
    recall: MemoryRecallResult | None


@dataclass(frozen=True)
class Chance:
    """The best predictor that sees only the current token, for the positions of each segment."""

    task: BigramICL

    @cached_property
    def _in_context(self) -> CurrentToken:
        return CurrentToken(replace(self.task, scored="in_context"))

    @cached_property
    def _anywhere(self) -> CurrentToken:
        return CurrentToken(self.task)

    def __call__(self, prompts: Prompts) -> Float[Tensor, "batch pos vocab"]:
        if self.task.scored == "in_context":
            return self._in_context(prompts)
        here = in_context_positions(prompts)[..., None]
        return torch.where(here, self._in_context(prompts), self._anywhere(prompts))


def measure_bigram(model: HookedTransformer, task: BigramICL, prompts: Prompts, *, seed: int = 0) -> BigramMeasurements:
    """Everything that a bigram report says, measured on these prompts.

    Raises:
        InputError: prompts that are not the task's, or in which nothing is scored in context.
    """
    in_context = prompts.score_only(in_context_positions(prompts))
    if not bool(in_context.scored.any()):
        raise InputError(
            f"none of the {len(prompts)} prompts scores a position in context: take more prompts or a longer seq_len"
        )
    predictors = predictors_of(task)
    measured: dict[str, Any] = {"metric": ["loss", "accuracy"], "by": SEGMENT, "seed": seed}
    zero = ablate_heads(model, prompts, method="zero", **measured)
    heads = {Site(layer, "z", head): Zero() for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)}
    named = {"chance": predictors[CHANCE], "counting": predictors[COUNTING], "optimal": predictors[OPTIMAL]}
    skill = Skill.measure(model, in_context, named, heads, seed=seed)
    attention = score_attention_patterns(model, prompts[:ATTENTION_PROMPTS], seed=seed)
    recall, why_none, n_choices = _recall(model, task, attention.frame, seed)
    copying = find_copying(skill)
    recalls = None if recall is None else recall.frame
    findings = (
        copying,
        find_heads(skill, attention.frame),
        find_memories(recalls, beats_chance=copying.numbers["beats_chance"], n_choices=n_choices, why_none=why_none),
    )
    has_mlp = any(model.cfg.has_mlp(layer) for layer in range(model.cfg.n_layers))
    return BigramMeasurements(
        prompts=prompts,
        skill=skill,
        findings=findings,
        comparison=compare_predictors(model, prompts, predictors, **measured),
        not_absorbed=_outside_loops(model, in_context, predictors, seed),
        zero=zero,
        mean=ablate_heads(model, prompts, method="mean", **measured),
        mlps=ablate_mlps(model, prompts, method="mean", **measured) if has_mlp else None,
        attribution=attribute_heads(model, prompts, metric="logit_diff", by=SEGMENT, seed=seed),
        attention=attention,
        recall=recall,
    )


def predictors_of(task: BigramICL) -> Mapping[str, Predictor]:
    """What the model is compared with, from the least informed to the best."""
    predictors: dict[str, Predictor] = {
        CHANCE: Chance(task),
        "global bigram": GlobalBigram(task),
        COUNTING: InContextUnigram(task),
        "in-context copy": InContextCopy(task),
        OPTIMAL: BayesOptimal(task),
    }
    return {name: Remembering(predictor) for name, predictor in predictors.items()}


def in_context_positions(prompts: Prompts) -> Tensor:
    """Where a trigger comes again, so that its output has been seen."""
    return prompts.labels[SEGMENT] == prompts.label_names[SEGMENT].index(IN_CONTEXT)


def _outside_loops(
    model: HookedTransformer, in_context: Prompts, predictors: Mapping[str, Predictor], seed: int
) -> Comparison | None:
    outside = in_context.score_only(~in_context.labels["absorbed"])
    if not bool(outside.scored.any()):
        return None
    return compare_predictors(model, outside, predictors, metric=["loss", "accuracy"], seed=seed)


def _recall(
    model: HookedTransformer, task: BigramICL, attention: pd.DataFrame, seed: int
) -> tuple[MemoryRecallResult | None, str, int]:
    """The recalls of the circuit's two heads, or why there are none; and among how many pairs they were chosen."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if n_layers < 2:
        return None, "an induction circuit needs two layers, and the model has one", 1
    earlier = _most(attention, ("previous_token_after_trigger", "previous_token"), range(n_layers - 1))
    later = _most(attention, ("induction_at_trigger", "induction"), range(earlier[0] + 1, n_layers))
    n_choices = n_heads**2 * n_layers * (n_layers - 1) // 2
    try:
        result = memory_recall(model, task, previous_token_head=earlier, induction_head=later, seed=seed)
    except InputError as reason:
        return None, str(reason), n_choices
    return result, "", n_choices


def _most(attention: pd.DataFrame, scores: tuple[str, ...], layers: range) -> tuple[int, int]:
    """The head of these layers that pays most attention along the first of these relations that occurs."""
    for score in scores:
        rows = attention.loc[(attention["metric"] == score) & attention["layer"].isin(list(layers))]
        if len(rows):
            best = rows.sort_values("score", ascending=False).iloc[0].to_dict()
            return int(best["layer"]), int(best["head"])
    return layers[0], 0
