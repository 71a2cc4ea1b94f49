import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare
from sklearn.datasets import load_diabetes

from tasks.errors import InputError
from tasks.protocol import Task
from tasks.regression_layout import ROLES
from tasks.sparse_regression import SparseRegression

SMALL = SparseRegression(d=5, sparsity=2, n_context=7)
CORRELATED = ((2.0, 0.5, 0.0), (0.5, 1.0, -0.3), (0.0, -0.3, 0.5))


def test_it_is_a_task_over_real_vectors():
    assert isinstance(SMALL, Task)
    assert (SMALL.name, SMALL.d_vocab, SMALL.d_in, SMALL.d_out) == ("sparse-regression", None, 6, 1)


def test_every_support_has_exactly_s_entries_and_is_equally_likely():
    supports = SMALL.sample(100_000, seed=3).latents["support"]
    assert (supports.sum(dim=1) == 2).all()
    code = (supports.long() * 2 ** torch.arange(5)).sum(dim=1)
    counts = torch.bincount(code)
    assert (counts > 0).sum() == len(list(itertools.combinations(range(5), 2)))
    assert chisquare(counts[counts > 0].numpy()).pvalue > 1e-3


def test_gaussian_weights_have_their_scale():
    task = SparseRegression(d=5, sparsity=2, weight_scale=3.0)
    prompts = task.sample(50_000, seed=0)
    values = prompts.latents["w_star"][prompts.latents["support"]]
    # 1e5 values: the standard error of the standard deviation is 3 / sqrt(2e5) = 0.0067
    assert values.std().item() == pytest.approx(3, abs=0.03)
    assert values.mean().item() == pytest.approx(0, abs=0.05)


def test_signs_are_plus_or_minus_scale_over_root_s_and_balanced():
    prompts = SparseRegression(weights="signs", weight_scale=3.0).sample(20_000, seed=0)
    values = prompts.latents["w_star"][prompts.latents["support"]]
    assert torch.equal(values.abs(), torch.full_like(values, 1.5))
    assert (values > 0).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_targets_are_the_clean_target_plus_noise_of_the_stated_size(layout):
    prompts = SparseRegression(noise=0.3, layout=layout).sample(4000, seed=0)
    noise = (prompts.targets - prompts.labels["clean_target"])[prompts.scored]
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)


def test_query_layout_holds_pairs_then_the_query_without_its_y():
    prompts = SMALL.sample(3, seed=0)
    assert prompts.inputs.shape == (3, SMALL.n_ctx, SMALL.d_in) == (3, 8, 6)
    assert torch.equal(prompts.inputs[:, :-1, 5], prompts.targets[:, :-1])
    assert (prompts.inputs[:, -1, 5] == 0).all()
    clean = torch.einsum("bpd,bd->bp", prompts.inputs[..., :5], prompts.latents["w_star"])
    torch.testing.assert_close(clean, prompts.labels["clean_target"])
    assert prompts.scored.nonzero()[:, 1].tolist() == [7, 7, 7]
    assert prompts.labels["position"][0].tolist() == list(range(8))
    assert prompts.labels["n_context"][0].tolist() == [7] * 8
    assert [ROLES[role] for role in prompts.labels["role"][0].tolist()] == ["pair"] * 7 + ["query"]


def test_several_queries_share_a_context_and_w_star_and_each_has_noise_of_its_own():
    task = replace(SMALL, n_queries=4, noise=0.3)
    prompts = task.sample(2000, seed=0)
    assert prompts.inputs.shape == (2000, task.n_ctx, task.d_in) == (2000, 11, 6)
    assert torch.equal(prompts.inputs[:, :7, 5], prompts.targets[:, :7])
    assert (prompts.inputs[:, 7:, 5] == 0).all()
    assert prompts.scored[0].tolist() == [False] * 7 + [True] * 4
    assert (prompts.labels["n_context"] == 7).all()
    assert [ROLES[role] for role in prompts.labels["role"][0].tolist()] == ["pair"] * 7 + ["query"] * 4
    clean = torch.einsum("bpd,bd->bp", prompts.inputs[..., :5], prompts.latents["w_star"])
    torch.testing.assert_close(prompts.labels["clean_target"], clean)
    noise = (prompts.targets - clean)[:, 7:]
    # 2000 prompts: the standard error of a correlation is 0.022
    torch.testing.assert_close(torch.corrcoef(noise.T), torch.eye(4), atol=0.1, rtol=0)
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)


