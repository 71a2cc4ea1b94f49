"""The analyses' results for the same weights, whoever's class holds them: ours, TransformerLens 3.9's, or a bridge.

``test_model_adapter.py`` beside this goes through ablations, patches, paths and first-order scores; here are the rest,
on the same models.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses import ablate_heads, attribute_edges, attribute_heads, patch_activations
from analyses.edited_passes import EditedPasses
from analyses.head_assessment import assess_heads
from analyses.pruning import prune_heads
from interp.interventions import Intervention, Zero
from interp.sites import Site
from tasks.prompts import Prompts

_beside = importlib.util.spec_from_file_location("models_of_parity", Path(__file__).with_name("test_model_adapter.py"))
assert _beside is not None
assert _beside.loader is not None
models = importlib.util.module_from_spec(_beside)
_beside.loader.exec_module(models)
assert_same = models.assert_same


@pytest.fixture(params=map(models.marked, models.PAIRS))
def pair(request):
    mine, theirs = models.made(request.param)
    if not mine.cfg.attn_only:
        theirs.set_use_hook_mlp_in(True)
    return mine, theirs


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(models.D_VOCAB, (10, models.N_CTX), generator=generator) for _ in range(3))
    return Prompts.from_tensors(tokens, wrong=wrong, counterfactual=Prompts.from_tensors(others))


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_scores_of_edges_are_the_same(pair, prompts, method):
    steps = {} if method == "eap" else {"n_steps": 3}
    assert_same(*(attribute_edges(model, prompts, method=method, metric="logit_diff", **steps) for model in pair))


def test_integrated_gradients_on_activations_reach_other_references_too(pair, prompts):
    how = {"method": "eap_ig_activations", "reference": "mean", "n_steps": 2}
    assert_same(*(attribute_edges(model, prompts, **how) for model in pair))


def test_every_set_of_heads_gives_the_same_outputs(pair, prompts):
    """Ours goes on from edited z and shares prefixes; a foreign model runs hooked passes."""
    heads = [Site(layer, "z", head) for layer in range(2) for head in range(2)]
    sets = [[heads[k] for k in range(4) if chosen >> k & 1] for chosen in range(1, 16)]
    found = []
    for model in pair:
        passes = EditedPasses(model, sets)
        made = {site: Intervention(site, Zero()) for site in heads}
        with torch.no_grad():
            passes.clean(prompts.inputs)
            plans = [[made[site] for site in each] for each in sets]
            found.append({number: each.clone() for number, each in passes.edited(plans)})
        assert all(passes.from_z) == (model is pair[0])
        assert [[receipt.fired for receipt in each] for each in passes.receipts] == [[1] * len(each) for each in sets]
    for number in range(len(sets)):
        torch.testing.assert_close(found[0][number], found[1][number], atol=1e-5, rtol=1e-5)


def test_effects_by_a_mask_and_a_label_are_the_same(pair, prompts):
    labels = {"half": (torch.arange(models.N_CTX) > 4).long().expand(10, -1)}
    labelled = replace(prompts, labels=labels)
    how = {"method": "counterfactual", "where": labelled.inputs > 3, "by": "half", "metric": ["loss", "kl"]}
    assert_same(*(ablate_heads(model, labelled, **how) for model in pair))


def test_patched_heads_by_position_are_the_same(pair, prompts):
    assert_same(*(patch_activations(model, prompts, sites="z", positions="each") for model in pair))


@pytest.mark.parametrize("method", ["gradient", "shapley"])
def test_attributions_to_counterfactuals_are_the_same(pair, prompts, method):
    how = {"method": method, "metric": "logit_diff", "reference": "counterfactual"}
    assert_same(*(attribute_heads(model, prompts, **how) for model in pair))


def test_assessments_and_prunings_of_heads_are_the_same(pair, prompts):
    mine, theirs = (assess_heads(model, prompts, method="mean") for model in pair)
    shares = [column for column in mine.frame if column.startswith("share")]
    assert_same(*(replace(one, frame=one.frame.drop(columns=shares)) for one in (mine, theirs)))
    # quotients of effects that are the same to 1e-6 but, with random weights, not much above 1e-3 themselves
    np.testing.assert_allclose(*(one.frame[shares].to_numpy(dtype=float) for one in (mine, theirs)), atol=5e-3)
    others = Prompts.from_tensors(prompts.inputs.flip(0).roll(1, dims=1))
    assert_same(*(prune_heads(model, prompts, importance=others, n_random=2) for model in pair))


def test_a_budget_of_memory_changes_nothing(pair, prompts):
    free, held = (ablate_heads(pair[1], prompts, memory_budget=budget) for budget in (None, "200MB"))
    assert_same(free, held)
