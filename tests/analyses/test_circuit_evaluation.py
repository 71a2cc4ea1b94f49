"""Faithfulness, completeness, minimality and areas, against circuits whose worth is known and loops by hand."""

import numpy as np
import pytest
import torch

from analyses import Circuit, attribute_edges, discover_circuit, evaluate_circuit
from analyses.circuit_areas import SHARES
from analyses.circuit_knockouts import random_subsets
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.backup import backup_circuit
from interp.constructions.copying import copy_circuit
from tasks.errors import InputError
from tasks.prompts import Prompts

ZERO = {"references": ["zero"], "metric": "logit_diff", "progress": False}


@pytest.fixture(scope="module")
def copying():
    known = copy_circuit()
    return known, Circuit.of(known.model, known.true_edges)


@pytest.fixture(scope="module")
def backup():
    return backup_circuit()


def random_model(**options):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "normalization_type": "LN"}
    model = HookedTransformer(HookedTransformerConfig(attn_only=True, **(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model.double()


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong, others = (torch.randint(6, (12, 5), generator=generator) for _ in range(3))
    labels = {"half": (torch.arange(5) > 2).long().expand(12, -1)}
    return Prompts.from_tensors(tokens, wrong=wrong, labels=labels, counterfactual=Prompts.from_tensors(others))


@pytest.fixture
def circuit():
    rng = np.random.default_rng(0)
    model = random_model()
    return Circuit.of(model, [edge for edge in Circuit.full(model) if rng.random() < 0.6])


def mean_of(model, prompts, circuit, reference, half=None):
    """The loss of a circuit at the scored positions, of one half of them perhaps."""
    judged = prompts if half is None else prompts.score_only(prompts.labels["half"] == half)
    with torch.no_grad():
        sums, counts = judged.loss(circuit.as_model(model, prompts, reference=reference)(prompts.inputs))
    return float(sums.sum() / counts.sum())


def test_faithfulness_is_the_share_of_the_way_from_the_reference_to_the_model(prompts, circuit):
    model = random_model()
    frame = evaluate_circuit(model, circuit, prompts, by="half", metric="loss", n_random=0).frame
    assert list(frame) == [
        *("circuit", "n_edges", "reference", "metric", "half", "model", "empty", "value", "faithfulness"),
        *("ci_low", "ci_high", "n_prompts"),
    ]
    assert frame["reference"].unique().tolist() == ["counterfactual", "mean"]
    for row in frame.itertuples():
        of = [mean_of(model, prompts, one, row.reference, row.half) for one in (Circuit.full(model), circuit)]
        empty = mean_of(model, prompts, Circuit.empty(model), row.reference, row.half)
        np.testing.assert_allclose([row.model, row.value, row.empty], [*of, empty], atol=1e-10)
        if not np.isnan(row.faithfulness):
            assert row.faithfulness == pytest.approx((of[1] - empty) / (of[0] - empty))
            assert row.ci_low <= row.faithfulness <= row.ci_high


def test_the_model_itself_and_its_true_circuit_are_faithful_and_complete(copying):
    known, circuit = copying
    result = evaluate_circuit(known.model, {"all": Circuit.full(known.model), "true": circuit}, known.prompts, **ZERO)
    np.testing.assert_allclose(result.frame["faithfulness"], 1, atol=1e-9)
    np.testing.assert_allclose(result.frame[["ci_low", "ci_high"]], 1, atol=1e-9)
    np.testing.assert_allclose(result.completeness["difference"], 0, atol=1e-9)


def test_a_backup_that_the_circuit_misses_makes_it_incomplete(backup):
    """Without the main head the model goes on by its backup; a circuit without the backup does not."""
    model, prompts = backup.model, backup.prompts
    with_it = Circuit.of(model, backup.true_edges)
    main = with_it.without(["L1H0"])
    result = evaluate_circuit(model, {"main": main, "with backup": with_it}, prompts, n_random=2, **ZERO)
    assert (result.frame["faithfulness"] > 0.99).all()
    furthest = result.completeness.groupby("circuit")["difference"].agg(lambda each: each.abs().max())
    assert furthest["with backup"] < 1e-6
    assert furthest["main"] > 1
    greedy = result.completeness[result.completeness["chosen"] == "greedy"].set_index("circuit")
    assert greedy["without"]["main"] == "L0H0"
    assert greedy["n_prompts"]["main"] == len(prompts) - len(prompts) // 2
    # the backup belongs, but shows it only beside the loss of the main head
    minimal = result.minimality[result.minimality["circuit"] == "with backup"].set_index("part")
    assert minimal["beside"]["L1H0"] == "L0H0"
    assert abs(minimal["change"]["L1H0"]) > 1


def test_what_does_not_belong_changes_nothing(copying):
    known, circuit = copying
    more = circuit | Circuit.of(known.model, ["L0H1->output", "embed->L0H1.v"])
    nodes = evaluate_circuit(known.model, more, known.prompts, **ZERO).minimality.set_index("part")
    assert set(nodes.index) == {"L0H0", "L0H1"}
    assert nodes["change"]["L0H0"] < -1
    assert nodes["change"]["L0H1"] == pytest.approx(0, abs=1e-9)
    edges = evaluate_circuit(known.model, more, known.prompts, minimality="edges", **ZERO).minimality.set_index("part")
    assert set(edges.index) == {str(edge) for edge in more}
    for edge in more:
        assert (abs(edges["change"][str(edge)]) > 0.1) == (edge in circuit)


def test_differences_are_those_of_loops_by_hand(prompts, circuit):
    model = random_model()
    result = evaluate_circuit(model, circuit, prompts, metric="loss", references=["mean"], n_random=3)
    whole = result.completeness[result.completeness["chosen"] != "greedy"]
    assert whole["chosen"].tolist() == ["nothing", "random", "random", "random"]
    for row in whole.itertuples():
        gone = row.without.split()
        values = [mean_of(model, prompts, one.without(gone), "mean") for one in (Circuit.full(model), circuit)]
        np.testing.assert_allclose([row.model_without, row.circuit_without], values, atol=1e-10)
        assert row.difference == pytest.approx(values[1] - values[0], abs=1e-10)
        assert row.ci_low <= row.difference <= row.ci_high
    second = prompts.score_only((torch.arange(12) >= 6)[:, None].expand(12, 5))
    for row in result.minimality.itertuples():
        beside = row.beside.split()
        values = [mean_of(model, second, circuit.without(some), "mean") for some in (beside, [*beside, row.part])]
        assert row.change == pytest.approx(values[1] - values[0], abs=1e-10)


def test_areas_are_trapezoids_under_the_curves_of_the_best_edges(prompts):
    model = random_model()
    scores = attribute_edges(model, prompts, method="exact", metric="loss")
    result = evaluate_circuit(
        model, Circuit.full(model), prompts, metric="kl", references=["counterfactual"], scores=scores, n_random=0
    )
    values = dict(zip(Circuit.full(model), scores.frame["score"], strict=True))
    for measure, key in (("CPR", lambda edge: -values[edge]), ("CMD", lambda edge: -abs(values[edge]))):
        ranked = sorted(values, key=key)
        f = []
        for share in SHARES:
            some = Circuit.of(model, ranked[: int(share * len(ranked))])
            f.append(1 - kl_of(model, prompts, some) / kl_of(model, prompts, Circuit.empty(model)))
        curve = result.curves[result.curves["measure"] == measure]
        np.testing.assert_allclose(curve["faithfulness"], f, atol=1e-8)
        heights = f if measure == "CPR" else [abs(1 - each) for each in f]
        area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(SHARES, SHARES[1:], heights, heights[1:], strict=False))
        row = result.areas[result.areas["measure"] == measure].iloc[0]
        assert row["value"] == pytest.approx(area, abs=1e-8)
        assert row["ci_low"] < row["value"] < row["ci_high"]


def kl_of(model, prompts, circuit):
    with torch.no_grad():
        log_p = model(prompts.inputs).log_softmax(-1)
        log_q = circuit.as_model(model, prompts)(prompts.inputs).log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum(-1)[prompts.scored].mean())


def test_true_scores_have_better_areas_than_their_reverse(copying):
    known, circuit = copying
    right = {edge: float(edge in circuit) for edge in Circuit.full(known.model)}
    wrong = {edge: -score for edge, score in right.items()}
    areas = [
        evaluate_circuit(known.model, circuit, known.prompts, scores=scores, n_random=0, **ZERO).areas
        for scores in (right, wrong)
    ]
    cpr = [float(each.loc[each["measure"] == "CPR", "value"].iloc[0]) for each in areas]
    # 4 of 16 edges suffice: from 0.2 (3 edges) to 0.5 (8) the curve climbs to 1
    assert cpr[0] == pytest.approx(0.5 + 0.3 / 2, abs=0.02)
    assert cpr[1] < 0.5


def test_where_model_and_reference_are_alike_there_is_no_faithfulness(prompts, circuit):
    model = random_model()
    same = Prompts.from_tensors(prompts.inputs.clone())
    how = {"references": ["counterfactual"], "n_random": 0, "scores": attribute_edges(model, prompts)}
    result = evaluate_circuit(model, circuit, prompts, same, **how)
    assert result.frame["faithfulness"].isna().all()
    assert result.areas["value"].isna().all()
    assert any("1 of 1 rows have no faithfulness" in note for note in result.notes)


def test_a_result_of_a_search_may_be_given_as_it_is_and_saved(prompts, tmp_path):
    model = random_model()
    found = discover_circuit(model, prompts, threshold=1e-3)
    result = evaluate_circuit(model, found, prompts, metric="kl", scores=found, n_random=1, by="half")
    assert (result.frame["n_edges"] == len(found.circuit)).all()
    assert len(result.plot().data) == 2
    result.save(tmp_path)
    names = ["circuit_evaluation", "circuit_completeness", "circuit_minimality", "circuit_areas", "circuit_curves"]
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(names)
    np.testing.assert_allclose(
        evaluate_circuit(model, found, prompts, metric="kl", n_random=1, batch_size=5).frame["value"],
        evaluate_circuit(model, found, prompts, metric="kl", n_random=1).frame["value"],
        atol=1e-12,
    )


def test_an_evaluation_leaves_the_model_as_it_was(prompts, circuit):
    model = random_model()
    before, state = [weight.clone() for weight in model.parameters()], torch.get_rng_state()
    evaluate_circuit(model, circuit, prompts, n_random=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(torch.equal(*both) for both in zip(model.parameters(), before, strict=True))
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_random_subsets_are_different_and_repeatable():
    nodes = tuple("abcdefg")
    drawn = random_subsets(nodes, 20, seed=1)
    assert len(set(drawn)) == 20
    assert drawn == random_subsets(nodes, 20, seed=1)
    assert drawn != random_subsets(nodes, 20, seed=2)
    assert len(random_subsets(nodes[:3], 20, seed=1)) == 7


def test_what_does_not_fit_is_refused(prompts, circuit):
    model = random_model()
    refused = [
        ({"circuit": Circuit.empty(model)}, "circuit has no edges: there is nothing to evaluate"),
        ({"circuit": {}}, "circuit holds none"),
        ({"circuit": {"a": circuit, "b": Circuit.empty(model)}}, "b has no edges"),
        ({"circuit": Circuit.full(random_model(n_layers=1))}, "the circuit is one of 1 layers"),
        ({"references": []}, r"references = \[\]: give a list"),
        ({"references": ["mean", "mean"]}, "each once"),
        ({"references": ["mean"], "counterfactual": prompts.counterfactual}, "take no counterfactual"),
        ({"prompts": prompts[:3]}, "3 prompts are too few"),
        ({"by": "whole"}, "by = 'whole' is no label"),
        ({"by": "circuit"}, "also a column of the table"),
        ({"n_random": -1}, "n_random"),
        ({"prompts": Prompts.from_tensors(prompts.inputs)}, "carry no counterfactual"),
        ({"scores": {"embed->output": 1.0}}, "scores lacks"),
    ]
    for how, message in refused:
        with pytest.raises(InputError, match=message):
            evaluate_circuit(**({"model": model, "circuit": circuit, "prompts": prompts} | how))
    assert len(evaluate_circuit(model, circuit, prompts, references=["mean"], n_random=0).frame) == 1


@pytest.mark.refusal
def test_unknown_words_are_refused(prompts, circuit):
    model = random_model()
    with pytest.raises(InputError, match="references has 'median', which is unknown"):
        evaluate_circuit(model, circuit, prompts, references=["median"])
    with pytest.raises(InputError, match="references = 'mean': give a list"):
        evaluate_circuit(model, circuit, prompts, references="mean")
    with pytest.raises(InputError, match="minimality = 'heads' is unknown: choose 'nodes' or 'edges'"):
        evaluate_circuit(model, circuit, prompts, minimality="heads")
    with pytest.raises(InputError, match="circuit is list, which is no circuit"):
        evaluate_circuit(model, [circuit], prompts)
