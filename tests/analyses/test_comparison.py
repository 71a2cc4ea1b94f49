import pytest
import torch

from analyses import compare_predictors
from interp import HookedTransformer, HookedTransformerConfig
from tasks.errors import InputError
from tasks.prompts import Prompts


@pytest.fixture
def model():
    config = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=5, d_vocab=4, init_mode="torch_linear")
    return HookedTransformer(config)


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (10, 5), generator=generator)
    scored = torch.rand((10, 5), generator=generator) < 0.7
    return Prompts.from_tensors(tokens, scored=scored, labels={"first": (torch.arange(5) == 0).expand(10, -1)})


def copy_current(prompts):
    """Expects the current token to come again."""
    return torch.nn.functional.one_hot(prompts.inputs, 4) * 2.0


def value_of(frame, source, metric):
    return frame[(frame["source"] == source) & (frame["metric"] == metric)]["value"].item()


def test_the_model_is_at_distance_zero_from_itself_and_at_its_own_loss(model, prompts):
    result = compare_predictors(model, prompts, {"itself": lambda prompts: model(prompts.inputs)})
    sums, counts = prompts.loss(model(prompts.inputs).detach())
    for source in ("model", "itself"):
        row = result.frame[(result.frame["source"] == source) & (result.frame["metric"] == "distance")].iloc[0]
        assert (row["value"], row["ci_low"], row["ci_high"]) == (0.0, 0.0, 0.0)
        assert value_of(result.frame, source, "loss") == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-6)


def test_values_are_those_of_a_loop_over_positions(model, prompts):
    frame = compare_predictors(model, prompts, {"copy": copy_current}, metric=["loss", "accuracy"], batch_size=3).frame
    assert frame["source"].tolist() == ["model"] * 3 + ["copy"] * 3
    assert frame["metric"].tolist() == ["loss", "accuracy", "distance"] * 2
    with torch.no_grad():
        p_model = model(prompts.inputs).softmax(-1)
    p_copy = copy_current(prompts).softmax(-1)
    loss = hits = distance = 0.0
    for b, t in prompts.scored.nonzero().tolist():
        target = prompts.targets[b, t]
        loss -= float(p_copy[b, t, target].log())
        hits += int(target == prompts.inputs[b, t])
        distance += sum(max(0.0, float(p_copy[b, t, v] - p_model[b, t, v])) for v in range(4))  # total variation
    n = int(prompts.scored.sum())
    for metric, total in (("loss", loss), ("accuracy", hits), ("distance", distance)):
        assert value_of(frame, "copy", metric) == pytest.approx(total / n, abs=1e-5), metric


def test_total_variation_reaches_one():
    """A model sure of token 0 against a predictor sure of token 1."""
    model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=2, attn_only=True))
    with torch.no_grad():
        model.unembed.b_U.copy_(torch.tensor([80.0, 0.0]))
    prompts = Prompts.from_tensors(torch.zeros(3, 3, dtype=torch.long))
    frame = compare_predictors(model, prompts, {"other": lambda _: torch.tensor([0.0, 80.0]).expand(3, 3, 2)}).frame
    assert value_of(frame, "other", "distance") == pytest.approx(1.0)


def test_a_split_measures_each_part_alone(model, prompts):
    frame = compare_predictors(model, prompts, {"copy": copy_current}, by="first").frame
    for value in (False, True):
        sums, counts = prompts.score_only(prompts.labels["first"] == value).loss(copy_current(prompts))
        rows = frame[(frame["source"] == "copy") & (frame["metric"] == "loss") & (frame["first"] == value)]
        assert rows["value"].item() == pytest.approx(float(sums.sum() / counts.sum()), abs=1e-6)
        assert rows["n_prompts"].item() == int((counts > 0).sum())


def test_real_valued_predictions_are_compared_by_squared_difference():
    class Halves(torch.nn.Module):
        """Predicts half the first entry of every input."""

        cfg = HookedTransformerConfig(n_layers=1, d_model=1, n_ctx=1, d_vocab=1)
        hook_dict = {}  # noqa: RUF012 — what the interface asks for

        def hooks(self, fwd_hooks=(), bwd_hooks=()):
            raise NotImplementedError

        def forward(self, inputs):
            return inputs[..., :1] / 2

    inputs = torch.arange(12.0).reshape(2, 3, 2)
    prompts = Prompts.from_tensors(inputs, targets=inputs[..., 0])
    frame = compare_predictors(Halves(), prompts, {"zero": lambda _: torch.zeros(2, 3)}).frame
    squares = [0, 4, 16, 36, 64, 100]
    assert value_of(frame, "zero", "loss") == pytest.approx(sum(squares) / 6)
    assert value_of(frame, "zero", "distance") == pytest.approx(sum(squares) / 4 / 6)
    assert value_of(frame, "model", "loss") == pytest.approx(sum(squares) / 4 / 6)


def test_outputs_of_another_shape_are_refused(model, prompts):
    with pytest.raises(InputError, match=r"predictor 'short' returned \[10, 4, 4\], the model \[10, 5, 4\]"):
        compare_predictors(model, prompts, {"short": lambda prompts: torch.zeros(len(prompts), 4, 4)})


def test_a_predictor_that_is_not_finite_is_refused(model, prompts):
    with pytest.raises(InputError, match="not finite"):
        compare_predictors(model, prompts, {"sure": lambda prompts: torch.full((len(prompts), 5, 4), -torch.inf)})


def test_a_predictor_called_model_and_no_prompts_are_refused(model, prompts):
    with pytest.raises(InputError, match="a predictor is called 'model'"):
        compare_predictors(model, prompts, {"model": copy_current})
    with pytest.raises(InputError, match="none of the 0 prompts has a scored position"):
        compare_predictors(model, prompts[:0], {})
    with pytest.raises(InputError, match="batch_size = 0"):
        compare_predictors(model, prompts, {}, batch_size=0)
