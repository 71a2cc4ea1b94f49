"""The vectorised sampler against the exact law, and against a loop that draws one token at a time."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import chisquare

from tasks.bigram_sampling import AliasTable, Walker, count_occurrences, draw_without_replacement, generator_of
from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError

TEXT = "the cat sat on the mat and the rat sat at the back of the cart; so it goes, and that is that, then it ends."
NEVER = 1e-6
"""A correct sampler fails a test at this level once in a million seeds; the seeds are fixed."""


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 50)))
def test_an_alias_table_holds_exactly_the_weights(weights):
    weights[weights.sum(axis=1) == 0] = 1
    table = AliasTable.from_weights(weights)
    rows, size = weights.shape
    kept = table.threshold - np.arange(size)
    probability = np.zeros((rows, size))
    for row in range(rows):
        for cell in range(size):
            probability[row, cell] += kept[row, cell] / size
            probability[row, table.alias[row, cell]] += (1 - kept[row, cell]) / size
    assert probability == pytest.approx(weights / weights.sum(axis=1, keepdims=True), abs=1e-12)
    assert (probability[weights == 0] == 0).all()


def test_weights_near_the_int64_limit_do_not_overflow():
    table = AliasTable.from_weights(np.array([[2**60, 2**60, 1]]))
    assert table.draw(np.zeros(2, dtype=int), np.array([0.0, 0.4])).tolist() == [0, 1]


def test_the_walker_and_a_loop_over_tokens_follow_the_exact_transition_law():
    stats = BigramStatistics.from_text(TEXT)
    size = len(stats.vocab)
    generator = np.random.default_rng(3)
    output_of = np.full((400, size), -1)
    triggers = np.argsort(-stats.unigram_counts)[:3]
    output_of[:, triggers] = generator.integers(0, size, (400, 3))

    walker = Walker.from_counts(stats.unigram_counts, stats.successor_counts)
    for tokens in (walker.walk(output_of, 65, generator), loop_over_tokens(stats, output_of, 65, generator)):
        assert tokens.shape == (400, 65)
        assert goodness_of_fit(np.bincount(tokens[:, 0], minlength=size), stats.unigram) > NEVER
        before, after = tokens[:, :-1], tokens[:, 1:]
        outputs = output_of[np.arange(400)[:, None], before]
        assert (after == outputs)[outputs >= 0].all()
        for token in range(size):
            followed_by = np.bincount(after[(before == token) & (outputs < 0)], minlength=size)
            assert (followed_by[stats.bigram[token] == 0] == 0).all()
            assert goodness_of_fit(followed_by, stats.bigram[token]) > NEVER


def test_the_goodness_of_fit_notices_a_sampler_of_another_law():
    stats = BigramStatistics.from_text(TEXT)
    flat = np.full(len(stats.vocab), 1 / len(stats.vocab))
    drawn = np.random.default_rng(0).choice(len(flat), 4000, p=flat)
    assert goodness_of_fit(np.bincount(drawn, minlength=len(flat)), stats.unigram) < NEVER


def test_drawing_without_replacement_has_the_law_of_drawing_one_after_the_other():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = draw_without_replacement(weights, 40_000, 2, np.random.default_rng(1))
    orders = list(permutations(range(4), 2))
    law = [weights[i] * weights[j] / (1 - weights[i]) for i, j in orders]
    counts = [(drawn == order).all(axis=1).sum() for order in orders]
    assert sum(counts) == 40_000
    assert goodness_of_fit(np.array(counts), np.array(law)) > NEVER


def test_all_tokens_can_be_drawn():
    drawn = draw_without_replacement(np.array([0.999, 0.0005, 0.0005]), 50, 3, np.random.default_rng(1))
    assert (np.sort(drawn, axis=1) == [0, 1, 2]).all()


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.integers(0, 3)))
def test_occurrences_are_those_of_a_recount(tokens):
    running, total = count_occurrences(tokens, size=4)
    for row, sequence in enumerate(tokens.tolist()):
        assert running[row].tolist() == [sequence[: pos + 1].count(token) for pos, token in enumerate(sequence)]
        assert total[row].tolist() == [sequence.count(token) for token in range(4)]


def test_one_seed_gives_one_stream_and_another_seed_or_use_another():
    first = generator_of((1, 2), 0).random(4).tolist()
    assert generator_of((1, 2), 0).random(4).tolist() == first
    for other in (generator_of((1, 3), 0), generator_of((2, 1), 0), generator_of(1, 0), generator_of((1, 2), 1)):
        assert other.random(4).tolist() != first


@pytest.mark.parametrize("seed", [-1, (), (1, -2)])
def test_a_negative_or_empty_seed_is_refused(seed):
    with pytest.raises(InputError, match=r"seed = .*non-negative integer"):
        generator_of(seed, 0)


@pytest.mark.refusal
@pytest.mark.parametrize("seed", [1.5, "one", None, True, (1, "two")])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(InputError, match=r"seed = .*non-negative integer"):
        generator_of(seed, 0)


def loop_over_tokens(stats, output_of, n_tokens, generator) -> np.ndarray:
    """The published sampler's way: every sequence and every token by itself."""
    size = len(stats.vocab)
    tokens = np.empty((len(output_of), n_tokens), dtype=int)
    for row in range(len(output_of)):
        token = generator.choice(size, p=stats.unigram)
        for step in range(n_tokens):
            tokens[row, step] = token
            output = output_of[row, token]
            token = output if output >= 0 else generator.choice(size, p=stats.bigram[token])
    return tokens


def goodness_of_fit(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of the counts under the law; values expected less than 5 times count as one."""
    expected = law * counts.sum()
    common = expected >= 5
    if common.sum() < 2:
        return 1.0
    observed, expected = (np.append(part[common], part[~common].sum()) for part in (counts, expected))
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    return chisquare(observed, expected).pvalue
