"""Many seeds: stacked or alone the same runs, each an ordinary one; resuming; which way is chosen."""

import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import HookedTransformer, Run, TrainConfig, train
from interp import many_seeds as module
from interp.checkpoints import state_path, weights_path
from interp.many_seeds import Trial, timed_trial, train_many
from interp.presets import preset
from interp.seed_runs import SeedRuns, seed_folder
from interp.trainee import Trainee, TrainingDivergedError
from tasks import BigramICL, InputError, Prompts, SparseRegression

FAST = {"steps": 12, "batch_size": 4, "eval_prompts": 8, "log_every": 4, "checkpoint_every": 5}
SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.fixture
def many(task, model_config, tmp_path):
    def many(folder="runs", seeds=(0, 1, 2), config=model_config, how="stacked", task=task, readouts=None, **fields):
        training = TrainConfig(**(FAST | fields))
        out = tmp_path / folder
        return train_many(task, config, training, seeds=seeds, out=out, how=how, readouts=readouts, progress=False)

    return many


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class DoubleRegression(SparseRegression):
    def sample(self, n, *, seed):
        prompts = super().sample(n, seed=seed)
        return replace(prompts, inputs=prompts.inputs.double(), targets=prompts.targets.double())


class Spoiled(SparseRegression):
    """One step of one seed has a target that is no number."""

    def sample(self, n, *, seed):
        prompts = super().sample(n, seed=seed)
        return replace(prompts, targets=prompts.targets * torch.nan) if seed == (4, 6) else prompts


def regression(kind=SparseRegression):
    return kind(d=3, sparsity=1, n_context=5)


def largest_difference(one: Run, other: Run) -> float:
    assert one.steps == other.steps
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((left - right).abs().max().detach()) for left, right in pairs)


def drop_after(run: Run, step: int) -> None:
    """What a machine that fails just after this checkpoint leaves."""
    for later in run.steps:
        if later > step:
            weights_path(run.path, later).unlink()
            state_path(run.path, later).unlink()


