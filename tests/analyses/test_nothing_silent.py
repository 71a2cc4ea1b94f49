"""No analysis leaves a trace: not in the model, the prompts, the random generators or torch's modes."""

import numpy as np
import pytest
import torch

from analyses import (
    ablate,
    ablate_heads,
    ablate_layers,
    ablate_mlps,
    ablate_pairs,
    attribute_edges,
    attribute_heads,
    compare_predictors,
    patch_activations,
    patch_paths,
    score_attention_patterns,
)
from interp import HookedTransformer, HookedTransformerConfig, Run
from tasks.errors import InputError
from tasks.prompts import Prompts


def uniform(prompts):
    return torch.zeros(*prompts.inputs.shape, 5)


ANALYSES = {
    "zero": lambda model, prompts: ablate_heads(model, prompts, method="zero"),
    "mean": lambda model, prompts: ablate_heads(model, prompts, method="mean", metric=["loss", "kl"]),
    "resample": lambda model, prompts: ablate_heads(model, prompts, method="resample", seed=3),
    "mlps": lambda model, prompts: ablate_mlps(model, prompts),
    "layers": lambda model, prompts: ablate_layers(model, prompts),
    "pairs": lambda model, prompts: ablate_pairs(model, prompts),
    "attribution": lambda model, prompts: attribute_heads(model, prompts),
    "gradient": lambda model, prompts: attribute_heads(model, prompts, method="gradient"),
    "integrated": lambda model, prompts: attribute_heads(model, prompts, method="integrated", n_steps=2, layers=[1]),
    "shapley": lambda model, prompts: attribute_heads(model, prompts, method="shapley", metric="kl", layers=[0]),
    "edges": lambda model, prompts: attribute_edges(model, prompts, other(prompts)),
    "edges on the way": lambda model, prompts: attribute_edges(
        model, prompts, other(prompts), method="eap_ig_inputs", n_steps=2
    ),
    "exact edges": lambda model, prompts: attribute_edges(model, prompts, method="exact", reference="mean"),
    "attention": lambda model, prompts: score_attention_patterns(model, prompts),
    "patching": lambda model, prompts: patch_activations(model, prompts, other(prompts), sites=["attn", "q", "scores"]),
    "paths": lambda model, prompts: patch_paths(
        model, prompts, other(prompts), receivers=["k", "output"], through="mlps"
    ),
    "comparison": lambda model, prompts: compare_predictors(model, prompts, {"uniform": uniform}),
    "failure": lambda model, prompts: fail_half_way(model, prompts),
}
each_analysis = pytest.mark.parametrize("analysis", ANALYSES)


def other(prompts):
    """Prompts to patch from: the same, each in its neighbour's place."""
    return Prompts.from_tensors(prompts.inputs.roll(1, dims=0))


def fail_half_way(model, prompts):
    calls = []

    def fails_at_the_third_call(outputs, prompts):
        calls.append(outputs)
        if len(calls) == 3:
            raise ZeroDivisionError
        return torch.zeros(len(prompts))

    with pytest.raises(ZeroDivisionError):
        ablate_heads(model, prompts, metric=fails_at_the_third_call)
    with pytest.raises(InputError):
        ablate(model, prompts, ["L0H0", "L9H0"])


@pytest.fixture
def model():
    return HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, n_heads=2))


@pytest.fixture
def prompts():
    return Prompts.from_tensors(torch.randint(5, (7, 6), generator=torch.Generator().manual_seed(0)))


@each_analysis
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_the_same_bit_for_bit(analysis, model, prompts, training):
    model.train(training)
    model.W_E.requires_grad_(False)
    state = {name: (weight.clone(), weight.requires_grad) for name, weight in model.named_parameters()}
    logits = model(prompts.inputs)
    ANALYSES[analysis](model, prompts)
    for name, weight in model.named_parameters():
        before, required = state[name]
        assert torch.equal(weight, before), name
        assert weight.requires_grad == required, name
        assert weight.grad is None, name
    assert all(module.training == training for module in model.modules())
    assert torch.equal(model(prompts.inputs), logits)


@each_analysis
def test_no_hook_is_left_and_those_of_the_user_stay(analysis, model, prompts):
    fired = []

    def count(activation, hook):
        fired.append(hook.name)

    model.add_hook("blocks.0.hook_resid_pre", count)
    ANALYSES[analysis](model, prompts)
    attached = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items() if point.fwd_hooks}
    assert attached == {"blocks.0.hook_resid_pre": 1}
    assert not any(point.bwd_hooks for point in model.hook_dict.values())
    assert model.context_level == 0
    assert fired


@each_analysis
def test_the_prompts_are_unchanged(analysis, model, prompts):
    before = {name: getattr(prompts, name).clone() for name in ("inputs", "targets", "scored")}
    ANALYSES[analysis](model, prompts)
    assert all(torch.equal(getattr(prompts, name), tensor) for name, tensor in before.items())


@each_analysis
@pytest.mark.parametrize("grad", [True, False])
def test_random_generators_and_modes_are_left_alone(analysis, model, prompts, grad):
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002 — the global one is meant
    with torch.set_grad_enabled(grad):
        ANALYSES[analysis](model, prompts)
        assert torch.is_grad_enabled() == grad
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("analysis", [name for name in ANALYSES if name != "failure"])
def test_an_analysis_gives_the_same_table_again_whatever_the_global_seed(analysis, model, prompts):
    tables = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        tables.append(ANALYSES[analysis](model, prompts).frame)
    assert tables[0].equals(tables[1])


@pytest.mark.refusal
@pytest.mark.parametrize("other", [None, 3, "model"])
def test_what_is_no_model_is_refused_by_every_analysis(other):
    prompts = Prompts.from_tensors(torch.zeros(2, 4, dtype=torch.int64))
    for analysis in (ablate_heads, ablate_layers, attribute_heads, score_attention_patterns):
        with pytest.raises(InputError, match="is no model"):
            analysis(other, prompts)


@pytest.mark.refusal
def test_a_run_in_place_of_its_model_is_refused_with_the_likely_remedy():
    run = Run.shipped("bietti-full-2x4")
    with pytest.raises(InputError, match=r"did you mean its \.model\?"):
        ablate_heads(run, run.task.sample(2, seed=0))
