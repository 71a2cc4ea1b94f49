"""Circuits that are known are found, edge by edge, from scores and by brute force; in noise nothing is."""

from itertools import combinations

import numpy as np
import pytest
import torch

from analyses import Circuit, attribute_edges, discover_circuit, edge_roc
from analyses.circuit import places
from analyses.circuit_search import grown, leading_to_output
from analyses.edges import edges_of
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import induction_circuit
from tasks import BigramICL, BigramStatistics
from tasks.errors import InputError
from tasks.prompts import Prompts

# what the construction writes down: see induction_circuit
TRUE_EDGES = [
    *("pos_embed->L0H0.q", "pos_embed->L0H0.k", "embed->L0H0.v"),
    *("L0H0->L1H0.k", "pos_embed->L1H0.k", "embed->L1H0.q", "embed->L1H0.v", "L1H0->output"),
]


@pytest.fixture(scope="module")
def built():
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake")
    task = BigramICL(stats, n_triggers=2, seq_len=24)
    circuit = induction_circuit(
        d_vocab=task.d_vocab, n_ctx=24, triggers=task.trigger_tokens, idle_heads=1, attention_logit=6.0, copy_logit=6.0
    )
    prompts = task.sample(24, seed=0)
    in_context = prompts.label_names["segment"].index("in_context")
    return circuit.model, task, prompts.score_only(prompts.labels["segment"] == in_context)


@pytest.fixture(scope="module")
def induction(built):
    model, _, _ = built
    return Circuit.of(model, TRUE_EDGES)


def random_model(**options):
    sizes = {"n_layers": 1, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "attn_only": True}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model.double()


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(6, (9, 5), generator=generator) for _ in range(3))
    return Prompts.from_tensors(tokens, wrong=wrong, counterfactual=Prompts.from_tensors(others))


@pytest.mark.parametrize(("metric", "threshold"), [("kl", 1e-3), ("kl", 1e-5), ("loss", 1e-4)])
def test_acdc_finds_exactly_the_edges_of_the_induction_circuit(metric, threshold, built, induction):
    model, _, prompts = built
    result = discover_circuit(model, prompts, threshold=threshold, reference="zero", metric=metric)
    assert result.circuit == induction
    assert result.frame["kept"].sum() == len(TRUE_EDGES)
    kept = result.frame[result.frame["kept"]]
    assert (kept["ci_low"] > 0).all()
    assert (kept["score"] >= threshold).all()
    roc = edge_roc(model, result, TRUE_EDGES)
    assert (roc.area, roc.area_low, roc.area_high) == (1.0, 1.0, 1.0)
    assert roc.threshold == kept["score"].min()
    assert float(result.faithfulness["faithfulness"].iloc[0]) == pytest.approx(1, abs=1e-6)


def test_a_counterfactual_shows_the_edges_that_carry_what_differs(built):
    model, task, prompts = built
    result = discover_circuit(model, prompts, task, threshold=1e-3)
    assert [str(edge) for edge in result.circuit] == ["embed->L1H0.v", "L1H0->output"]


@pytest.mark.parametrize("stop", [{"n_edges": 8}, {"faithfulness": 0.999}])
def test_growing_by_attributions_finds_the_induction_circuit(stop, built, induction):
    model, _, prompts = built
    how = {"reference": "zero", "metric": "loss"}
    named = discover_circuit(model, prompts, method="greedy", scores="eap", **how, **stop)
    assert named.circuit == induction
    scored = attribute_edges(model, prompts, method="eap", **how)
    given = discover_circuit(model, prompts, method="greedy", scores=scored, **how, **stop)
    assert given.frame.equals(named.frame)
    np.testing.assert_array_equal(named.frame["score"], scored.frame["score"])
    steps = named.frame.dropna(subset="step").sort_values("step")
    assert steps["step"].tolist() == list(range(1, 9))
    assert (steps["sender"].iloc[0], steps["receiver"].iloc[0]) == ("L1H0", "output")


def test_no_edge_of_the_induction_circuit_can_be_spared(built, induction):
    model, _, prompts = built
    more = induction | Circuit.of(model, ["L1H1->output", "embed->output"])
    result = discover_circuit(
        model, prompts[:8], method="brute_force", within=more, reference="zero", faithfulness=0.9999, progress=False
    )
    assert result.ties == (induction,)
    assert set(result.frame.loc[result.frame["score"] > 1e-4, "kept"]) == {True}


