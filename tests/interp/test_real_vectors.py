"""Models that read real vectors: every kind of attention against its formula, masks, layouts, refusals, training."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import HookedTransformer, HookedTransformerConfig, TrainConfig, train
from interp.checkpoints import read_tensors, state_path, weights_path
from interp.evaluation import evaluate
from tasks import SparseRegression
from tasks.errors import InputError
from tasks.regression_layout import regression_prompts

SIZES = {"n_layers": 2, "d_model": 6, "n_ctx": 7, "n_heads": 2, "d_head": 3, "d_in": 4, "d_out": 2, "attn_only": True}
FUNCTIONS = ("softmax", "relu", "linear")
DIRECTIONS = {
    "causal": {"attention_dir": "causal"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "query masked": {"attention_dir": "query_masked"},
    "queries masked": {"attention_dir": "query_masked", "n_queries": 3},
}
each_function = pytest.mark.parametrize("attn_fn", FUNCTIONS)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def random_model(seed=3, scale=0.5, **options) -> HookedTransformer:
    """A model in double precision whose every parameter is random."""
    model = HookedTransformer(HookedTransformerConfig(**(SIZES | options))).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * scale)
    return model


@pytest.fixture
def vectors():
    return torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# The forward pass written from its formulas, one head and one pair of positions at a time.


def read_by(cfg, dest, n_pos):
    """The positions that position ``dest`` reads."""
    ends = {"causal": dest + 1, "bidirectional": n_pos, "query_masked": n_pos - cfg.n_queries}
    return range(ends[cfg.attention_dir])


def pattern_by_hand(attn_fn, scores):
    if attn_fn == "softmax":
        total = sum(math.exp(score) for score in scores)
        return [math.exp(score) / total for score in scores]
    return [(max(score, 0.0) if attn_fn == "relu" else score) / len(scores) for score in scores]


def outputs_by_hand(model, prompt):
    cfg = model.cfg
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}

    def bias(name, head=None):
        found = weights.get(name, 0.0)
        return found if head is None or np.isscalar(found) else found[head]

    rows = [x @ weights["embed.W_E"] + bias("embed.b_E") for x in prompt.numpy()]
    if cfg.positional_embedding_type == "standard":
        rows = [row + weights["pos_embed.W_pos"][t] for t, row in enumerate(rows)]
    for layer in range(cfg.n_layers):
        attn = f"blocks.{layer}.attn"
        written = [np.zeros(cfg.d_model) + bias(f"{attn}.b_O") for _ in rows]
        for head, dest in itertools.product(range(cfg.n_heads), range(len(rows))):
            W_Q, W_K, W_V, W_O = (weights[f"{attn}.W_{letter}"][head] for letter in "QKVO")
            query = rows[dest] @ W_Q + bias(f"{attn}.b_Q", head)
            read = read_by(cfg, dest, len(rows))
            scores = [query @ (rows[src] @ W_K + bias(f"{attn}.b_K", head)) / math.sqrt(cfg.d_head) for src in read]
            for src, share in zip(read, pattern_by_hand(cfg.attn_fn, scores), strict=True):
                written[dest] = written[dest] + share * (rows[src] @ W_V + bias(f"{attn}.b_V", head)) @ W_O
        rows = [row + write for row, write in zip(rows, written, strict=True)]
    return np.array([row @ weights["unembed.W_U"] + bias("unembed.b_U") for row in rows])


@each_function
@each_direction
@pytest.mark.parametrize("bare", [False, True], ids=["biases and positions", "bare"])
def test_the_outputs_are_those_of_a_loop_over_heads_and_positions(attn_fn, direction, bare, vectors):
    options = {"use_biases": False, "positional_embedding_type": "none"} if bare else {}
    model = random_model(attn_fn=attn_fn, **DIRECTIONS[direction], **options)
    for prompt, ours in zip(vectors, model(vectors), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), outputs_by_hand(model, prompt), rtol=1e-11, atol=1e-11)


@each_function
@each_direction
def test_the_cached_pattern_is_that_of_the_formula_and_makes_z(attn_fn, direction, vectors):
    model = random_model(attn_fn=attn_fn, **DIRECTIONS[direction])
    _, cache = model.run_with_cache(vectors)
    for layer in range(2):
        pattern, q, k, v = (cache[name, layer] for name in ("pattern", "q", "k", "v"))
        torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v), cache["z", layer])
        for b, head, dest in itertools.product(range(3), range(2), range(7)):
            read = read_by(model.cfg, dest, 7)
            scores = [float(q[b, dest, head] @ k[b, src, head]) / math.sqrt(3) for src in read]
            expected = pattern_by_hand(attn_fn, scores) + [0.0] * (7 - len(read))
            assert pattern[b, head, dest].tolist() == pytest.approx(expected, abs=1e-12)


@each_function
@each_direction
def test_writing_the_pattern_out_changes_nothing(attn_fn, direction, vectors):
    model = random_model(attn_fn=attn_fn, **DIRECTIONS[direction])
    written_out, _ = model.run_with_cache(vectors, names_filter=lambda name: name.endswith("pattern"))
    torch.testing.assert_close(model(vectors), written_out, atol=1e-12, rtol=1e-12)
    initial = HookedTransformer(HookedTransformerConfig(**SIZES, attn_fn=attn_fn, **DIRECTIONS[direction]))
    written_out, _ = initial.run_with_cache(vectors.float(), names_filter=lambda name: name.endswith("pattern"))
    torch.testing.assert_close(initial(vectors.float()), written_out, atol=1e-6, rtol=0)


@each_function
def test_an_edited_pattern_reaches_the_output(attn_fn, vectors):
    model = random_model(attn_fn=attn_fn, attention_dir="query_masked", n_layers=1, use_biases=False)
    nowhere = [("blocks.0.attn.hook_pattern", lambda pattern, hook: 0 * pattern)]  # noqa: ARG005
    resid = model(vectors, stop_at_layer=0)
    torch.testing.assert_close(model.run_with_hooks(vectors, fwd_hooks=nowhere), resid @ model.W_U)


@each_function
@each_direction
def test_a_model_of_vectors_run_in_two_parts_is_the_whole(attn_fn, direction, vectors):
    model = random_model(attn_fn=attn_fn, **DIRECTIONS[direction])
    assert torch.equal(model(model(vectors, stop_at_layer=1), start_at_layer=1), model(vectors))


NARROW = {"d_model": 16, "n_heads": 8, "d_head": 2}
WIDE = {"d_model": 16, "n_heads": 1, "d_head": 16}


@each_function
@each_direction
def test_eight_narrow_heads_are_not_one_wide_head_with_the_same_weights(attn_fn, direction, vectors):
    narrow = random_model(attn_fn=attn_fn, scale=0.4, **DIRECTIONS[direction], **NARROW)
    wide = random_model(attn_fn=attn_fn, **DIRECTIONS[direction], **WIDE)
    joined = {
        "W_Q": lambda heads: heads.transpose(0, 1).reshape(1, 16, 16),
        "W_K": lambda heads: heads.transpose(0, 1).reshape(1, 16, 16),
        "W_V": lambda heads: heads.transpose(0, 1).reshape(1, 16, 16),
        "W_O": lambda heads: heads.reshape(1, 16, 16),
    } | dict.fromkeys(("b_Q", "b_K", "b_V"), lambda heads: heads.reshape(1, 16))
    state = narrow.state_dict()
    wide.load_state_dict(
        {name: joined.get(name.rpartition(".")[2], torch.clone)(weight) for name, weight in state.items()}
    )
    # Concatenated, values through the output matrix are the same: heads differ in what they attend to alone.
    torch.testing.assert_close(narrow.OV.AB.sum(1), wide.OV.AB.sum(1))
    assert (narrow(vectors) - wide(vectors)).abs().max() > 1e-2
    for model in (narrow, wide):
        found = model(vectors)[0].detach().numpy()
        np.testing.assert_allclose(found, outputs_by_hand(model, vectors[0]), rtol=1e-11, atol=1e-11)


# What a layout's prediction may depend on.

TASK = SparseRegression(d=5, sparsity=2, n_context=12)


def regression_model(task: SparseRegression, **options) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": task.n_ctx, "n_heads": 4, "d_in": task.d_in, "d_out": 1}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | {"normalization_type": "LN"} | options)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith((".w", ".b")):
                weight.mul_(3)  # initial weights hardly look at the context
    return model


@each_function
@pytest.mark.parametrize("direction", ["bidirectional", "query masked"])
def test_the_order_of_the_context_columns_does_not_matter(attn_fn, direction):
    model = regression_model(TASK, attn_fn=attn_fn, positional_embedding_type="none", **DIRECTIONS[direction])
    inputs = TASK.sample(16, seed=0).inputs
    order = [*torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist(), 12]
    predictions = model(inputs)[:, -1]
    torch.testing.assert_close(model(inputs[:, order])[:, -1], predictions, atol=1e-5, rtol=0)
    other_context = torch.cat([inputs.roll(1, 0)[:, :-1], inputs[:, -1:]], dim=1)
    assert ((model(other_context)[:, -1] - predictions).abs() > 1e-3).float().mean() > 0.9


@each_function
def test_one_query_changes_no_other_prediction_by_a_single_bit(attn_fn):
    task = replace(TASK, n_queries=4)
    inputs = task.sample(8, seed=0).inputs
    changed = inputs.clone()
    changed[:, 13, :5] += 1
    options = {"attn_fn": attn_fn, "positional_embedding_type": "none"}
    model = regression_model(task, attention_dir="query_masked", n_queries=4, **options)
    others = [pos for pos in range(16) if pos != 13]
    before, after = model(inputs), model(changed)
    assert torch.equal(after[:, others], before[:, others])
    assert (after[:, 13] != before[:, 13]).all()
    unmasked = regression_model(task, attention_dir="bidirectional", **options)
    assert not torch.equal(unmasked(changed)[:, others], unmasked(inputs)[:, others])


@each_function
def test_a_query_among_others_is_answered_as_if_alone(attn_fn):
    task = replace(TASK, n_queries=4)
    inputs = task.sample(8, seed=0).inputs
    options = {"attention_dir": "query_masked", "attn_fn": attn_fn, "positional_embedding_type": "none"}
    together = regression_model(task, n_queries=4, **options)
    alone = regression_model(TASK, **options)
    for query in range(12, 16):
        prompt = torch.cat([inputs[:, :12], inputs[:, query : query + 1]], dim=1)
        torch.testing.assert_close(together(inputs)[:, query], alone(prompt)[:, 12], atol=1e-5, rtol=1e-5)


@each_function
@pytest.mark.parametrize("i", [0, 4, 8])
def test_interleaved_predictions_depend_on_earlier_answers_only(attn_fn, i):
    task = SparseRegression(d=5, sparsity=2, n_context=9, layout="interleaved")
    model = regression_model(task, attn_fn=attn_fn, attention_dir="causal")
    inputs = task.sample(8, seed=0).inputs
    changed = inputs.clone()
    changed[:, 2 * i + 1, -1] += 1  # y_i
    before, after = model(inputs), model(changed)
    assert torch.equal(after[:, : 2 * i + 1], before[:, : 2 * i + 1])  # x_j and y_j, j < i, and x_i itself
    later = range(2 * i + 2, 19, 2)
    assert all((after[:, pos] != before[:, pos]).any() for pos in later)


# Refusals, each beside what is right.


def refusal(action) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_model_of_vectors_cannot_read_is_refused(vectors):
    model = random_model()
    assert model(vectors).shape == (3, 7, 2)
    assert "torch.float64 [3, 7, 3]: give real vectors [batch, pos, 4]" in refusal(lambda: model(vectors[..., :3]))
    assert "give real vectors [batch, pos, 4]" in refusal(lambda: model(torch.zeros(2, 3, dtype=torch.long)))
    wanted = "inputs are torch.float32 but the weights torch.float64: give inputs.to(torch.float64)"
    assert refusal(lambda: model(vectors.float())) == wanted
    resid = model(vectors, stop_at_layer=1)
    assert refusal(lambda: model(resid.float(), start_at_layer=1)) == wanted
    assert model(resid, start_at_layer=1).shape == (3, 7, 2)


def test_positions_beyond_those_learned_are_refused_and_without_positions_there_is_no_limit(vectors):
    longer = vectors.repeat(1, 2, 1)
    assert "14 positions but the model has n_ctx = 7" in refusal(lambda: random_model()(longer))
    unlimited = random_model(positional_embedding_type="none")
    np.testing.assert_allclose(unlimited(longer)[0].detach().numpy(), outputs_by_hand(unlimited, longer[0]), atol=1e-11)


@each_function
def test_a_prompt_of_queries_alone_is_refused(attn_fn, vectors):
    model = random_model(attn_fn=attn_fn, attention_dir="query_masked", n_queries=3)
    assert model(vectors[:, :4]).isfinite().all()
    message = "3 positions, of which n_queries = 3 are read by none: give longer prompts"
    assert message in refusal(lambda: model(vectors[:, :3]))
    resid = model(vectors, stop_at_layer=1)
    assert model(resid[:, :4], start_at_layer=1).isfinite().all()
    assert message in refusal(lambda: model(resid[:, :3], start_at_layer=1))


def test_a_loss_asked_of_a_model_of_vectors_is_refused(vectors):
    assert "use prompts.loss(outputs)" in refusal(lambda: random_model()(vectors, "loss"))
    tokens_in = {"d_in": None, "d_vocab": 5}
    tokens = torch.tensor([[0, 1, 2]])
    assert "use prompts.loss(outputs)" in refusal(lambda: random_model(**tokens_in)(tokens, "loss"))
    assert random_model(**tokens_in, d_out=None)(tokens, "loss").isfinite()


@pytest.mark.refusal
@pytest.mark.parametrize("inputs", [torch.zeros(2, 4), torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(4)])
def test_inputs_that_are_no_vectors_are_refused(inputs):
    assert "give real vectors [batch, pos, 4]" in refusal(lambda: random_model()(inputs))


# Training.

SMALL = SparseRegression(d=3, sparsity=1, n_context=6, noise=0.1)
MODEL = HookedTransformerConfig(
    n_layers=2, d_model=8, n_ctx=7, n_heads=2, d_in=4, d_out=1, attn_only=True, attn_fn="linear",
    attention_dir="query_masked", positional_embedding_type="none", use_biases=False, init_mode="torch_linear",
)  # fmt: skip
FAST = {"batch_size": 16, "eval_prompts": 64, "log_every": 4, "checkpoint_every": 5}


@pytest.fixture
def run(tmp_path):
    def run(folder="run", task=SMALL, config=MODEL, **fields):
        return train(
            task, config, TrainConfig(**({"steps": 12} | FAST | fields)), out=tmp_path / folder, progress=False
        )

    return run


def test_training_on_regression_lowers_the_excess_risk(run):
    task = SparseRegression(d=2, sparsity=1, n_context=12, n_queries=4, noise=0.1)
    config = replace(MODEL, n_layers=1, d_model=16, d_head=8, d_in=3, n_ctx=16, n_queries=4)
    history = run(task=task, config=config, steps=100, lr=0.01, batch_size=32, log_every=50).history
    assert list(history) == ["step", "tokens", "lr", "train_loss", "seconds", "loss", "excess_risk"]
    assert history["excess_risk"].iloc[0] > 0.8  # predicting 0 has 1
    assert history["excess_risk"].iloc[-1] < 0.5


def test_the_history_holds_the_excess_risk_of_the_evaluation_prompts(run):
    trained = run()
    prompts = SMALL.sample(64, seed=trained.train_config.eval_seed)
    outputs = trained.model(prompts.inputs)[:, -1, 0].detach()
    last = trained.history.iloc[-1]
    clean = torch.einsum("bd,bd->b", prompts.inputs[:, -1, :3], prompts.latents["w_star"])
    assert last["excess_risk"] == pytest.approx(float((outputs - clean).square().mean()), rel=1e-5)
    assert last["loss"] == pytest.approx(float((outputs - prompts.targets[:, -1]).square().mean()), rel=1e-5)


def test_prompts_of_unknown_w_star_have_a_loss_and_no_excess_risk():
    prompts = regression_prompts(torch.ones(4, 7, 3), torch.ones(4, 7))
    model = HookedTransformer(MODEL)
    assert set(evaluate(model, prompts, 2)) == {"loss"}
    assert set(evaluate(model, SMALL.sample(4, seed=0), 2)) == {"loss", "excess_risk"}


@pytest.mark.parametrize("attn_fn", FUNCTIONS)
@pytest.mark.parametrize("failed_after", [0, 5])
def test_a_regression_run_that_goes_on_ends_bit_for_bit_like_one_that_never_stopped(run, attn_fn, failed_after):
    task = replace(SMALL, n_queries=2, curriculum_steps=8, curriculum_dims=1, curriculum_context=3)
    config = replace(MODEL, attn_fn=attn_fn, n_ctx=8, n_queries=2, normalization_type="LN")
    whole, broken = (run(folder, task, config, lr=0.01) for folder in ("whole", "broken"))
    for step in (step for step in broken.steps if step > failed_after):
        weights_path(broken.path, step).unlink()
        state_path(broken.path, step).unlink()
    continued = run("broken", task, config, lr=0.01)
    assert continued.steps == whole.steps == [0, 5, 10, 12]
    for step, path in itertools.product(whole.steps, (weights_path, state_path)):
        there, _ = read_tensors(path(whole.path, step))
        here, _ = read_tensors(path(continued.path, step))
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there)
    untimed = [history.drop(columns="seconds") for history in (whole.history, continued.history)]
    assert untimed[0].equals(untimed[1])


def test_each_step_draws_its_prompts_from_the_curriculum_as_it_stands_then(run):
    task = replace(SMALL, curriculum_steps=3, curriculum_dims=1, curriculum_context=2)
    trained = run(task=task, steps=4, optimizer="sgd", lr=0.1, checkpoint_every=1)
    model = HookedTransformer(replace(MODEL, seed=trained.train_config.init_seed))
    sizes = []
    for step in (1, 2, 3, 4):
        stage = SparseRegression(
            d=3, sparsity=1, noise=0.1, n_context=2 + 4 * min(step, 3) // 3, active_dims=1 + 2 * min(step, 3) // 3
        )
        prompts = stage.sample(16, seed=(trained.train_config.train_seed, step))
        model.zero_grad()
        (model(prompts.inputs)[:, -1, 0] - prompts.targets[:, -1]).square().mean().backward()
        for name, weight in model.named_parameters():
            weight.data -= 0.1 * weight.grad
            torch.testing.assert_close(trained.at(step).get_parameter(name), weight)
        sizes.append(prompts.targets.shape[1])
    assert sizes == [4, 5, 7, 7]
    assert trained.history["tokens"].tolist() == [0, 16 * sum(sizes)]
    full = SMALL.sample(64, seed=trained.train_config.eval_seed)
    assert trained.history["loss"].iloc[-1] == pytest.approx(evaluate(trained.model, full, 64)["loss"], rel=1e-6)


def test_every_query_counts_in_the_training_loss(run):
    task, config = replace(SMALL, n_queries=3), replace(MODEL, n_ctx=9, n_queries=3)
    trained = run(task=task, config=config, steps=1, optimizer="sgd", lr=1e-12)
    prompts = task.sample(16, seed=(trained.train_config.train_seed, 1))
    error = (trained.at(0)(prompts.inputs)[:, -3:, 0] - prompts.targets[:, -3:]).square()
    assert trained.history["train_loss"].iloc[-1] == pytest.approx(error.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        ({"n_queries": 2}, {"n_ctx": 8}, "n_queries = 1 but the task's prompts have 2: set the same"),
        ({}, {"n_queries": 2}, "n_queries = 2 but the task's prompts have 1"),
        (
            {"n_queries": 2},
            {"n_ctx": 8, "attention_dir": "bidirectional"},
            "n_queries = 1 but the task's prompts have 2: set the same, with attention_dir = 'query_masked'",
        ),
        ({"d": 4}, {}, "d_in = 4 but the task has 5"),
        ({"n_context": 9}, {}, "n_ctx = 7 but the task's prompts have 10 positions"),
        ({}, {"d_out": 2}, "d_out = 2 but the task's targets ask for 1"),
        ({}, {"d_out": None, "d_vocab_out": 3}, "d_out = None but the task's targets ask for 1"),
        ({}, {"d_in": None, "d_vocab": 4}, "d_vocab = 4 but the task has None"),
        (
            {"layout": "interleaved"},
            {"n_ctx": 13},
            "attention_dir = 'query_masked' lets an x of an interleaved prompt read its own y: set 'causal'",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_regression_task_is_refused_before_a_folder_is_made(
    run, tmp_path, task, config, message
):
    assert message in refusal(lambda: run(task=replace(SMALL, **task), config=replace(MODEL, **config)))
    assert not (tmp_path / "run").exists()


def test_interleaved_prompts_train_a_causal_model(run):
    task = replace(SMALL, layout="interleaved")
    config = replace(MODEL, n_ctx=13, attention_dir="causal", positional_embedding_type="standard")
    assert run(task=task, config=config).history["excess_risk"].notna().all()
