import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyses.papers.chen2024 import PAPER
from analyses.papers.chen2024.checkpoints import checkpoint, checkpoint_name, digest_of, load
from analyses.papers.chen2024.more_heads import measure_risk_by_heads
from analyses.papers.chen2024.setting import HEADS, SEEDS, SETTINGS, training
from analyses.papers.reproduction import reproduce
from interp import Run
from tasks.errors import InputError

NAMES = [(n_heads, seed) for n_heads in HEADS for seed in SEEDS]


@pytest.mark.parametrize(("n_heads", "seed"), NAMES)
def test_each_checkpoint_is_of_the_training_that_makes_it_again(n_heads, seed):
    run, job = Run.shipped(checkpoint_name(n_heads, seed)), training(n_heads, seed)
    assert run.task == job.task
    assert run.train_config == job.train_config
    assert run.config == replace(job.model, seed=job.train_config.init_seed)
    assert run.steps == [job.train_config.steps]
    assert set(run.verify()["verdict"]) == {"intact"}


def test_they_take_at_most_six_megabytes_and_have_equally_many_parameters():
    folder = Run.shipped(checkpoint_name(8, 0)).path.parent
    assert sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) < 6e6
    sizes = [sum(p.numel() for p in load(checkpoint(n_heads, 0)).W_O) for n_heads in HEADS]
    assert len(set(sizes)) == 1


def test_an_untrained_twin_is_the_same_each_time_and_another_for_each_seed():
    twin, again = (load(checkpoint(8, 0, untrained=True)) for _ in range(2))
    assert torch.equal(twin.W_E, again.W_E)
    assert not torch.equal(twin.W_E, load(checkpoint(8, 1, untrained=True)).W_E)
    assert not torch.equal(twin.W_E, load(checkpoint(8, 0)).W_E)


def test_weights_that_are_not_those_of_the_calculation_are_refused():
    found = checkpoint(1, 0)
    assert found["sha256"] == digest_of(Run.shipped(checkpoint_name(1, 0)))
    assert load(found).cfg.n_heads == 1
    with pytest.raises(InputError, match="were changed since"):
        load({**found, "sha256": "0" * 64})


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_every_claim_has_jobs_for_at_least_five_seeds_that_can_cross_into_workers(scale):
    for make in PAPER.claims:
        claim = make(scale)
        for arms in (claim.arms, claim.null_arms):
            seeds = {job.seed for name, arm in arms.items() for job in arm if name != "trained anew"}
            assert len(seeds) >= 5
        assert all(pickle.loads(pickle.dumps(job)).key == job.key for job in claim.jobs)  # noqa: S301
        assert {job.key for arm in claim.null_arms.values() for job in arm}
        assert all(criterion.source for criterion in claim.criteria)


def test_a_model_trained_anew_is_compared_with_the_shipped_one_weight_by_weight(tmp_path):
    risks = [pd.DataFrame({"n": [8, 32], "risk": [0.5, 0.2]})] * 5
    arms = dict.fromkeys(("1 head", "2 heads", "4 heads", "8 heads"), risks)
    shipped = Run.shipped(checkpoint_name(1, 0))
    assert "bit for bit as shipped" in measure_risk_by_heads(arms | {"trained anew": [shipped]}).text[-1]
    shutil.copytree(shipped.path, tmp_path / "run")
    shutil.copytree(
        Run.shipped(checkpoint_name(1, 1)).path / "checkpoints", tmp_path / "run" / "checkpoints", dirs_exist_ok=True
    )
    other = Run.load(tmp_path / "run")
    assert "away from the shipped checkpoint" in measure_risk_by_heads(arms | {"trained anew": [other]}).text[-1]


@pytest.mark.slow
def test_the_whole_reproduction_gives_the_same_numbers_again(tmp_path, monkeypatch):
    small = replace(
        SETTINGS["quick"],
        test_prompts=20,
        head_prompts=20,
        descent_prompts=4,
        random_choices=2,
        map_prompts=10,
        dimensions=(16,),
        pairs_per_dimension=(2,),
        noises=(0.5,),
    )
    monkeypatch.setitem(SETTINGS, "quick", small)
    job = training(1, 0)
    few_steps = replace(job, train_config=replace(job.train_config, steps=2, eval_prompts=10))
    monkeypatch.setattr("analyses.papers.chen2024.more_heads.training", lambda *_: few_steps)
    results = []
    for name in ("one", "other"):
        reproduce("chen2024", out=tmp_path / name, workers=1, progress=False)
        results.append((tmp_path / name / "results.json").read_text())
    assert results[0] == results[1]
    found = json.loads(results[0])
    assert len(found["claims"]) == len(PAPER.claims)
    assert all(claim["control"]["verdict"] for claim in found["claims"])
