import pandas as pd
import pytest

from analyses.dynamics import Dynamics, analyse_checkpoints
from analyses.memory import memory_recall
from interp import HookedTransformerConfig, TrainConfig, train
from tasks import BigramICL, InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = BigramICL(seq_len=16)
    config = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=16, d_vocab=task.d_vocab, attn_only=True, use_biases=False
    )
    settings = TrainConfig(steps=6, batch_size=4, checkpoint_every=2, eval_prompts=8, lr=0.1)
    return train(task, config, settings, out=tmp_path_factory.mktemp("dynamics") / "run", progress=False)


def test_every_checkpoint_is_analysed_as_it_was(run):
    dynamics = analyse_checkpoints(run, lambda model: {"weight": model.W_K.sum()})
    expected = [run.at(step).W_K.sum().item() for step in run.steps]
    assert dynamics.frame["step"].tolist() == run.steps
    assert dynamics.frame["value"].tolist() == expected
    assert len(set(expected)) > 1


def test_an_analysis_keeps_its_columns_and_gains_the_step(run):
    dynamics = analyse_checkpoints(run, lambda model: memory_recall(model, run.task), steps=[0, 6])
    alone = memory_recall(run.at(6), run.task).frame
    last = dynamics.frame[dynamics.frame["step"] == 6].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(last, alone, check_dtype=False)


def test_a_curve_is_one_column_by_what_tells_rows_apart(run):
    dynamics = analyse_checkpoints(run, lambda model: memory_recall(model, run.task), steps=[0, 6])
    curves = dynamics.curves("recall", ["memory", "index_set"])
    assert set(curves.frame.columns) == {"step", "readout", "value"}
    assert not curves.frame.duplicated(["step", "readout"]).any()


def test_rows_that_cannot_be_told_apart_are_refused(run):
    dynamics = analyse_checkpoints(run, lambda model: memory_recall(model, run.task), steps=[0])
    with pytest.raises(InputError, match="several rows per step share"):
        dynamics.curves("recall", "layer")
    with pytest.raises(InputError, match="no column 'recal'"):
        dynamics.curves("recal", "memory")


def test_passing_a_threshold_is_dated_by_its_checkpoint_and_never_is_censored():
    frame = pd.DataFrame(
        {"step": [0, 5, 10] * 2, "readout": ["up"] * 3 + ["flat"] * 3, "value": [0.0, 0.4, 0.9, 0.1, 0.1, 0.1]}
    )
    passed = Dynamics(frame, "by hand").first_passing(0.5).set_index("readout")
    assert passed.loc["up", "step"] == 10
    assert passed.loc["up", "after_step"] == 5
    assert pd.isna(passed.loc["flat", "step"])
    assert passed.loc["flat", "last_step"] == 10


def test_a_step_without_checkpoint_is_refused_with_those_there_are(run):
    with pytest.raises(InputError, match="3"):
        analyse_checkpoints(run, lambda _: {"one": 1.0}, steps=[3])
    with pytest.raises(InputError, match="steps is empty"):
        analyse_checkpoints(run, lambda _: {"one": 1.0}, steps=[])
