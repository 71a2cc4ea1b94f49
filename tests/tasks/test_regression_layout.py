import pytest
import torch

from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.regression_layout import ROLES, regression_pairs, regression_prompts
from tasks.sparse_regression import SparseRegression

X = torch.arange(12.0).reshape(2, 3, 2)
Y = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_reading_pairs_back_gives_all_but_the_querys_y(layout):
    x, y, read_layout = regression_pairs(regression_prompts(X, Y, layout=layout))
    assert torch.equal(x, X)
    assert torch.equal(y, Y[:, :-1])
    assert read_layout == layout


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_the_querys_y_is_no_input(layout):
    changed = Y.clone()
    changed[:, -1] += 100
    assert torch.equal(
        regression_prompts(X, Y, layout=layout).inputs, regression_prompts(X, changed, layout=layout).inputs
    )


def test_a_single_pair_is_a_query_without_context():
    x, y, layout = regression_pairs(regression_prompts(X[:, :1], Y[:, :1], layout="interleaved"))
    assert (x.shape, y.shape, layout) == ((2, 1, 2), (2, 0), "interleaved")


def test_several_queries_are_the_last_pairs_scored_and_without_their_y():
    prompts = regression_prompts(X, Y, n_queries=2, clean=Y - 1)
    assert [ROLES[role] for role in prompts.labels["role"][1].tolist()] == ["pair", "query", "query"]
    assert torch.equal(prompts.inputs[..., :2], X)
    assert prompts.inputs[..., 2].tolist() == [[0, 0, 0], [3, 0, 0]]  # Y begins with 0 and with 3
    assert torch.equal(prompts.targets, Y)
    assert prompts.scored.tolist() == [[False, True, True]] * 2
    assert prompts.labels["n_context"].tolist() == [[1, 1, 1]] * 2
    assert prompts.labels["position"].tolist() == [[0, 1, 2]] * 2
    assert torch.equal(prompts.labels["clean_target"], Y - 1)
    assert prompts.excess_risk(prompts.targets)[0].tolist() == [2, 2]
    assert prompts.excess_risk(prompts.targets)[1].tolist() == [2, 2]
    x, y, layout = regression_pairs(prompts)
    assert torch.equal(x, X)
    assert torch.equal(y, Y[:, :1])
    assert layout == "query"


def test_every_pair_may_be_a_query():
    _, y, _ = regression_pairs(regression_prompts(X, Y, n_queries=3))
    assert y.shape == (2, 0)


def test_a_number_of_queries_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="n_queries = 0 must be a whole number, at least 1"):
        regression_prompts(X, Y, n_queries=0)
    with pytest.raises(InputError, match="n_queries = 4 but there are 3 pairs"):
        regression_prompts(X, Y, n_queries=4)
    with pytest.raises(InputError, match="n_queries = 2 needs layout = 'query'"):
        regression_prompts(X, Y, n_queries=2, layout="interleaved")
    with pytest.raises(InputError, match=r"x is \[2, 0, 2\] but y is \[2, 0\]"):
        regression_prompts(X[:, :0], Y[:, :0])


def test_excess_risk_counts_scored_positions_against_the_clean_target():
    prompts = regression_prompts(X, Y, layout="interleaved", clean=Y - 1)
    sums, counts = prompts.excess_risk(prompts.targets + 1)
    assert sums.tolist() == [12, 12]
    assert counts.tolist() == [3, 3]
    with_axis, _ = prompts.excess_risk((prompts.targets + 1)[..., None])
    assert torch.equal(with_axis, sums)


def test_excess_risk_ignores_what_is_not_scored_even_if_it_is_nan():
    prompts = regression_prompts(X, Y, clean=Y)
    predictions = prompts.targets.clone()
    predictions[:, 0] = torch.nan
    assert prompts.excess_risk(predictions)[0].tolist() == [0, 0]


def test_excess_risk_refuses_unknown_w_star_and_a_wrong_shape():
    with pytest.raises(InputError, match="w\\* is unknown"):
        regression_prompts(X, Y).excess_risk(Y)
    with pytest.raises(InputError, match=r"predictions is \[2, 2\]"):
        regression_prompts(X, Y, clean=Y).excess_risk(Y[:, :2])


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN or infinite"):
        regression_prompts(X, Y / 0)


def test_pairs_are_read_only_from_regression_prompts():
    with pytest.raises(InputError, match="no label 'role'"):
        regression_pairs(Prompts.from_tensors(torch.zeros(2, 3, 3), torch.zeros(2, 3)))


@pytest.mark.refusal
def test_a_latent_of_another_batch_size_is_refused():
    prompts = SparseRegression(d=5).sample(3, seed=0)
    with pytest.raises(InputError, match=r"latents\['w_star'\] is \[2, 5\] but there are 3 prompts"):
        Prompts(prompts.inputs, prompts.targets, prompts.scored, latents={"w_star": prompts.latents["w_star"][:2]})


@pytest.mark.refusal
def test_an_unknown_layout_or_mismatched_pairs_are_refused():
    with pytest.raises(InputError, match="layout = 'rows'"):
        regression_prompts(X, Y, layout="rows")
    with pytest.raises(InputError, match=r"x is \[2, 3, 2\] but y is \[2, 2\]"):
        regression_prompts(X, Y[:, :2])
