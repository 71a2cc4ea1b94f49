"""What all claims share: the task, the simplified model, its training, and how large the two scales are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from analyses.memory_readouts import recall_readouts
from analyses.memory_scores import previous_token_scores
from analyses.memory_statistics import unique_best
from analyses.papers.claims import Scale
from analyses.papers.jobs import Arm, Training
from interp.hooked_transformer import HookedTransformer
from interp.presets import preset
from interp.run import Run
from interp.train_config import TrainConfig
from interp.training import Readout
from tasks import BigramICL
from tasks.prompts import Prompts


@dataclass(frozen=True)
class Setting:
    """The numbers of one scale. All are [ours] but for d_model, which is within the paper's 64 to 256 [code]."""

    n_seeds: int
    d_model: int
    seq_len: int
    batch_size: int
    steps: int
    log_every: int
    eval_prompts: int
    checkpoint_every: int | None

    @property
    def held(self) -> int:
        """Until when parameters are held still in the studies of order: three quarters of the training [ours]."""
        return 3 * self.steps // 4


SETTINGS: Mapping[Scale, Setting] = {
    # [here] about 12 s a run on one quiet core, which a resumed reproduction can lose
    "quick": Setting(
        n_seeds=5,
        d_model=128,
        seq_len=64,
        batch_size=64,
        steps=160,
        log_every=10,
        eval_prompts=128,
        checkpoint_every=None,
    ),
    # the paper's 256 positions [code]; steps and seeds for about an hour and a half of one core [here]
    "full": Setting(
        n_seeds=5,
        d_model=128,
        seq_len=256,
        batch_size=32,
        steps=300,
        log_every=10,
        eval_prompts=128,
        checkpoint_every=100,
    ),
}

_TEST_PROMPTS_PER_EVAL = 8
TEST_SEED = 2**31
"""Test prompts are drawn with (TEST_SEED, seed): no training or evaluation has such a seed."""

ONE_LAYER: Mapping[str, Any] = {
    "n_layers": 1,
    # The one layer's W_O is what a second layer's would be: trained.
    "frozen": ("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.*.attn.W_V"),
}


def arm(
    label: str,
    scale: Scale,
    *,
    task: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    base: str = "bietti-simplified",
    again: bool = False,
) -> Arm:
    """One setting of the simplified model for every seed: the preset, with what is given laid over it.

    ``again``: other seeds than the usual ones, for controls that compare a setting with itself.
    """
    setting = SETTINGS[scale]
    chosen = BigramICL(**{"seq_len": setting.seq_len, **(task or {})})
    config, from_preset = preset(base, chosen, {"d_model": setting.d_model, **(model or {})})
    first = setting.n_seeds if again else 0
    fields: dict[str, Any] = {
        "steps": setting.steps,
        "batch_size": setting.batch_size,
        "log_every": setting.log_every,
        "checkpoint_every": setting.checkpoint_every,
        "eval_prompts": setting.eval_prompts,
        **(training or {}),
    }
    return tuple(
        Training(
            label=label,
            seed=seed,
            task=chosen,
            model=config,
            train_config=TrainConfig.from_seed(seed, **fields).over(from_preset),
            readouts=readouts if config.n_layers == 2 else None,
        )
        for seed in range(first, first + setting.n_seeds)
    )


def two_layers(scale: Scale, *, again: bool = False) -> Arm:
    """The paper's simplified model on fixed frequent triggers with uniform outputs: what the others are compared to."""
    return arm("two layers", scale, again=again)


def untrained(scale: Scale, **how: Any) -> Arm:
    """The same models without training: the rate is too low to move anything a readout can see."""
    return arm("untrained", scale, **how, training={"lr": 1e-12, "steps": 2, "log_every": 1})


def task_of(run: Run) -> BigramICL:
    """The bigram task that a run was trained on."""
    assert isinstance(run.task, BigramICL)
    return run.task


def eval_prompts(run: Run) -> Prompts:
    """The prompts on which the run's history was measured."""
    return run.task.sample(run.train_config.eval_prompts, seed=run.train_config.eval_seed)


def test_prompts(task: BigramICL, run: Run) -> Prompts:
    """Fresh prompts of a task, which need not be the run's own, for the run's seed."""
    n = _TEST_PROMPTS_PER_EVAL * run.train_config.eval_prompts
    return task.sample(n, seed=(TEST_SEED, run.train_config.init_seed))


def early_positions(n_pos: int) -> int:
    """Where early positions end: at a quarter, as the paper's 64 of 256 [code]."""
    return n_pos // 4


def readouts(task: BigramICL) -> dict[str, Readout]:
    """What the history holds beside loss and accuracy: the recall probes, W_K1's also by early and late positions."""
    cut = early_positions(task.n_ctx) - 1  # the first row of the scores is position 1
    parts = {"recall_W_K1_early": slice(None, cut), "recall_W_K1_late": slice(cut, None)}
    split = {name: partial(_recall_W_K1, task.n_ctx, rows) for name, rows in parts.items()}
    return {**recall_readouts(task), **split}


def _recall_W_K1(n_pos: int, rows: slice, model: HookedTransformer, _prompts: Prompts) -> float:
    scores = previous_token_scores(model.W_pos[:n_pos], model.W_Q[0, 0], model.W_K[0, 0])
    recalled = unique_best(scores) == torch.arange(len(scores))
    return float(recalled[rows].double().mean())


def about(scale: Scale) -> Sequence[str]:
    """The setting in words."""
    one = SETTINGS[scale]
    return (
        (
            "Sequences come from a character bigram model in which five trigger tokens have, in each prompt, "
            "a successor drawn anew: after a trigger's first occurrence only the prompt itself tells what "
            "follows. Unless a claim says otherwise the triggers are the five most frequent characters, their "
            "outputs are uniform and never the trigger itself, and the loss is taken where a trigger occurs "
            "for the second time or later."
        ),
        (
            "The model is the paper's simplified one [code]: two attention layers of one head, width "
            f"{one.d_model}, no normalisation and no biases, {one.seq_len} positions; embeddings, unembedding, "
            "both W_V and the first W_O are random and frozen, W_Q is the identity, and both W_K and the "
            f"second W_O are trained by SGD with momentum 0.9 and rate 0.2 [code] for {one.steps} steps of "
            f"{one.batch_size} fresh prompts [ours]. Every number rests on {one.n_seeds} seeds. What takes longer "
            "than this training counts as not there: a step of the paper's has 512 prompts of 256 tokens [code], "
            f"{512 * 256 / (one.batch_size * one.seq_len):g} times as many tokens, so that 'not reproduced' is said "
            "of this training and not of the paper's."
        ),
        (
            f"History, recall and accuracy over training are measured on {one.eval_prompts} prompts a seed, every "
            f"{one.log_every} steps unless a claim says otherwise; what is tested at the end, on "
            f"{_TEST_PROMPTS_PER_EVAL * one.eval_prompts} others. The bigrams are those of the "
            f"{BigramICL().d_vocab} characters of the embedded King James Bible. Recall of W_K2 is a share of five "
            "triggers and moves in steps of 0.2."
        ),
    )
