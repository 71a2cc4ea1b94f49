"""Every claim's test can pass and can fail: planted positives are reproduced, nulls are not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.papers.bietti2023 import PAPER
from analyses.papers.bietti2023.accuracies import accuracy_of, loss_of, not_absorbed, predicted
from analyses.papers.bietti2023.freezing import W_K2_is_easier_first, W_O2_comes_first
from analyses.papers.bietti2023.global_first import global_bigrams_come_first, share_of_way
from analyses.papers.bietti2023.gradient_theory import one_gradient_step_each
from analyses.papers.bietti2023.layers import two_layers_are_needed
from analyses.papers.bietti2023.memories import weights_become_memories
from analyses.papers.bietti2023.milestones import step_of_passing
from analyses.papers.bietti2023.outputs import held_out_outputs_are_copied, uniform_outputs_generalise_better
from analyses.papers.bietti2023.positions import early_positions_come_first
from analyses.papers.bietti2023.setting import early_positions, readouts
from analyses.papers.bietti2023.triggers import frequent_triggers_are_fastest
from analyses.papers.claims import Claim
from analyses.papers.verdicts import deciding, judge_all
from interp import HookedTransformer
from interp.constructions.induction import induction_circuit
from tasks import BigramICL
from tasks.bigram_predictors import BayesOptimal, InContextCopy


def verdict_of(claim: Claim, outcomes: Mapping[str, Sequence[Any]]) -> str:
    found = claim.measure(outcomes)
    return deciding(judge_all(claim.criteria, found.values, found.silent)).verdict


def still(value: float):
    return lambda steps, _: [value] * len(steps)


@pytest.fixture(scope="module")
def task() -> BigramICL:
    return BigramICL(seq_len=32)


@pytest.fixture(scope="module")
def copier(task: BigramICL) -> HookedTransformer:
    """Solves the task by construction, for all triggers that occur here."""
    return induction_circuit(
        d_vocab=task.d_vocab, n_ctx=32, triggers=task.trigger_tokens, attention_logit=30.0, copy_logit=30.0
    ).model


@pytest.fixture
def recalls(rise: Callable) -> dict[str, Any]:
    names = ["recall_W_O2", "recall_W_K2", "recall_W_K1", "accuracy"]
    return dict(zip(names, [rise(20), rise(40), rise(80), rise(60)], strict=True))


def test_global_bigrams_come_first(plant: Callable, rise: Callable, task: BigramICL):
    claim = global_bigrams_come_first("quick")
    whole = replace(task, scored="all")
    nothing = math.log(whole.d_vocab)
    fast, slow = rise(20, nothing, 1.9), rise(100, nothing, 0.0)
    positive = plant(whole, {"loss_global": fast, "loss_in_context": slow})
    assert verdict_of(claim, {"trained": positive}) == "reproduced"
    at_once = plant(whole, {"loss_global": rise(50, nothing, 1.9), "loss_in_context": rise(50, nothing, 0.0)})
    assert verdict_of(claim, {"trained": at_once}) == "not reproduced"
    never = plant(whole, {"loss_global": fast, "loss_in_context": still(nothing)})
    assert verdict_of(claim, {"trained": never}) == "not reproduced"
    untrained = plant(whole, {"loss_global": still(nothing), "loss_in_context": still(nothing)})
    assert verdict_of(claim, {"trained": untrained}) == "not reproduced"


def test_the_way_ends_at_the_bayes_loss(plant: Callable, task: BigramICL):
    whole = replace(task, scored="all")
    prompts = whole.sample(16, seed=2)
    best = loss_of(BayesOptimal(whole), prompts.score_only(prompts.labels["segment"] == 0))
    run = plant(whole, {"loss_global": still(best)})[0]
    assert share_of_way(run, "global") == pytest.approx([1.0] * 21)


def test_two_layers_are_needed(plant: Callable, task: BigramICL, copier: HookedTransformer):
    claim = two_layers_are_needed("quick")
    untrained = plant(task)
    assert verdict_of(claim, {"two layers": plant(task, model=copier), "one layer": untrained}) == "reproduced"
    assert verdict_of(claim, {"two layers": untrained, "one layer": untrained}) == "not reproduced"
    both = plant(task, model=copier)
    assert verdict_of(claim, {"two layers": both, "one layer": both}) == "not reproduced"


def test_weights_become_memories(plant: Callable, rise: Callable, task: BigramICL, recalls: dict[str, Any]):
    claim = weights_become_memories("quick")
    assert verdict_of(claim, {"two layers": plant(task, recalls)}) == "reproduced"
    partial = plant(task, recalls | {"recall_W_K1": rise(80, 0, 0.7)})
    assert verdict_of(claim, {"two layers": partial}) == "not reproduced"
    silent = plant(task, {name: still(0.1) for name in recalls})
    assert verdict_of(claim, {"two layers": silent}) == "not reproduced"


def test_W_O2_comes_first(plant: Callable, task: BigramICL, recalls: dict[str, Any]):
    claim = W_O2_comes_first("quick")
    free = plant(task, recalls)
    no_keys = plant(task, recalls | {"recall_W_K1": still(0.0), "recall_W_K2": still(0.2), "accuracy": still(0.3)})
    no_copy = plant(task, {name: still(0.1) for name in recalls})
    arms = {"nothing frozen": free, "W_K1 and W_K2 frozen": no_keys, "W_O2 frozen": no_copy}
    assert verdict_of(claim, arms) == "reproduced"
    assert verdict_of(claim, dict.fromkeys(arms, free)) == "not reproduced"


def test_W_K2_is_easier_first(plant: Callable, task: BigramICL, recalls: dict[str, Any]):
    claim = W_K2_is_easier_first("quick")
    free = plant(task, recalls)
    no_W_K1, no_W_K2 = (plant(task, recalls | {name: still(0.0)}) for name in ("recall_W_K1", "recall_W_K2"))
    lost = plant(task, recalls | {"recall_W_K1": still(0.1), "recall_W_K2": still(0.0)})
    arms = {"nothing frozen": free, "W_K1 frozen": no_W_K1, "W_K2 frozen": lost}
    assert verdict_of(claim, arms) == "reproduced"
    assert verdict_of(claim, dict.fromkeys(arms, free)) == "not reproduced"
    assert verdict_of(claim, arms | {"W_K2 frozen": no_W_K2}) == "not reproduced"


def test_early_positions_come_first(plant: Callable, rise: Callable, task: BigramICL):
    claim = early_positions_come_first("quick")
    positive = plant(task, {"recall_W_K1_early": rise(30), "recall_W_K1_late": rise(150)})
    assert verdict_of(claim, {"two layers": positive}) == "reproduced"
    at_once = plant(task, {"recall_W_K1_early": rise(80), "recall_W_K1_late": rise(80)})
    assert verdict_of(claim, {"two layers": at_once}) == "not reproduced"
    untrained = plant(task, {"recall_W_K1_early": still(0.0), "recall_W_K1_late": still(0.0)})
    assert verdict_of(claim, {"two layers": untrained}) == "not reproduced"


def test_what_training_was_too_short_to_see_is_not_denied(
    plant: Callable, rise: Callable, task: BigramICL, recalls: dict[str, Any]
):
    """A late curve that never got halfway, and a memory that had next to nothing to lose."""
    late = plant(task, {"recall_W_K1_early": rise(150), "recall_W_K1_late": still(0.1)})
    assert verdict_of(early_positions_come_first("quick"), {"two layers": late}) == "inconclusive"
    free = plant(task, recalls | {"recall_W_K1": still(0.15)})
    frozen = plant(task, {name: still(0.0) for name in recalls})
    no_keys = plant(task, recalls | {"recall_W_K2": still(0.2), "accuracy": still(0.3)})
    arms = {"nothing frozen": free, "W_K1 and W_K2 frozen": no_keys, "W_O2 frozen": frozen}
    assert verdict_of(W_O2_comes_first("quick"), arms) == "inconclusive"
    no_W_K1 = plant(task, recalls | {"recall_W_K1": still(0.0)})
    arms = {"nothing frozen": free, "W_K1 frozen": no_W_K1, "W_K2 frozen": free}
    assert verdict_of(W_K2_is_easier_first("quick"), arms) == "inconclusive"
    kinds = {"frequent": rise(60), "rarer": still(0.0), "random": rise(60)}
    runs = {name: plant(task, {"accuracy": curve}) for name, curve in kinds.items()}
    (rarer, random) = frequent_triggers_are_fastest("quick").measure(runs).silent.values()
    assert "none of 5 seeds" in rarer
    assert random == ""


def test_frequent_triggers_are_fastest(plant: Callable, rise: Callable, task: BigramICL):
    claim = frequent_triggers_are_fastest("quick")
    kinds = {
        "frequent": task,
        "rarer": replace(task, trigger_offset=15),
        "random": replace(task, triggers="random"),
    }
    slow = {"frequent": 30, "rarer": 80, "random": 140}
    positive = {name: plant(kind, {"accuracy": rise(slow[name])}) for name, kind in kinds.items()}
    assert verdict_of(claim, positive) == "reproduced"
    alike = {name: plant(task, {"accuracy": rise(60)}) for name in kinds}
    assert verdict_of(claim, alike) == "not reproduced"


def test_uniform_outputs_generalise_better(plant: Callable, task: BigramICL, copier: HookedTransformer):
    claim = uniform_outputs_generalise_better("quick")
    able, unable = plant(task, model=copier), plant(task)
    assert verdict_of(claim, {"uniform": able, "bigram": unable}) == "reproduced"
    assert verdict_of(claim, {"uniform": able, "bigram": able}) == "not reproduced"


def test_held_out_outputs_are_copied(plant: Callable, task: BigramICL, copier: HookedTransformer):
    claim = held_out_outputs_are_copied("quick")
    split = replace(task, output_split="first")
    able, unable = plant(split, model=copier), plant(split)
    assert verdict_of(claim, {"split": able, "all": able}) == "reproduced"
    assert verdict_of(claim, {"split": unable, "all": able}) == "not reproduced"


def test_one_gradient_step_each():
    claim = one_gradient_step_each("quick")

    def tables(recalls: Sequence[float]) -> list[pd.DataFrame]:
        rows = [
            {"step": step, "stored": "W_O2", "memory": memory, "recall": recall if step == 3 else 0.0, "chance": 0.1}
            for step in (1, 2, 3)
            for memory, recall in zip(("W_O2", "W_K2", "W_K1"), recalls, strict=True)
        ]
        return [pd.DataFrame(rows) for _ in range(5)]

    orders = {name: tables([1.0, 0.1, 0.2]) for name in claim.arms if not name.startswith("width")}
    widths = {name: tables([1.0, 0.9, 0.8]) for name in claim.arms if name.startswith("width")}
    assert verdict_of(claim, widths | orders) == "reproduced"
    one_missing = {name: tables([1.0, 0.9, 0.1]) for name in widths}
    assert verdict_of(claim, one_missing | orders) == "not reproduced"
    any_order = {name: tables([1.0, 0.9, 0.8]) for name in orders}
    assert verdict_of(claim, widths | any_order) == "not reproduced"


def test_every_claim_of_the_paper_is_tested_here():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {claim.__name__ for claim in PAPER.claims} <= tested


def test_the_readouts_split_the_recall_of_W_K1_by_position(task: BigramICL, copier: HookedTransformer):
    measured = {name: readout(copier, task.sample(2, seed=0)) for name, readout in readouts(task).items()}
    assert measured["recall_W_K1_early"] == measured["recall_W_K1_late"] == 1.0
    half = HookedTransformer(copier.cfg)
    half.load_state_dict(copier.state_dict())
    with torch.no_grad():  # positions from 16 on are no longer told apart
        half.pos_embed.W_pos[16:] = half.pos_embed.W_pos[16]
    measured = {name: readout(half, task.sample(2, seed=0)) for name, readout in readouts(task).items()}
    assert measured["recall_W_K1_early"] == 1.0
    n_early = early_positions(32) - 1
    whole = n_early * measured["recall_W_K1_early"] + (31 - n_early) * measured["recall_W_K1_late"]
    assert whole / 31 == pytest.approx(measured["recall_W_K1"])  # pyright: ignore[reportArgumentType]
    assert measured["recall_W_K1_late"] < 0.5  # pyright: ignore[reportOperatorIssue]


def test_a_curve_passes_a_mark_between_its_points_or_counts_as_late_as_can_be():
    steps = np.array([0, 10, 20])
    assert step_of_passing(steps, np.array([0.0, 0.5, 0.9]), 0.5) == 10
    assert step_of_passing(steps, np.array([0.0, 0.4, 0.8]), 0.6) == pytest.approx(15)
    assert step_of_passing(steps, np.array([0.7, 0.4, 0.8]), 0.6) == 0
    assert step_of_passing(steps, np.array([0.0, 0.4, 0.5]), 0.6) == 20


def test_accuracies_are_shares_of_the_scored_positions(task: BigramICL, plant: Callable, copier: HookedTransformer):
    prompts = task.sample(300, seed=0)
    total, count = prompts.accuracy(InContextCopy(task)(prompts))
    assert predicted(InContextCopy(task), prompts) == pytest.approx(float(total.sum() / count.sum()))
    loop = prompts.labels["absorbed"] & prompts.scored
    assert int(not_absorbed(prompts).scored.sum()) == int(prompts.scored.sum()) - int(loop.sum())
    assert accuracy_of(plant(task, model=copier)[0], prompts) > 0.99
