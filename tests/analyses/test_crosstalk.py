import math

import numpy as np
import pytest
import torch

from analyses.crosstalk import crosstalk_against_width, moments
from analyses.memory_scores import ideal_memory
from analyses.memory_statistics import cosine
from interp.constructions.induction import induction_circuit
from tasks.errors import InputError

WIDTHS = [16, 32, 64, 128, 256]


def every_table(n_entries: int, kurtosis: float) -> tuple[np.ndarray, np.ndarray]:
    """All tables of entries in {−c, 0, c}, with weights that give variance 1 and this kurtosis: [table, entry]."""
    values = np.array([-(kurtosis**0.5), 0.0, kurtosis**0.5])
    chances = np.array([0.5 / kurtosis, 1 - 1 / kurtosis, 0.5 / kurtosis])
    digits = np.stack(np.unravel_index(np.arange(3**n_entries), (3,) * n_entries), axis=1)
    return values[digits], chances[digits].prod(axis=1)


def expected_squares(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Mean and variance of the own score, mean square of another, by definition: s_kj = a_kᵀ Σ_i a_i b_iᵀ b_j."""
    own = sum((a[:, 0] * a[:, i]).sum(1) * (b[:, i] * b[:, 0]).sum(1) for i in range(a.shape[1]))
    other = sum((a[:, 0] * a[:, i]).sum(1) * (b[:, i] * b[:, 1]).sum(1) for i in range(a.shape[1]))
    mean = float(weights @ own)
    return mean, float(weights @ own**2) - mean**2, float(weights @ other**2)


@pytest.mark.parametrize(("n_pairs", "width"), [(2, 1), (3, 1), (4, 1), (5, 1), (2, 2), (3, 2), (2, 3)])
def test_gaussian_moments_are_exact(n_pairs: int, width: int) -> None:
    # No entry has a power above 4 in a squared score, and up to there {−√3, 0, √3} has the moments of a normal.
    size = n_pairs * width
    tables, weights = every_table(2 * size, 3.0)
    a, b = (part.reshape(-1, n_pairs, width) / math.sqrt(width) for part in np.split(tables, 2, axis=1))
    found = expected_squares(a, b, weights)
    predicted = moments(n_pairs, width)
    assert found == pytest.approx((1, predicted.own_variance, predicted.other_square))


@pytest.mark.parametrize(("n_pairs", "width"), [(2, 1), (3, 1), (2, 2)])
def test_the_circuits_moments_are_exact(n_pairs: int, width: int) -> None:
    size = n_pairs * width
    u, u_weights = every_table(size, 9 / 5)
    x, x_weights = every_table(size, 3.0)
    W, W_weights = every_table(width * width, 9 / 5)
    # every combination of the read vectors' two factors, then of written and read
    reads = np.einsum("xnd,wde->xwne", x.reshape(-1, n_pairs, width), W.reshape(-1, width, width)) / width
    reads, read_weights = reads.reshape(-1, n_pairs, width), np.outer(x_weights, W_weights).ravel()
    u = u.reshape(-1, n_pairs, width) / math.sqrt(width)
    total = np.zeros(3)
    for b, weight in zip(u, u_weights, strict=True):
        a = np.broadcast_to(b, reads.shape)
        own = sum((a[:, 0] * a[:, i]).sum(1) * (reads[:, i] * reads[:, 0]).sum(1) for i in range(n_pairs))
        other = sum((a[:, 0] * a[:, i]).sum(1) * (reads[:, i] * reads[:, 1]).sum(1) for i in range(n_pairs))
        total += weight * np.array([read_weights @ own, read_weights @ own**2, read_weights @ other**2])
    predicted = moments(n_pairs, width, "induction_circuit")
    assert total == pytest.approx([1, 1 + predicted.own_variance, predicted.other_square])


@pytest.mark.parametrize("pairs", ["gaussian", "induction_circuit"])
def test_the_predicted_crosstalk_is_measured_at_every_width(pairs) -> None:
    result = crosstalk_against_width(65, WIDTHS, n_seeds=20, pairs=pairs)
    exact = result.frame[result.frame["quantity"] != "recall"]
    assert len(exact) == 2 * len(WIDTHS)
    assert exact["within"].all(), exact
    assert ((exact["ci_high"] - exact["ci_low"]) < 0.2 * exact["value"]).all()  # and the intervals say something


def test_another_number_of_pairs_is_outside() -> None:
    frame = crosstalk_against_width(65, WIDTHS, n_seeds=20).frame
    crosstalk = frame[frame["quantity"] == "crosstalk"]
    wrong = [moments(75, width).crosstalk for width in WIDTHS]
    assert ((crosstalk["ci_high"] < wrong) | (crosstalk["ci_low"] > wrong)).sum() >= 4


def test_where_the_recall_approximation_fails_is_said() -> None:
    result = crosstalk_against_width(65, WIDTHS, n_seeds=20)
    recall = result.frame[result.frame["quantity"] == "recall"].set_index("width")
    assert set(recall["prediction"]) == {"Gaussian approximation"}
    assert recall["within"].to_dict()[64] is False
    assert 0.03 < recall["value"][64] - recall["predicted"][64] < 0.06
    assert recall["value"][256] == 1
    assert recall["within"].isna()[256]
    assert any(
        note.startswith("recall: the Gaussian approximation lies outside the interval at width")
        for note in result.notes
    )
    assert "recall: every seed gave the same at width 128, 256, so that there is no interval" in result.notes


def test_measurement_agrees_with_loops_over_pairs() -> None:
    n_pairs, width, n_seeds = 5, 6, 5
    frame = crosstalk_against_width(n_pairs, [width], n_seeds=n_seeds, seed=3).frame.set_index("quantity")
    hits, crosstalks = [], []
    for index in range(n_seeds):
        seed = int(np.random.SeedSequence((3, width, index)).generate_state(1)[0])
        a, b = np.random.default_rng(seed).normal(scale=width**-0.5, size=(2, n_pairs, width))
        W = sum(np.outer(a[k], b[k]) for k in range(n_pairs))
        scores = np.array([[a[k] @ W @ b[j] for j in range(n_pairs)] for k in range(n_pairs)])
        hits.append(np.mean([scores[k].argmax() == k for k in range(n_pairs)]))
        crosstalks.append(
            ([scores[k, j] ** 2 for k in range(n_pairs) for j in range(n_pairs) if j != k], scores.trace())
        )
    assert frame["value"]["recall"] == pytest.approx(np.mean(hits))

    def pooled(chosen: list) -> float:
        return np.mean([squares for squares, _ in chosen]) ** 0.5 / (np.mean([own for _, own in chosen]) / n_pairs)

    without = [pooled(crosstalks[:k] + crosstalks[k + 1 :]) for k in range(n_seeds)]
    expected = n_seeds * pooled(crosstalks) - (n_seeds - 1) * np.mean(without)
    assert frame["value"]["crosstalk"] == pytest.approx(expected)


def test_the_gaussian_recall_is_that_of_independent_normals() -> None:
    predicted = moments(9, 8)
    draws = np.random.default_rng(0).normal(size=(200_000, 9))
    own = 1 + predicted.own_variance**0.5 * draws[:, 0]
    wins = (own[:, None] > predicted.crosstalk * draws[:, 1:]).all(axis=1)
    assert predicted.gaussian_recall(9) == pytest.approx(wins.mean(), abs=4 * wins.std() / math.sqrt(len(wins)))


def test_the_circuits_memory_is_the_one_that_is_measured() -> None:
    circuit = induction_circuit(d_vocab=12, n_ctx=2, triggers=[0], d_model=20, embeddings="random", seed=5)
    model = circuit.initial_model
    ideal = ideal_memory(model.W_E @ model.W_V[1, 0], model.W_U.T)
    assert cosine(circuit.memories["W_O2"], ideal) == pytest.approx(1)


def test_a_frozen_value_matrix_doubles_the_crosstalk_of_many_pairs() -> None:
    for n_pairs, factor in ((100_000, 2), (2, 1.5)):
        ratio = moments(n_pairs, 512, "induction_circuit").other_square / moments(n_pairs, 512).other_square
        assert ratio == pytest.approx(factor, rel=0.02)


def test_the_picture_shows_measurement_band_and_prediction() -> None:
    result = crosstalk_against_width(10, [8, 32], n_seeds=5)
    figure = result.plot()
    assert [trace.name for trace in figure.data] == ["band", "measured", "predicted"] * 3
    crosstalk = result.frame[result.frame["quantity"] == "crosstalk"]
    assert list(figure.data[1].y) == crosstalk["value"].tolist()
    assert list(figure.data[2].y) == crosstalk["predicted"].tolist()
    assert figure.layout.xaxis.type == "log"


def test_the_seed_decides() -> None:
    first, again, other = (crosstalk_against_width(10, [8], n_seeds=5, seed=seed).frame for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first["value"].equals(other["value"])


def test_refusals_say_what_to_do() -> None:
    crosstalk_against_width(2, [2], n_seeds=5)
    for wrong, message in (
        ({"n_pairs": 1}, "n_pairs = 1 leaves nothing to confuse"),
        ({"widths": []}, "widths is empty"),
        ({"widths": [8, 1]}, "width 1 is too small"),
        ({"widths": [8, 8]}, "names a width twice"),
        ({"confidence": -3.0, "widths": [4, 5, 6, 7, 8]}, "confidence = -3.0 is no probability"),
        ({"n_seeds": 4}, "n_seeds = 4 gives no interval over seeds: draw at least 5"),
    ):
        with pytest.raises(InputError, match=message):
            crosstalk_against_width(**({"n_pairs": 4, "widths": [8], "n_seeds": 5} | wrong))


@pytest.mark.refusal
def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="pairs = 'uniform' is unknown: choose from gaussian, induction_circuit"):
        crosstalk_against_width(pairs="uniform")  # pyright: ignore


def test_measuring_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    crosstalk_against_width(5, [4], n_seeds=5, pairs="induction_circuit")
    assert torch.equal(torch.rand(1), expected)