CASES = {
    "bietti-simplified": {"optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
    "bietti-full": {"lr": 1e-2, "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 3},
    "chen-2-linear": {"lr": 3e-3, "schedule": "one_cycle", "grad_clip": 0.1},
    "chen-2-softmax": {"lr": 3e-3, "freeze_until": {"blocks.0.attn.W_?": 50}, "grad_clip": 1.0},
    "chen-2-relu": {"optimizer": "sgd", "lr": 1e-2},
}


SLOW = ("bietti-full", "chen-2-linear", "chen-2-relu")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_a_stacked_seed_is_the_run_trained_alone_for_200_steps(name, double, task, tmp_path):
    task = replace(task, scored="in_context") if name.startswith("bietti") else regression(DoubleRegression)
    config, _ = preset(name, task, {"d_model": 8})
    fields = {"steps": 200, "batch_size": 4, "eval_prompts": 8, "checkpoint_every": None, "log_every": 100}
    fields |= CASES[name]
    training = TrainConfig(**fields)
    runs = train_many(task, config, training, seeds=[0, 5], out=tmp_path / "many", how="stacked", progress=False)
    for seed in (0, 5):
        own = TrainConfig.from_seed(seed, **fields)
        alone = train(task, config, own, out=tmp_path / f"alone-{seed}", progress=False)
        assert (runs[seed].config, runs[seed].train_config) == (alone.config, alone.train_config)
        moved = (alone.model.W_O - alone.at(0).W_O).abs().max()
        assert moved > 1e-3
        assert largest_difference(runs[seed], alone) < 1e-5
        numbers = [name for name in alone.history if name != "seconds"]
        torch.testing.assert_close(
            torch.tensor(runs[seed].history[numbers].to_numpy()),
            torch.tensor(alone.history[numbers].to_numpy()),
            rtol=1e-6,
            atol=1e-8,
            equal_nan=True,
        )


def test_absent_heads_stay_absent_in_a_stack(double, many, model_config, tmp_path, task):
    config = replace(model_config, n_heads=2, d_head=4, absent_heads=("L1H1",))
    run = many(config=config)[1]
    alone = train(task, config, run.train_config, out=tmp_path / "alone", progress=False)
    assert largest_difference(run, alone) < 1e-5
    assert torch.equal(run.model.W_V[1, 1], run.at(0).W_V[1, 1])


def test_every_seed_leaves_an_ordinary_run(many, tmp_path):
    runs = many(seeds=[0, 4])
    run = Run.load(tmp_path / "runs" / "seed-004")
    assert runs.seeds == [0, 4]
    assert run.train_config == TrainConfig.from_seed(4, **FAST)
    assert run.steps == [0, 5, 10, 12]
    assert run.history["step"].tolist() == [0, 4, 8, 12]
    assert set(run.verify()["verdict"]) == {"intact"}
    assert torch.equal(runs[4].model.W_E, run.model.W_E)


def test_seeds_start_from_their_own_weights_and_see_their_own_prompts(many):
    runs = many(**SGD)
    assert not torch.equal(runs[0].at(0).W_E, runs[1].at(0).W_E)
    assert runs[0].history["train_loss"].iloc[-1] != runs[1].history["train_loss"].iloc[-1]


@pytest.mark.parametrize("fields", [SGD, {"lr": 0.01, "freeze_until": {"embed.W_E": 7}}], ids=["sgd", "adamw"])
def test_a_stack_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(many, fields):
    whole = many("whole", **fields)
    killed = many("killed", **fields)
    drop_after(killed[0], 10)
    drop_after(killed[1], 5)  # the kill came while checkpoints were being written
    drop_after(killed[2], 5)
    continued = many("killed", **fields)
    for seed in (0, 1, 2):
        assert largest_difference(whole[seed], continued[seed]) == 0
        drop = ["seconds"]
        assert whole[seed].history.drop(columns=drop).equals(continued[seed].history.drop(columns=drop))
    assert continued.how["from_step"].tolist() == [0, 5] * 3


def test_a_stack_can_be_continued_one_by_one_and_the_record_says_so(many):
    whole, other = many("whole", **SGD), many("other", **SGD)
    for run in other:
        drop_after(run, 5)
    continued = many("other", how="alone", **SGD)
    for seed in (0, 1, 2):
        assert largest_difference(whole[seed], continued[seed]) < 1e-5
    assert continued.how["way"].tolist() == ["stacked", "alone"] * 3
    assert continued.how["n_stacked"].tolist() == [3, 1] * 3


def test_a_training_that_goes_on_goes_on_as_it_began(many):
    runs = many(**SGD)
    for run in runs:
        drop_after(run, 5)
    assert many(how="measured", **SGD).how["why"].tolist() == ["asked for", "as it began"] * 3


def test_ctrl_c_stops_the_whole_stack_at_a_checkpoint_from_which_it_goes_on(many, tmp_path):
    whole = many("whole", readouts={"nothing": lambda _model, _prompts: 0.0}, **SGD)
    calls = 0

    def interrupt(model, prompts):
        nonlocal calls
        calls += 1
        if calls == 3 * 3:  # the last seed's figures at step 8
            signal.raise_signal(signal.SIGINT)
        return 0.0

    with pytest.raises(KeyboardInterrupt, match="after step 9 of 12"):
        many(readouts={"nothing": interrupt}, **SGD)
    stopped = SeedRuns.load(tmp_path / "runs")
    assert [run.steps for run in stopped] == [[0, 5, 9]] * 3
    assert stopped.unfinished == [0, 1, 2]
    continued = many(readouts={"nothing": interrupt}, **SGD)
    assert continued.unfinished == []
    for seed in (0, 1, 2):
        assert torch.equal(whole[seed].model.W_E, continued[seed].model.W_E)


@pytest.mark.parametrize("how", ["stacked", "alone"])
def test_a_seed_that_diverges_stops_nothing_and_is_named(many, how, tmp_path):
    task = regression(Spoiled)
    config, _ = preset("chen-2-linear", task, {"d_model": 8})
    with pytest.raises(TrainingDivergedError, match=r"^1 of 3 seeds diverged.*seed 1: the loss of step 6 is not fin"):
        many(task=task, config=config, how=how)
    runs = SeedRuns.load(tmp_path / "runs", task)
    assert runs.unfinished == [1]
    assert runs[1].steps == [0, 5]
    sound = many("sound", task=regression(), config=config, how=how)
    assert all(torch.equal(runs[seed].model.W_E, sound[seed].model.W_E) for seed in (0, 2))


def test_further_seeds_join_and_those_that_are_done_are_left_alone(many):
    first = many(seeds=[0, 1])
    before = {path: path.stat().st_mtime_ns for path in first.path.glob("seed-*/checkpoints/*")}
    both = many(seeds=[0, 1, 2])
    assert both.seeds == [0, 1, 2]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert many(seeds=[2]).seeds == [0, 1, 2]


def test_the_faster_way_is_taken_and_its_measurement_kept(many, monkeypatch):
    monkeypatch.setattr(module, "TRIAL_SHARE", 1.0)
    for alone_seconds, way in ((0.2, "stacked"), (0.1, "alone")):
        monkeypatch.setattr(module, "timed_trial", lambda *_, alone=alone_seconds: Trial(alone, 0.1, 3, 2, 1))
        how = many(f"{way}", seeds=[0, 1], how="measured").how
        assert how["way"].tolist() == [way] * 2
        assert how["why"].tolist() == ["measured"] * 2
        assert how["alone_seconds"].tolist() == [alone_seconds] * 2


def test_stacked_training_that_is_hardly_faster_is_not_chosen():
    assert not Trial(alone_seconds=1.04, stacked_seconds=1.0, n_steps=3, n_stacked=2, n_threads=1).stacked_wins
    assert Trial(alone_seconds=1.10, stacked_seconds=1.0, n_steps=3, n_stacked=2, n_threads=1).stacked_wins


def test_a_trial_takes_at_most_two_hundredths_of_the_steps_and_leaves_the_runs_untouched(task, model_config):
    made = []

    def make(seed):
        made.append(Trainee.untrained(replace(model_config, seed=seed), TrainConfig(steps=300)))
        return made[-1]

    trial = timed_trial(task, make, [3, 4])
    assert trial.n_steps == 3
    assert sum(trainee.step for trainee in made) <= 0.02 * 2 * 300
    assert [trainee.step for trainee in made] == [4, 4, 4]
    assert trial.alone_seconds > 0
    assert trial.stacked_seconds > 0


def test_short_trainings_and_single_seeds_are_not_worth_a_trial(many):
    assert many("short", how="measured").how["why"].tolist() == ["too few steps for a trial"] * 3
    assert many("single", how="measured", seeds=[7]).how["why"].tolist() == ["a single seed"]


def test_stacks_are_kept_to_what_fits_in_memory(many, monkeypatch):
    monkeypatch.setattr(module, "MOST_NUMBERS_AT_ONCE", 20_000)
    runs = many(seeds=range(5), steps=2)
    assert runs.how["n_stacked"].tolist() == [2, 2, 2, 2, 1]


def test_each_seed_that_is_trained_alone_is_announced(task, model_config, tmp_path, capsys):
    shown = {"seeds": [4, 2], "out": tmp_path / "runs", "how": "alone"}
    train_many(task, model_config, TrainConfig(**FAST), **shown)
    lines = capsys.readouterr().err.splitlines()
    assert lines[::2] == ["seed 4, 1 of 2", "seed 2, 2 of 2"]
    assert all(line.startswith("step 12/12") for line in lines[1::2])
    train_many(task, model_config, TrainConfig(**FAST), **shown)  # nothing is left to train
    assert capsys.readouterr().err == ""


def test_a_seed_that_is_given_is_the_same_for_all(many):
    runs = many(eval_seed=99)
    assert [run.train_config.eval_seed for run in runs] == [99] * 3
    assert [run.train_config.train_seed for run in runs] == [1, 4, 7]
    with pytest.raises(InputError, match="leave one free, or all runs are alike"):
        many("other", init_seed=1, train_seed=2, eval_seed=3)


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        ([], "seeds is empty"),
        ([1, 1], "seed 1 is named twice"),
        ([-1], "-1"),
        (range(10**8), "100000000 seeds are more than 10000"),
    ],
)
def test_seeds_that_are_none_are_refused(many, tmp_path, seeds, says):
    with pytest.raises(InputError, match=says):
        many(seeds=seeds)
    assert not (tmp_path / "runs").exists()