def test_the_heads_of_the_induction_circuit_are_its_smallest_set(built):
    model, _, prompts = built
    result = discover_circuit(model, prompts, method="brute_force", level="nodes", reference="zero", faithfulness=0.99)
    assert len(result.ties) == 1
    assert result.circuit.nodes == ("embed", "pos_embed", "L0H0", "L1H0", "output")
    assert result.circuit == Circuit.between(model, ["L0H0", "L1H0"])


def f_of(model, prompts, circuit, **how):
    """1 − KL(circuit) / KL(reference), by hand."""

    def kl(some):
        log_p, log_q = (one(prompts.inputs).log_softmax(-1) for one in (model, some.as_model(model, prompts, **how)))
        return float((log_p.exp() * (log_p - log_q)).sum(-1)[prompts.scored].mean())

    with torch.no_grad():
        return 1 - kl(circuit) / kl(Circuit.empty(model))


def test_brute_force_is_a_loop_over_all_subsets(prompts):
    model = random_model(n_heads=1, positional_embedding_type="none")
    every, target = list(Circuit.full(model)), 0.8
    best = []
    for size in range(len(every) + 1):
        best = [Circuit.of(model, some) for some in combinations(every, size)]
        best = [some for some in best if abs(1 - f_of(model, prompts, some, reference="zero")) <= 1 - target]
        if best:
            break
    result = discover_circuit(model, prompts, method="brute_force", faithfulness=target, reference="zero")
    assert {*result.ties} == {*best}
    assert 0 < len(best[0]) < len(every)
    found = [f_of(model, prompts, tie, reference="zero") for tie in result.ties]
    np.testing.assert_allclose(result.faithfulness["faithfulness"], found, atol=1e-8)
    assert np.argmin(np.abs(1 - np.array(found))) == 0


def test_ties_are_all_reported():
    """Two heads with the same weights: either will do, since each alone is faithful enough."""
    model = random_model(normalization_type=None, positional_embedding_type="none")
    with torch.no_grad():
        attn = model.blocks[0].attn
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O, attn.b_Q, attn.b_K, attn.b_V):
            weight[1] = weight[0]
        model.embed.W_E[:, 4:] = 0
        attn.W_O[:, :, :4] = 0
        model.unembed.W_U[:4] = 0  # so that heads alone speak to the output
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, (12, 5), generator=generator)
    result = discover_circuit(
        model, Prompts.from_tensors(tokens), method="brute_force", level="nodes", reference="zero", faithfulness=0.5
    )
    assert [circuit.nodes for circuit in result.ties] == [("embed", "L0H0", "output"), ("embed", "L0H1", "output")]
    assert any("2 circuits are equally small" in note for note in result.notes)


def test_acdc_is_a_loop_from_the_output_down(prompts):
    """The oracle tries edges in the documented order, and never mind which lead nowhere by then."""
    model, threshold = random_model(n_layers=2, n_heads=1), 0.02
    edges = edges_of(model)
    order = sorted(range(len(edges.pairs)), key=lambda place: edges.pairs[place][::-1], reverse=True)
    every = list(places(Circuit.full(model).anatomy))

    def kl(some):
        log_p, log_q = (one(prompts.inputs).log_softmax(-1) for one in (model, some.as_model(model, prompts)))
        return float((log_p.exp() * (log_p - log_q)).sum(-1)[prompts.scored].mean())

    with torch.no_grad():
        kept, now = Circuit.full(model), kl(Circuit.full(model))
        for place in order:
            less = kept - Circuit.of(model, [every[place]])
            if kl(less) - now < threshold:
                kept, now = less, kl(less)
    result = discover_circuit(model, prompts, threshold=threshold)
    assert result.circuit == kept
    assert 0 < len(kept) < len(every)


