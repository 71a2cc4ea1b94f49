"""TrainConfig: what it refuses, how it is laid over a preset, how seeds are derived."""

import math
from dataclasses import replace

import pytest

from interp import TrainConfig
from tasks.errors import InputError


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("steps", 1, 0),
        ("batch_size", 1, 0),
        ("checkpoint_every", 1, 0),
        ("log_every", 1, -1),
        ("eval_prompts", 1, 0),
        ("warmup_steps", 0, -1),
        ("lr", 1e-9, 0.0),
        ("lr", 0.1, -0.1),
        ("lr", 0.1, math.nan),
        ("lr", 0.1, math.inf),
        ("grad_clip", 0.5, 0.0),
        ("weight_decay", 0.0, -1e-9),
        ("momentum", 0.0, 1.0),
        ("momentum", 0.9, math.nan),
        ("betas", (0.0, 0.99), (0.9, 1.0)),
        ("freeze_until", {"embed.*": 1}, {"embed.*": 0}),
        ("init_seed", 2**32 - 1, 2**32),
        ("train_seed", 0, -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_in_one_line(field, good, bad):
    assert getattr(TrainConfig(**{field: good}), field) == good
    with pytest.raises(InputError, match=f"^{field}.*expected") as refusal:
        TrainConfig(**{field: bad})
    assert "\n" not in str(refusal.value)


@pytest.mark.refusal
@pytest.mark.parametrize(("field", "bad"), [("optimizer", "adam"), ("schedule", "step"), ("steps", "many")])
def test_a_value_of_the_wrong_kind_is_refused_by_name_in_one_line(field, bad):
    with pytest.raises(InputError, match=field) as refusal:
        TrainConfig(**{field: bad})
    assert "\n" not in str(refusal.value)


@pytest.mark.refusal
def test_a_misspelt_field_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean batch_size"):
        TrainConfig(batchsize=3)


@pytest.mark.parametrize(
    ("good", "bad", "named"),
    [
        (TrainConfig(optimizer="sgd", momentum=0.9), TrainConfig(optimizer="adamw", momentum=0.9), "momentum"),
        (TrainConfig(betas=(0.8, 0.9)), TrainConfig(optimizer="sgd", betas=(0.8, 0.9)), "betas"),
        (TrainConfig(schedule="one_cycle"), TrainConfig(schedule="one_cycle", warmup_steps=5), "warmup_steps"),
        (TrainConfig(steps=10, warmup_steps=9), TrainConfig(steps=10, warmup_steps=10), "warmup_steps"),
        (TrainConfig(train_seed=4, eval_seed=5), TrainConfig(train_seed=5, eval_seed=5), "train_seed"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(good, bad, named):
    good.refuse_contradictions()
    with pytest.raises(InputError, match=named):
        bad.refuse_contradictions()


def test_only_what_the_caller_set_replaces_the_preset():
    preset = TrainConfig(steps=400, lr=0.2, optimizer="sgd", momentum=0.9)
    assert TrainConfig(steps=300).over(preset) == replace(preset, steps=300)


def test_a_value_set_to_its_default_still_replaces_the_preset():
    assert TrainConfig(lr=TrainConfig().lr).over(TrainConfig(lr=0.2)).lr == TrainConfig().lr


def test_the_seeds_of_a_thousand_runs_are_all_different():
    configs = [TrainConfig.from_seed(seed) for seed in range(1000)]
    seeds = [seed for config in configs for seed in (config.init_seed, config.train_seed, config.eval_seed)]
    assert len(set(seeds)) == 3000


def test_a_seed_set_by_name_wins_over_the_derived_one():
    assert TrainConfig.from_seed(4, eval_seed=7).eval_seed == 7
    assert TrainConfig.from_seed(4, eval_seed=7).init_seed == TrainConfig.from_seed(4).init_seed


@pytest.mark.refusal
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(InputError, match="seed = "):
        TrainConfig.from_seed(seed)


def test_checkpoints_are_taken_at_the_ends_at_multiples_and_log_spaced():
    def saved(**fields):
        config = TrainConfig(steps=20, **fields)
        return [step for step in range(21) if config.saves_at(step)]

    assert saved(checkpoint_every=None) == [0, 20]
    assert saved(checkpoint_every=8) == [0, 8, 16, 20]
    assert saved(checkpoint_every=None, checkpoint_log_spaced=True) == [0, 1, 2, 4, 8, 16, 20]


def test_the_history_has_the_ends_and_multiples():
    config = TrainConfig(steps=20, log_every=9)
    assert [step for step in range(21) if config.logs_at(step)] == [0, 9, 18, 20]