@pytest.mark.refusal
@pytest.mark.parametrize(("seeds", "says"), [(3, "seeds = 3: give the seeds themselves"), ([1.0], "seed = 1.0")])
def test_seeds_of_a_wrong_type_are_refused(many, seeds, says):
    with pytest.raises(InputError, match=says):
        many(seeds=seeds)


@pytest.mark.refusal  # the type hook asks for a sequence
def test_numpys_whole_numbers_are_seeds(many):
    runs = many(seeds=np.arange(2), steps=2)
    assert runs.seeds == [0, 1]
    assert SeedRuns.load(runs.path).seeds == [0, 1]


def test_folders_that_changed_places_are_refused(many, tmp_path):
    runs = many(steps=2)
    assert SeedRuns.load(runs.path).seeds == [0, 1, 2]
    one, other = seed_folder(runs.path, 1), seed_folder(runs.path, 2)
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(InputError, match=r"seed-001 is not the run of seed 1 \(init_seed = 6\)"):
        SeedRuns.load(runs.path)


def test_a_folder_of_something_else_is_refused(many, tmp_path, task, model_config):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    train(task, model_config, TrainConfig(**FAST), out=tmp_path / "run", progress=False)
    for folder in ("notes", "run"):
        with pytest.raises(InputError, match="is not empty and holds no runs of many seeds"):
            many(folder)
    with pytest.raises(InputError, match="holds no runs of many seeds"):
        SeedRuns.load(tmp_path / "run")


