import numpy as np
import pytest
import torch

from analyses import ablate, attribute_edges
from analyses.edge_scores import TokenChange
from analyses.edges import edges_of
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import induction_circuit
from interp.constructions.regression import preprocess_then_optimize_transformer
from tasks import BigramICL, BigramStatistics, SparseRegression
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
    "relu attention": {"attn_fn": "relu", "attn_only": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
# what the construction writes down: see induction_circuit
TRUE_EDGES = {
    ("pos_embed", "L0H0.q"),  # a position asks for the one before it
    ("pos_embed", "L0H0.k"),
    ("embed", "L0H0.v"),  # whose token is taken along
    ("L0H0", "L1H0.k"),  # and is the key
    ("pos_embed", "L1H0.k"),  # that position 0 is told not to have
    ("embed", "L1H0.q"),  # which the token asks for
    ("embed", "L1H0.v"),  # to copy the token there
    ("L1H0", "output"),
}


def random_model(**options):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "d_vocab_out": 6}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model.double()


def linear_model(**options):
    """Patterns that do not depend on the prompt, no LayerNorm, a linear feed-forward part."""
    model = random_model(mlp_type="linear", **options)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.W_K.zero_()
    return model


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(6, (9, 5), generator=generator) for _ in range(3))
    scored = torch.rand((9, 5), generator=generator) < 0.7
    labels = {"half": (torch.arange(5) > 2).long().expand(9, -1)}
    other = Prompts.from_tensors(others)
    return Prompts.from_tensors(tokens, scored=scored, wrong=wrong, labels=labels, counterfactual=other)


@pytest.fixture(scope="module")
def circuit():
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake")
    task = BigramICL(stats, n_triggers=2, seq_len=24)
    built = induction_circuit(
        d_vocab=task.d_vocab, n_ctx=24, triggers=task.trigger_tokens, idle_heads=1, attention_logit=6.0, copy_logit=6.0
    )
    prompts = task.sample(24, seed=0)
    in_context = prompts.label_names["segment"].index("in_context")
    return built.model, task, prompts.score_only(prompts.labels["segment"] == in_context)


def named(frame):
    """Scores by (sender, receiver with its input)."""
    receivers = [
        one.receiver if one.receiver_input == "in" else f"{one.receiver}.{one.receiver_input}"
        for one in frame.itertuples()
    ]
    return dict(zip(zip(frame["sender"], receivers, strict=True), frame["score"], strict=True))


def materialised(model, prompts, reference):
    """Edge attribution as it is written down: what every sender adds, [batch, pos, head, d_model], times the gradient
    at the input of every receiver before its LayerNorm, which the hook points of split inputs give."""
    n_layers, parallel = model.cfg.n_layers, model.cfg.parallel_attn_mlp
    mlps = [layer for layer in range(n_layers) if f"blocks.{layer}.hook_mlp_out" in model.hook_dict]
    writes = {"hook_embed": 0} | ({"hook_pos_embed": 0} if "hook_pos_embed" in model.hook_dict else {})
    writes |= {f"blocks.{layer}.attn.hook_result": layer + (1.0 if parallel else 0.5) for layer in range(n_layers)}
    writes |= {f"blocks.{layer}.hook_mlp_out": layer + 1.0 for layer in mlps}
    reads = {f"blocks.{layer}.hook_{each}_input": layer for layer in range(n_layers) for each in "qkv"}
    reads |= {f"blocks.{layer}.hook_mlp_in": layer + (0.0 if parallel else 0.5) for layer in mlps}
    reads[f"blocks.{n_layers - 1}.hook_resid_post"] = n_layers

    def run(inputs):
        kept = {}

        def keep(activation, hook):
            kept[hook.name] = activation

        out = model.run_with_hooks(inputs, fwd_hooks=[(point, keep) for point in [*writes, *reads]])
        return out, kept

    out, here = run(prompts.inputs)
    sums, counts = prompts.loss(out)
    gradients = torch.autograd.grad(sums.sum() / counts.sum(), [here[point] for point in reads])
    there = run(prompts.counterfactual.inputs)[1]

    def components(point, tensor):
        parts = point.split(".")
        if tensor.ndim == 3:
            name = {"hook_embed": "embed", "hook_pos_embed": "pos_embed"}.get(point) or f"L{parts[1]}.mlp"
            return [("output" if point.endswith("resid_post") else name, tensor)]
        suffix = "" if point.endswith("result") else "." + parts[2].split("_")[1]
        return [(f"L{parts[1]}H{head}{suffix}", tensor[:, :, head]) for head in range(tensor.shape[2])]

    expected = {}
    for sent, wrote in writes.items():
        to = {"zero": 0 * here[sent], "mean": here[sent].mean(0, keepdim=True), "counterfactual": there[sent]}[
            reference
        ]
        for read, gradient in zip(reads, gradients, strict=True):
            if wrote <= reads[read]:
                for sender, change in components(sent, to - here[sent]):
                    for receiver, slope in components(read, gradient):
                        expected[sender, receiver] = float((change * slope).sum().detach())
    return expected


