"""Evaluation: ratios of sums, split by segment, whatever the batches."""

import pytest
import torch

from interp import HookedTransformer
from interp.evaluation import evaluate
from tasks.errors import InputError
from tasks.prompts import Prompts


@pytest.fixture
def model(model_config):
    return HookedTransformer(model_config)


def test_the_loss_is_cross_entropy_over_all_scored_positions(model, task):
    prompts = task.sample(20, seed=3)
    log_probs = model(prompts.inputs).log_softmax(dim=-1)
    right = log_probs.gather(2, prompts.targets[..., None])[..., 0]
    found = evaluate(model, prompts, batch_size=7)
    assert found["loss"] == pytest.approx(-right[prompts.scored].mean().item(), rel=1e-5)


def test_the_accuracy_of_a_segment_counts_only_its_positions(model, task):
    prompts = task.sample(20, seed=3)
    hits = model(prompts.inputs).argmax(dim=-1) == prompts.targets
    in_context = prompts.labels["occurrence"] >= 2
    found = evaluate(model, prompts, batch_size=20)
    assert found["accuracy_in_context"] == pytest.approx(hits[in_context].double().mean().item())
    assert {"loss_global", "loss_first", "accuracy_global", "accuracy_first"} < found.keys()


def test_a_segment_that_is_never_scored_has_no_figure(model, task):
    prompts = task.sample(20, seed=3)
    prompts = prompts.score_only(prompts.labels["segment"] == 0)
    assert set(evaluate(model, prompts, 20)) == {"loss", "accuracy", "loss_global", "accuracy_global"}


def test_segments_without_names_are_numbered(model):
    prompts = Prompts.from_tensors(
        torch.tensor([[0, 1, 2]]), labels={"segment": torch.tensor([[0, 7, 7]])}, label_names={"segment": ("here",)}
    )
    assert {"loss_here", "loss_7"} < evaluate(model, prompts, 1).keys()


def test_prompts_that_score_nothing_are_refused(model, task):
    prompts = task.sample(4, seed=3)
    with pytest.raises(InputError, match="none of the 4 evaluation prompts"):
        evaluate(model, prompts.score_only(torch.zeros_like(prompts.scored)), 4)