def test_a_folder_of_another_training_is_refused_even_for_other_seeds(many):
    many(seeds=[0, 1])
    for seeds in ([0], [5]):
        with pytest.raises(InputError, match=r"holds another run: train.lr = 0.001 there and 0.5 here"):
            many(seeds=seeds, lr=0.5)


def test_prompts_with_a_loss_of_their_own_are_not_stacked(many, monkeypatch):
    class OwnPrompts(Prompts):
        pass

    class OwnTask(BigramICL):
        def sample(self, n, *, seed):
            return OwnPrompts(**vars(super().sample(n, seed=seed)))

    task = OwnTask(seq_len=12)
    config, _ = preset("bietti-simplified", task, {"d_model": 8})
    with pytest.raises(InputError, match="set how='alone'"):
        many(task=task, config=config, how="stacked")
    monkeypatch.setattr(module, "TRIAL_SHARE", 1.0)
    assert many("other", task=task, config=config, how="measured").how["way"].tolist() == ["alone"] * 3


def test_half_precision_is_not_stacked(many, tmp_path):
    with pytest.raises(InputError, match=r"precision = 'bfloat16' is for one model at a time: set how='alone'"):
        many(precision="bfloat16")
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(many, tmp_path):
    with pytest.raises(InputError, match="at step 1"):
        many(freeze_until={"*": 3})
    with pytest.raises(InputError, match="second column 'loss'"):
        many(readouts={"loss": lambda _model, _prompts: 0.0})
    assert not (tmp_path / "runs").exists()


@pytest.mark.refusal
def test_an_unknown_way_is_refused(many):
    with pytest.raises(InputError, match="how = 'fast' is unknown: choose 'measured', 'stacked' or 'alone'"):
        many(how="fast")


def test_an_analysis_maps_over_seeds_and_checkpoints(many):
    runs = many(**SGD)
    frame = runs.map(lambda model: {"norm": model.W_E.norm(), "heads": model.cfg.n_heads})
    assert frame.columns.tolist() == ["seed", "step", "readout", "value"]
    assert len(frame) == 3 * 4 * 2
    of_one = frame[(frame["seed"] == 1) & (frame["step"] == 10) & (frame["readout"] == "norm")]
    assert of_one["value"].item() == runs[1].at(10).W_E.norm().item()
    assert runs.map(lambda _: {"one": 1}, steps=[5])["step"].tolist() == [5] * 3
    with pytest.raises(InputError, match="no checkpoint of step 3"):
        runs.map(lambda _: {"one": 1}, steps=[3])
    with pytest.raises(InputError, match="the analysis gave float: return a result, a table or named figures"):
        runs.map(lambda _: 1.0)


def test_histories_come_as_one_table_with_the_seed_in_front(many):
    runs = many()
    assert runs.history.columns[0] == "seed"
    assert runs.history.groupby("seed")["step"].apply(list).tolist() == [[0, 4, 8, 12]] * 3
    with pytest.raises(InputError, match="there is no run of seed 9: choose from 0, 1, 2"):
        runs[9]


def test_runs_of_seeds_that_have_not_begun_are_named(many, tmp_path):
    many(seeds=[0, 1])
    many(seeds=[0, 1, 2])

    shutil.rmtree(seed_folder(tmp_path / "runs", 1))
    assert SeedRuns.load(tmp_path / "runs").missing == (1,)


def test_the_stacked_models_own_weights_are_those_of_the_checkpoints(many):
    run = many()[0]
    fresh = HookedTransformer(run.config)
    assert torch.equal(fresh.W_E, run.at(0).W_E)
