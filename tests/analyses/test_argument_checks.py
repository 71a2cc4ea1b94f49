"""Arguments of another kind than asked for end with one line that names them."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses import (
    ablate,
    ablate_heads,
    ablate_pairs,
    assess_heads,
    attribute_edges,
    attribute_heads,
    circuit_recall,
    compare_predictors,
    discover_circuit,
    evaluate_circuit,
    measure_algorithm_distances,
    memory_recall,
    patch_activations,
    patch_paths,
    probe_layers,
    prune_heads,
    score_attention_patterns,
    score_composition,
    weight_spectra,
)
from analyses.circuit import Circuit
from interp import HookedTransformer, HookedTransformerConfig
from tasks import BigramICL, InputError, Prompts

MODEL = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, n_heads=2, seed=0))
TOKENS = torch.randint(5, (6, 6), generator=torch.Generator().manual_seed(0))
PROMPTS = Prompts.from_tensors(TOKENS, labels={"kind": TOKENS % 2}, seed=0)
OTHER = Prompts.from_tensors(TOKENS.flip(0), labels={"kind": TOKENS.flip(0) % 2}, seed=1)
PROMPT_TAKERS = {
    "ablate": lambda prompts: ablate_heads(MODEL, prompts),
    "pairs": lambda prompts: ablate_pairs(MODEL, prompts),
    "assess": lambda prompts: assess_heads(MODEL, prompts),
    "heads": lambda prompts: attribute_heads(MODEL, prompts),
    "edges": lambda prompts: attribute_edges(MODEL, prompts, OTHER),
    "patch": lambda prompts: patch_activations(MODEL, prompts, OTHER),
    "paths": lambda prompts: patch_paths(MODEL, prompts, OTHER),
    "attention": lambda prompts: score_attention_patterns(MODEL, prompts),
    "prune": lambda prompts: prune_heads(MODEL, prompts, importance=OTHER),
    "probe": lambda prompts: probe_layers(MODEL, prompts, "kind", test_prompts=OTHER),
    "compare": lambda prompts: compare_predictors(MODEL, prompts, {}),
    "distances": lambda prompts: measure_algorithm_distances(MODEL, prompts, {}),
    "discover": lambda prompts: discover_circuit(MODEL, prompts, OTHER, threshold=1.0, progress=False),
    "evaluate": lambda prompts: evaluate_circuit(MODEL, Circuit.full(MODEL), prompts, OTHER, progress=False),
    "as_model": lambda prompts: Circuit.full(MODEL).as_model(MODEL, prompts, OTHER),
}


@pytest.mark.refusal
@pytest.mark.parametrize("analysis", PROMPT_TAKERS)
def test_what_is_no_prompts_is_refused_by_every_analysis(analysis):
    for given, said in ((None, "is None, no Prompts: draw some"), (TOKENS, "is a Tensor, no Prompts: draw some")):
        with pytest.raises(InputError, match=said):
            PROMPT_TAKERS[analysis](given)
    with pytest.raises(InputError, match=r"a BigramICL, no Prompts, did you mean its \.sample\(512, seed=1\)\?"):
        PROMPT_TAKERS[analysis](BigramICL())


@pytest.mark.refusal
@pytest.mark.parametrize("seed", [None, -1, 1.5, "x", True])
def test_a_seed_that_does_not_make_the_numbers_the_same_again_is_refused(seed):
    for analysis in (ablate_heads, attribute_heads, score_attention_patterns):
        with pytest.raises(InputError, match="is no seed: give a whole number, at least 0"):
            analysis(MODEL, PROMPTS, seed=seed)
    for analysis in (score_composition, weight_spectra):
        with pytest.raises(InputError, match="is no seed"):
            analysis(MODEL, seed=seed)


@pytest.mark.refusal  # numpy's integers are no int to the type hook
def test_a_whole_number_of_numpy_is_a_seed():
    seeds = np.array([3])
    assert ablate_heads(MODEL, PROMPTS, seed=seeds[0]).frame.equals(ablate_heads(MODEL, PROMPTS, seed=3).frame)


def test_weights_that_are_not_finite_are_no_scores():
    broken = deepcopy(MODEL)
    with torch.no_grad():
        broken.blocks[0].attn.W_Q[0, 0, 0] = float("nan")
    for analysis in (score_composition, weight_spectra):
        assert len(analysis(MODEL, n_random=2).frame) > 0
        with pytest.raises(InputError, match="the heads' weights hold NaN or infinity"):
            analysis(broken, n_random=2)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda: ablate(MODEL, PROMPTS, "L0H0"), "sites = 'L0H0' is no list of sites: give one"),
        (lambda: ablate(MODEL, PROMPTS, 3), "sites = 3 is no list of sites"),
        (lambda: ablate_pairs(MODEL, PROMPTS, "L0H0"), "sites = 'L0H0' is one site: give a list of at least 2"),
        (lambda: ablate_heads(MODEL, PROMPTS, by=["kind"]), r"by = \['kind'\] is no label"),
        (lambda: ablate_heads(MODEL, PROMPTS, batch_size=2.5), r"batch_size = 2\.5 is no number of prompts"),
        (lambda: ablate_heads(MODEL, PROMPTS, method="resample", reference=TOKENS), "reference is a Tensor, no"),
        (lambda: attribute_heads(MODEL, PROMPTS, method="shapley", reference=OTHER), "reference is a Prompts: say"),
        (lambda: patch_activations(MODEL, PROMPTS, "x"), "counterfactual is a str: give prompts, or the task"),
        (lambda: patch_activations(MODEL, PROMPTS, OTHER, sites=None), "sites = None is no list of sites"),
        (lambda: patch_activations(MODEL, PROMPTS, OTHER, positions=3), "positions = 3 is no list"),
        (lambda: patch_activations(MODEL, PROMPTS, OTHER, positions=[1.5]), r"positions holds 1\.5: give whole"),
        (lambda: patch_activations(MODEL, PROMPTS, OTHER, positions=[True] * 6), "positions holds True"),
        (lambda: memory_recall(None), "NoneType is no model"),
        (lambda: circuit_recall(None), "NoneType is no model"),
        (lambda: probe_layers(MODEL, PROMPTS, "kind", test_prompts=None), "test_prompts is None, no Prompts"),
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_refused_by_name(how, message):
    with pytest.raises(InputError, match=message) as refusal:
        how()
    assert "\n" not in str(refusal.value)


def test_the_same_calls_with_arguments_of_the_right_kind_give_a_table():
    assert len(ablate(MODEL, PROMPTS, ["L0H0"], by="kind", batch_size=2).frame) == 2
    assert len(ablate_pairs(MODEL, PROMPTS, ["L0H0", "L1H0"]).frame) == 1
    assert len(patch_activations(MODEL, PROMPTS, OTHER, sites="resid_pre", positions=[1, -1]).frame) == 4
    paired = replace(PROMPTS, counterfactual=OTHER)
    assert len(attribute_heads(MODEL, paired, method="shapley", metric="loss", reference="counterfactual").frame) == 4
    assert len(circuit_recall(MODEL).frame) > 0