def test_a_higher_threshold_keeps_less_and_an_enormous_one_nothing(prompts):
    model = random_model(n_layers=2)
    sizes = [len(discover_circuit(model, prompts, threshold=each).circuit) for each in (1e-6, 1e-2, 1e-1, 100.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2] > sizes[3] == 0


def test_a_metric_that_falls_when_things_get_worse_is_turned(built, induction):
    model, _, prompts = built
    result = discover_circuit(model, prompts, threshold=0.02, reference="zero", metric="accuracy")
    assert result.circuit <= induction
    assert "L1H0->output" in result.circuit
    assert result.frame["score"].max() > 0.3


def test_a_random_model_shows_no_induction_circuit(built, induction):
    """Negative control: the edges that ACDC keeps longest in a random model are no better than chance."""
    model, _, prompts = built
    other = HookedTransformer(model.cfg)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    result = discover_circuit(other, prompts, threshold=1e-3, reference="zero")
    assert result.circuit != induction
    roc = edge_roc(other, result, TRUE_EDGES)
    assert roc.area < 0.8


def test_scores_and_intervals_do_not_depend_on_batches(built):
    model, _, prompts = built
    one, several = (
        discover_circuit(model, prompts, threshold=1e-3, reference="zero", batch_size=size) for size in (512, 7)
    )
    assert one.circuit == several.circuit
    for column in ("score", "ci_low", "ci_high"):
        np.testing.assert_allclose(one.frame[column], several.frame[column], atol=1e-5)


def test_edges_outside_the_circuit_to_look_in_are_cut_throughout(prompts):
    model = random_model(n_layers=2)
    some = Circuit.full(model).without(["L0H1"])
    result = discover_circuit(model, prompts, threshold=1e-9, within=some)
    assert result.circuit <= some
    assert len(result.circuit) > 5
    grown_in = discover_circuit(
        model, prompts, method="greedy", scores=dict.fromkeys(Circuit.full(model), 1.0), n_edges=9, within=some
    )
    assert grown_in.circuit <= some


def test_growth_stays_connected_to_the_output_and_takes_the_largest_at_hand():
    edges = edges_of(random_model(n_layers=2))
    rng = np.random.default_rng(0)
    values = rng.random(len(edges.pairs))
    order = grown(edges, values, torch.ones(len(values), dtype=torch.bool))
    assert sorted(order) == list(range(len(values)))
    into = [edges.receivers[r].name for _, r in edges.pairs]
    for n, place in enumerate(order):
        leading = leading_to_output(edges, order[:n])
        at_hand = [other for other in set(range(len(values))) - {*order[:n]} if into[other] in leading]
        assert values[place] == max(values[other] for other in at_hand)


def test_the_result_says_what_was_done_and_saves(built, tmp_path):
    model, _, prompts = built
    result = discover_circuit(model, prompts, threshold=1e-3, reference="zero")
    columns = ["sender", "receiver", "receiver_input", "method", "metric", "kept", "step"]
    assert list(result.frame) == [*columns, "score", "ci_low", "ci_high", "n_prompts"]
    assert len(result.frame) == len(Circuit.full(model))
    untried = result.frame["step"].isna()
    assert untried.any()
    assert (result.frame.loc[untried, "score"] == 0).all()
    result.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("circuit_discovery.csv", "circuit_discovery.json", "circuit_faithfulness.csv")
    }
    assert "<svg" in result._repr_html_()
    (cells,) = result.plot().data
    assert cells.z.shape == (6, 13)


def test_a_search_leaves_the_model_as_it_was_even_if_it_is_interrupted(prompts):
    model = random_model(n_layers=2).train()
    before = [weight.clone() for weight in model.parameters()]
    state, calls = torch.get_rng_state(), 0

    def impatient(outputs, prompts):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return outputs.sum(dim=(1, 2))

    with pytest.raises(KeyboardInterrupt):
        discover_circuit(model, prompts, threshold=1.0, metric=impatient)
    discover_circuit(model, prompts, threshold=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert model.training
    assert all(torch.equal(*both) for both in zip(model.parameters(), before, strict=True))
    assert not any(point._forward_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "threshold is missing"),
        ({"threshold": 0.0}, "threshold = 0.0: give a rise of the metric above 0"),
        ({"threshold": float("nan")}, "threshold = nan: give a rise of the metric above 0"),
        ({"threshold": 0.1, "n_edges": 3}, "method = 'acdc' takes no n_edges: drop it, or choose method = 'greedy'"),
        ({"threshold": 0.1, "faithfulness": 0.9}, "method = 'acdc' takes no faithfulness"),
        ({"threshold": 0.1, "level": "nodes"}, "takes no level: drop it, or choose method = 'brute_force'"),
        ({"method": "greedy", "n_edges": 3}, "scores is missing"),
        ({"method": "greedy", "scores": "eap"}, "give n_edges or faithfulness, one of the two"),
        ({"method": "greedy", "scores": "exact", "n_edges": 3, "faithfulness": 0.5}, "one of the two"),
        ({"method": "greedy", "scores": "exact", "n_edges": 0}, "n_edges"),
        ({"method": "greedy", "scores": "exact", "n_edges": 99}, "n_edges = 99: there are 42 edges"),
        ({"method": "greedy", "scores": "eap", "n_edges": 3}, "metric = 'kl' is least at the clean run"),
        ({"method": "greedy", "scores": {"embed->output": 1.0}, "n_edges": 3}, "scores lacks 41 of the 42 edges"),
        ({"method": "greedy", "scores": {"embed->L9H0.q": 1.0}, "n_edges": 3}, "they are another model's"),
        ({"method": "brute_force"}, "faithfulness is missing"),
        ({"method": "brute_force", "faithfulness": 1.0}, "faithfulness = 1.0: give a share between 0 and 1"),
        ({"method": "brute_force", "faithfulness": 0.9}, "at most 16 edges, these are 42: give within="),
        ({"method": "brute_force", "faithfulness": 0.9, "threshold": 0.1}, "takes no threshold"),
        ({"threshold": 0.1, "metric": "logit_diff"}, "metric = 'logit_diff' needs a wrong answer"),
    ],
)
def test_what_a_method_lacks_or_does_not_take_is_refused(how, message, prompts):
    without_wrong = Prompts.from_tensors(prompts.inputs, counterfactual=prompts.counterfactual)
    with pytest.raises(InputError, match=message):
        discover_circuit(random_model(n_layers=2), without_wrong, **how)


