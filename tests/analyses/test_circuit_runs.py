"""Circuits as models: what every input gets, against a run that adds it up edge by edge."""

import math

import numpy as np
import pytest
import torch

from analyses import Circuit, ablate, ablate_heads, attribute_edges, compare_predictors
from analyses.circuit_runs import CircuitRuns, References
from analyses.edges import edges_of
from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Scale
from interp.model_adapter import activations, hooked, outputs
from tasks.errors import InputError
from tasks.prompts import Prompts

VARIANTS = {
    "attn only, no biases": {"attn_only": True, "use_biases": False},
    "MLP, LN": {"normalization_type": "LN", "act_fn": "gelu"},
    "LNPre, attn only": {"normalization_type": "LNPre", "attn_only": True},
    "parallel, LN": {"normalization_type": "LN", "parallel_attn_mlp": True, "act_fn": "gelu"},
    "linear memory in one layer, no positions": {
        "mlp_type": "linear",
        "mlp_layers": (1,),
        "positional_embedding_type": "none",
    },
    "one head, fixed queries": {"n_heads": 1, "identity_queries": True, "attn_only": True, "use_biases": False},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_reference = pytest.mark.parametrize("reference", ["counterfactual", "mean", "zero"])


def random_model(dtype=torch.float64, **options):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "d_vocab_out": 6}
    cfg = HookedTransformerConfig(**(sizes | options))
    model = HookedTransformer(cfg)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not (cfg.identity_queries and name.endswith("W_Q")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model.to(dtype)


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(6, (9, 5), generator=generator) for _ in range(3))
    scored = torch.rand((9, 5), generator=generator) < 0.7
    return Prompts.from_tensors(tokens, scored=scored, wrong=wrong, counterfactual=Prompts.from_tensors(others))


def random_circuit(model, share=0.6, seed=0):
    rng = np.random.default_rng(seed)
    return Circuit.of(model, [edge for edge in Circuit.full(model) if rng.random() < share])


def looped(model, tokens, circuit, there):
    """The outputs, and what every sender adds, when each input is added up sender by sender."""
    cfg, here = model.cfg, {"embed": model.W_E[tokens]}
    if model.has_positions:
        here["pos_embed"] = model.W_pos[: tokens.shape[1]].expand_as(here["embed"])
    biases = torch.zeros_like(here["embed"])
    written = list(here)

    def read(receiver, senders):
        total = biases.clone()
        for sender in senders:
            total = total + (here if f"{sender}->{receiver}" in circuit else there)[sender]
        return total

    hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    for layer, block in enumerate(model.blocks):
        attn, before, heads = block.attn, [*written], {}
        for head in range(cfg.n_heads):
            vectors = {}
            for each in "qkv":
                stream = block.ln1(read(f"L{layer}H{head}.{each}", before))
                vectors[each] = stream @ getattr(attn, f"W_{each.upper()}")[head]
                bias = getattr(attn, f"b_{each.upper()}")
                vectors[each] = vectors[each] if bias is None else vectors[each] + bias[head]
            scores = vectors["q"] @ vectors["k"].transpose(1, 2) / math.sqrt(cfg.d_head)
            pattern = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
            heads[f"L{layer}H{head}"] = pattern @ vectors["v"] @ attn.W_O[head]
        if block.has_mlp and cfg.parallel_attn_mlp:
            heads[f"L{layer}.mlp"] = block.mlp(block.ln2(read(f"L{layer}.mlp", before)))
        here |= heads
        written += list(heads)
        biases = biases if attn.b_O is None else biases + attn.b_O
        if block.has_mlp and not cfg.parallel_attn_mlp:
            here[f"L{layer}.mlp"] = block.mlp(block.ln2(read(f"L{layer}.mlp", written)))
            written.append(f"L{layer}.mlp")
    return model.unembed(model.ln_final(read("output", written))), here


def looped_reference(model, prompts, reference):
    full = Circuit.full(model)
    inputs = prompts.counterfactual.inputs if reference == "counterfactual" else prompts.inputs
    _, sent = looped(model, inputs, full, {})
    if reference == "counterfactual":
        return sent
    return {name: each.mean(0, keepdim=True).expand_as(each) * (reference == "mean") for name, each in sent.items()}


@each_variant
@each_reference
def test_a_circuits_run_is_that_of_the_definition(variant, reference, prompts):
    model = random_model(**VARIANTS[variant])
    with torch.no_grad():
        there = looped_reference(model, prompts, reference)
        for seed in range(3):
            circuit = random_circuit(model, seed=seed)
            expected, _ = looped(model, prompts.inputs, circuit, there)
            found = circuit.as_model(model, prompts, reference=reference)(prompts.inputs)
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
            assert float((found - model(prompts.inputs)).abs().max()) > 0.1


