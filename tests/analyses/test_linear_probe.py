import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import roc_auc_score

from analyses.linear_probe import auc_by_prompt, checked_ridges, fit_discriminant, fit_ridge
from tasks.errors import InputError

NONE_HELD_OUT = torch.zeros(60, dtype=torch.bool)


def drawn(rows=60, width=7, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = randn(rows, width) @ randn(width, width) + 3  # correlated, off centre
    return features, randn(rows, k) + 2 * features[:, :1]


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 10.0])
def test_ridge_is_scikit_learns_at_the_strength_in_units_of_the_mean_variance(ridge):
    features, targets = drawn()
    alpha = ridge * float(features.var(dim=0, correction=0).mean()) * len(features)
    theirs = Ridge(alpha=alpha).fit(features.numpy(), targets.numpy())
    ours = fit_ridge(features, targets, [ridge], NONE_HELD_OUT)
    np.testing.assert_allclose(ours.weight.T, theirs.coef_, atol=1e-9)
    np.testing.assert_allclose(ours(features), theirs.predict(features.numpy()), atol=1e-9)


def test_the_ridge_is_that_with_the_least_error_on_held_out_rows_and_the_fit_uses_all_rows():
    features, targets = drawn(width=40, k=1)
    held_out = torch.arange(60) % 4 == 0
    ridges = [1e-8, 1e-3, 1e-1, 1.0, 100.0]
    scale = float(features[~held_out].var(dim=0, correction=0).mean()) * int((~held_out).sum())
    errors = []
    for ridge in ridges:
        model = Ridge(alpha=ridge * scale).fit(features[~held_out].numpy(), targets[~held_out].numpy())
        errors.append(((model.predict(features[held_out].numpy()) - targets[held_out].numpy().squeeze()) ** 2).sum())
    best = ridges[int(np.argmin(errors))]
    assert 1e-8 < best < 100.0  # the case discriminates
    ours = fit_ridge(features, targets, ridges[::-1], held_out)
    assert ours.ridge.tolist() == [best]
    again = fit_ridge(features, targets, [best], NONE_HELD_OUT)
    torch.testing.assert_close(ours.weight, again.weight)


def test_targets_choose_their_ridge_apart_and_columns_of_one_together():
    features, _ = drawn(width=40)
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    held_out = torch.arange(60) % 4 == 0
    ridges = [1e-6, 1e-2, 100.0]
    both = fit_ridge(features, torch.cat([features[:, :1], noise], dim=1), ridges, held_out, groups=[1, 2])
    assert both.ridge.tolist() == [1e-6, 100.0, 100.0]
    alone = fit_ridge(features, noise, ridges, held_out)
    torch.testing.assert_close(both.weight[:, 1:], alone.weight)


def test_without_ridge_and_with_fewer_rows_than_features_it_is_least_squares_of_least_norm():
    features, targets = drawn(rows=6, width=10)
    ours = fit_ridge(features, targets, [0.0], torch.zeros(6, dtype=torch.bool))
    theirs = LinearRegression().fit(features.numpy(), targets.numpy())
    np.testing.assert_allclose(ours.weight.T, theirs.coef_, atol=1e-8)
    torch.testing.assert_close(ours(features), targets)


def test_features_that_never_vary_predict_the_mean():
    targets = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    probe = fit_ridge(torch.ones(3, 2, dtype=torch.float64), targets, [1e-10], torch.zeros(3, dtype=torch.bool))
    assert probe(torch.full((1, 2), 9.0, dtype=torch.float64)).tolist() == [[3.0]]


def test_the_discriminant_is_scikit_learns():
    features, _ = drawn()
    classes = torch.arange(60) % 3
    features = features + classes[:, None] * torch.tensor([2.0, 0, 1, 0, 0, 0, 3], dtype=torch.float64)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(features.numpy(), classes.numpy())
    ours = fit_discriminant(features, classes, 3, [0.0], NONE_HELD_OUT)(features)
    np.testing.assert_allclose(ours.log_softmax(dim=1), theirs.predict_log_proba(features.numpy()), atol=1e-6)


def test_a_class_between_two_others_is_found_where_least_squares_misses_it():
    centres = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    classes = torch.arange(60) % 3
    features = centres[classes][:, None] + 0.05 * drawn(width=1)[0].sub(3)
    one_hot = torch.nn.functional.one_hot(classes).double()
    by_squares = fit_ridge(features, one_hot, [0.0], NONE_HELD_OUT)(features).argmax(dim=1)
    assert (by_squares[classes == 1] == 1).double().mean() < 0.5
    found = fit_discriminant(features, classes, 3, [0.0], NONE_HELD_OUT)(features).argmax(dim=1)
    assert (found == classes).double().mean() > 0.95


def test_a_class_without_rows_is_never_predicted_and_one_that_never_varies_is_found():
    features = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64)
    probe = fit_discriminant(features, torch.tensor([0, 0, 2, 2]), 4, [1e-10], torch.zeros(4, dtype=torch.bool))
    assert probe(features).argmax(dim=1).tolist() == [0, 0, 2, 2]
    assert probe(features)[:, [1, 3]].isneginf().all()


def test_the_auc_is_scikit_learns_with_ties_and_its_values_by_prompt_have_it_as_mean():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 5, generator=generator) < 0.3
    scores = (torch.randn(40, 5, generator=generator) + truth).round(decimals=1)
    values = auc_by_prompt(scores, truth, torch.arange(40) // 2, 20)
    assert float(values.mean()) == pytest.approx(roc_auc_score(truth.flatten(), scores.flatten()), abs=1e-12)


def test_the_spread_of_the_auc_over_prompts_is_that_of_a_bootstrap_that_computes_it_anew():
    generator = torch.Generator().manual_seed(1)
    n = 80
    truth = torch.rand(n, 6, generator=generator) < 0.4
    shared = torch.randn(n, 1, generator=generator)  # what makes the entries of a prompt depend on each other
    scores = truth + shared + 0.5 * torch.randn(n, 6, generator=generator)
    values = auc_by_prompt(scores, truth, torch.arange(n), n)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        rows = torch.from_numpy(rng.integers(0, n, n))
        draws.append(roc_auc_score(truth[rows].flatten(), scores[rows].flatten()))
    # 400 draws know their own standard deviation to 3.5 %
    assert float(values.std()) / n**0.5 == pytest.approx(np.std(draws), rel=0.12)


def test_one_sided_truth_and_impossible_ridges_are_refused():
    with pytest.raises(InputError, match="True everywhere"):
        auc_by_prompt(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), torch.arange(2), 2)
    assert checked_ridges([0.0, 1.0]) == [0.0, 1.0]
    for ridge in (-1.0, float("nan"), []):
        with pytest.raises(InputError, match="ridge = "):
            checked_ridges(ridge)
