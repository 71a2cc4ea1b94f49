"""Every closed form of every construction, against a forward pass in numpy that knows no hooks."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit
from interp.constructions.known_circuit import KnownCircuit
from interp.constructions.known_induction import known_induction, known_induction_with_crosstalk
from interp.constructions.linear import linear_network
from interp.constructions.plain_forward import PlainTransformer, logit_difference, measured_effects
from interp.constructions.two_paths import two_path_circuit
from tasks.errors import InputError

CLOSED_FORMS = {
    "copy": copy_circuit,
    "blunt copy": lambda: copy_circuit(attention_logit=1.0, copy_logit=3.0),
    "backup": backup_circuit,
    "blunt backup": lambda: backup_circuit(attention_logit=2.0),
    "two paths": two_path_circuit,
    "blunt two paths": lambda: two_path_circuit(attention_logit=2.5, joint_logit=1.0),
    "linear": linear_network,
    "another linear": lambda: linear_network(seed=3),
    "induction": lambda: known_induction(attention_logit=30.0),
}


@pytest.fixture(scope="module", params=CLOSED_FORMS)
def known(request) -> KnownCircuit:
    return CLOSED_FORMS[request.param]()


def test_the_plain_forward_pass_is_the_models(known):
    logits, sent = PlainTransformer(known.model)(known.prompts.inputs.numpy())
    expected, cache = known.model.run_with_cache(known.prompts.inputs)
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-12)
    last = cache["resid_post", known.model.cfg.n_layers - 1].detach().numpy()
    np.testing.assert_allclose(sum(sent.values()), last, atol=1e-12)


def test_every_effect_is_what_a_plain_forward_pass_measures(known):
    found = measured_effects(known.model, known.prompts, known.reference)
    assert set(known.effects) == {*found, "integrated"}
    for estimand, of_components in found.items():
        tolerance = 1e-6 if estimand == "gradient" else 1e-9  # central differences
        assert set(known.effects[estimand]) <= set(of_components), estimand
        for name, value in of_components.items():
            assert value == pytest.approx(known.effect(estimand, name), abs=tolerance), (estimand, name)


def test_the_logit_difference_is_the_baseline(known):
    logits = known.model(known.prompts.inputs).detach().numpy()
    assert logit_difference(logits, known.prompts) == pytest.approx(known.baseline, abs=1e-9)
    assert abs(known.baseline) > 0.5


def test_edges_that_are_not_wired_do_exactly_nothing_and_those_with_an_effect_are_wired(known):
    effects = measured_effects(known.model, known.prompts, known.reference)
    for estimand in ("edges, zero", "edges, counterfactual"):
        assert {edge for edge, effect in effects[estimand].items() if abs(effect) > 1e-9} <= known.true_edges
    assert known.true_edges < set(effects["edges, zero"])


def test_integrated_gradients_are_the_integral(known):
    """The gradient along the straight line of a layer's heads, by central differences at midpoints."""
    plain, inputs = PlainTransformer(known.model), known.prompts.inputs.numpy()
    _, here = plain(inputs)
    constant, order = known.quadrature
    step, n = 1e-4, 60 if constant else 2
    for layer in range(known.model.cfg.n_layers):
        heads = [name for name in here if name.startswith(f"L{layer}H")]
        for head in heads:
            total = 0.0
            for kept in 1 - (np.arange(n) + 0.5) / n:
                at = {name: kept * here[name] for name in heads}
                for sign in (1, -1):
                    moved, _ = plain(inputs, written=at | {head: (kept + sign * step) * here[head]})
                    total -= sign * logit_difference(moved, known.prompts) / (2 * step) / n
            assert total == pytest.approx(known.effect("integrated", head), abs=constant / n**order + 1e-4)


def test_shapley_values_share_what_ablating_every_head_changes(known):
    plain, inputs = PlainTransformer(known.model), known.prompts.inputs.numpy()
    logits, here = plain(inputs)
    heads = [name for name in here if "H" in name]
    changed, _ = plain(inputs, written=dict.fromkeys(heads, 0.0))
    everything = logit_difference(changed, known.prompts) - logit_difference(logits, known.prompts)
    assert sum(known.effects["shapley"].values()) == pytest.approx(everything, abs=1e-9)


def test_two_paths_are_shared_as_the_formula_says():
    """Efficiency, symmetry and dummy on all 16 subsets, from the formula of v(S) alone."""
    known = two_path_circuit(attention_logit=8.0, copy_logit=2.0, joint_logit=6.0)
    p = math.exp(8) / (math.exp(8) + 2)
    straight = {"L0H0": 2.0, "L0H1": 1.0, "L0H2": 1.0, "L0H3": 0.0}

    def v(chosen):
        joint = 6 * (4 * p - 3) if chosen & {"L0H0", "L0H1", "L0H2"} else 0.0
        return -sum(straight[head] for head in chosen) * p - joint

    orders = list(permutations(straight))
    for head in straight:
        added = [v(set(order[: order.index(head) + 1])) - v(set(order[: order.index(head)])) for order in orders]
        assert known.effect("shapley", head) == pytest.approx(sum(added) / len(orders), abs=1e-12)
    assert known.effect("shapley", "L0H1") == known.effect("shapley", "L0H2")
    assert known.effect("shapley", "L0H3") == 0


