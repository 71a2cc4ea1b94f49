import pytest
import torch

from analyses import measure_layer_distances, probe_layers
from analyses.layer_algorithms import unembedded
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import GradientDescent, PreprocessThenOptimize, SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

TASK = SparseRegression(d=4, sparsity=2, n_context=8)
STEP = 0.1


@pytest.fixture(scope="module")
def prompts():
    return TASK.sample(40, seed=0)


def test_every_layer_of_hand_built_descent_is_at_distance_zero_from_its_own_step(prompts):
    model = gradient_descent_transformer(4, 9, 4, STEP)
    steps = {f"t = {t}": GradientDescent(t, STEP) for t in range(6)}
    closest = measure_layer_distances(model, prompts, steps).closest()
    assert closest["steps"].tolist() == [0, 1, 2, 3, 4]
    assert closest["layer"].tolist() == [0, 0, 1, 2, 3]
    assert (closest["distance"] < 1e-10).all()
    assert (closest["behind"] == 0).all()


def test_preprocessing_takes_a_layer_and_then_each_layer_a_step(prompts):
    model = preprocess_then_optimize_transformer(4, 9, 3, STEP)
    algorithms = {f"gd {t}": GradientDescent(t, STEP) for t in range(1, 5)}
    algorithms |= {f"preprocess, gd {t}": PreprocessThenOptimize(t, STEP) for t in range(5)}
    closest = measure_layer_distances(model, prompts, algorithms).closest()
    assert closest["algorithm"].tolist() == ["preprocess, gd 0"] * 2 + [f"preprocess, gd {t}" for t in (1, 2, 3)]


def test_the_unembedding_reads_through_the_final_layer_norm_and_the_last_layer_is_the_model(prompts):
    model = HookedTransformer(
        HookedTransformerConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=9, d_in=5, d_out=1, normalization_type="LN")
    )
    _, cache = model.run_with_cache(prompts.inputs)
    after = cache["blocks.0.hook_resid_post"]
    expected = model.unembed(model.ln_final(after))
    assert torch.equal(unembedded(model, prompts.inputs, after, cache["blocks.1.hook_resid_pre"]), expected)
    algorithms = {"first": lambda _: expected.detach()[..., 0], "all": lambda part: model(part.inputs).detach()}
    frame = measure_layer_distances(model, prompts, algorithms).frame
    by_site = frame[frame["closest"]].set_index("component")["algorithm"]
    assert by_site["L0.resid_post"] == "first"
    assert by_site["L1.resid_post"] == "all"
    assert frame.query("component == 'L1.resid_post' and algorithm == 'all'")["distance"].item() == 0


def test_the_probes_prediction_is_that_of_probe_layers(prompts):
    """With the truth as an algorithm, the distance of the probe's prediction is the probe's squared error."""
    model = gradient_descent_transformer(4, 9, 2, STEP)
    fit = TASK.sample(80, seed=5)
    truth = {"truth": lambda part: part.labels["clean_target"]}
    frame = measure_layer_distances(model, prompts, truth, fit_prompts=fit).frame
    probed = probe_layers(model, fit, "answer", test_prompts=prompts, untrained_seed=None).frame
    expected = probed.query("probe == 'model' and metric == 'squared_error'").set_index("component")["value"]
    ours = frame[frame["reading"] == "probe"].set_index("component")["distance"]
    assert ours.to_dict() == pytest.approx(expected.to_dict(), abs=1e-9)
    assert frame["reading"].unique().tolist() == ["unembedding", "probe"]


def test_tokens_have_an_unembedding_but_no_probe_for_the_answer():
    model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=5, d_vocab=4, attn_only=True))
    prompts = Prompts.from_tensors(torch.randint(4, (10, 5), generator=torch.Generator().manual_seed(0)))
    own = {"itself": lambda part: model(part.inputs).detach()}
    frame = measure_layer_distances(model, prompts, own).frame
    assert frame["component"].tolist() == ["L0.resid_pre", "L0.resid_post", "L1.resid_post"]
    assert frame["distance"].iloc[-1] == 0
    assert frame["distance"].iloc[0] > 0
    other = Prompts.from_tensors(torch.randint(4, (10, 5), generator=torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match="fit_prompts have tokens for targets"):
        measure_layer_distances(model, prompts, own, fit_prompts=other)


def test_probes_fitted_on_the_prompts_themselves_are_refused(prompts):
    model = gradient_descent_transformer(4, 9, 1, STEP)
    steps = {"1": GradientDescent(1, STEP)}
    with pytest.raises(InputError, match="fit_prompts"):
        measure_layer_distances(model, prompts, steps, fit_prompts=prompts)
    with pytest.raises(InputError, match="ridge = -1"):
        measure_layer_distances(model, prompts, steps, fit_prompts=TASK.sample(9, seed=4), ridge=-1.0)


def test_the_map_has_a_row_for_every_reading_of_every_site(prompts):
    model = gradient_descent_transformer(4, 9, 1, STEP)
    steps = {str(t): GradientDescent(t, STEP) for t in range(3)}
    result = measure_layer_distances(model, prompts, steps, fit_prompts=TASK.sample(30, seed=5))
    rows = list(result.plot().data[0].y)
    assert rows == ["unembedding · embed", "unembedding · L0", "probe · embed", "probe · L0"]
    assert result.name == "layer_distances"
