import numpy as np
import pytest
import torch

from analyses.memory import memory_recall
from analyses.memory_scores import written_by
from analyses.papers.bietti2023.gradient_steps import (
    LARGEST_SCORE,
    ORDERS,
    PAPERS_ORDER,
    gradient_steps,
    idealised_model,
    recall_of,
    scores_of,
    take_step,
    uniform_task,
    with_shuffled_targets,
)

SMALL = {"d_vocab": 8, "seq_len": 12, "n_triggers": 3}


@pytest.fixture(scope="module")
def task():
    return uniform_task(**SMALL)


def test_the_data_are_uniform_and_every_token_can_be_a_trigger(task):
    assert np.allclose(task.stats.bigram, 1 / 8)
    assert np.allclose(task.stats.unigram, 1 / 8)
    assert task.trigger_tokens is None


@pytest.mark.parametrize("width", [24, 400, 10_000])
def test_the_vectors_have_the_inner_products_of_their_width(task, width: int):
    norms, crosses, maps = [], [], []
    for seed in range(20):
        model = idealised_model(width, task, seed)
        vectors = torch.cat([model.W_E, model.W_pos, model.W_U.T]).detach()
        gram = vectors @ vectors.T
        norms.append(gram.diagonal().mean())
        crosses.append(gram[~torch.eye(len(gram), dtype=torch.bool)].square().mean())
        w_1 = written_by(model.W_E, model.W_V[0, 0], model.W_O[0, 0]).detach()
        maps.append(w_1.square().sum(dim=1).mean())
    assert float(torch.stack(norms).mean()) == pytest.approx(1, abs=0.1)
    assert float(torch.stack(crosses).mean()) == pytest.approx(1 / width, rel=0.15)
    assert float(torch.stack(maps).mean()) == pytest.approx(1, abs=0.15)


def test_wide_vectors_are_nearly_orthonormal_with_what_the_first_layer_writes_of_them(task):
    model = idealised_model(10**5, task, 0)
    w_1 = written_by(model.W_E, model.W_V[0, 0], model.W_O[0, 0])
    vectors = torch.cat([model.W_E, model.W_pos, model.W_U.T, w_1]).detach()
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(vectors)), atol=0.03)
    values = (vectors[: 8 + 12] @ model.W_V[1, 0]).detach()
    assert torch.allclose(values @ values.T, torch.eye(20), atol=0.03)


def test_a_step_goes_down_the_loss_and_as_far_as_it_is_told(task):
    model = idealised_model(10_000, task, 0)
    prompts = task.sample(512, seed=0)

    def loss() -> float:
        with torch.no_grad():
            sums, counts = prompts.loss(model(prompts.inputs))
        return float(sums.sum() / counts.sum())

    before = loss()
    take_step(model, prompts, "W_O2")
    assert loss() < before
    assert float(scores_of(model, "W_O2").abs().max()) == pytest.approx(LARGEST_SCORE["W_O2"], rel=1e-4)


def test_keys_store_nothing_while_nothing_is_copied(task):
    model = idealised_model(10_000, task, 0)
    take_step(model, task.sample(256, seed=0), "W_K2")
    assert not model.W_K[1].any()
    assert recall_of(model, "W_K2")["recall"] == 0


def test_recall_is_that_of_the_probes(task):
    model = idealised_model(100, task, 3)
    for memory in PAPERS_ORDER:
        take_step(model, task.sample(256, seed=1), memory)
    frame = memory_recall(model, task, memories=list(PAPERS_ORDER), n_permutations=1).frame
    for memory, row in frame.set_index("memory").iterrows():
        found = recall_of(model, str(memory))
        assert (found["recall"], found["chance"]) == pytest.approx((row["recall"], row["chance"]))


def test_shuffled_targets_are_the_same_ones_elsewhere(task):
    prompts = task.sample(200, seed=0)
    shuffled = with_shuffled_targets(prompts, 1)
    assert torch.equal(shuffled.targets[~prompts.scored], prompts.targets[~prompts.scored])
    here, there = prompts.targets[prompts.scored], shuffled.targets[prompts.scored]
    assert torch.equal(here.sort().values, there.sort().values)
    assert float((here == there).double().mean()) < 0.3


def test_the_papers_order_stores_what_shuffled_targets_and_another_order_do_not():
    sizes = {"d_vocab": 12, "seq_len": 24, "n_triggers": 3, "n_prompts": 2048}
    last = {}
    for name, order, shuffled in (
        ("paper", PAPERS_ORDER, False),
        ("other", ("W_O2", "W_K1", "W_K2"), False),
        ("null", PAPERS_ORDER, True),
    ):
        frame = gradient_steps(seed=0, width=10_000, order=order, shuffled=shuffled, **sizes)
        last[name] = frame.loc[frame["step"] == 3].set_index("memory")["recall"]
        assert frame["stored"].tolist() == [memory for memory in order for _ in range(3)]
    assert last["paper"]["W_O2"] > 0.9
    assert last["paper"]["W_K2"] > 0.7
    assert last["other"]["W_K2"] < 0.3
    assert last["null"]["W_O2"] < 0.5


def test_there_are_six_orders_of_which_the_papers_is_one():
    assert len(ORDERS) == 6
    assert PAPERS_ORDER in ORDERS