def test_gradients_integrals_and_shapley_values_tell_apart_on_two_paths():
    known = two_path_circuit()
    first = [known.effect(estimand, "L0H0") for estimand in ("zero", "gradient", "integrated", "shapley")]
    assert len({round(one, 2) for one in first}) == 4


def test_the_backup_is_silent_beside_the_first_head_and_takes_its_place_without_it():
    known = backup_circuit()
    plain, inputs = PlainTransformer(known.model), known.prompts.inputs.numpy()
    _, here = plain(inputs)
    assert abs(known.effect("direct", "L1H0")) < 1e-6
    _, without = plain(inputs, written={"L0H0": 0.0})
    assert np.abs(without["L1H0"][:, -1]).max() == pytest.approx(np.abs(here["L0H0"][:, -1]).max(), rel=0.5)
    assert abs(known.effect("zero", "L0H0")) < 1e-5
    assert known.effect("pairs", "L0H0+L1H0") == pytest.approx(-2, abs=1e-5)


def test_the_decoy_attends_exactly_as_the_copying_head_does():
    known = copy_circuit()
    _, cache = known.model.run_with_cache(known.prompts.inputs)
    pattern = cache["pattern", 0]
    assert torch.equal(pattern[:, 0], pattern[:, 1])
    assert float(pattern[:, 0, -1, -2].min()) > 0.99
    assert torch.equal(*known.model.W_O[0].detach().square().sum(dim=(1, 2)))


def test_prompts_are_balanced_and_the_reference_holds_no_answer(known):
    prompts, other = known.prompts, known.prompts.counterfactual
    answers = prompts.targets[:, -1].tolist()
    assert sorted(answers) == sorted(set(answers))
    assert sorted(prompts.wrong[:, -1].tolist()) == sorted(answers)
    assert torch.equal(other.targets, prompts.wrong)
    assert not torch.isin(known.reference.inputs, prompts.targets).any()
    assert (known.reference.inputs == known.reference.inputs[0]).all()


def test_with_crosstalk_wired_edges_are_not_told_from_others_by_being_nonzero():
    known = known_induction_with_crosstalk()
    effects = known.effects["edges, zero"]
    wired = [abs(effects[edge]) for edge in known.true_edges]
    others = [abs(effect) for edge, effect in effects.items() if edge not in known.true_edges]
    assert max(others) > 0.1
    assert min(wired) > max(others)
    assert known.baseline > 3


def test_the_induction_circuit_in_double_precision_is_the_one_in_single_precision():
    from interp.constructions.induction import induction_circuit

    settings = {"d_vocab": 5, "n_ctx": 6, "triggers": [1]}
    double, single = induction_circuit(**settings, dtype=torch.float64).model, induction_circuit(**settings).model
    assert double.W_E.dtype == torch.float64
    assert single.W_E.dtype == torch.float32
    tokens = torch.tensor([[0, 1, 3, 2, 4, 1]])
    torch.testing.assert_close(double(tokens).float(), single(tokens), atol=1e-3, rtol=0)
    overlaps = double.W_E @ double.W_E.T - torch.eye(5, dtype=torch.float64)
    assert float(overlaps.detach().abs().max()) < 1e-14


@pytest.mark.parametrize(
    ("build", "wrong", "message"),
    [
        (copy_circuit, {"attention_logit": 0.0}, "attention_logit = 0.0 must be a finite number, above 0"),
        (copy_circuit, {"copy_logit": math.inf}, "copy_logit = inf must be"),
        (backup_circuit, {"attention_logit": -1.0}, "attention_logit = -1.0 must be"),
        (two_path_circuit, {"joint_logit": 0.0}, "joint_logit = 0.0 must be"),
        (two_path_circuit, {"attention_logit": 1.5}, "attention_logit = 1.5 leaves .* give more than 1.79"),
        (known_induction, {"copy_logit": 0.0}, "copy_logit = 0.0 must be"),
        (known_induction_with_crosstalk, {"d_model": 0}, "d_model = 0 must be a whole number, at least 1"),
    ],
)
def test_a_circuit_that_cannot_be_is_refused(build, wrong, message):
    assert build().baseline > 0
    with pytest.raises(InputError, match=message) as refusal:
        build(**wrong)
    assert "\n" not in str(refusal.value)


def test_the_plain_pass_refuses_what_it_does_not_follow():
    shape = {"n_layers": 1, "d_model": 4, "n_ctx": 4, "d_vocab": 5}
    PlainTransformer(HookedTransformer(HookedTransformerConfig(**shape)))
    for more in ({"normalization_type": "LN"}, {"attn_fn": "relu"}, {"act_fn": "gelu"}, {"parallel_attn_mlp": True}):
        with pytest.raises(InputError, match="the plain forward pass follows"):
            PlainTransformer(HookedTransformer(HookedTransformerConfig(**shape, **more)))


def test_effects_need_a_counterfactual():
    known = copy_circuit()
    with pytest.raises(InputError, match="no counterfactual or no wrong answers"):
        measured_effects(known.model, replace(known.prompts, counterfactual=None), known.reference)
