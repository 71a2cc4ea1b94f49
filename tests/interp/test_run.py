"""Runs read back from disk: what they hold, and every kind of damage, each answered in one line."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import safetensors.torch
import torch

from interp import HookedTransformer, Run, TrainConfig, train
from interp.checkpoints import read_tensors, state_path, weights_path
from tasks import BigramICL
from tasks.errors import InputError

TRAINING = TrainConfig(steps=6, batch_size=4, eval_prompts=4, log_every=3, checkpoint_every=3)


@pytest.fixture(scope="module")
def finished(task, model_config, tmp_path_factory) -> Path:
    return train(task, model_config, TRAINING, out=tmp_path_factory.mktemp("runs") / "run", progress=False).path


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(finished, tmp_path / "run")


def continue_training(folder, task, model_config) -> Run:
    return train(task, model_config, TRAINING, out=folder, progress=False)


def refusal(action) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def edit_config(folder: Path, edit) -> None:
    fields = json.loads((folder / "config.json").read_text())
    edit(fields)
    (folder / "config.json").write_text(json.dumps(fields))


def test_a_run_holds_what_it_was_made_of(folder, task, model_config):
    run = Run.load(folder)
    assert run.task == task
    assert run.train_config == TRAINING
    assert run.config == model_config
    assert run.steps == [0, 3, 6]
    assert run.history["step"].tolist() == [0, 3, 6]
    assert set(run.record.versions) == {"python", "interp", "torch", "transformer-lens", "numpy"}


def test_the_model_is_that_of_the_last_step_and_stays_one_object(folder):
    run = Run.load(folder)
    weights, _ = read_tensors(weights_path(folder, 6))
    assert all(torch.equal(weights[name], value) for name, value in run.model.state_dict().items())
    assert run.model is run.model
    assert run.at(3) is not run.at(3)


def test_the_untrained_model_is_that_of_the_seed(folder):
    run = Run.load(folder)
    assert torch.equal(run.at(0).W_K, HookedTransformer(run.config).W_K)
    assert not torch.equal(run.at(0).W_K, run.model.W_K)


def test_the_history_is_read_digit_for_digit(folder):
    frame = Run.load(folder).history
    frame.to_csv(folder / "again.csv", index=False, lineterminator="\n")
    assert (folder / "again.csv").read_bytes() == (folder / "history.csv").read_bytes()
    pd.testing.assert_frame_equal(frame, pd.read_csv(folder / "history.csv"))


def test_a_step_without_checkpoint_is_answered_with_those_there_are(folder):
    assert "no checkpoint of step 4: it has 0, 3, 6" in refusal(lambda: Run.load(folder).at(4))


def test_a_half_written_checkpoint_does_not_count(folder):
    weights_path(folder, 6).rename(folder / "checkpoints" / ".step-000006.safetensors.77.unfinished")
    assert Run.load(folder).steps == [0, 3]


def test_a_run_without_checkpoint_has_no_model(folder):
    shutil.rmtree(folder / "checkpoints")
    assert Run.load(folder).steps == []
    assert "has no complete checkpoint" in refusal(lambda: Run.load(folder).model)


def test_steps_beyond_six_digits_are_in_order(folder):
    for step in (1_000_000, 999_999):
        shutil.copy(weights_path(folder, 6), weights_path(folder, step))
    assert Run.load(folder).steps == [0, 3, 6, 999_999, 1_000_000]


def test_what_is_no_run_is_refused(folder, tmp_path):
    assert "config.json does not exist: give the folder of a run" in refusal(lambda: Run.load(tmp_path / "nowhere"))
    assert "config.json does not exist" in refusal(lambda: Run.load(folder / "history.csv"))


def test_a_folder_of_several_runs_is_refused_with_the_first_of_them(folder, tmp_path):
    assert f"give the folder of a run, {folder} say" in refusal(lambda: Run.load(tmp_path))
    (tmp_path / "sweep" / "trials" / "one").mkdir(parents=True)
    trial = folder.rename(tmp_path / "sweep" / "trials" / "one" / "run")
    assert f"give the folder of a run, {trial} say" in refusal(lambda: Run.load(tmp_path / "sweep"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"task": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "holds no JSON object"),
        (b"{}", "is missing"),
    ],
)
def test_a_config_that_is_no_record_is_refused_by_name(folder, content, message):
    (folder / "config.json").write_bytes(content)
    said = refusal(lambda: Run.load(folder))
    assert str(folder / "config.json") in said
    assert message in said


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda fields: fields.update(extra=1), "has no 'extra'"),
        (lambda fields: fields["train"].update(learning_rate=1), "TrainConfig has no 'learning_rate'"),
        (lambda fields: fields["model"].update(n_head=1), "did you mean n_heads"),
        (lambda fields: fields["model"].update(d_model="wide"), "d_model = 'wide'"),
        (lambda fields: fields["train"].update(lr=-1), "lr = -1"),
        (lambda fields: fields["task"]["config"].update(n_trigger=1), "did you mean n_triggers"),
        (lambda fields: fields["task"].update(name="mine"), "the task 'mine' is none of bigram"),
        (lambda fields: fields["task"].update(files={"../../x": "0"}), "no plain file name"),
        (lambda fields: fields.update(train=3), "train"),
        (lambda fields: fields.update(format=2), "format = 2"),
    ],
)
def test_a_config_with_a_wrong_entry_is_refused_by_file_and_entry(folder, edit, message):
    edit_config(folder, edit)
    said = refusal(lambda: Run.load(folder))
    assert str(folder / "config.json") in said
    assert message in said


def test_a_changed_or_missing_task_file_is_refused_by_name(folder, task):
    path = folder / "task" / "bigrams.csv"
    path.write_bytes(path.read_bytes().replace(b",1\r", b",2\r", 1))
    for load in (lambda: Run.load(folder), lambda: Run.load(folder, task=task)):
        assert f"{path} is not the file that the run was trained with" in refusal(load)
    path.unlink()
    assert f"{path} is missing" in refusal(lambda: Run.load(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is no table of numbers"),
        (b"step,loss\n", "has no rows"),
        (b"loss\n1.0\n", "has no rows of steps"),
        (b"step,loss\n0,low\n", "is no table of numbers"),
        (b"step,loss\n0\n", "is no table of numbers"),
        (b"\xff", "is no table of numbers"),
    ],
)
def test_a_damaged_history_is_refused_by_name(folder, content, message):
    path = folder / "history.csv"
    path.unlink() if content is None else path.write_bytes(content)
    said = refusal(lambda: Run.load(folder).history)
    assert str(path) in said
    assert message in said


def damage_weights(path: Path, damage) -> None:
    weights = safetensors.torch.load(path.read_bytes())
    damage(weights)
    path.write_bytes(safetensors.torch.save(weights))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("embed.W_E"), "lacks embed.W_E"),
        (lambda weights: weights.update(more=torch.zeros(1)), "has more"),
        (lambda weights: weights.update({"embed.W_E": torch.zeros(2, 2)}), "embed.W_E has shape"),
        (lambda weights: weights.update({"embed.W_E": weights["embed.W_E"].double()}), "embed.W_E is torch.float64"),
    ],
)
def test_weights_of_another_model_are_refused_by_file_and_tensor(folder, damage, message):
    damage_weights(weights_path(folder, 6), damage)
    said = refusal(lambda: Run.load(folder).model)
    assert str(weights_path(folder, 6)) in said
    assert message in said


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_weights_cut_short_are_refused_by_name(folder, keep):
    path = weights_path(folder, 6)
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is damaged" in refusal(lambda: Run.load(folder).model)


def test_training_goes_on_from_the_checkpoint_before_a_deleted_one_and_refuses_a_damaged_one(
    folder, task, model_config
):
    weights, _ = read_tensors(weights_path(folder, 6))
    weights_path(folder, 6).unlink()
    state = state_path(folder, 3)
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    assert f"{state} is damaged" in refusal(lambda: continue_training(folder, task, model_config))
    state.unlink()
    assert f"{state} is missing" in refusal(lambda: continue_training(folder, task, model_config))
    state.write_bytes(state_path(folder, 6).read_bytes())
    assert f"{state} is of step 6" in refusal(lambda: continue_training(folder, task, model_config))
    state.write_bytes(safetensors.torch.save({"optimizer/embed.W_E/exp_avg": torch.zeros(1)}, {"step": "3"}))
    assert f"{state} does not belong to this run" in refusal(lambda: continue_training(folder, task, model_config))
    state.write_bytes(whole)
    model = continue_training(folder, task, model_config).model
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@dataclass(frozen=True)
class OwnTask(BigramICL):
    name: ClassVar[str] = "own"


def test_a_task_of_ones_own_is_passed_and_must_be_the_one_trained_on(task, model_config, tmp_path):
    own = OwnTask(task.stats, n_triggers=2, seq_len=12, scored="all")
    path = train(own, model_config, TRAINING, out=tmp_path / "own", progress=False).path
    assert "pass your own, as Run.load" in refusal(lambda: Run.load(path))
    assert Run.load(path, task=own).task is own
    assert Run.load(path, task=OwnTask).task.config() == own.config()
    assert "the task 'own' and not on 'bigram' (BigramICL)" in refusal(lambda: Run.load(path, task=BigramICL))
    other = OwnTask(task.stats, n_triggers=3, seq_len=12, scored="all")
    assert "config.n_triggers = 2 there and 3" in refusal(lambda: Run.load(path, task=other))
    assert "name = 'own' there and 'bigram'" in refusal(lambda: Run.load(path, task=task))


def test_a_task_whose_config_is_no_json_is_refused(task, model_config, tmp_path):
    class Unwritable(BigramICL):
        def config(self):
            return {"corpus": self.stats}

    unwritable = Unwritable(task.stats, n_triggers=2, seq_len=12)
    said = refusal(lambda: train(unwritable, model_config, TRAINING, out=tmp_path / "run", progress=False))
    assert "is no JSON" in said
    assert not (tmp_path / "run").exists()


def test_an_unknown_shipped_run_is_answered_with_what_there_is():
    assert refusal(lambda: Run.shipped("best")).startswith("there is no shipped run 'best': ")


def test_a_checkpoint_in_another_ones_place_is_refused(folder):
    checkpoints = folder / "checkpoints"
    steps = sorted(checkpoints.glob("step-*.safetensors"))
    steps[-1].write_bytes(steps[0].read_bytes())
    with pytest.raises(InputError, match="holds the weights of step 0: it was swapped"):
        _ = Run.load(folder).model


def test_a_config_edited_into_another_valid_one_is_refused(folder):
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8")
    assert '"n_triggers": 2' in text
    config.write_text(text.replace('"n_triggers": 2', '"n_triggers": 1'), encoding="utf-8")
    with pytest.raises(InputError, match="was changed since the run was made"):
        Run.load(folder)


NEWER = ("d_in", "d_out", "attn_fn", "n_queries", "absent_heads")
"""Fields of the model that runs of the first version have not; their defaults are what those runs did."""


def as_the_first_version_wrote_it(folder: Path) -> None:
    """Take the newer fields out of config.json, and put in the digest of what is left."""

    def shorten(fields):
        for name in NEWER:
            fields["model"].pop(name)
        fields.pop("initial_sha256")
        fields.pop("digest")
        fields["digest"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    edit_config(folder, shorten)


def test_a_run_from_before_real_vectors_loads_and_goes_on(folder, task, model_config):
    weights = Run.load(folder).model.state_dict()
    as_the_first_version_wrote_it(folder)
    older = Run.load(folder)
    assert older.config == model_config
    assert all(torch.equal(weights[name], value) for name, value in older.model.state_dict().items())
    weights_path(folder, 6).unlink()
    continued = continue_training(folder, task, model_config)
    assert all(torch.equal(weights[name], value) for name, value in continued.model.state_dict().items())


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: fields["train"].update(lr=0.5),
        lambda fields: fields["model"].update(attn_fn="relu"),
        lambda fields: fields["model"].update(attn_fn="softmax"),  # the default, but it was not there
        lambda fields: fields["versions"].update(torch="9.9"),
        lambda fields: fields.pop("digest"),
    ],
)
def test_an_older_run_whose_config_was_edited_is_refused(folder, edit):
    as_the_first_version_wrote_it(folder)
    edit_config(folder, edit)
    assert "was changed since the run was made" in refusal(lambda: Run.load(folder))
