import math
from itertools import permutations

import pytest
import torch

from analyses import memory_statistics
from analyses.memory_statistics import (
    cosine,
    pairing_p_value,
    permutation_p_value,
    recall_of,
    separation,
    unique_best,
)
from tasks.errors import InputError


def enumerated(best: list[int], answer: list[int], n_keys: int) -> float:
    """The p-value by trying every way to deal the labels."""
    hits = sum(b == a for b, a in zip(best, answer, strict=True))
    as_many = [
        sum(dealt[a] == b for b, a in zip(best, answer, strict=True)) >= hits for dealt in permutations(range(n_keys))
    ]
    return sum(as_many) / len(as_many)


def test_p_values_equal_full_enumeration() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for n_keys in (1, 2, 3, 4, 5):
        for n_queries in range(1, n_keys + 1):
            for _ in range(12):
                answer = torch.randperm(n_keys, generator=generator)[:n_queries]
                best = torch.randint(-1, n_keys, (n_queries,), generator=generator)
                p_value = permutation_p_value(best, answer, n_keys)
                assert p_value == pytest.approx(enumerated(best.tolist(), answer.tolist(), n_keys), rel=1e-12)
                seen.add(round(p_value, 6))
    assert len(seen) > 15  # hits of every kind were met, not the trivial p = 1 alone


def test_a_hub_gets_no_more_than_its_due() -> None:
    answer = torch.arange(5)
    assert permutation_p_value(torch.full((5,), 2), answer, 5) == 1.0  # one hit is certain, however labels are dealt
    assert permutation_p_value(answer, answer, 5) == pytest.approx(1 / 120)


def test_many_keys_are_permuted_at_random_and_agree_with_the_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = torch.arange(40)
    best = torch.randint(40, (40,), generator=torch.Generator().manual_seed(1))
    best[:2] = torch.arange(2)
    exact = permutation_p_value(best, answer, 40)
    monkeypatch.setattr(memory_statistics, "EXACT_UP_TO", 39)
    drawn = permutation_p_value(best, answer, 40, n_permutations=4000, seed=5)
    assert 0.05 < exact < 0.95
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 4000))
    assert permutation_p_value(answer, answer, 40, n_permutations=99) == 1 / 100  # add one


def test_a_p_value_too_small_for_a_double_is_not_zero() -> None:
    assert 0 < permutation_p_value(torch.arange(300), torch.arange(300), 300) < 1e-300


def test_three_tokens_worked_out_by_hand() -> None:
    scores = torch.tensor([[5.0, 1.0, 3.0], [2.0, 4.0, 2.0], [6.0, 0.0, 5.0]])
    found = recall_of(scores, torch.arange(3))
    others = [1, 3, 2, 2, 6, 0]
    spread = math.sqrt(sum((x - 14 / 6) ** 2 for x in others) / 6)
    assert (found.hits, found.n, found.recall) == (2, 3, 2 / 3)  # token 2 is taken for token 0
    assert found.chance == 1 / 3
    # Best keys are 0, 1, 0: dealt labels hit twice in the orders (0 1 2) and (2 1 0), of six.
    assert found.p_value == pytest.approx(2 / 6)
    assert found.margin == pytest.approx((2 + 2 - 1) / 3 / spread)
    assert found.crosstalk == pytest.approx(spread / (14 / 3 - 14 / 6))


def test_a_tie_is_no_recall() -> None:
    silent = recall_of(torch.zeros(4, 4), torch.arange(4))
    assert (silent.hits, silent.p_value) == (0, 1.0)
    assert math.isnan(silent.margin)
    assert math.isnan(silent.crosstalk)
    assert unique_best(torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 2.0], [0.0, 1.0, 0.0]])).tolist() == [-1, -1, 1]


def test_a_single_key_is_always_found_and_never_significant() -> None:
    found = recall_of(torch.tensor([[0.3]]), torch.tensor([0]))
    assert (found.recall, found.chance, found.p_value) == (1.0, 1.0, 1.0)
    assert math.isnan(found.margin)


def test_separation_ignores_units() -> None:
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answer = torch.tensor([3, 8, 0, 1, 5, 2])
    assert separation(7 * scores, answer) == pytest.approx(separation(scores, answer))


def test_scores_that_are_not_finite_are_refused() -> None:
    for broken in (math.nan, math.inf):
        scores = torch.eye(3)
        assert recall_of(scores, torch.arange(3)).recall == 1
        scores[0, 1] = broken
        with pytest.raises(InputError, match="NaN or infinity"):
            recall_of(scores, torch.arange(3))


def test_pairings_are_enumerated_where_they_are_few_and_drawn_where_not() -> None:
    table = torch.rand(5, 5, generator=torch.Generator().manual_seed(3))
    own = float(table.double().diagonal().mean())
    means = [sum(float(table[i, j].double()) for i, j in enumerate(order)) / 5 for order in permutations(range(5))]
    exact = sum(mean <= own + 1e-12 for mean in means) / 120
    assert pairing_p_value(table) == exact
    assert 0.02 < exact < 0.98
    drawn = pairing_p_value(table, n_permutations=119, seed=1)
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 119))


def test_equal_pairings_are_no_evidence() -> None:
    table = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)).expand(30, 30)
    assert pairing_p_value(table) == 1.0


def test_cosine_of_a_zero_matrix_does_not_exist() -> None:
    assert cosine(torch.eye(2), 3 * torch.eye(2)) == pytest.approx(1)
    assert math.isnan(cosine(torch.zeros(2, 2), torch.eye(2)))