@each_variant
def test_the_full_circuit_is_the_model_and_the_empty_one_the_counterfactuals_run(variant, prompts):
    model = random_model(**VARIANTS[variant])
    with torch.no_grad():
        full, empty = (one(model).as_model(model, prompts)(prompts.inputs) for one in (Circuit.full, Circuit.empty))
        torch.testing.assert_close(full, model(prompts.inputs), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(empty, model(prompts.counterfactual.inputs), atol=1e-12, rtol=1e-12)


def test_in_single_precision_the_full_circuit_is_the_model_to_its_last_digits(prompts):
    model = random_model(torch.float32, normalization_type="LN", act_fn="gelu")
    with torch.no_grad():
        full = Circuit.full(model).as_model(model, prompts)(prompts.inputs)
        torch.testing.assert_close(full, model(prompts.inputs), atol=1e-6, rtol=2e-6)


@each_reference
@pytest.mark.parametrize("variant", ["MLP, LN", "parallel, LN"])
def test_the_model_without_one_edge_is_that_edge_patched_exactly(variant, reference, prompts):
    model = random_model(**VARIANTS[variant])
    frame = attribute_edges(model, prompts, method="exact", reference=reference).frame
    runs = CircuitRuns(model)
    there = References(runs, prompts, None, reference, seed=0, batch_size=99)(slice(0, 9))
    each_without_one = ~torch.eye(len(frame), dtype=torch.bool)
    with torch.no_grad():
        sums, counts = prompts.loss(model(prompts.inputs))
        without = [prompts.loss(out)[0] for out in runs.outputs(prompts.inputs, each_without_one, there)]
        effects = [float((one - sums).sum() / counts.sum()) for one in without]
    np.testing.assert_allclose(effects, frame["score"], atol=1e-10)


def test_circuits_run_side_by_side_as_one_by_one(prompts, monkeypatch):
    model = random_model(normalization_type="LN")
    runs = CircuitRuns(model)
    circuits = [random_circuit(model, seed=seed) for seed in range(5)]
    masks = torch.stack([circuit.mask for circuit in circuits])
    reference = runs.stream(prompts.counterfactual.inputs)
    together = runs.outputs(prompts.inputs, masks, reference)
    alone = [circuit.as_model(model, prompts)(prompts.inputs) for circuit in circuits]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-12, rtol=0)
    monkeypatch.setattr("analyses.circuit_runs._CELLS", 2 * reference.sent.numel())
    torch.testing.assert_close(runs.outputs(prompts.inputs, masks, reference), together, atol=1e-12, rtol=0)


def test_edges_that_lead_nowhere_or_come_from_what_nothing_feeds_carry_nothing(prompts):
    model = random_model(normalization_type="LN")
    circuit = random_circuit(model, share=0.2, seed=1)
    assert len(circuit.connected()) < len(circuit)
    both = (one.as_model(model, prompts)(prompts.inputs) for one in (circuit, circuit.connected()))
    torch.testing.assert_close(*both, atol=1e-10, rtol=0)


def test_rows_of_prompts_find_their_own_counterfactual(prompts):
    model = random_model(normalization_type="LN")
    run = random_circuit(model).as_model(model, prompts)
    whole = run(prompts.inputs)
    torch.testing.assert_close(run(prompts.inputs[[4, 2]]), whole[[4, 2]], atol=1e-12, rtol=0)


def test_a_mean_is_over_all_prompts_whatever_the_batches(prompts):
    model = random_model(normalization_type="LN")
    circuit = random_circuit(model)
    one, several = (
        circuit.as_model(model, prompts, reference="mean", batch_size=size)(prompts.inputs[:2]) for size in (9, 4)
    )
    torch.testing.assert_close(one, several, atol=1e-12, rtol=0)


def test_analyses_take_a_circuit_for_a_model(prompts):
    model = random_model(attn_only=True, normalization_type="LN")
    circuit = random_circuit(model, seed=3)
    run = circuit.as_model(model, prompts, reference="zero")
    frame = ablate_heads(run, prompts, method="zero").frame
    for row in frame.itertuples():
        less = circuit.without([f"L{row.layer}H{row.head}"]).as_model(model, prompts, reference="zero")
        sums, counts = prompts.loss(less(prompts.inputs))
        assert row.ablated == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-10)
    assert frame["delta"].abs().max() > 0.01
    table = compare_predictors(run, prompts, {}).frame
    assert float(table.loc[table["source"] == "model", "value"].iloc[0]) == pytest.approx(float(frame["baseline"][0]))