def test_searches_that_fit_are_made(prompts):
    model = random_model()
    assert len(discover_circuit(model, prompts, method="greedy", scores="exact", n_edges=3).circuit) == 3
    found = discover_circuit(model, prompts, method="brute_force", faithfulness=0.5)
    assert len(found.circuit) <= 16


def test_what_cannot_be_told_apart_or_reached_is_refused(prompts):
    model = random_model()
    same = Prompts.from_tensors(prompts.inputs.clone())
    with pytest.raises(InputError, match="the interval of their difference includes 0"):
        discover_circuit(model, prompts, same, method="brute_force", faithfulness=0.9)
    note = "no circuit has a faithfulness"
    result = discover_circuit(model, prompts, same, threshold=0.1)
    assert any(note in one for one in result.notes)
    assert result.faithfulness["faithfulness"].isna().all()
    nothing = Circuit.of(model, ["pos_embed->output"])
    with pytest.raises(InputError, match=r"no circuit within the 1 edges has faithfulness 0\.9"):
        discover_circuit(model, prompts, method="brute_force", faithfulness=0.9, within=nothing)
    with pytest.raises(InputError, match="no circuit on the way to all 1 edges"):
        discover_circuit(model, prompts, method="greedy", scores="exact", faithfulness=0.9, within=nothing)
    with pytest.raises(InputError, match="within has no edges"):
        discover_circuit(model, prompts, threshold=0.1, within=Circuit.empty(model))
    with pytest.raises(InputError, match="the circuit is one of 2 layers"):
        discover_circuit(model, prompts, threshold=0.1, within=Circuit.full(random_model(n_layers=2)))
    with pytest.raises(InputError, match="at most 12 heads and MLPs, these are 14"):
        discover_circuit(random_model(n_layers=7), prompts, method="brute_force", level="nodes", faithfulness=0.9)


def test_scores_with_several_rows_per_edge_are_refused(prompts):
    model = random_model()
    labelled = Prompts.from_tensors(
        prompts.inputs,
        labels={"half": (torch.arange(5) > 2).long().expand(9, -1)},
        counterfactual=prompts.counterfactual,
    )
    split = attribute_edges(model, labelled, by="half")
    with pytest.raises(InputError, match="several rows per edge: measure without by='half'"):
        discover_circuit(model, labelled, method="greedy", scores=split, n_edges=2)
    whole = attribute_edges(model, labelled)
    assert len(discover_circuit(model, labelled, method="greedy", scores=whole, n_edges=2).circuit) == 2


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"method": "acd"}, "method = 'acd' is unknown: choose 'acdc', 'greedy', 'brute_force'"),
        ({"threshold": 0.1, "reference": "noise"}, "reference = 'noise' is unknown"),
        ({"threshold": 0.1, "metric": "los"}, "metric = 'los' is unknown"),
        ({"method": "brute_force", "level": "heads", "faithfulness": 0.9}, "level = 'heads' is unknown"),
        ({"method": "greedy", "scores": "eep", "n_edges": 3, "metric": "loss"}, "method = 'eep' is unknown"),
        ({"method": "greedy", "scores": 3, "n_edges": 3}, "scores is int: give a method's name"),
    ],
)
def test_unknown_words_are_refused(how, message, prompts):
    with pytest.raises(InputError, match=message):
        discover_circuit(random_model(), prompts, **how)
