"""A task and a model so small that a training step takes a millisecond."""

import pytest
import torch

from interp import HookedTransformerConfig
from tasks import BigramICL, BigramStatistics


@pytest.fixture(scope="session")
def task() -> BigramICL:
    stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake that the cat hid")
    return BigramICL(stats, n_triggers=2, seq_len=12, scored="all")


@pytest.fixture(scope="session")
def model_config(task) -> HookedTransformerConfig:
    return HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=12, d_vocab=task.d_vocab, attn_only=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """On models this small a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
