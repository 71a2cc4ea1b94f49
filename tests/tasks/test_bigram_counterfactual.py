"""Counterfactual prompts: what changes, what must not, and where the corpus would not allow the result."""

from dataclasses import replace

import pytest
import torch

from tasks.bigram import BigramICL
from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError

CASES = [
    {},
    {"triggers": "random"},
    {"allow_repeats": True},
    {"outputs": "bigram"},
    {"output_split": "rest"},
    {"triggers": "random", "outputs": "bigram", "allow_repeats": True},
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request):
    task = BigramICL(BigramStatistics.default(), **request.param)
    prompts = task.sample(600, seed=1)
    return task, prompts, task.counterfactual(prompts, seed=2)


def test_each_prompt_gets_new_outputs_in_place_of_those_that_were_no_triggers(pair):
    task, prompts, other = pair
    n_changed = 0
    for row in range(len(prompts)):
        trigger = prompts.labels["trigger"][row]
        triggers = set(task.trigger_tokens or prompts.inputs[row][trigger].tolist())
        old = dict(zip(prompts.inputs[row][trigger].tolist(), prompts.targets[row][trigger].tolist(), strict=True))
        new = dict(zip(other.inputs[row][trigger].tolist(), other.targets[row][trigger].tolist(), strict=True))
        assert old.keys() == new.keys()
        for token, output in old.items():
            choices = {v for v in range(task.d_vocab) if task.output_law[token, v] > 0} - triggers - {output}
            if output in triggers or not choices:
                assert new[token] == output
            else:
                assert new[token] in choices
                n_changed += 1
    assert n_changed > 1000


def test_only_tokens_after_a_trigger_change_and_every_occurrence_changes_alike(pair):
    _, prompts, other = pair
    after_trigger = prompts.labels["trigger"]
    assert torch.equal(prompts.targets[~after_trigger], other.targets[~after_trigger])
    assert torch.equal(prompts.inputs[:, 0], other.inputs[:, 0])
    assert torch.equal(other.inputs[:, 1:], other.targets[:, :-1])
    for row in range(100):
        at = after_trigger[row]
        followed_by = set(zip(other.inputs[row][at].tolist(), other.targets[row][at].tolist(), strict=True))
        assert len(followed_by) == len({trigger for trigger, _ in followed_by})


def test_labels_stay_but_for_the_output(pair):
    _, prompts, other = pair
    for name in ("occurrence", "trigger", "segment", "absorbed", "position"):
        assert torch.equal(prompts.labels[name], other.labels[name]), name
    at = prompts.labels["trigger"]
    assert torch.equal(other.labels["output"][at], other.targets[at])
    assert (other.labels["output"][~at] == -1).all()
    assert torch.equal(prompts.scored, other.scored)
    assert (other.wrong != other.targets).all()


def test_off_support_marks_the_impossible_transitions_out_of_replaced_tokens(pair):
    task, prompts, other = pair
    possible = torch.tensor(task.stats.bigram)[other.inputs, other.targets] > 0
    replaced = prompts.inputs != other.inputs
    assert torch.equal(other.labels["off_support"], replaced & ~possible)
    # Elsewhere the corpus allows every transition, but for those that a trigger makes.
    assert possible[~replaced & ~prompts.labels["trigger"]].all()


def test_a_counterfactual_is_reproducible_and_uses_its_own_stream():
    task = BigramICL(BigramStatistics.default())
    prompts = task.sample(20, seed=5)
    once, again, other = (task.counterfactual(prompts, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(once.inputs, again.inputs)
    assert not torch.equal(once.inputs, other.inputs)
    assert once.seed == 5


def test_the_scored_mask_and_labels_of_ones_own_are_kept():
    task = BigramICL(BigramStatistics.default())
    prompts = task.sample(20, seed=5).score_only(torch.arange(64).expand(20, 64) > 30)
    prompts = replace(prompts, labels={**prompts.labels, "mine": prompts.scored})
    other = task.counterfactual(prompts[3:9], seed=0)
    assert torch.equal(other.scored, prompts.scored[3:9])
    assert torch.equal(other.labels["mine"], prompts.scored[3:9])


def test_prompts_of_another_task_are_refused():
    task = BigramICL(BigramStatistics.default())
    prompts = task.sample(4, seed=0)
    assert len(task.counterfactual(prompts, seed=0)) == 4
    with pytest.raises(InputError, match="marks other tokens than this task's triggers"):
        replace(task, trigger_offset=3).counterfactual(prompts, seed=0)
    with pytest.raises(InputError, match="another vocabulary"):
        BigramICL(BigramStatistics.from_text("abcab"), n_triggers=1).counterfactual(prompts, seed=0)
    with pytest.raises(InputError, match="no label 'trigger'"):
        task.counterfactual(replace(prompts, labels={}), seed=0)