@each_variant
@pytest.mark.parametrize("reference", ["counterfactual", "zero", "mean"])
def test_scores_in_head_space_are_those_of_the_definition(variant, reference, prompts):
    model = random_model(**VARIANTS[variant])
    found = named(attribute_edges(model, prompts, reference=reference).frame)
    expected = materialised(model, prompts, reference)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[edge] for edge in expected], list(expected.values()), atol=1e-10)
    assert np.abs(list(expected.values())).max() > 0.01


@pytest.mark.parametrize("attn_fn", ["softmax", "linear"])
@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_in_a_linear_network_scores_are_the_effects_of_patching(method, attn_fn, prompts):
    model = linear_model(attn_fn=attn_fn)
    first, exact = (
        attribute_edges(model, prompts, method=one, metric="logit_diff", by="half").frame for one in (method, "exact")
    )
    for column in ("score", "ci_low", "ci_high"):
        np.testing.assert_allclose(first[column], exact[column], atol=1e-9)
    assert (exact["score"].abs() > 1e-3).mean() > 0.3


@each_variant
def test_exact_patching_adds_the_senders_change_to_one_input(variant, prompts):
    """The oracle writes the changed input of one head, or MLP, by a hook of its own."""
    model = random_model(**VARIANTS[variant])
    found = named(attribute_edges(model, prompts, method="exact").frame)
    point = "blocks.0.attn.hook_result"
    with torch.no_grad():
        (_, here), (_, there) = (
            model.run_with_cache(one.inputs, names_filter=point) for one in (prompts, prompts.counterfactual)
        )
        change = (there[point] - here[point])[:, :, 1]

        def into_head(activation, hook):
            return torch.stack([activation[:, :, 0] + change, activation[:, :, 1]], dim=2)

        def into_all(activation, hook):
            return activation + change

        cases = {f"L1H0.{each}": (f"blocks.1.hook_{each}_input", into_head) for each in "qkv"}
        cases["output"] = ("blocks.1.hook_resid_post", into_all)
        if "blocks.1.hook_mlp_in" in model.hook_dict:
            cases["L1.mlp"] = ("blocks.1.hook_mlp_in", into_all)
        sums, counts = prompts.loss(model(prompts.inputs))
        for receiver, hook in cases.items():
            patched, _ = prompts.loss(model.run_with_hooks(prompts.inputs, fwd_hooks=[hook]))
            assert found["L0H1", receiver] == pytest.approx(float((patched - sums).sum() / counts.sum()), abs=1e-10)


def test_in_the_last_layer_the_edge_to_the_output_is_the_whole_effect_of_a_head(prompts):
    model = random_model(attn_only=True, normalization_type="LN")
    found = named(attribute_edges(model, prompts, method="exact", reference="zero").frame)
    whole = ablate(model, prompts, ["L1H0", "L1H1"], method="zero").frame["delta"]
    np.testing.assert_allclose([found["L1H0", "output"], found["L1H1", "output"]], whole, atol=1e-10)


