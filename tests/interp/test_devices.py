"""What training asks of a device: no step waits for it, and half precision stays where it belongs.

No GPU is needed. On PyTorch's device ``meta`` tensors have shapes and no values, so that whatever makes the host wait
for a value (``.item()``, ``bool()``, ``nonzero()``, a copy to the CPU) raises an error there.
"""

from dataclasses import replace

import pytest
import torch

from interp import HookedTransformerConfig, TrainConfig, TrainingIntervention, train
from interp.edits import Clamp, Zero
from interp.trainee import Trainee
from tasks import BigramICL, Prompts, SparseRegression
from tasks.errors import InputError

ARCHITECTURES = {
    "attention only": {"attn_only": True},
    "LayerNorm and MLP": {"normalization_type": "LN", "n_heads": 2},
    "absent head": {"attn_only": True, "n_heads": 2, "absent_heads": ("L1H1",)},
    "ReLU attention": {"attn_only": True, "attn_fn": "relu"},
}


def on_meta(config: HookedTransformerConfig, *interventions: TrainingIntervention, **fields) -> Trainee:
    training = TrainConfig(**({"steps": 4, "batch_size": 4, "device": "meta"} | fields))
    return Trainee.untrained(config, training, interventions=interventions)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_step_on_tokens_waits_for_the_device(task, architecture, optimizer):
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=12, d_vocab=task.d_vocab, **ARCHITECTURES[architecture]
    )
    options = {"optimizer": optimizer, "grad_clip": 1.0, "freeze_until": {"embed.*": 2}, "schedule": "cosine"}
    in_context = BigramICL(task.stats, n_triggers=2, seq_len=12, scored="in_context")
    trainee = on_meta(config, TrainingIntervention("L0H0", Zero(), last_step=2), **options)
    assert [trainee.take_step(in_context) for _ in range(4)] == [1, 2, 3, 4]


def test_no_step_on_real_vectors_waits_for_the_device():
    task = SparseRegression(d=4, sparsity=1, n_context=6)
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=7, d_in=5, d_out=1, attn_only=True, attention_dir="query_masked", attn_fn="linear"
    )
    trainee = on_meta(config, TrainingIntervention("L1H0", Clamp(-1.0, 1.0)))
    assert trainee.take_step(task) == 1


def test_a_look_at_a_value_is_noticed(task, model_config):
    trainee = on_meta(model_config)
    trainee.take_step(task)
    with pytest.raises(RuntimeError, match="meta"):
        trainee.history_row()


def test_the_loss_that_waits_for_nothing_is_the_loss(task):
    for prompts, shape in (
        (task.sample(5, seed=1), (5, 12, task.d_vocab)),
        (BigramICL(task.stats, n_triggers=2, seq_len=12, scored="in_context").sample(5, seed=1), (5, 12, task.d_vocab)),
        (SparseRegression(d=4, sparsity=1, n_context=6).sample(5, seed=1), (5, 7, 1)),
    ):
        outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        sums, counts = prompts.loss(outputs)
        everywhere = prompts._loss_everywhere(outputs)
        assert 0 < int(counts.sum()) < prompts.targets.numel() or bool(prompts.scored.all())
        torch.testing.assert_close((everywhere * prompts.scored).sum(dim=1), sums)


def test_prompts_on_another_device_give_sums_and_counts_per_prompt(task):
    prompts: Prompts = task.sample(5, seed=1).to("meta")
    sums, counts = prompts.loss(torch.empty(5, 12, task.d_vocab, device="meta"))
    assert (sums.shape, counts.shape) == ((5,), (5,))


def test_half_precision_is_off_by_default_and_keeps_weights_and_state_in_32_bits(task, model_config, tmp_path):
    fields = {"steps": 6, "batch_size": 8, "eval_prompts": 8, "lr": 0.01, "log_every": 3}
    assert TrainConfig(**fields).precision == "float32"
    runs = [
        train(task, model_config, TrainConfig(**fields, precision=precision), out=tmp_path / precision, progress=False)
        for precision in ("float32", "bfloat16")
    ]
    full, half = (run.history["loss"] for run in runs)
    assert not full.equals(half)
    # bfloat16 has 8 bits of mantissa: 2^-8 is 0.4 %.
    torch.testing.assert_close(torch.tensor(half), torch.tensor(full), rtol=0.01, atol=0)
    assert {weight.dtype for weight in runs[1].model.parameters()} == {torch.float32}
    config = replace(runs[1].train_config, steps=1)
    trainee = Trainee.untrained(model_config, config)
    trainee.take_step(task)
    moments = [value for state in trainee.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}
    assert trainee.loss_sum.dtype == torch.float32


@pytest.mark.refusal
def test_a_precision_that_does_not_exist_is_refused():
    assert TrainConfig(precision="bfloat16").precision == "bfloat16"
    with pytest.raises(InputError, match="precision = 'float16'"):
        TrainConfig(precision="float16")  # pyright: ignore[reportArgumentType]
