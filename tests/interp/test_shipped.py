from dataclasses import replace

import pytest

from interp import Run
from interp.presets import preset
from interp.statistics import ratio_interval
from tasks import InputError, Ridge


@pytest.fixture(scope="module")
def run():
    return Run.shipped("bietti-full-2x4")


def test_the_shipped_run_is_small_and_has_its_history(run):
    assert sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) < 1_000_000
    assert run.history["step"].tolist()[-1] == run.steps[-1] == 600
    assert (run.config.n_layers, run.config.n_heads) == (2, 4)


def test_the_shipped_weights_give_the_accuracy_that_its_history_ends_with(run):
    prompts = run.task.sample(run.train_config.eval_prompts, seed=run.train_config.eval_seed)
    in_context = prompts.score_only(prompts.labels["segment"] == 2)
    hits, counts = in_context.accuracy(run.model(prompts.inputs))
    recorded = run.history["accuracy_in_context"].iloc[-1]
    assert float(hits.sum() / counts.sum()) == pytest.approx(recorded, abs=2e-3)
    assert recorded > 0.95


@pytest.fixture(scope="module")
def regression():
    return Run.shipped("sparse-regression-small")


def test_the_shipped_regression_run_is_small_and_is_what_its_preset_makes(regression):
    assert sum(path.stat().st_size for path in regression.path.rglob("*") if path.is_file()) < 1_000_000
    assert regression.history["step"].tolist()[-1] == regression.steps[-1] == regression.train_config.steps
    model, training = preset("sparse-regression-small", regression.task)
    assert regression.config == replace(model, seed=training.init_seed)
    assert regression.train_config == training


def test_the_shipped_regression_model_beats_ridge_with_the_best_lambda_in_hindsight(regression):
    prompts = regression.task.sample(2000, seed=5)
    of_model, counts = prompts.excess_risk(regression.model(prompts.inputs).detach())
    of_ridge, _ = prompts.excess_risk(Ridge.hindsight(prompts)(prompts))
    less = ratio_interval((of_ridge - of_model).numpy()[:, None], counts.numpy()[:, None], confidence=0.99)
    assert less.low[0] > 0


def test_an_unknown_shipped_run_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="bietti-full-2x4"):
        Run.shipped("bietti-full-2x5")
