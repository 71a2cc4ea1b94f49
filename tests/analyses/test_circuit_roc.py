"""The curve of true edges against others, beside scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from analyses import Circuit, attribute_edges, discover_circuit, edge_roc
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.known_induction import known_induction_with_crosstalk
from tasks.errors import InputError
from tasks.prompts import Prompts


@pytest.fixture(scope="module")
def model():
    cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=5, n_heads=2, d_vocab=6, attn_only=True)
    return HookedTransformer(cfg).double()


@pytest.fixture
def prompts():
    tokens, others = torch.randint(6, (2, 12, 5), generator=torch.Generator().manual_seed(0))
    return Prompts.from_tensors(tokens, counterfactual=Prompts.from_tensors(others))


@pytest.mark.parametrize("digits", [5, 0])
def test_area_and_curve_are_scikit_learns(model, digits):
    """With no digits there are ties."""
    rng = np.random.default_rng(0)
    edges = list(Circuit.full(model))
    scores = dict(zip(edges, rng.normal(size=len(edges)).round(digits).tolist(), strict=True))
    truth = [edge for edge in edges if rng.random() < 0.3]
    is_true = [edge in truth for edge in edges]
    for absolute in (True, False):
        values = [abs(score) if absolute else score for score in scores.values()]
        roc = edge_roc(model, scores, truth, absolute=absolute)
        assert roc.area == pytest.approx(roc_auc_score(is_true, values))
        fpr, tpr, thresholds = roc_curve(is_true, values, drop_intermediate=False)
        np.testing.assert_allclose(roc.frame["true_positive_rate"], tpr[1:])
        np.testing.assert_allclose(roc.frame["false_positive_rate"], fpr[1:])
        np.testing.assert_allclose(roc.frame["threshold"], thresholds[1:])
        assert roc.threshold == pytest.approx(thresholds[np.argmax(tpr - fpr)])
        assert np.isnan(roc.area_low)
        assert "no interval" in roc.notes[0]


def test_scores_measured_prompt_by_prompt_have_an_interval(model, prompts):
    found = discover_circuit(model, prompts, threshold=1e-9)
    truth = Circuit.full(model).without(["L0H0"])
    roc = edge_roc(model, found, truth)
    assert 0 <= roc.area_low <= roc.area_high <= 1
    assert roc.settings["area_low"] == roc.area_low
    assert edge_roc(model, attribute_edges(model, prompts), truth).area_low != roc.area_low
    assert len(roc.plot().data) == 3


def test_where_components_overlap_the_true_edges_still_score_highest():
    known = known_induction_with_crosstalk()
    found = discover_circuit(known.model, known.prompts, threshold=1e-8, reference="zero", metric="logit_diff")
    truth = Circuit.of(known.model, known.true_edges)
    assert truth <= found.circuit
    assert len(found.circuit) > len(truth)  # crosstalk carries something, too
    roc = edge_roc(known.model, found, truth)
    assert roc.area > 0.95
    assert found.frame.loc[found.frame["score"] >= roc.threshold, "kept"].all()


def test_what_makes_no_curve_is_refused(model):
    scores = dict.fromkeys(Circuit.full(model), 1.0)
    with pytest.raises(InputError, match="0 of 42 edges are true"):
        edge_roc(model, scores, [])
    with pytest.raises(InputError, match="42 of 42 edges are true"):
        edge_roc(model, scores, Circuit.full(model))
    with pytest.raises(InputError, match="holds NaN or infinity"):
        edge_roc(model, scores | {"embed->output": float("nan")}, ["embed->output"])
    assert edge_roc(model, scores, ["embed->output"]).area == 0.5
