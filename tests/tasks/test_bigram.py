"""BigramICL: the law of its prompts, reproducibility, what is scored, configuration, and every refusal."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from tasks.bigram import BigramICL
from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError
from tasks.protocol import Task

SMALL = BigramStatistics.from_text("abacadbbcdaabdcaacbda")
NEVER = 1e-6


@pytest.fixture(scope="module")
def english() -> BigramStatistics:
    return BigramStatistics.default()


def test_it_is_a_task():
    assert isinstance(BigramICL(SMALL, n_triggers=1), Task)


def test_a_sample_has_the_promised_parts(english):
    prompts = BigramICL(english, seq_len=20).sample(3, seed=(4, 2))
    assert prompts.inputs.shape == prompts.targets.shape == (3, 20)
    assert prompts.wrong is not None
    assert prompts.inputs.dtype == prompts.targets.dtype == prompts.wrong.dtype == torch.int64
    assert torch.equal(prompts.inputs[:, 1:], prompts.targets[:, :-1])
    assert set(prompts.labels) == {"occurrence", "trigger", "output", "segment", "absorbed", "position"}
    assert prompts.label_names["segment"] == ("global", "first", "in_context")
    assert prompts.vocab == english.vocab
    assert prompts.seed == (4, 2)
    assert prompts.counterfactual is None


def test_the_same_seed_gives_the_same_prompts_and_another_seed_does_not(english):
    task = BigramICL(english)
    first, again, other = task.sample(8, seed=3), task.sample(8, seed=3), task.sample(8, seed=4)
    assert digest(first) == digest(again)
    assert not torch.equal(first.inputs, other.inputs)


def test_a_sample_is_pinned_to_the_bit(english):
    prompts = BigramICL(english, seq_len=16, triggers="random", allow_repeats=True).sample(600, seed=7)
    assert digest(prompts) == "a91f0452f8ca1527"


def test_fixed_triggers_are_the_most_frequent_tokens_after_the_offset(english):
    by_frequency = sorted(range(63), key=lambda token: -english.unigram_counts[token])
    assert BigramICL(english, n_triggers=4).trigger_tokens == tuple(by_frequency[:4])
    assert BigramICL(english, n_triggers=3, trigger_offset=2).trigger_tokens == tuple(by_frequency[2:5])
    prompts = BigramICL(english, n_triggers=3, trigger_offset=2).sample(20, seed=0)
    assert torch.equal(prompts.labels["trigger"], torch.isin(prompts.inputs, torch.tensor(by_frequency[2:5])))


def test_the_first_token_follows_the_unigram(english):
    first = BigramICL(english, seq_len=2).sample(20_000, seed=1).inputs[:, 0]
    assert goodness_of_fit(first.bincount(minlength=63).numpy(), english.unigram) > NEVER


@pytest.mark.parametrize("triggers", ["frequent", "random"])
@pytest.mark.parametrize("outputs", ["uniform", "bigram"])
@pytest.mark.parametrize("allow_repeats", [False, True])
def test_outputs_follow_their_law(triggers, outputs, allow_repeats):
    task = BigramICL(SMALL, n_triggers=2, seq_len=3, triggers=triggers, outputs=outputs, allow_repeats=allow_repeats)
    prompts = task.sample(20_000, seed=2)
    for trigger in range(4):
        law = SMALL.bigram[trigger].copy() if outputs == "bigram" else np.full(4, 0.25)
        law[trigger] *= allow_repeats
        first = (prompts.labels["occurrence"] == 1) & (prompts.inputs == trigger)
        counts = prompts.targets[first].bincount(minlength=4).numpy()
        assert (counts[law == 0] == 0).all()
        if counts.any():
            assert goodness_of_fit(counts, law / law.sum()) > NEVER
    assert prompts.labels["trigger"].any()


@pytest.mark.parametrize(("split", "part"), [("first", slice(0, 47)), ("rest", slice(47, 63))])
def test_a_split_draws_every_output_of_its_part_and_no_other(english, split, part):
    prompts = BigramICL(english, output_split=split).sample(2000, seed=0)
    outputs = prompts.labels["output"]
    assert set(outputs[outputs >= 0].tolist()) == set(range(63)[part])


def test_a_token_is_a_random_trigger_as_often_as_drawing_without_replacement_says():
    prompts = BigramICL(SMALL, n_triggers=2, seq_len=2, triggers="random").sample(20_000, seed=3)
    for token, p in enumerate(SMALL.unigram):
        others = [(q, SMALL.unigram[q]) for q in range(4) if q != token]
        drawn = p + sum(q * p / (1 - q) for _, q in others)
        here = prompts.labels["trigger"][:, 0][prompts.inputs[:, 0] == token]
        assert binom(len(here), drawn).cdf(here.sum().item()) == pytest.approx(0.5, abs=0.5 - NEVER)


def test_what_follows_a_trigger_is_its_output_throughout_a_prompt(english):
    prompts = BigramICL(english, triggers="random").sample(100, seed=0)
    for inputs, targets, trigger in zip(prompts.inputs, prompts.targets, prompts.labels["trigger"], strict=True):
        pairs = set(zip(inputs[trigger].tolist(), targets[trigger].tolist(), strict=True))
        assert len(pairs) == len({first for first, _ in pairs}) <= 5


@pytest.mark.parametrize(("scored", "least"), [("in_context", 2), ("triggers", 1), ("all", 0)])
def test_scored_positions_are_those_of_the_option(english, scored, least):
    prompts = BigramICL(english, scored=scored).sample(50, seed=0)
    assert torch.equal(prompts.scored, prompts.labels["occurrence"] >= least)


def test_samples_larger_than_a_block_are_whole(english):
    prompts = BigramICL(english, seq_len=4).sample(1100, seed=0)
    assert prompts.inputs.min() >= 0
    assert prompts.inputs.max() < 63
    assert not torch.equal(prompts.inputs[:512], prompts.inputs[512:1024])


def test_a_task_survives_its_configuration_and_files(english):
    task = BigramICL(english, n_triggers=3, seq_len=9, output_split="first", split_fraction=0.5, scored="all")
    config = json.loads(json.dumps(task.config()))
    again = BigramICL.from_config(config, task.files())
    assert again == task
    assert digest(again.sample(5, seed=0)) == digest(task.sample(5, seed=0))


def test_without_a_file_a_configuration_means_the_embedded_corpus(english):
    assert BigramICL.from_config({"seq_len": 10}, {}) == BigramICL(english, seq_len=10)


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"n_trigger": 3}, {}, "n_trigger = 3 is no field of the bigram task: did you mean n_triggers"),
        ({"stats": 3}, {}, "stats = 3 is no field"),
        ({"stats_sha256": "0" * 64}, {}, "the embedded corpus has the sha256 a03b8c858c29… but stats_sha256 is 0000"),
        ({"stats_sha256": "0" * 64}, {"bigrams.csv": SMALL.to_csv()}, "bigrams.csv has the sha256"),
        ({}, {"bigrams.csv": b"no table"}, "bigrams.csv starts with 'no table'"),
        ({}, {"bigram.csv": SMALL.to_csv()}, "no file 'bigram.csv'"),
    ],
)
def test_a_wrong_configuration_is_refused(config, files, message):
    with pytest.raises(InputError, match=message):
        BigramICL.from_config(config, files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_triggers": 0}, "n_triggers = 0: expected an integer, at least 1"),
        ({"n_triggers": 5}, "n_triggers = 5 exceeds the vocabulary's 4 tokens: "),
        ({"n_triggers": 3, "trigger_offset": 2}, "exceeds the vocabulary's 2 tokens after skipping 2"),
        ({"n_triggers": 5, "triggers": "random"}, "n_triggers = 5 exceeds"),
        ({"seq_len": 1}, "seq_len = 1: expected an integer, at least 2"),
        ({"trigger_offset": -1}, "trigger_offset = -1"),
        ({"triggers": "random", "trigger_offset": 1}, "no effect on random triggers"),
        ({"split_fraction": 0.5}, "no effect with output_split = 'all'"),
        ({"output_split": "first", "split_fraction": 0.0}, "split_fraction = 0.0"),
        ({"output_split": "first", "split_fraction": 1.0}, "split_fraction = 1.0"),
        ({"output_split": "first", "split_fraction": 0.2}, "puts 0 of 4 tokens into the first part"),
        ({"output_split": "rest", "outputs": "bigram"}, "needs uniform outputs"),
        ({"output_split": "first", "split_fraction": 0.25}, "the trigger 'a' has no output but itself"),
    ],
)
def test_a_wrong_value_is_refused(options, message):
    task = BigramICL(SMALL, n_triggers=1)
    assert task.sample(1, seed=0).inputs.shape == (1, 64)
    with pytest.raises(InputError, match=message) as caught:
        replace(task, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triggers": "rare"}, "triggers = 'rare' does not exist: choose one of 'frequent', 'random'"),
        ({"outputs": "unigram"}, "choose one of 'uniform', 'bigram'"),
        ({"output_split": "last"}, "choose one of 'all', 'first', 'rest'"),
        ({"scored": "in-context"}, "choose one of 'in_context', 'triggers', 'all'"),
        ({"scored": ["all"]}, r"scored = \['all'\] does not exist"),
        ({"n_triggers": 2.0}, r"n_triggers = 2\.0: expected an integer"),
        ({"n_triggers": True}, "n_triggers = True: expected an integer"),
        ({"seq_len": "64"}, "seq_len = '64': expected an integer"),
        ({"allow_repeats": "no"}, "allow_repeats = 'no': expected True or False"),
        ({"output_split": "rest", "split_fraction": "half"}, "split_fraction = 'half': expected a number"),
        ({"stats": "a text"}, "stats = 'a text': expected BigramStatistics"),
    ],
)
def test_a_wrong_type_or_option_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        replace(BigramICL(SMALL, n_triggers=1), **options)


@pytest.mark.parametrize("n", [0, -3])
def test_a_sample_of_nothing_is_refused(n):
    with pytest.raises(InputError, match=f"n = {n}: expected an integer, at least 1"):
        BigramICL(SMALL, n_triggers=1).sample(n, seed=0)


def test_a_trigger_that_only_follows_itself_needs_repeats():
    stats = BigramStatistics.from_text("abbbb")
    with pytest.raises(InputError, match=r"the trigger 'b' has no output but itself .*set allow_repeats = True"):
        BigramICL(stats, n_triggers=1, outputs="bigram")
    assert BigramICL(stats, n_triggers=1, outputs="bigram", allow_repeats=True).sample(2, seed=0).targets.max() == 1


def digest(prompts) -> str:
    parts = [prompts.inputs, prompts.targets, prompts.wrong, prompts.scored]
    parts += [prompts.labels[name] for name in sorted(prompts.labels)]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def goodness_of_fit(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of the counts under the law; values expected less than 5 times count as one."""
    expected = law * counts.sum()
    common = expected >= 5
    observed, expected = (np.append(part[common], part[~common].sum()) for part in (counts, expected))
    return chisquare(observed[expected > 0], expected[expected > 0]).pvalue