def test_edits_of_heads_are_followed_and_edits_of_the_stream_refused(prompts):
    model = random_model(attn_only=True)
    run = Circuit.full(model).as_model(model, prompts)
    mine, theirs = (ablate(one, prompts, ["L0H1", "embed"], method=Scale(0.5)).frame for one in (run, model))
    np.testing.assert_allclose(mine["delta"], theirs["delta"], atol=1e-10)
    (stream,) = activations(run, prompts.inputs, ["blocks.1.hook_resid_pre"])[1].values()
    (clean,) = activations(model, prompts.inputs, ["blocks.1.hook_resid_pre"])[1].values()
    torch.testing.assert_close(stream, clean)
    with pytest.raises(InputError, match="can only be read in a circuit's run"):
        ablate(run, prompts, ["L1.resid_pre"], method=Scale(0.5))
    with pytest.raises(InputError, match=r"the model has no hook point blocks\.0\.attn\.hook_q"):
        ablate(run, prompts, ["L0H1.q"], method=Scale(0.5))
    with (
        pytest.raises(InputError, match="means nothing in a circuit's run"),
        run.hooks([("blocks.0.hook_k_input", abs)]),
    ):
        pass
    with pytest.raises(InputError, match="has no gradients"), run.hooks([], [("hook_embed", abs)]):
        pass


def test_inputs_without_a_counterfactual_are_refused(prompts):
    model = random_model()
    run = Circuit.full(model).as_model(model, prompts)
    assert outputs(run, prompts.inputs).shape == (9, 5, 6)
    with pytest.raises(InputError, match="1 of 9 inputs are none of the circuit's prompts"):
        run(torch.cat([prompts.inputs[1:], prompts.inputs[:1].flip(1)]))
    with pytest.raises(InputError, match="have 4 positions, the circuit's reference 5"):
        run(prompts.inputs[:, :4])
    doubled = prompts[[0, 0, 1]]
    same = Circuit.full(model).as_model(model, doubled)
    assert same(doubled.inputs).shape == (3, 5, 6)
    others = Prompts.from_tensors(prompts.counterfactual.inputs[[0, 1, 2]])
    with pytest.raises(InputError, match="2 of 3 inputs stand in the prompts more than once"):
        Circuit.full(model).as_model(model, doubled, others)(doubled.inputs)
    mean = Circuit.full(model).as_model(model, prompts, reference="mean")
    assert mean(prompts.inputs.flip(1)).shape == (9, 5, 6)


def test_references_that_do_not_serve_are_refused(prompts):
    model = random_model()
    full = Circuit.full(model)
    with pytest.raises(InputError, match="carry no counterfactual"):
        full.as_model(model, Prompts.from_tensors(prompts.inputs))
    with pytest.raises(InputError, match="reference = 'mean' takes no counterfactual"):
        full.as_model(model, prompts, prompts.counterfactual, reference="mean")
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        full.as_model(model, prompts[:0], reference="mean")
    with pytest.raises(InputError, match="the circuit is one of 2 layers × 2 heads"):
        full.as_model(random_model(n_heads=1), prompts)


@pytest.mark.refusal
def test_an_unknown_reference_is_refused(prompts):
    with pytest.raises(InputError, match="reference = 'noise' is unknown: choose 'counterfactual', 'zero' or 'mean'"):
        Circuit.full(random_model()).as_model(random_model(), prompts, reference="noise")


def test_a_model_that_computes_its_queries_in_another_way_is_refused(prompts):
    model = random_model()

    class Turned(torch.nn.Module):
        def forward(self, activation):
            return activation.flip(-1)

    model.blocks[1].ln1 = Turned()  # not what the config says
    with pytest.raises(InputError, match="outputs are not those of its edges put together"):
        Circuit.full(model).as_model(model, prompts)


def test_a_run_leaves_the_model_as_it_was(prompts):
    model = random_model(normalization_type="LN")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    run = random_circuit(model).as_model(model, prompts)
    assert torch.is_grad_enabled()
    out = run(prompts.inputs)
    assert torch.is_grad_enabled()
    assert not out.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(point._forward_hooks for point in model.hook_dict.values())

    def fails(activation, hook):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), hooked(run, [("blocks.0.attn.hook_z", fails)]):
        run(prompts.inputs)
    assert not any(point._forward_hooks for point in model.hook_dict.values())
    assert len(edges_of(model).pairs) == len(Circuit.full(model))