def test_embeddings_are_interpolated_at_midpoints(prompts):
    """With one step the gradient is that of a run halfway between the two embeddings."""
    model = random_model(normalization_type="LN", act_fn="gelu")
    found = named(attribute_edges(model, prompts, method="eap_ig_inputs", n_steps=1).frame)
    here, there = model.embed(prompts.inputs), model.embed(prompts.counterfactual.inputs)
    kept = {}

    def halfway(activation, hook):
        return (here + there) / 2

    def keep(activation, hook):
        kept["final"] = activation

    out = model.run_with_hooks(prompts.inputs, fwd_hooks=[("hook_embed", halfway), ("blocks.1.hook_resid_post", keep)])
    sums, counts = prompts.loss(out)
    (slope,) = torch.autograd.grad(sums.sum() / counts.sum(), kept["final"])
    assert found["embed", "output"] == pytest.approx(float(((there - here) * slope).sum().detach()), abs=1e-10)
    plain = named(attribute_edges(model, prompts).frame)
    assert abs(found["embed", "output"] - plain["embed", "output"]) > 1e-4


@each_variant
@pytest.mark.parametrize("reference", ["counterfactual", "zero", pytest.param("mean", marks=pytest.mark.slow)])
def test_edges_that_leave_a_layer_sum_to_what_moving_it_changes(variant, reference, prompts):
    """Completeness, measured by ablations: the oracle moves all heads of a layer, an MLP, or the embedding together."""
    model = random_model(**VARIANTS[variant])
    mlps = [f"L{layer}.mlp" for layer in range(2) if f"blocks.{layer}.hook_mlp_out" in model.hook_dict]
    together = [["embed"], ["L0H0", "L0H1"], ["L1H0", "L1H1"], *([mlp] for mlp in mlps)]
    moved = ablate(model, prompts, together, method=reference, metric="prob").frame["delta"].to_numpy()
    how = {"method": "eap_ig_activations", "reference": reference, "metric": "prob"}

    def errors(n_steps):
        frame = attribute_edges(model, prompts, n_steps=n_steps, **how).frame
        sums = [frame.loc[frame["sender"].isin(senders), "score"].sum() for senders in together]
        return np.abs(np.array(sums) - moved).max()

    few, many = errors(6), errors(60)
    assert many < 0.02 * np.abs(moved).max()
    assert many < max(few / 3, 1e-6)  # 1 / n_steps² where all is smooth, less where attention has a kink


def test_outputs_of_a_layer_are_interpolated_together_at_midpoints(prompts):
    """With one step gradients are those of a run in which both heads' outputs lie halfway to the reference."""
    model = random_model(normalization_type="LN", act_fn="gelu")
    found = named(attribute_edges(model, prompts, method="eap_ig_activations", n_steps=1).frame)
    point = "blocks.0.attn.hook_z"
    here, there = (model.run_with_cache(one.inputs)[1][point] for one in (prompts, prompts.counterfactual))
    kept = {}

    def halfway(activation, hook):
        return ((here + there) / 2).detach().requires_grad_()

    def keep(activation, hook):
        kept[hook.name] = activation

    reads = ["blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"]
    out = model.run_with_hooks(prompts.inputs, fwd_hooks=[(point, halfway), *((read, keep) for read in reads)])
    sums, counts = prompts.loss(out)
    slopes = torch.autograd.grad(sums.sum() / counts.sum(), [kept[read] for read in reads])
    change = ((there - here)[:, :, 1] @ model.W_O[0, 1]).detach()
    for receiver, slope in zip(("L1.mlp", "output"), slopes, strict=True):
        assert found["L0H1", receiver] == pytest.approx(float((change * slope).sum()), abs=1e-10)


@pytest.mark.parametrize("method", ["eap", "eap_ig_activations", "exact"])
def test_the_edges_of_the_circuit_score_highest_and_idle_ones_exactly_nothing(method, circuit):
    model, _, prompts = circuit
    frame = attribute_edges(model, prompts, method=method, reference="zero").frame
    scores = named(frame)
    highest = sorted(scores, key=lambda edge: -abs(scores[edge]))[: len(TRUE_EDGES)]
    assert set(highest) == TRUE_EDGES
    assert min(scores[edge] for edge in TRUE_EDGES) > 1e-4
    assert max(abs(score) for edge, score in scores.items() if edge not in TRUE_EDGES) < 1e-5
    idle = frame[frame["sender"].isin(["L0H1", "L1H1"]) | frame["receiver"].isin(["L0H1", "L1H1"])]
    assert len(idle) > 10
    assert idle[["score", "ci_low", "ci_high"]].abs().to_numpy().max() == 0.0


