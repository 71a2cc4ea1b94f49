"""The bigram predictors against enumeration of every trigger set and every output on small vocabularies."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from tasks.bigram import BigramICL
from tasks.bigram_predictors import (
    FLOOR,
    BayesOptimal,
    CurrentToken,
    GlobalBigram,
    InContextCopy,
    InContextUnigram,
    followers,
    over_representation,
    trigger_probabilities,
)
from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError
from tasks.prompts import Prompts

PREDICTORS = [GlobalBigram, CurrentToken, InContextUnigram, InContextCopy, BayesOptimal]
HALVES = [{"output_split": "first", "split_fraction": 0.5}, {"output_split": "rest", "split_fraction": 0.5}]
FOUR_TOKENS = BigramStatistics.from_text("abacadbbcdaabdcaacbda")
SIX_TOKENS = BigramStatistics.from_text("abacafadebbcefdaafbdcaacbdeaeabfca")


@pytest.fixture(scope="module")
def english() -> BigramStatistics:
    return BigramStatistics.default()


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("triggers", ["frequent", "random"])
@pytest.mark.parametrize("outputs", ["uniform", "bigram"])
def test_predictions_are_normalised_and_the_loss_is_finite(predictor, triggers, outputs, english):
    task = BigramICL(english, triggers=triggers, outputs=outputs, scored="all", allow_repeats=True)
    prompts = task.sample(16, seed=1)
    log_probs = predictor(task)(prompts)
    assert log_probs.shape == (16, 64, 63)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(16, 64), atol=2e-6, rtol=0)
    assert log_probs.min() >= np.log(FLOOR) - 1e-3
    assert prompts.loss(log_probs)[0].isfinite().all()


@pytest.mark.parametrize(
    "options",
    [{}, {"allow_repeats": True}, {"outputs": "bigram"}, *HALVES],
    ids=str,
)
def test_bayes_is_the_exact_posterior_for_fixed_triggers(options):
    task = BigramICL(SIX_TOKENS, n_triggers=2, seq_len=4, **options)
    prompts, _, exact = enumerate_posterior(task)
    torch.testing.assert_close(BayesOptimal(task)(prompts).exp().double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("stats", "n_triggers", "options"),
    [(FOUR_TOKENS, 2, {}), (SIX_TOKENS, 2, {}), (SIX_TOKENS, 2, {"outputs": "bigram", "allow_repeats": True})],
    ids=["four", "six", "six_bigram"],
)
def test_bayes_is_within_its_stated_error_for_random_triggers(stats, n_triggers, options):
    task = BigramICL(stats, n_triggers=n_triggers, seq_len=5, triggers="random", **options)
    prompts, probability, exact = enumerate_posterior(task)
    ours = BayesOptimal(task)(prompts).double()
    excess = (exact * (exact.clamp(min=1e-300).log() - ours)).sum(dim=-1)
    by_position = (probability[:, None] * excess).sum(dim=0)
    assert (by_position >= -1e-6).all()
    torch.testing.assert_close(ours[:, 0].exp(), exact[:, 0], atol=1e-6, rtol=0)
    assert by_position.max() < 0.01


def test_bayes_is_exact_when_every_token_is_a_random_trigger():
    task = BigramICL(FOUR_TOKENS, n_triggers=4, seq_len=5, triggers="random")
    prompts, _, exact = enumerate_posterior(task)
    torch.testing.assert_close(BayesOptimal(task)(prompts).exp().double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"allow_repeats": True}, {"outputs": "bigram"}], ids=str)
def test_bayes_loses_to_no_predictor_in_any_segment(options, english):
    task = BigramICL(english, scored="all", **options)
    prompts = task.sample(200, seed=2)
    best = BayesOptimal(task)(prompts)
    for predictor in PREDICTORS:
        log_probs = predictor(task)(prompts)
        for segment in range(3):
            judged = prompts.score_only(prompts.labels["segment"] == segment)
            # Where a predictor has all that Bayes has, only the sampling noise of its table may favour it.
            assert mean_loss(best, judged) <= mean_loss(log_probs, judged) + 0.02, (predictor.__name__, segment)


@pytest.mark.parametrize("outputs", ["uniform", "bigram"])
def test_bayes_loses_to_no_predictor_over_all_positions_with_random_triggers(outputs, english):
    task = BigramICL(english, triggers="random", outputs=outputs, scored="all")
    prompts = task.sample(150, seed=2)
    best = mean_loss(BayesOptimal(task)(prompts), prompts)
    others = [predictor for predictor in PREDICTORS if predictor is not BayesOptimal]
    assert all(best < mean_loss(predictor(task)(prompts), prompts) - 0.2 for predictor in others)


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({}, "in_context"),
        ({"allow_repeats": True}, "in_context"),
        ({"triggers": "random"}, "in_context"),
        ({"triggers": "random"}, "all"),
        ({"outputs": "bigram"}, "all"),
    ],
    ids=str,
)
def test_current_token_equals_the_empirical_conditional_frequencies(options, scored, english):
    task = BigramICL(english, scored=scored, **options)
    prompts = task.sample(2048, seed=11)  # another seed than the predictor's own
    predicted = CurrentToken(task).table
    for token in prompts.inputs[prompts.scored].bincount().argsort(descending=True)[:4].tolist():
        # Positions of one prompt share their outputs, so the prompt is the unit of the standard error.
        here = prompts.scored & (prompts.inputs == token)
        occurred = here.sum(dim=1, keepdim=True).double()
        pair = (torch.arange(len(prompts))[:, None] * task.d_vocab + prompts.targets)[here]
        followed_by = pair.bincount(minlength=len(prompts) * task.d_vocab).view(-1, task.d_vocab).double()
        frequency = followed_by.sum(dim=0) / occurred.sum()
        error = (followed_by - frequency * occurred).square().sum(dim=0).sqrt() / occurred.sum()
        difference = (frequency - torch.tensor(predicted[token])).abs()
        one_prompt = 32 / occurred.sum()  # a rare output that fills half of one prompt
        assert (difference < 5 * error + one_prompt).all()
        assert difference.sum() < 1.5 * error.sum()


def test_with_repeats_allowed_the_current_token_predictor_repeats_triggers(english):
    task = BigramICL(english, allow_repeats=True)
    best = CurrentToken(task).table.argmax(axis=1)
    assert all(best[trigger] == trigger for trigger in task.trigger_tokens or ())


def test_the_global_bigram_is_the_corpus_off_and_on_triggers():
    task = BigramICL(FOUR_TOKENS, n_triggers=1, seq_len=3)
    log_probs = GlobalBigram(task)(task.sample(5, seed=0))
    expected = torch.tensor(FOUR_TOKENS.bigram)[task.sample(5, seed=0).inputs]
    torch.testing.assert_close(log_probs.exp().double(), expected, atol=1e-6, rtol=0)


def test_in_context_copy_is_right_wherever_a_fixed_trigger_comes_again(english):
    task = BigramICL(english)
    prompts = task.sample(100, seed=0)
    hits, scored = prompts.accuracy(InContextCopy(task)(prompts))
    assert hits.sum() == scored.sum() > 500


def test_in_context_copy_takes_the_last_of_several_followers():
    task = BigramICL(FOUR_TOKENS, n_triggers=1, seq_len=5)
    prompts = Prompts.from_tensors(torch.tensor([[0, 1, 0, 2, 0]]))
    assert InContextCopy(task)(prompts).argmax(dim=-1)[0, 4] == 2


def test_the_in_context_unigram_predicts_the_token_that_is_too_frequent():
    task = BigramICL(FOUR_TOKENS, n_triggers=1, seq_len=6, outputs="uniform")
    trigger = next(iter(task.trigger_tokens or []))
    prompts = Prompts.from_tensors(torch.tensor([[3, trigger, 3, 3, trigger]]))
    assert InContextUnigram(task)(prompts).argmax(dim=-1)[0, 4] == 3


def test_over_representation_is_the_likelihood_ratio_worked_out_by_hand():
    # 3 of 4 tokens are v = 1, of which π_u expects 4 · 0.25 = 1: 3 log 3 - 2.
    evidence = over_representation(torch.tensor([[1, 0, 1, 1]]), torch.tensor([0.75, 0.25]))
    assert evidence[0, 3].tolist() == pytest.approx([0.0, 3 * np.log(3) - 2], abs=1e-6)


@pytest.mark.parametrize("n_triggers", [1, 2, 3, 4])
def test_trigger_probabilities_are_the_sum_over_all_orders_of_drawing(n_triggers):
    task = BigramICL(FOUR_TOKENS, n_triggers=n_triggers, triggers="random")
    expected = np.zeros(4)
    for drawn, probability in ordered_draws(FOUR_TOKENS.unigram, n_triggers):
        expected[list(drawn)] += probability
    assert trigger_probabilities(task) == pytest.approx(expected, abs=1e-8)


def test_trigger_probabilities_of_a_corpus_sum_to_the_number_of_triggers(english):
    assert trigger_probabilities(BigramICL(english, triggers="random")).sum() == pytest.approx(5, abs=1e-6)


def test_followers_agree_with_a_search_through_the_prompt():
    inputs = BigramICL(FOUR_TOKENS, n_triggers=1, seq_len=30).sample(20, seed=0).inputs
    last, n_seen, same = followers(inputs, 4)
    for row, tokens in enumerate(inputs.tolist()):
        for pos, token in enumerate(tokens):
            seen = [tokens[i + 1] for i in range(pos) if tokens[i] == token]
            assert (last[row, pos].item(), n_seen[row, pos].item()) == (seen[-1] if seen else -1, len(seen))
            assert same[row, pos].item() == (len(set(seen)) <= 1)


def test_predictors_see_no_token_to_the_right(english):
    task = BigramICL(english, triggers="random", seq_len=32)
    prompts = task.sample(8, seed=0)
    cut = Prompts.from_tensors(prompts.inputs[:, :20])
    for predictor in PREDICTORS:
        torch.testing.assert_close(predictor(task)(prompts)[:, :20], predictor(task)(cut))


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_prompts_of_another_vocabulary_are_refused(predictor, english):
    task = BigramICL(FOUR_TOKENS, n_triggers=1)
    with pytest.raises(InputError, match="another vocabulary"):
        predictor(task)(BigramICL(english).sample(1, seed=0))


def mean_loss(log_probs: torch.Tensor, prompts: Prompts) -> float:
    total, count = prompts.loss(log_probs)
    return (total.sum() / count.sum()).item()


def ordered_draws(unigram: np.ndarray, n_drawn: int):
    for drawn in permutations(range(len(unigram)), n_drawn):
        probability, left = 1.0, 1.0
        for token in drawn:
            probability *= unigram[token] / left
            left -= unigram[token]
        yield drawn, probability


def enumerate_posterior(task: BigramICL) -> tuple[Prompts, torch.Tensor, torch.Tensor]:
    """Every prompt that can occur, its probability, and the exact next-token distribution at each position."""
    stats, size = task.stats, task.d_vocab
    draws = (
        [(task.trigger_tokens, 1.0)]
        if task.trigger_tokens is not None
        else list(ordered_draws(stats.unigram, task.n_triggers))
    )
    allowed = {"all": range(size), "first": range(size // 2), "rest": range(size // 2, size)}[task.output_split]
    matrices, weights = [], []
    for triggers, probability in draws:
        laws = []
        for trigger in triggers:
            law = stats.bigram[trigger].copy() if task.outputs == "bigram" else np.isin(range(size), allowed) * 1.0
            law[trigger] *= task.allow_repeats
            laws.append(law / law.sum())
        for outputs in product(range(size), repeat=len(triggers)):
            weight = probability * np.prod([law[output] for law, output in zip(laws, outputs, strict=True)])
            if weight > 0:
                matrix = stats.bigram.copy()
                for trigger, output in zip(triggers, outputs, strict=True):
                    matrix[trigger] = np.eye(size)[output]
                matrices.append(matrix)
                weights.append(weight)
    assert sum(weights) == pytest.approx(1)
    transition, joint = np.stack(matrices), np.array(weights)[:, None]
    prompts = np.array(list(product(range(size), repeat=task.seq_len)))
    joint = joint * stats.unigram[prompts[:, 0]]
    exact = np.zeros((*prompts.shape, size))
    for pos in range(task.seq_len):
        if pos > 0:
            joint = joint * transition[:, prompts[:, pos - 1], prompts[:, pos]]
        mass = joint.sum(axis=0)
        next_token = np.einsum("hn,hnv->nv", joint, transition[:, prompts[:, pos]])
        exact[:, pos] = next_token / np.where(mass > 0, mass, 1)[:, None]
    probability = joint.sum(axis=0)
    possible = probability > 0
    tokens = torch.tensor(prompts[possible])
    return Prompts.from_tensors(tokens), torch.tensor(probability[possible]), torch.tensor(exact[possible])
