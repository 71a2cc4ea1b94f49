"""Run-time shape checks are on: in each package a wrong shape raises. They are off for users, and so in a bare run."""

import pytest
import torch
from jaxtyping import TypeCheckError

from analyses.metrics import Metric
from interp import HookedTransformer, HookedTransformerConfig
from tasks.prompts import Prompts


@pytest.fixture(autouse=True)
def _only_where_the_checks_are_asked_for(request):
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("run-time shape checks are off: pass --jaxtyping-packages, as make test does")


def test_tasks_are_checked():
    prompts = Prompts.from_tensors(torch.zeros(2, 3, dtype=torch.long))
    assert prompts.loss(torch.zeros(2, 3, 4))[1].tolist() == [2, 2]
    with pytest.raises(TypeCheckError, match="loss"):
        prompts.loss(torch.zeros(3))


def test_interp_is_checked():
    model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5))
    assert model.unembed(torch.zeros(2, 3, 4)).shape == (2, 3, 5)
    with pytest.raises(TypeCheckError, match="forward"):
        model.unembed(torch.zeros(2, 4))


def test_analyses_are_checked():
    prompts = Prompts.from_tensors(torch.zeros(2, 3, dtype=torch.long))
    logits = torch.zeros(2, 3, 4)
    assert Metric.of("prob").measure(logits, prompts, logits)[0].tolist() == [0.5, 0.5]
    with pytest.raises(TypeCheckError, match="_prob"):
        Metric.of("prob").measure(logits[0, 0], prompts, logits)