@pytest.mark.parametrize("method", ["eap", "eap_ig_inputs", "eap_ig_activations", "exact"])
def test_a_counterfactual_that_changes_the_answer_lights_up_the_edges_that_carry_it(method, circuit):
    """Other outputs after the same triggers change what is copied, not where from."""
    model, task, prompts = circuit
    scores = named(attribute_edges(model, prompts, task, method=method).frame)
    carrying = {("embed", "L1H0.v"), ("L1H0", "output")}
    assert set(sorted(scores, key=lambda edge: -abs(scores[edge]))[:2]) == carrying
    assert min(scores[edge] for edge in carrying) > 0.1
    assert max(abs(score) for edge, score in scores.items() if edge not in carrying) < 1e-4


def test_a_counterfactual_like_the_prompts_moves_nothing(prompts):
    model = random_model(normalization_type="LN")
    same = Prompts.from_tensors(prompts.inputs.clone())
    for method in ("eap", "eap_ig_inputs", "eap_ig_activations", "exact"):
        frame = attribute_edges(model, prompts, same, method=method).frame
        assert frame[["score", "ci_low", "ci_high"]].abs().to_numpy().max() == 0.0


@pytest.mark.parametrize("method", ["eap", "exact"])
def test_the_edges_of_preprocess_then_optimise_are_found_and_no_others(method):
    model = preprocess_then_optimize_transformer(d=3, n_ctx=11, steps=2, step_size=0.1)
    prompts = SparseRegression(d=3, sparsity=1, n_context=10).sample(16, seed=0)
    result = attribute_edges(model, prompts, reference="zero", method=method, metric="excess_risk")
    expected = {("embed", f"L0H{head}.{each}") for head in range(3) for each in "qkv"}
    # both steps' queries and keys read what the heads of layer 0 made of the coordinates; values are errors
    expected |= {(f"L0H{head}", f"L{step}H0.{each}") for head in range(3) for step in (1, 2) for each in "qk"}
    expected |= {("embed", "L1H0.v"), ("embed", "L2H0.v"), ("L1H0", "L2H0.v")}
    expected |= {("L1H0", "output"), ("L2H0", "output")}
    assert {edge for edge, score in named(result.frame).items() if score != 0} == expected


@pytest.mark.parametrize(
    ("method", "reference"),
    [("eap", "counterfactual"), ("eap_ig_activations", "mean"), ("eap", "mean"), ("exact", "mean")],
)
def test_batches_do_not_matter_and_parts_recombine(method, reference, prompts):
    model = random_model(normalization_type="LN", mlp_layers=(0,))
    whole = attribute_edges(model, prompts, method=method, reference=reference).matrix()
    split = attribute_edges(model, prompts, method=method, reference=reference, by="half", batch_size=5)
    n = [int((prompts.scored & (prompts.labels["half"] == half)).sum()) for half in (0, 1)]
    parts = sum(n[half] * split.matrix(half=half) for half in (0, 1)) / sum(n)
    torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0, equal_nan=True)


def test_changes_read_from_a_table_of_tokens_or_multiplied_out_are_the_same(prompts, monkeypatch):
    """A batch of fewer positions than tokens has no use for the table; nor has a change that is not one of tokens."""
    model, found = random_model(normalization_type="LN"), []

    def of(*args, _of=TokenChange.of):
        found.append(_of(*args))
        return found[-1]

    monkeypatch.setattr(TokenChange, "of", of)
    by_table = attribute_edges(model, prompts).matrix()
    assert len(found) == 1
    assert found[0] is not None
    found.clear()
    multiplied = attribute_edges(model, prompts, batch_size=1).matrix()  # 5 positions, 6 tokens
    assert found == [None] * 9
    torch.testing.assert_close(by_table, multiplied, atol=1e-12, rtol=0, equal_nan=True)

    embedded = [model.W_E[one.inputs].detach() for one in (prompts, prompts.counterfactual)]
    shifted = TokenChange.of(model, prompts.inputs, prompts.counterfactual.inputs, embedded[1] - embedded[0] + 1e-9)
    assert shifted is None


