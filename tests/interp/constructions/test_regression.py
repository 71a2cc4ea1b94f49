"""The hand-built regression transformers: equal to their predictors, and every head does what it is said to do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from analyses import ablate_heads
from interp.constructions.regression import gradient_descent_transformer, preprocess_then_optimize_transformer
from tasks import GradientDescent, PreprocessThenOptimize, Prompts, SparseRegression
from tasks.errors import InputError

KINDS = {
    "preprocess then optimise": (preprocess_then_optimize_transformer, PreprocessThenOptimize),
    "gradient descent": (gradient_descent_transformer, GradientDescent),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
PROMPTS = {  # by d; signs, whose preprocessed problems differ least
    4: SparseRegression(d=4, sparsity=2, n_context=16, weights="signs").sample(16, seed=0),
    16: SparseRegression(d=16, sparsity=4, n_context=48, weights="signs").sample(8, seed=0),
    64: SparseRegression(d=64, sparsity=4, n_context=128, weights="signs").sample(3, seed=0),
}


def in_double(prompts: Prompts) -> Prompts:
    return replace(prompts, inputs=prompts.inputs.double())


def context(prompts: Prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y of the context and the query, in numpy, read from the documented layout."""
    inputs = prompts.inputs.double().numpy()
    return inputs[:, :-1, :-1], inputs[:, :-1, -1], inputs[:, -1, :-1]


def stable_step_size(kind: str, prompts: Prompts) -> float:
    """Half of the largest step that converges on every one of the prompts: 1 / max λ_max."""
    largest = 0.0
    for x, y, _ in zip(*context(prompts), strict=True):
        features = x * (x.T @ y / len(y)) if kind == "preprocess then optimise" else x
        largest = max(largest, float(np.linalg.norm(features, ord=2)) ** 2 / len(y))
    return 1 / largest


def relative_error(kind: str, d: int, steps: int, dtype: torch.dtype) -> float:
    """The model's largest deviation from its predictor at any position, over the largest prediction."""
    build, family = KINDS[kind]
    prompts = PROMPTS[d]
    step_size = stable_step_size(kind, prompts)
    model = build(d=d, n_ctx=prompts.inputs.shape[1], steps=steps, step_size=step_size, dtype=dtype)
    expected = family(steps=steps, step_size=step_size)(prompts)
    with torch.no_grad():
        found = model(prompts.inputs.to(dtype)).squeeze(-1).double()
    assert expected.abs().max() > 1e-3
    return float((found - expected).abs().max() / expected.abs().max())


@each_kind
@pytest.mark.parametrize(("d", "steps"), [(4, 1), (4, 2), (4, 20), (16, 1), (16, 20), (64, 2)])
def test_the_model_equals_its_predictor_at_every_position(kind, d, steps):
    assert relative_error(kind, d, steps, torch.float64) <= 1e-12
    assert relative_error(kind, d, steps, torch.float32) <= 1e-4


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("d", [4, 16, 64])
def test_the_model_equals_its_predictor_for_1_to_20_steps(kind, d):
    every = [1, 2, 5, 10, 20] if d == 64 else range(1, 21)
    assert max(relative_error(kind, d, steps, torch.float64) for steps in every) <= 1e-12
    assert max(relative_error(kind, d, steps, torch.float32) for steps in every) <= 1e-4


@each_kind
def test_several_queries_are_each_answered_as_if_alone(kind):
    build, family = KINDS[kind]
    prompts = SparseRegression(d=5, sparsity=2, n_context=12, n_queries=3).sample(6, seed=1)
    model = build(d=5, n_ctx=15, steps=4, step_size=0.05, n_queries=3, dtype=torch.float64)
    found = model(prompts.inputs.double()).squeeze(-1)
    torch.testing.assert_close(found, family(4, 0.05)(prompts), atol=1e-12, rtol=0)


@each_kind
def test_prompts_shorter_than_n_ctx_are_answered_from_what_they_hold(kind):
    build, family = KINDS[kind]
    prompts = SparseRegression(d=5, sparsity=2, n_context=7).sample(6, seed=1)
    model = build(d=5, n_ctx=40, steps=4, step_size=0.05, dtype=torch.float64)
    found = model(prompts.inputs.double()).squeeze(-1)
    torch.testing.assert_close(found, family(4, 0.05)(prompts), atol=1e-12, rtol=0)


def test_the_first_layer_writes_the_preprocessed_features():
    prompts = in_double(PROMPTS[4])
    model = preprocess_then_optimize_transformer(d=4, n_ctx=17, steps=1, step_size=0.1, dtype=torch.float64)
    resid = model(prompts.inputs, stop_at_layer=1)
    x, y, _ = context(prompts)
    r = np.einsum("bnd,bn->bd", x, y) / 16
    expected = prompts.inputs[..., :4].numpy() * r[:, None]
    np.testing.assert_allclose(resid[..., 4:8].detach().numpy(), expected, atol=1e-14)


# What each head does, against a computation that knows no model.


def risk_by_hand(prompts: Prompts, step_size: float, *, steps: int, preprocess: bool, without: int | None = None):
    """Excess risk of the algorithm as the textbook writes it; ``without`` leaves a feature out of preprocessing."""
    total = 0.0
    clean = prompts.labels["clean_target"][:, -1].double().numpy()
    for x, y, query, answer in zip(*context(prompts), clean, strict=True):
        r = np.array([np.mean(x[:, j] * y) for j in range(x.shape[1])]) if preprocess else np.ones(x.shape[1])
        if without is not None:
            r[without] = 0
        w = np.zeros(x.shape[1])
        for _ in range(steps):
            w = w + step_size / len(y) * sum((y[i] - w @ (r * x[i])) * (r * x[i]) for i in range(len(y)))
        total += (w @ (r * query) - answer) ** 2
    return total / len(clean)


