"""Every claim can come out either way: a planted positive is reproduced, the negative control is not."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from analyses.papers.chen2024.algorithms import compared
from analyses.papers.chen2024.head_roles import FIRST, LATER, assessed_heads, in_opposite_order, measure_head_roles
from analyses.papers.chen2024.layers_as_steps import FALLS, measure_layers, probed_layers
from analyses.papers.chen2024.more_heads import CRITERION, measure_risk_by_heads, risks_of
from analyses.papers.chen2024.preprocessed_features import SOONER, descended_on, measure_preprocessing
from analyses.papers.chen2024.preprocessing_wins import AVERAGE, EVERYWHERE, IN_QUESTION, measure_wins
from analyses.papers.chen2024.pruning_heads import NEARLY, UNLIKE, measure_pruning, pruned_heads
from analyses.papers.chen2024.setting import training
from analyses.papers.verdicts import deciding, judge_all
from interp import HookedTransformer
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import SparseRegression

SEEDS = range(5)
D, QUERIES = 8, 4
TASK = SparseRegression(d=D, sparsity=1, n_context=64, noise=1.0, weights="signs", n_queries=QUERIES)
SHAPE = {"d": D, "n_ctx": TASK.n_ctx, "n_queries": QUERIES}


@pytest.fixture(scope="module")
def preprocessing():
    """Eight heads that preprocess, then single heads that take a step each: what the paper says is learned."""
    return preprocess_then_optimize_transformer(steps=2, step_size=0.5, **SHAPE)


@pytest.fixture(scope="module")
def descending():
    """One head per layer, a step of gradient descent each, and no preprocessing."""
    return gradient_descent_transformer(steps=3, step_size=0.3, **SHAPE)


def untrained(seed):
    config = replace(training(8, 0).model, d_in=D + 1, n_ctx=TASK.n_ctx, n_queries=QUERIES, seed=100 + seed)
    return HookedTransformer(config)


def verdict(criteria, evidence):
    return deciding(judge_all(criteria, evidence.values)).verdict


def test_eight_heads_that_preprocess_beat_one_that_does_not(preprocessing, descending):
    def risks(model):
        return [risks_of(model, [TASK], seed=seed, n_prompts=200) for seed in SEEDS]

    arms = {"1 head": risks(descending)} | {f"{n} heads": risks(preprocessing) for n in (2, 4, 8)}
    assert verdict([CRITERION], measure_risk_by_heads(arms)) == "reproduced"
    alike = dict.fromkeys(arms, arms["8 heads"])
    assert verdict([CRITERION], measure_risk_by_heads(alike)) == "not reproduced"
    swapped = arms | {"1 head": arms["8 heads"], "8 heads": arms["1 head"]}
    assert verdict([CRITERION], measure_risk_by_heads(swapped)) == "not reproduced"


def test_the_constructed_roles_of_heads_are_found_and_not_with_the_layers_in_opposite_order(preprocessing):
    def arm(tables):
        return {"linear attention, zero-ablation, n = 32": tables}

    tables = [assessed_heads(preprocessing, TASK, seed=seed, n_prompts=60) for seed in SEEDS]
    assert verdict([FIRST, LATER], measure_head_roles(arm(tables))) == "reproduced"
    backwards = [in_opposite_order(table) for table in tables]
    assert (
        backwards[0].groupby("layer")["delta"].max().tolist()
        == tables[0].groupby("layer")["delta"].max()[::-1].tolist()
    )
    assert verdict([FIRST, LATER], measure_head_roles(arm(backwards))) == "not reproduced"


def test_even_heads_in_every_layer_are_no_roles():
    alike = pd.DataFrame([{"layer": layer, "head": head, "delta": 1.0} for layer in range(3) for head in range(8)])
    found = measure_head_roles({"linear attention, zero-ablation, n = 32": [alike] * 5})
    assert verdict([FIRST, LATER], found) == "not reproduced"


def test_heads_without_any_effect_count_as_alike():
    idle = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "delta": [0.0, -1.0, 3.0, 0.0]})
    evidence = measure_head_roles({"linear attention, zero-ablation, n = 32": [idle] * 5})
    assert evidence.values == {FIRST.name: [2.0] * 5, LATER.name: [1.0] * 5}


def test_constructed_later_heads_can_be_pruned_and_an_untrained_first_layer_can_too(preprocessing):
    def arm(models):
        how = {"n_prompts": 40, "n_random": 2}
        return {
            "linear": [pruned_heads(model, TASK, seed=seed, **how) for seed, model in zip(SEEDS, models, strict=True)]
        }

    assert verdict([NEARLY, UNLIKE], measure_pruning(arm([preprocessing] * 5))) == "reproduced"
    assert verdict([NEARLY, UNLIKE], measure_pruning(arm([untrained(s) for s in SEEDS]))) == "not reproduced"


def test_layers_that_each_take_a_step_are_steps_and_untrained_ones_are_not(descending):
    hard = replace(TASK, n_context=16, noise=0.1)  # so that one step is far from enough

    def arm(models):
        return {
            "linear attention, n = 32": [
                probed_layers(model, hard, seed=seed, n_prompts=200) for seed, model in zip(SEEDS, models, strict=True)
            ]
        }

    assert verdict([FALLS], measure_layers(arm([descending] * 5))) == "reproduced"
    assert verdict([FALLS], measure_layers(arm([untrained(s) for s in SEEDS]))) == "not reproduced"


@pytest.mark.slow
def test_an_exactly_preprocessing_layer_saves_steps_and_an_untrained_one_does_not(preprocessing):
    short = replace(TASK, n_context=24)

    def arm(models):
        return {
            "linear attention, L0.attn, n = 32": [
                descended_on(model, short, site="L0.attn", seed=seed, n_prompts=40)
                for seed, model in zip(SEEDS, models, strict=True)
            ]
        }

    criteria = list(SOONER.values())
    assert verdict(criteria, measure_preprocessing(arm([preprocessing] * 5))) == "reproduced"
    assert verdict(criteria, measure_preprocessing(arm([untrained(s) for s in SEEDS]))) == "not reproduced"


@pytest.mark.parametrize("criterion", [AVERAGE, EVERYWHERE])
def test_preprocessing_wins_where_it_is_known_to_and_not_with_dense_weights(criterion):
    def draws(sparsity):
        how = {"d": 8, "contexts": [64], "noises": [1.0], "n_prompts": 60}
        return [compared(seed=seed, sparsities=[sparsity], **how) for seed in SEEDS]

    assert verdict([criterion], measure_wins({IN_QUESTION: draws(1)}, criterion)) == "reproduced"
    assert verdict([criterion], measure_wins({IN_QUESTION: draws(8)}, criterion)) == "not reproduced"


def test_one_lost_setting_of_two_is_no_win_everywhere():
    rows = [
        {"draw": draw, "d": 16, "s": 1, "n": n, "noise": 1.0, "algorithm": name, "risk": risk}
        for draw in SEEDS
        for n, preprocessed in ((16, 1.1), (64, 0.1))
        for name, risk in (("ridge", 1.0), ("gradient descent", 2.0), ("preprocess-then-optimise", preprocessed))
    ]
    arms = {IN_QUESTION: [pd.DataFrame(rows)]}
    assert measure_wins(arms, EVERYWHERE).values == {EVERYWHERE.name: [0.5] * 5}
    ((ratio, *_),) = measure_wins(arms, AVERAGE).values.values()
    assert ratio == pytest.approx((10 / 1.1) ** 0.5)


def test_the_risk_of_a_construction_is_that_of_its_algorithm(descending):
    from analyses.papers.chen2024.setting import JUDGED, TEST_SEED
    from tasks import GradientDescent

    prompts = TASK.sample(50, seed=(TEST_SEED, JUDGED, 3))
    sums, counts = prompts.excess_risk(GradientDescent(steps=3, step_size=0.3)(prompts))
    found = risks_of(descending, [TASK], seed=3, n_prompts=50)
    torch.testing.assert_close(found["risk"].item(), float(sums.sum() / counts.sum()), rtol=1e-4, atol=0)