def test_the_table_the_matrix_and_the_picture_say_the_same(prompts, tmp_path):
    result = attribute_edges(random_model(mlp_layers=(1,)), prompts, reference="zero")
    assert list(result.frame) == [
        *("sender", "receiver", "receiver_input", "method", "metric", "score", "ci_low", "ci_high", "n_prompts")
    ]
    assert result.senders == ("embed", "pos_embed", "L0H0", "L0H1", "L1H0", "L1H1", "L1.mlp")
    heads = tuple(f"L{layer}H{head}.{each}" for layer in range(2) for head in range(2) for each in "qkv")
    assert result.receivers == (*heads, "L1.mlp", "output")
    matrix, scores = result.matrix(), named(result.frame)
    for s, sender in enumerate(result.senders):
        for r, receiver in enumerate(result.receivers):
            if (sender, receiver) in scores:
                assert matrix[s, r] == scores[sender, receiver]
            else:
                assert matrix[s, r].isnan()
    assert ("L1H0", "L1.mlp") in scores
    assert ("L1H0", "L1H1.q") not in scores
    assert (result.frame["ci_low"] <= result.frame["score"]).all()
    assert (result.frame["score"] <= result.frame["ci_high"]).all()
    (cells,) = result.plot().data
    np.testing.assert_array_equal(cells.z, matrix.numpy())
    result.save(tmp_path)
    assert (tmp_path / "edge_attribution.csv").exists()
    with pytest.raises(InputError, match="has no column 'delta'"):
        result.matrix("delta")
    with pytest.raises(InputError, match="several rows per edge: choose one by half="):
        attribute_edges(random_model(), prompts, by="half").matrix()


def test_attention_and_mlp_in_parallel_do_not_read_each_other():
    def joined(parallel):
        sizes = {"n_layers": 1, "d_model": 4, "n_ctx": 3, "d_vocab": 5}
        edges = edges_of(HookedTransformer(HookedTransformerConfig(parallel_attn_mlp=parallel, **sizes)))
        return {(edges.senders[s].name, edges.receivers[r].label) for s, r in edges.pairs}

    assert joined(False) - joined(True) == {("L0H0", "L0.mlp")}
    assert joined(True) < joined(False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "exact", "n_steps": 3}, "takes no n_steps"),
        ({"method": "eap_ig_inputs", "n_steps": 0}, "n_steps = 0"),
        ({"method": "eap_ig_activations", "n_steps": -1}, "n_steps = -1"),
        ({"method": "eap_ig_activations", "metric": "accuracy"}, "metric = 'accuracy' has no gradient"),
        ({"method": "eap_ig_inputs", "reference": "zero"}, "goes from the prompts to their counterfactuals"),
        ({"metric": "accuracy"}, "metric = 'accuracy' has no gradient"),
        ({"metric": "kl"}, "its gradient there is 0"),
        ({"by": "segment"}, "by = 'segment' is no label"),
        ({"by": "score"}, "also a column of the table"),
    ],
)
def test_what_does_not_fit_is_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        attribute_edges(random_model(), prompts, **how)


def test_counterfactuals_that_do_not_serve_are_refused(prompts):
    model = random_model()
    with pytest.raises(InputError, match="carry no counterfactual"):
        attribute_edges(model, Prompts.from_tensors(prompts.inputs))
    with pytest.raises(InputError, match="aligned prompt by prompt"):
        attribute_edges(model, prompts, Prompts.from_tensors(prompts.inputs[:4]))
    with pytest.raises(InputError, match="reference = 'zero' takes no counterfactual"):
        attribute_edges(model, prompts, prompts.counterfactual, reference="zero")
    # what a gradient cannot judge, patching can
    assert attribute_edges(model, prompts, method="exact", metric="kl").frame["score"].min() >= 0
    assert attribute_edges(model, prompts, method="exact", metric="accuracy").frame["score"].abs().max() > 0


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"method": "eap_ig"},
            "method = 'eap_ig' is unknown: choose 'eap', 'eap_ig_inputs', 'eap_ig_activations', 'exact'",
        ),
        ({"reference": "noise"}, "reference = 'noise' is unknown"),
        ({"metric": "los"}, "metric = 'los' is unknown"),
    ],
)
def test_unknown_words_are_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        attribute_edges(random_model(), prompts, **how)
