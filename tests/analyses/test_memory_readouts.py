import pytest

from analyses.memory import memory_recall
from analyses.memory_readouts import recall_readouts
from interp import HookedTransformer, HookedTransformerConfig
from tasks import BigramICL
from tasks.errors import InputError


def model_of(task: BigramICL, **fields) -> HookedTransformer:
    cfg = {"n_layers": 2, "d_model": 48, "n_ctx": task.n_ctx, "d_vocab": task.d_vocab, "use_biases": False} | fields
    return HookedTransformer(HookedTransformerConfig(**cfg))


@pytest.mark.parametrize("triggers", ["frequent", "random"])
def test_readouts_are_the_numbers_of_memory_recall(triggers) -> None:
    task = BigramICL(seq_len=90, n_triggers=20, triggers=triggers)
    prompts = task.sample(2, seed=0)
    model = model_of(task, mlp_type="linear", mlp_layers=(1,), n_ctx=100, seed=2)
    frame = memory_recall(model, task).frame
    readouts = recall_readouts(task, feed_forward=True)
    assert list(readouts) == ["recall_W_O2", "recall_W_K1", "recall_W_K1_first64", "recall_W_K2", "kl_W_F"]
    values = [readout(model, prompts) for readout in readouts.values()]
    recalls = frame[frame["index_set"] != "triggers, keys of the whole vocabulary"]["recall"]
    assert values[:4] == pytest.approx(recalls.dropna().tolist())
    assert sum(values[:4]) > 0
    assert values[4] == pytest.approx(frame["kl"].dropna().iloc[0])


def test_readouts_refuse_models_they_are_not_for() -> None:
    task = BigramICL(seq_len=12)
    prompts = task.sample(2, seed=0)
    readouts = recall_readouts(task, feed_forward=True)
    assert 0 <= readouts["recall_W_O2"](model_of(task, attn_only=True), prompts) <= 1
    for name, fields, message in (
        ("recall_W_O2", {"n_heads": 2}, "2 layers of 2 heads"),
        ("recall_W_K1", {"positional_embedding_type": "none"}, "leave recall_W_K1 out"),
        ("kl_W_F", {}, "leave kl_W_F out"),
        ("recall_W_K2", {"d_vocab": 5}, "the task has 63 tokens but the model reads 5"),
    ):
        with pytest.raises(InputError, match=message):
            readouts[name](model_of(task, **fields), prompts)