@pytest.mark.parametrize(("d", "steps"), [(4, 3), (16, 2)])
def test_zeroing_a_head_of_the_first_layer_is_preprocessing_without_its_feature(d, steps):
    prompts = in_double(PROMPTS[d])
    step_size = stable_step_size("preprocess then optimise", prompts)
    model = preprocess_then_optimize_transformer(
        d=d, n_ctx=prompts.inputs.shape[1], steps=steps, step_size=step_size, dtype=torch.float64
    )
    frame = ablate_heads(model, prompts, method="zero", metric="excess_risk").frame
    whole = risk_by_hand(prompts, step_size, steps=steps, preprocess=True)
    assert frame["baseline"].tolist() == pytest.approx([whole] * len(frame), rel=1e-12)
    changes = [risk_by_hand(prompts, step_size, steps=steps, preprocess=True, without=j) - whole for j in range(d)]
    delta = frame["delta"].to_numpy().reshape(steps + 1, d)
    assert delta[0].tolist() == pytest.approx(changes, rel=1e-9, abs=1e-14)
    assert min(abs(change) for change in changes) > 1e-6
    one_step_fewer = risk_by_hand(prompts, step_size, steps=steps - 1, preprocess=True) - whole
    assert abs(one_step_fewer) > 1e-3
    assert delta[1:, 0].tolist() == pytest.approx([one_step_fewer] * steps, rel=1e-9)
    idle = frame[(frame["layer"] > 0) & (frame["head"] > 0)]
    assert len(idle) == steps * (d - 1)
    assert not idle[["delta", "ci_low", "ci_high"]].to_numpy().any()


def test_zeroing_a_head_of_plain_gradient_descent_is_one_step_fewer():
    prompts = in_double(PROMPTS[16])
    step_size = stable_step_size("gradient descent", prompts)
    model = gradient_descent_transformer(d=16, n_ctx=49, steps=3, step_size=step_size, dtype=torch.float64)
    frame = ablate_heads(model, prompts, method="zero", metric="excess_risk").frame
    whole, fewer = (risk_by_hand(prompts, step_size, steps=steps, preprocess=False) for steps in (3, 2))
    assert frame["delta"].tolist() == pytest.approx([fewer - whole] * 3, rel=1e-9)


# Preprocessing takes d heads. Coefficients [j, k, p, q]: of x_k c_p c_q in coordinate j, for a context column c.


def preprocessing_coefficients(d: int) -> torch.Tensor:
    wanted = torch.zeros(d, d, d + 1, d + 1, dtype=torch.float64)
    for j in range(d):
        wanted[j, j, j, d] = wanted[j, j, d, j] = 0.5  # x_j · (c_j y), whichever of c's factors comes first
    return wanted


def symmetric(coefficients: torch.Tensor) -> torch.Tensor:
    return (coefficients + coefficients.mT) / 2


def test_the_first_layer_has_the_coefficients_of_preprocessing_with_d_heads():
    d = 5
    model = preprocess_then_optimize_transformer(d=d, n_ctx=3, steps=1, step_size=0.1, dtype=torch.float64)
    read, attn = model.W_E, model.blocks[0].attn
    asked, matched = read[:d] @ attn.W_Q / math.sqrt(d), read @ attn.W_K
    copied = read @ attn.W_V @ attn.W_O[..., d : 2 * d]
    found = torch.einsum("hkq,hpj->jkpq", asked @ matched.mT, copied)
    torch.testing.assert_close(symmetric(found), preprocessing_coefficients(d), atol=1e-15, rtol=0)


@pytest.mark.parametrize("d", [2, 3])
def test_fewer_than_d_heads_cannot_preprocess(d):
    """The best of many searches stays half a squared coefficient away per missing head; with d heads it gets there."""
    generator = torch.Generator().manual_seed(0)
    wanted = preprocessing_coefficients(d)

    def nearest(n_heads: int) -> float:
        found = []
        for _ in range(6):
            start = torch.randn(2, n_heads, d, d + 1, generator=generator, dtype=torch.float64)
            heads = start.requires_grad_()
            optimizer = torch.optim.LBFGS([heads], max_iter=200, line_search_fn="strong_wolfe")

            def distance(heads=heads, optimizer=optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                total = (symmetric(torch.einsum("hkq,hjp->jkpq", *heads)) - wanted).square().sum()
                total.backward()
                return total.detach()

            optimizer.step(distance)
            found.append(distance().item())
        return min(found)

    assert nearest(d) < 1e-6
    for n_heads in range(1, d):
        assert nearest(n_heads) > (d - n_heads) / 2 - 1e-6


# Refusals.


@each_kind
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"d": 0}, "d = 0 must be a whole number, at least 1"),
        ({"steps": 0}, "steps = 0 must be a whole number, at least 1"),
        ({"step_size": 0.0}, "step_size = 0.0 must be a finite number, above 0"),
        ({"step_size": math.inf}, "step_size = inf must be"),
        ({"n_ctx": 3, "n_queries": 3}, "n_queries = 3 leaves none of n_ctx = 3 positions to read"),
        ({"n_queries": 0}, "n_queries = 0 must be at least 1"),
        ({"dtype": torch.int64}, r"dtype = torch\.int64 holds no real numbers"),
    ],
)
def test_a_model_that_cannot_be_is_refused(kind, changed, message):
    build, _ = KINDS[kind]
    settings = {"d": 2, "n_ctx": 4, "steps": 1, "step_size": 0.1}
    assert build(**settings).cfg.n_ctx == 4
    with pytest.raises(InputError, match=message) as refusal:
        build(**(settings | changed))
    assert "\n" not in str(refusal.value)