def test_a_table_gives_every_query_a_row_of_its_own():
    frame = pd.DataFrame({"a": np.arange(6.0), "y": np.arange(6.0) ** 2})
    task = SparseRegression(d=1, sparsity=1, n_context=3, n_queries=3)
    prompts = task.from_frame(frame, "y", 8, seed=0)
    assert (prompts.inputs.shape, prompts.scored.sum().item()) == ((8, 6, 2), 24)
    drawn = prompts.inputs[..., 0].sort(dim=1).values
    assert torch.equal(drawn, drawn[:1].expand(8, -1))  # all six rows, each once
    with pytest.raises(InputError, match="6 rows: a prompt needs n_context \\+ n_queries = 7"):
        replace(task, n_queries=4).from_frame(frame, "y", 8, seed=0)


def test_interleaved_layout_alternates_x_and_y_and_scores_every_x():
    task = SparseRegression(d=2, sparsity=1, n_context=2, layout="interleaved")
    prompts = task.sample(3, seed=0)
    assert prompts.inputs.shape == (3, task.n_ctx, task.d_in) == (3, 5, 3)
    assert (prompts.inputs[:, 0::2, 2] == 0).all()
    assert (prompts.inputs[:, 1::2, :2] == 0).all()
    assert torch.equal(prompts.inputs[:, 1::2, 2], prompts.targets[:, [0, 2]])
    clean = torch.einsum("bpd,bd->bp", prompts.inputs[:, 0::2, :2], prompts.latents["w_star"])
    torch.testing.assert_close(clean, prompts.labels["clean_target"][:, 0::2])
    assert prompts.scored[0].tolist() == [True, False, True, False, True]
    assert prompts.labels["n_context"][0].tolist() == [0, 1, 1, 2, 2]
    assert [ROLES[role] for role in prompts.labels["role"][0].tolist()] == ["x", "y", "x", "y", "x"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (SparseRegression(d=3, sparsity=1), np.eye(3)),
        (SparseRegression(d=3, sparsity=1, covariance="power", covariance_exponent=1.0), np.diag([1, 1 / 2, 1 / 3])),
        (SparseRegression(d=3, sparsity=1, covariance=CORRELATED), np.array(CORRELATED)),
    ],
)
def test_x_has_the_stated_covariance(task, expected):
    x = task.sample(10_000, seed=0).inputs[..., :3].reshape(-1, 3)
    # 3.3e5 rows: standard errors are below 2 * sqrt(2 / 3.3e5) = 0.005
    np.testing.assert_allclose(np.cov(x.numpy().T), expected, atol=0.02)


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others():
    first, again, other = (SMALL.sample(4, seed=seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert first.seed == (1, 2)


def test_context_length_is_drawn_per_batch_over_the_whole_range():
    task = SparseRegression(d=5, sparsity=2, n_context=7, n_context_min=5)
    assert {task.sample(1, seed=seed).targets.shape[1] for seed in range(40)} == {6, 7, 8}


def test_chosen_prompts_keep_their_latents():
    prompts = SMALL.sample(5, seed=0)
    assert torch.equal(prompts[3:].latents["w_star"], prompts.latents["w_star"][3:])
    assert prompts.to("meta").latents["support"].device.type == "meta"


@pytest.mark.parametrize("layout", ["query", "interleaved"])
def test_counterfactual_keeps_x_and_noise_and_changes_w_star(layout):
    task = SparseRegression(d=5, sparsity=2, n_context=7, layout=layout)
    prompts = task.sample(50, seed=0)
    other = task.counterfactual(prompts, seed=0)
    assert (other.latents["w_star"] != prompts.latents["w_star"]).any(dim=1).all()
    assert torch.equal(other.inputs[..., :-1], prompts.inputs[..., :-1])
    assert torch.equal(other.scored, prompts.scored)
    noise, other_noise = (each.targets - each.labels["clean_target"] for each in (prompts, other))
    torch.testing.assert_close(noise, other_noise, atol=1e-6, rtol=0)
    x = other.inputs[..., :-1] if layout == "query" else other.inputs[:, 0::2, :-1].repeat_interleave(2, 1)[:, :-1]
    clean = torch.einsum("bpd,bd->bp", x, other.latents["w_star"])
    torch.testing.assert_close(other.labels["clean_target"], clean)
    holds_y = other.inputs[..., -1] != 0
    assert holds_y.sum() == 50 * 7
    assert torch.equal(other.inputs[..., -1][holds_y], other.targets[holds_y])


def test_counterfactual_answers_every_query_anew():
    task = replace(SMALL, n_queries=3)
    prompts = task.sample(20, seed=0)
    other = task.counterfactual(prompts, seed=0)
    assert torch.equal(other.inputs[..., :-1], prompts.inputs[..., :-1])
    assert torch.equal(other.inputs[:, :7, -1], other.targets[:, :7])
    assert (other.inputs[:, 7:, -1] == 0).all()
    clean = torch.einsum("bpd,bd->bp", other.inputs[..., :-1], other.latents["w_star"])
    torch.testing.assert_close(other.labels["clean_target"], clean)
    assert (other.targets[:, 7:] != prompts.targets[:, 7:]).all()
    noise, other_noise = (each.targets - each.labels["clean_target"] for each in (prompts, other))
    torch.testing.assert_close(noise, other_noise, atol=1e-6, rtol=0)


def test_counterfactual_never_repeats_w_star_even_where_chance_would():
    task = SparseRegression(d=1, sparsity=1, weights="signs")
    prompts = task.sample(100, seed=0)
    other = task.counterfactual(prompts, seed=1)
    assert torch.equal(other.latents["w_star"], -prompts.latents["w_star"])


def test_counterfactual_refuses_prompts_of_unknown_w_star_or_of_another_task():
    table = SparseRegression(d=10, n_context=7).from_frame(load_diabetes(as_frame=True).frame, "target", 2, seed=0)
    with pytest.raises(InputError, match="w\\* is known"):
        SMALL.counterfactual(table, seed=0)
    with pytest.raises(InputError, match="d = 6"):
        SMALL.counterfactual(SparseRegression(d=6).sample(2, seed=0), seed=0)
    with pytest.raises(InputError, match="layout = 'interleaved'"):
        SMALL.counterfactual(SparseRegression(d=5, layout="interleaved").sample(2, seed=0), seed=0)


def test_inactive_features_are_zero_in_x_and_w_star():
    prompts = SparseRegression(d=5, sparsity=2, active_dims=3).sample(50, seed=0)
    assert (prompts.inputs[..., 3:5] == 0).all()
    assert (prompts.inputs[..., :3] != 0).all()
    assert not prompts.latents["support"][:, 3:].any()
    assert (prompts.latents["support"].sum(dim=1) == 2).all()


def test_the_curriculum_grows_to_the_full_task_and_stays_there():
    task = SparseRegression(
        d=10, sparsity=2, n_context=20, n_context_min=8, curriculum_steps=10, curriculum_dims=4, curriculum_context=6
    )
    stages = [task.at_step(step) for step in (0, 5, 9, 10, 1000)]
    assert [stage.dims for stage in stages] == [4, 7, 9, 10, 10]
    assert [stage.n_context for stage in stages] == [6, 13, 18, 20, 20]
    assert [stage.n_context_min for stage in stages] == [6, 8, 8, 8, 8]
    assert stages[0].sample(2, seed=0).inputs.shape == (2, 7, 11)
    assert SMALL.at_step(5) is SMALL
    with pytest.raises(InputError, match="step = -1"):
        task.at_step(-1)


@pytest.mark.parametrize(
    "task",
    [
        SMALL,
        SparseRegression(d=3, sparsity=1, covariance=CORRELATED, layout="interleaved"),
        SparseRegression(curriculum_steps=10, curriculum_dims=4),
        SparseRegression(n_queries=16),
    ],
)
def test_config_survives_json(task):
    assert SparseRegression.from_config(json.loads(json.dumps(task.config())), task.files()) == task


def test_from_config_refuses_what_it_does_not_know():
    with pytest.raises(InputError, match="no field 'sparseness'"):
        SparseRegression.from_config({"sparseness": 3}, {})
    with pytest.raises(InputError, match=r"no use for the file 'counts\.csv'"):
        SparseRegression.from_config({}, {"counts.csv": b""})


DIABETES = load_diabetes(as_frame=True).frame


def test_prompts_from_a_table_hold_its_standardised_rows_each_once():
    task = SparseRegression(d=10, n_context=40)
    prompts = task.from_frame(DIABETES, "target", 20, seed=0)
    assert prompts.inputs.shape == (20, 41, 11)
    assert "clean_target" not in prompts.labels
    table = ((DIABETES - DIABETES.mean()) / DIABETES.std(ddof=0)).to_numpy(np.float32)
    rows = torch.cat([prompts.inputs[..., :10], prompts.targets[..., None]], dim=-1)
    distance = torch.cdist(rows.flatten(0, 1), torch.from_numpy(table), compute_mode="donot_use_mm_for_euclid_dist")
    nearest, index = distance.min(dim=1)
    assert nearest.max() < 1e-5
    assert all(len(set(prompt)) == 41 for prompt in index.view(20, 41).tolist())
    assert len(set(index.tolist())) > 300


def test_from_frame_refuses_tables_it_cannot_use():
    task = SparseRegression(d=10, n_context=40)
    constant, missing, text = DIABETES.copy(), DIABETES.copy(), DIABETES.copy()
    constant["age"] = 1.0
    missing.loc[3, "bmi"] = np.nan
    text["sex"] = "f"
    for frame, target, message in [
        (DIABETES, "price", "target = 'price' is no column"),
        (DIABETES.drop(columns="age"), "target", "9 features"),
        (DIABETES.head(30), "target", "30 rows"),
        (constant, "target", "'age' is constant"),
        (missing, "target", "'bmi' holds NaN"),
        (text, "target", "'sex' is .*not numeric"),
        (DIABETES.rename(columns={"age": "sex"}), "target", "share a name"),
        (DIABETES.assign(age=DIABETES["age"] * 1e300), "target", "column 'age' holds values beyond 1e"),
    ]:
        with pytest.raises(InputError, match=message):
            task.from_frame(frame, target, 2, seed=0)


def test_from_frame_draws_the_same_prompts_for_the_same_seed():
    frame = pd.DataFrame({"a": np.arange(9.0), "y": np.arange(9.0) ** 2})
    task = SparseRegression(d=1, sparsity=1, n_context=3)
    first, again, other = (task.from_frame(frame, "y", 4, seed=seed).inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d": 0}, "d = 0 must be a whole number, at least 1"),
        ({"sparsity": 17}, "sparsity = 17 .*between 1 and 16"),
        ({"sparsity": 0}, "sparsity = 0"),
        ({"active_dims": 3}, "sparsity = 4 .*between 1 and 3"),
        ({"active_dims": 17}, "active_dims = 17"),
        ({"n_context": 0}, "n_context = 0"),
        ({"n_queries": 0}, "n_queries = 0 must be a whole number, at least 1"),
        ({"n_queries": 2, "layout": "interleaved"}, "n_queries = 2 needs layout = 'query'"),
        ({"n_context_min": 33}, "n_context_min = 33"),
        ({"noise": -0.1}, "noise = -0.1 .*at least 0"),
        ({"noise": float("nan")}, "noise = nan"),
        ({"noise": 1e300}, "noise = 1e.300 leaves single precision"),
        ({"weight_scale": 1e200}, "weight_scale = 1e.200 leaves single precision"),
        ({"weight_scale": 0.0}, "weight_scale = 0.0 .*above 0"),
        ({"covariance": "power"}, "covariance_exponent = None"),
        ({"covariance_exponent": 1.0}, "only there"),
        ({"covariance": "power", "covariance_exponent": -1.0}, "covariance_exponent = -1.0"),
        ({"covariance": ((1.0, 0.0), (0.0, 1.0))}, "16 × 16"),
        ({"d": 2, "sparsity": 1, "covariance": ((1.0, 2.0), (2.0, 1.0))}, "positive definite"),
        ({"d": 2, "sparsity": 1, "covariance": ((1.0, 0.0), (0.5, 1.0))}, "symmetric"),
        ({"curriculum_steps": 5}, "at least one start value"),
        ({"curriculum_dims": 5}, "needs its steps"),
        ({"curriculum_steps": 0, "curriculum_dims": 5}, "curriculum_steps = 0"),
        ({"curriculum_steps": 5, "curriculum_dims": 3}, "curriculum_dims = 3 .*between 4 and 16"),
        ({"curriculum_steps": 5, "curriculum_context": 33}, "curriculum_context = 33"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(InputError, match=message) as refusal:
        SparseRegression(**fields)
    assert "\n" not in str(refusal.value)


def test_sample_refuses_no_prompts_and_no_seed():
    with pytest.raises(InputError, match="n = 0"):
        SMALL.sample(0, seed=0)
    with pytest.raises(InputError, match="seed = -1"):
        SMALL.sample(1, seed=-1)
    with pytest.raises(InputError, match=r"seed = \(\)"):
        SMALL.sample(1, seed=())


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d": "16"}, "d = '16'"),
        ({"d": True}, "d = True"),
        ({"d": 16.0}, "d = 16.0"),
        ({"noise": "loud"}, "noise = 'loud'"),
        ({"weights": "laplace"}, "weights = 'laplace' is unknown: choose 'gaussian' or 'signs'"),
        ({"layout": "rows"}, "layout = 'rows'"),
        ({"covariance": "full"}, "covariance = 'full'"),
        ({"covariance": np.eye(16)}, "tuple of row tuples"),
        ({"covariance": 3}, "tuple of row tuples"),
        ({"covariance": [[1.0]]}, "tuple of row tuples"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        SparseRegression(**fields)


@pytest.mark.refusal
def test_from_config_refuses_a_malformed_covariance():
    with pytest.raises(InputError, match="tuple of row tuples"):
        SparseRegression.from_config({"covariance": [1.0, 2.0]}, {})
    with pytest.raises(InputError, match=r"seed = 1\.5"):
        SMALL.sample(1, seed=1.5)
