import numpy as np
import pandas as pd
import pytest
import torch

from analyses.coordinate_map import map_coordinates
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import preprocess_then_optimize_transformer
from tasks import SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

D = 5
TASK = SparseRegression(d=D, sparsity=2, n_context=30, noise=0.3, weights="signs")
PROMPTS, FIT = TASK.sample(250, seed=1), TASK.sample(250, seed=2)


def construction() -> HookedTransformer:
    return preprocess_then_optimize_transformer(d=D, n_ctx=31, steps=2, step_size=0.25)


def untrained(seed=0, **options) -> HookedTransformer:
    fields = {"n_layers": 1, "n_heads": 3, "d_model": 6, "d_head": 4, "n_ctx": 31, "d_in": D + 1, "d_out": 1}
    fields |= {"attn_only": True, "attn_fn": "linear", "attention_dir": "query_masked", "seed": seed}
    model = HookedTransformer(HookedTransformerConfig(**(fields | {"positional_embedding_type": "none"} | options)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    return model


@pytest.fixture(scope="module")
def found():
    return map_coordinates(construction(), PROMPTS, fit=FIT)


@pytest.mark.parametrize("column", ["r2", "share"])
def test_each_head_of_the_construction_writes_its_own_coordinate_and_no_other(found, column):
    matrix = found.map(column).numpy()
    np.testing.assert_allclose(matrix.diagonal(), 1.0, atol=1e-6)
    assert np.abs(matrix[~np.eye(D, dtype=bool)]).max() < 0.03
    assert found.heads["coordinate"].tolist() == list(range(D))
    assert found.heads["component"].tolist() == [f"L0H{j}" for j in range(D)]


def test_each_head_of_the_construction_is_needed_where_its_coordinate_is_in_the_support(found):
    contrast = found.map("contrast").numpy()
    assert (found.heads["contrast_ci_low"] > 0).all()
    assert (found.heads["p_value"] == 1 / 2001).all()  # the smallest that 2000 permutations can give
    others = contrast[~np.eye(D, dtype=bool)]
    assert others.max() < 0.3 * contrast.diagonal().min()
    assert (found.heads["delta_out"].abs() < 0.1 * found.heads["delta_in"]).all()
    assert found.notes == ()


def test_permuting_heads_permutes_the_map():
    order, model = [3, 0, 4, 1, 2], construction()
    attn = model.blocks[0].attn
    with torch.no_grad():
        for weight in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O):
            weight.copy_(weight[order].clone())
    found = map_coordinates(model, PROMPTS, fit=FIT, n_permutations=19)
    assert found.heads["coordinate"].tolist() == order
    assert found.map().argmax(dim=1).tolist() == order


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_model_has_no_such_map(seed):
    found = map_coordinates(untrained(seed), PROMPTS, fit=FIT, n_permutations=99)
    assert found.map("r2").max() < 0.6
    assert found.map("share").max() < 0.4
    assert found.map("share").min() > -0.1


def test_a_later_layer_has_one_head_at_work():
    found = map_coordinates(construction(), PROMPTS, fit=FIT, layer=1, n_permutations=19)
    idle = found.frame[found.frame["head"] > 0]
    assert (idle["r2"] == 0.0).all()
    assert idle["share"].isna().all()
    assert (idle[["delta_in", "delta_out", "contrast", "contrast_ci_low", "contrast_ci_high"]] == 0.0).all(axis=None)
    assert (idle["p_value"] == 1.0).all()
    assert found.heads["head"].tolist() == [0]
    assert found.notes == ("H1, H2, H3, H4 of L1 write nothing, or always the same",)


def test_effects_are_a_loop_over_prompts_split_by_the_support():
    model = untrained(n_layers=2)
    prompts = PROMPTS[:40]
    found = map_coordinates(model, prompts, fit=FIT, n_permutations=19)
    clean_target = prompts.labels["clean_target"][:, -1].double()
    for head in range(3):

        def silence(z, hook, head=head):
            z = z.clone()
            z[:, :, head] = 0
            return z

        with torch.no_grad():
            before = (model(prompts.inputs)[:, -1, 0].double() - clean_target).square()
            without = model.run_with_hooks(prompts.inputs, fwd_hooks=[("blocks.0.attn.hook_z", silence)])
        effect = ((without[:, -1, 0].double() - clean_target).square() - before).tolist()
        for j in range(D):
            inside = [effect[b] for b in range(40) if prompts.latents["w_star"][b, j] != 0]
            outside = [effect[b] for b in range(40) if prompts.latents["w_star"][b, j] == 0]
            row = found.frame[(found.frame["head"] == head) & (found.frame["coordinate"] == j)].iloc[0]
            assert (row["n_in"], row["n_out"]) == (len(inside), len(outside))
            assert row["delta_in"] == pytest.approx(np.mean(inside), rel=1e-4, abs=1e-5)
            assert row["delta_out"] == pytest.approx(np.mean(outside), rel=1e-4, abs=1e-5)
            assert row["contrast"] == pytest.approx(np.mean(inside) - np.mean(outside), rel=1e-4, abs=1e-5)


def test_a_coordinate_in_every_support_cannot_split_effects():
    task = SparseRegression(d=3, sparsity=3, n_context=10)
    model = preprocess_then_optimize_transformer(d=3, n_ctx=11, steps=1, step_size=0.1)
    found = map_coordinates(model, task.sample(50, seed=1), fit=task.sample(50, seed=2), n_permutations=9)
    assert found.frame[["delta_out", "contrast", "contrast_ci_low", "p_value"]].isna().all(axis=None)
    assert found.frame["delta_in"].notna().all()
    assert found.heads["coordinate"].tolist() == [0, 1, 2]
    assert "coordinate 0, 1, 2: in every prompt's support, or in none" in found.notes[0]
    assert len(found.plot().data) == 3


def test_a_coordinate_that_is_always_zero_has_nothing_to_read():
    task = SparseRegression(d=4, sparsity=1, n_context=20, active_dims=3)
    model = preprocess_then_optimize_transformer(d=4, n_ctx=21, steps=1, step_size=0.1)
    found = map_coordinates(model, task.sample(60, seed=1), fit=task.sample(60, seed=2), n_permutations=9)
    assert found.map("r2").isnan().tolist() == [[False] * 3 + [True]] * 4
    assert found.heads["head"].tolist() == [0, 1, 2]
    assert "H3 of L0 write nothing" in found.notes[0]
    assert "coordinate 3: always 0 in these prompts" in found.notes[1]


def test_the_batch_size_does_not_matter():
    one, other = (map_coordinates(untrained(), PROMPTS, fit=FIT, n_permutations=19, batch_size=n) for n in (37, 512))
    numbers = one.frame.columns.drop(["component"])
    np.testing.assert_allclose(one.frame[numbers].astype(float), other.frame[numbers].astype(float), atol=1e-3)


def test_the_tables_are_saved_and_the_settings_say_how_to_measure_again(found, tmp_path):
    found.save(tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.csv")) == ["coordinate_map", "coordinate_map_heads"]
    assert len(pd.read_csv(tmp_path / "coordinate_map_heads.csv")) == D
    expected = {"layer": 0, "fit_seed": 2, "prompts_seed": 1, "metric": "excess_risk", "n_permutations": 2000}
    assert expected.items() <= found.settings.items()
    assert [trace.z.shape for trace in found.plot().data] == [(D, D)] * 3
    with pytest.raises(InputError, match="coordinate_map has no column 'r3'"):
        found.map("r3")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prompts": PROMPTS[:0]}, "prompts holds 0 prompts"),
        ({"layer": 3}, "layer 3 does not exist: the model has layers 0 to 2"),
        ({"fit": PROMPTS}, "fit are the prompts that are judged on"),
        ({"fit": TASK.sample(9, seed=1)}, "fit and prompts were drawn with the same seed, 1"),
        ({"fit": SparseRegression(d=4).sample(9, seed=5)}, "fit has 4 coordinates, prompts 5"),
        ({"n_permutations": 0}, "n_permutations = 0 must be a whole number, at least 1"),
        (
            {
                "prompts": SparseRegression(d=D, layout="interleaved").sample(9, seed=5),
                "fit": SparseRegression(d=D, layout="interleaved").sample(9, seed=6),
            },
            "the prompts' layout is 'interleaved'",
        ),
        ({"prompts": Prompts.from_tensors(PROMPTS.inputs, PROMPTS.targets)}, "have no label 'role'"),
        (
            {"prompts": Prompts(PROMPTS.inputs, PROMPTS.targets, PROMPTS.scored, PROMPTS.labels)},
            "the prompts have no latent 'support'",
        ),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_mapped_are_refused(how, message):
    with pytest.raises(InputError, match=message) as refusal:
        map_coordinates(construction(), **({"prompts": PROMPTS, "fit": FIT, "n_permutations": 9} | how))
    assert "\n" not in str(refusal.value)
