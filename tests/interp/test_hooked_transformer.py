import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint

from interp import HookedTransformer, HookedTransformerConfig
from tasks.errors import InputError

SIZES = {"n_layers": 2, "d_model": 6, "n_ctx": 5, "n_heads": 2, "d_head": 4, "d_mlp": 7, "d_vocab": 5, "d_vocab_out": 4}
VARIANTS = {
    "attn only": {"attn_only": True},
    "MLP": {},
    "MLP in one layer": {"mlp_layers": (1,)},
    "gelu": {"act_fn": "gelu"},
    "gelu_new": {"act_fn": "gelu_new"},
    "silu": {"act_fn": "silu"},
    "parallel": {"parallel_attn_mlp": True},
    "LN": {"normalization_type": "LN"},
    "LNPre": {"normalization_type": "LNPre"},
    "LN parallel": {"normalization_type": "LN", "parallel_attn_mlp": True},
    "no biases": {"use_biases": False, "normalization_type": "LN"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "no positions": {"positional_embedding_type": "none"},
    "linear memory": {"mlp_type": "linear"},
    "linear memory with LNPre, no biases": {"mlp_type": "linear", "normalization_type": "LNPre", "use_biases": False},
    "identity queries": {"identity_queries": True, "n_heads": 1, "d_head": 6},
    "identity queries with LN": {"identity_queries": True, "n_heads": 1, "d_head": 6, "normalization_type": "LN"},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def random_model(seed=3, **options) -> HookedTransformer:
    """A model in double precision whose every parameter is random: biases and LayerNorms start out trivial."""
    model = HookedTransformer(HookedTransformerConfig(**(SIZES | options))).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not (model.cfg.identity_queries and name.endswith("W_Q")):
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


@pytest.fixture
def tokens():
    return torch.tensor([[0, 3, 1, 1, 4], [2, 2, 0, 4, 3], [1, 0, 0, 0, 2]])


# The forward pass written from its formulas, one number at a time.


def matvec(row, matrix):
    return np.array([sum(row[i] * matrix[i][j] for i in range(len(row))) for j in range(matrix.shape[1])])


def activation_by_hand(name, x):
    phi = 0.5 * (1 + math.erf(x / math.sqrt(2)))
    tanh = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"relu": max(x, 0.0), "gelu": x * phi, "gelu_new": x * tanh, "silu": x / (1 + math.exp(-x))}[name]


def layer_norm_by_hand(kind, row, weights, prefix):
    if kind is None:
        return row
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    row = np.array([(x - mean) / math.sqrt(variance + 1e-5) for x in row])
    return row * weights[f"{prefix}.w"] + weights[f"{prefix}.b"] if kind == "LN" else row


def attention_by_hand(cfg, weights, prefix, rows):
    def bias(name):
        return weights.get(f"{prefix}.{name}", 0.0)

    out = []
    for dest in range(len(rows)):
        total = np.zeros(cfg.d_model) + bias("b_O")
        for head in range(cfg.n_heads):

            def project(name, row, head=head):
                b = bias(f"b_{name}")
                return matvec(row, weights[f"{prefix}.W_{name}"][head]) + (b if np.isscalar(b) else b[head])

            query = project("Q", rows[dest])
            seen = range(dest + 1) if cfg.attention_dir == "causal" else range(len(rows))
            scores = [sum(query * project("K", rows[src])) / math.sqrt(cfg.d_head) for src in seen]
            total_weight = sum(math.exp(score) for score in scores)
            for src, score in zip(seen, scores, strict=True):
                value = project("V", rows[src])
                total = total + math.exp(score) / total_weight * matvec(value, weights[f"{prefix}.W_O"][head])
        out.append(total)
    return out


def mlp_by_hand(cfg, weights, prefix, row):
    if cfg.mlp_type == "linear":
        return matvec(row, weights[f"{prefix}.W_F"])
    pre = matvec(row, weights[f"{prefix}.W_in"]) + weights.get(f"{prefix}.b_in", 0.0)
    post = np.array([activation_by_hand(cfg.act_fn, x) for x in pre])
    return matvec(post, weights[f"{prefix}.W_out"]) + weights.get(f"{prefix}.b_out", 0.0)


def logits_by_hand(model, prompt):
    cfg, kind = model.cfg, model.cfg.normalization_type
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    rows = [weights["embed.W_E"][token] for token in prompt]
    if cfg.positional_embedding_type == "standard":
        rows = [row + weights["pos_embed.W_pos"][t] for t, row in enumerate(rows)]
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}"
        read = [layer_norm_by_hand(kind, row, weights, f"{block}.ln1") for row in rows]
        mid = [row + out for row, out in zip(rows, attention_by_hand(cfg, weights, f"{block}.attn", read), strict=True)]
        if not cfg.attn_only and (cfg.mlp_layers is None or layer in cfg.mlp_layers):
            sources = rows if cfg.parallel_attn_mlp else mid
            read = [layer_norm_by_hand(kind, row, weights, f"{block}.ln2") for row in sources]
            mid = [a + mlp_by_hand(cfg, weights, f"{block}.mlp", b) for a, b in zip(mid, read, strict=True)]
        rows = mid
    final = [layer_norm_by_hand(kind, row, weights, "ln_final") for row in rows]
    return np.array([matvec(row, weights["unembed.W_U"]) + weights.get("unembed.b_U", 0.0) for row in final])


@each_variant
def test_the_logits_are_those_of_the_formulas(variant, tokens):
    model = random_model(**VARIANTS[variant])
    logits = model(tokens)
    for prompt, ours in zip(tokens.tolist(), logits, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), logits_by_hand(model, prompt), atol=1e-10)


@each_variant
def test_fused_and_written_out_attention_agree(variant, tokens):
    model = random_model(**VARIANTS[variant])
    written_out, _ = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(("pattern", "attn_scores")))
    torch.testing.assert_close(model(tokens), written_out, atol=1e-12, rtol=0)
    single = model.float()
    written_out, _ = single.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    torch.testing.assert_close(single(tokens), written_out, atol=2e-5, rtol=0)


def test_fused_and_written_out_attention_agree_to_1e_6_in_single_precision_at_initial_weights():
    model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=32, n_ctx=16, n_heads=4, d_vocab=20))
    tokens = torch.randint(20, (8, 16), generator=torch.Generator().manual_seed(0))
    written_out, _ = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern")
    torch.testing.assert_close(model(tokens), written_out, atol=1e-6, rtol=0)


@each_variant
@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_a_model_run_in_two_parts_is_the_whole(variant, layer, tokens):
    model = random_model(**VARIANTS[variant])
    residual = model(tokens, stop_at_layer=layer)
    assert torch.equal(model(residual, start_at_layer=layer), model(tokens))


def test_a_middle_part_is_one_block(tokens):
    model = random_model()
    residual = model(tokens, stop_at_layer=1)
    assert torch.equal(model(residual, start_at_layer=1, stop_at_layer=2), model.blocks[1](residual))
    assert torch.equal(model(residual, start_at_layer=1, stop_at_layer=1), residual)


def test_the_loss_is_the_mean_next_token_cross_entropy(tokens):
    model = random_model(d_vocab_out=5)
    log_probs = model(tokens).log_softmax(-1)
    by_hand = [-log_probs[b, t, tokens[b, t + 1]].item() for b in range(3) for t in range(4)]
    assert model(tokens, "loss").item() == pytest.approx(sum(by_hand) / 12)


def test_later_tokens_do_not_reach_earlier_logits(tokens):
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 5
    causal, bidirectional = random_model(), random_model(attention_dir="bidirectional")
    assert torch.equal(causal(tokens)[:, :3], causal(changed)[:, :3])
    assert not torch.equal(causal(tokens)[:, 3:], causal(changed)[:, 3:])
    assert not torch.equal(bidirectional(tokens)[:, :3], bidirectional(changed)[:, :3])


@each_variant
def test_the_cache_obeys_the_residual_identities(variant, tokens):
    model = random_model(**VARIANTS[variant])
    _, cache = model.run_with_cache(tokens)
    results = [f"blocks.{layer}.attn.hook_result" for layer in range(2)]
    _, of_heads = model.run_with_cache(tokens, names_filter=results)
    embedded = cache["hook_embed"] + (cache["hook_pos_embed"] if model.has_positions else 0)
    close = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(cache["resid_pre", 0], embedded, **close)
    assert torch.equal(cache["resid_pre", 1], cache["resid_post", 0])
    for layer, block in enumerate(model.blocks):
        pattern, v, z = cache["pattern", layer], cache["v", layer], cache["z", layer]
        after = cache["resid_pre", layer] + cache["attn_out", layer]
        if block.has_mlp:
            if not model.cfg.parallel_attn_mlp:
                torch.testing.assert_close(cache["resid_mid", layer], after, **close)
            after = after + cache["mlp_out", layer]
        torch.testing.assert_close(cache["resid_post", layer], after, **close)
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]), **close)
        torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z, **close)
        q, k = cache["q", layer], cache["k", layer]
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(model.cfg.d_head)
        seen = cache["attn_scores", layer].isfinite()
        causal = model.cfg.attention_dir == "causal"
        assert torch.equal(seen[0, 0], torch.ones(5, 5).tril().bool() if causal else torch.ones(5, 5).bool())
        torch.testing.assert_close(cache["attn_scores", layer][seen], scores[seen], **close)
        bias = 0 if block.attn.b_O is None else block.attn.b_O
        torch.testing.assert_close(of_heads[results[layer]].sum(2), cache["attn_out", layer] - bias, **close)
        for head in range(model.cfg.n_heads):
            by_head = z[:, :, head] @ block.attn.W_O[head]
            torch.testing.assert_close(of_heads[results[layer]][:, :, head], by_head, **close)


FULL = {"normalization_type": "LN"}
PARAMETERS = {
    "embed.W_E": (5, 6),
    "pos_embed.W_pos": (5, 6),
    "blocks.0.ln1.w": (6,),
    "blocks.0.ln1.b": (6,),
    "blocks.0.ln2.w": (6,),
    "blocks.0.ln2.b": (6,),
    "blocks.0.attn.W_Q": (2, 6, 4),
    "blocks.0.attn.W_K": (2, 6, 4),
    "blocks.0.attn.W_V": (2, 6, 4),
    "blocks.0.attn.W_O": (2, 4, 6),
    "blocks.0.attn.b_Q": (2, 4),
    "blocks.0.attn.b_K": (2, 4),
    "blocks.0.attn.b_V": (2, 4),
    "blocks.0.attn.b_O": (6,),
    "blocks.0.mlp.W_in": (6, 7),
    "blocks.0.mlp.b_in": (7,),
    "blocks.0.mlp.W_out": (7, 6),
    "blocks.0.mlp.b_out": (6,),
    "ln_final.w": (6,),
    "ln_final.b": (6,),
    "unembed.W_U": (6, 4),
    "unembed.b_U": (4,),
}
HOOKS = {  # of 3 prompts with 5 tokens
    "hook_embed": (3, 5, 6),
    "hook_pos_embed": (3, 5, 6),
    "blocks.0.hook_resid_pre": (3, 5, 6),
    "blocks.0.hook_q_input": (3, 5, 2, 6),
    "blocks.0.hook_k_input": (3, 5, 2, 6),
    "blocks.0.hook_v_input": (3, 5, 2, 6),
    "blocks.0.ln1.hook_scale": (3, 5, 1),
    "blocks.0.ln1.hook_normalized": (3, 5, 6),
    "blocks.0.attn.hook_q": (3, 5, 2, 4),
    "blocks.0.attn.hook_k": (3, 5, 2, 4),
    "blocks.0.attn.hook_v": (3, 5, 2, 4),
    "blocks.0.attn.hook_attn_scores": (3, 2, 5, 5),
    "blocks.0.attn.hook_pattern": (3, 2, 5, 5),
    "blocks.0.attn.hook_z": (3, 5, 2, 4),
    "blocks.0.attn.hook_result": (3, 5, 2, 6),
    "blocks.0.hook_attn_out": (3, 5, 6),
    "blocks.0.hook_resid_mid": (3, 5, 6),
    "blocks.0.hook_mlp_in": (3, 5, 6),
    "blocks.0.ln2.hook_scale": (3, 5, 1),
    "blocks.0.ln2.hook_normalized": (3, 5, 6),
    "blocks.0.mlp.hook_pre": (3, 5, 7),
    "blocks.0.mlp.hook_post": (3, 5, 7),
    "blocks.0.hook_mlp_out": (3, 5, 6),
    "blocks.0.hook_resid_post": (3, 5, 6),
    "ln_final.hook_scale": (3, 5, 1),
    "ln_final.hook_normalized": (3, 5, 6),
}


def test_parameters_have_transformer_lens_names_and_shapes():
    model = random_model(**FULL, n_layers=1)
    assert {name: tuple(weight.shape) for name, weight in model.named_parameters()} == PARAMETERS
    assert list(model.state_dict()) == list(dict(model.named_parameters()))


def test_hook_points_have_transformer_lens_names_and_shapes(tokens):
    model = random_model(**FULL, n_layers=1)
    assert set(model.hook_dict) == set(HOOKS)
    for name, shape in HOOKS.items():  # one at a time: split inputs change what ln1 sees
        assert tuple(model.run_with_cache(tokens, names_filter=name)[1][name].shape) == shape, name


def test_points_that_cost_memory_are_left_out_of_a_full_cache(tokens):
    model = random_model(**FULL, n_layers=1)
    _, cache = model.run_with_cache(tokens)
    costly = {"attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"}
    assert set(HOOKS) - set(cache) == {f"blocks.0.{point}" for point in costly}


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"attn_only": True}, "ln2 mlp hook_mlp_in hook_mlp_out hook_resid_mid"),
        ({"parallel_attn_mlp": True}, "hook_resid_mid"),
        ({"positional_embedding_type": "none"}, "hook_pos_embed"),
        ({"normalization_type": None}, "ln1 ln2 ln_final"),
    ],
    ids=lambda value: str(value),
)
def test_a_part_that_the_model_lacks_has_no_hook_points(options, gone):
    model = random_model(**(FULL | options), n_layers=1)
    parts = gone.split()
    assert set(model.hook_dict) == {name for name in HOOKS if not set(name.split(".")) & set(parts)}


@pytest.mark.parametrize("point", [name for name in HOOKS if name.endswith(("_input", "mlp_in"))])
@pytest.mark.parametrize("kind", [None, "LN"])
def test_naming_a_costly_point_does_not_change_the_output(point, kind, tokens):
    model = random_model(normalization_type=kind, n_layers=1)
    output, cache = model.run_with_cache(tokens, names_filter=point)
    torch.testing.assert_close(output, model(tokens), atol=1e-12, rtol=0)
    expected = model.run_with_cache(tokens)[1]["resid_pre" if "mlp" not in point else "resid_mid", 0]
    expected = expected[:, :, None].expand(-1, -1, 2, -1) if "mlp" not in point else expected
    torch.testing.assert_close(cache[point], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("letter", "qkv")
def test_the_input_of_one_head_can_be_edited_alone(letter, tokens):
    model = random_model(normalization_type="LN", n_layers=1)

    def without_first_token(copies, hook):
        copies = copies.clone()
        copies[:, 0, 1] = 0
        return copies

    edit = [(f"blocks.0.hook_{letter}_input", without_first_token)]
    points = [f"blocks.0.attn.hook_{other}" for other in "qkv"]
    clean = model.run_with_cache(tokens, names_filter=points)[1]
    with model.hooks(fwd_hooks=edit):
        _, edited = model.run_with_cache(tokens, names_filter=points)
    for other, point in zip("qkv", points, strict=True):
        changed = (edited[point] - clean[point]).abs().amax(dim=(0, 3)) > 1e-9
        where = [[0, 1]] if other == letter else []
        assert changed.nonzero().tolist() == where, other


@pytest.mark.parametrize("point", ["hook_pos_embed", "blocks.0.attn.hook_q", "blocks.0.hook_mlp_in"])
def test_an_edit_in_place_stays_at_its_point(point, tokens):
    model = random_model(identity_queries=True, n_heads=1, d_head=6)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    residual = model.run_with_cache(tokens[:1])[1]["blocks.0.hook_resid_pre"]

    def halve(activation, hook):
        activation *= 0.5
        return activation

    def halve_a_copy(activation, hook):
        return activation * 0.5

    with torch.no_grad():
        in_place, on_copy = (
            model.run_with_hooks(tokens[:1], fwd_hooks=[(point, edit)]) for edit in (halve, halve_a_copy)
        )
        with model.hooks(fwd_hooks=[(point, halve)]):
            resid_pre = model.run_with_cache(tokens[:1], names_filter="blocks.0.hook_resid_pre")[1]
    assert torch.equal(in_place, on_copy)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert torch.equal(resid_pre["resid_pre", 0], residual) == (point != "hook_pos_embed")


def test_hook_points_that_nobody_watches_are_never_called(tokens, monkeypatch):
    model = random_model(normalization_type="LN")
    called = []
    original = HookPoint.forward
    monkeypatch.setattr(HookPoint, "forward", lambda point, x: called.append(point.name) or original(point, x))
    model(tokens)
    assert called == []
    model.run_with_cache(tokens, names_filter=["blocks.0.attn.hook_z", "ln_final.hook_scale"])
    assert called == ["blocks.0.attn.hook_z", "ln_final.hook_scale"]
    model(tokens)
    assert len(called) == 2


def test_a_backward_hook_alone_makes_a_point_watched(tokens):
    model = random_model()
    gradients = []

    def keep(gradient, hook):
        gradients.append(gradient)

    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", keep)]):
        model(tokens).square().sum().backward()
    residual = model(tokens, stop_at_layer=1).detach().requires_grad_()
    model(residual, start_at_layer=1).square().sum().backward()
    torch.testing.assert_close(gradients[0], residual.grad, atol=1e-12, rtol=0)


# ActivationCache's helpers, against sums and products written here.


# TransformerLens' helper asks every layer for its MLP
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "MLP in one layer"])
def test_decomposed_residuals_sum_to_the_residual(variant, tokens):
    model = random_model(**VARIANTS[variant])
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.decompose_resid(return_labels=True)
    torch.testing.assert_close(stack.sum(0), cache["resid_post", 1], atol=1e-12, rtol=0)
    expected = ["embed"] + ["pos_embed"] * model.has_positions
    for layer, block in enumerate(model.blocks):
        expected += [f"{layer}_attn_out"] + [f"{layer}_mlp_out"] * block.has_mlp
    assert labels == expected
    normalized = cache.apply_ln_to_stack(stack).sum(0)
    if isinstance(model.ln_final, torch.nn.Identity):
        torch.testing.assert_close(normalized, cache["resid_post", 1], atol=1e-12, rtol=0)
    else:
        bare = F.layer_norm(cache["resid_post", 1], (6,))
        torch.testing.assert_close(normalized, bare, atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", ["attn only", "LN", "no biases", "linear memory"])
def test_head_results_and_biases_sum_to_the_residual(variant, tokens):
    model = random_model(**VARIANTS[variant])
    _, cache = model.run_with_cache(tokens)
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels == ["L0H0", "L0H1", "L1H0", "L1H1"]
    for (layer, head), result in zip(itertools.product(range(2), range(2)), heads, strict=True):
        by_hand = cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head]
        torch.testing.assert_close(result, by_hand, atol=1e-12, rtol=0)
    rest = [cache["hook_embed"], cache["hook_pos_embed"]]
    rest += [cache["mlp_out", layer] for layer in range(2) if model.blocks[layer].has_mlp]
    total = heads.sum(0) + sum(rest) + model.accumulated_bias(2, include_mlp_biases=False)
    torch.testing.assert_close(total, cache["resid_post", 1], atol=1e-12, rtol=0)
    with_rest = cache.stack_head_results(incl_remainder=True)
    torch.testing.assert_close(with_rest.sum(0), cache["resid_post", 1], atol=1e-12, rtol=0)


def test_accumulated_biases_are_added_layer_by_layer():
    model = random_model()
    b_O, b_out = ([getattr(part(block), name) for block in model.blocks] for part, name in (
        (lambda block: block.attn, "b_O"),
        (lambda block: block.mlp, "b_out"),
    ))  # fmt: skip
    assert torch.equal(model.accumulated_bias(0), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(model.accumulated_bias(1), b_O[0] + b_out[0])
    torch.testing.assert_close(model.accumulated_bias(1, mlp_input=True), b_O[0] + b_out[0] + b_O[1])
    torch.testing.assert_close(model.accumulated_bias(2, include_mlp_biases=False), b_O[0] + b_O[1])
    torch.testing.assert_close(model.accumulated_bias(2), b_O[0] + b_O[1] + b_out[0] + b_out[1])


def test_accumulated_residuals_are_those_before_every_layer(tokens):
    model = random_model()
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    for layer, index in ((0, 0), (1, 2), (2, 4)):
        torch.testing.assert_close(stack[index], model(tokens, stop_at_layer=layer), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", [None, "LNPre"])
def test_logit_attributions_of_token_tensors_sum_to_the_logit(kind, tokens):
    model = random_model(normalization_type=kind, d_vocab_out=5)
    logits, cache = model.run_with_cache(tokens)
    stack = cache.decompose_resid()
    targets, wrong = tokens.roll(-1, 1), tokens.roll(1, 1)
    b_U = model.b_U
    assert b_U is not None

    def picked(per_position):
        return torch.stack(
            [logits[b, t, per_position[b, t]] - b_U[per_position[b, t]] for b in range(3) for t in range(5)]
        )

    attributed = cache.logit_attrs(stack, targets).sum(0)
    torch.testing.assert_close(attributed.flatten(), picked(targets), atol=1e-10, rtol=0)
    difference = cache.logit_attrs(stack, targets, incorrect_tokens=wrong).sum(0)
    torch.testing.assert_close(difference.flatten(), picked(targets) - picked(wrong), atol=1e-10, rtol=0)
    of_one = cache.logit_attrs(stack, 3).sum(0)
    torch.testing.assert_close(of_one, logits[..., 3] - b_U[3], atol=1e-10, rtol=0)


def test_a_cache_without_batch_axis_is_that_of_its_prompt(tokens):
    model = random_model()
    _, cache = model.run_with_cache(tokens[:1], remove_batch_dim=True)
    assert isinstance(cache, ActivationCache)
    assert torch.equal(cache["z", 1], model.run_with_cache(tokens[:1])[1]["z", 1][0])
    torch.testing.assert_close(cache.decompose_resid().sum(0), cache["resid_post", 1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "helper", ["to_tokens", "to_string", "to_str_tokens", "to_single_token", "tokenizer", "generate"]
)
def test_tokenizer_helpers_are_refused_by_name(helper):
    with pytest.raises(AttributeError, match=f"{helper} needs a tokenizer"):
        getattr(random_model(), helper)


def test_a_partial_pass_caches_what_it_reaches(tokens):
    model = random_model(normalization_type="LN")
    _, first = model.run_with_cache(tokens, stop_at_layer=1)
    _, second = model.run_with_cache(first["blocks.0.hook_resid_post"], start_at_layer=1)
    _, whole = model.run_with_cache(tokens)
    assert not set(first) & set(second)
    assert set(first) | set(second) == set(whole)
    assert all(torch.equal((first if name in first else second)[name], whole[name]) for name in whole)


def test_circuit_matrices_are_the_products_of_their_factors():
    model = random_model()
    for layer, head in itertools.product(range(2), range(2)):
        attn = model.blocks[layer].attn
        torch.testing.assert_close(model.OV[layer, head].AB, attn.W_V[head] @ attn.W_O[head])
        torch.testing.assert_close(model.QK[layer, head].AB, attn.W_Q[head] @ attn.W_K[head].T)
        torch.testing.assert_close(attn.OV[head].AB, attn.W_V[head] @ attn.W_O[head])
        torch.testing.assert_close(attn.QK[head].AB, attn.W_Q[head] @ attn.W_K[head].T)
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            assert torch.equal(getattr(model, name)[layer, head], getattr(attn, name)[head])
    assert model.W_E is model.embed.W_E
    assert model.W_pos is model.pos_embed.W_pos
    assert model.W_U is model.unembed.W_U


def test_writing_to_an_identity_query_matrix_is_honoured(tokens):
    model = random_model(identity_queries=True, n_heads=1, d_head=6)
    with torch.no_grad():
        model.blocks[1].attn.W_Q[0, 2, 5] = 1.5
    np.testing.assert_allclose(model(tokens)[0].detach().numpy(), logits_by_hand(model, tokens[0].tolist()), atol=1e-10)


# Refusals, each beside what is right.


def test_a_state_of_another_architecture_is_refused_by_the_name_of_a_tensor():
    model, state = random_model(), random_model(seed=9).state_dict()
    model.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lacking = {name: tensor for name, tensor in state.items() if name != "embed.W_E"}
    with pytest.raises(InputError, match=r"the state lacks embed\.W_E"):
        model.load_state_dict(lacking)
    with pytest.raises(InputError, match=r"the state has blocks\.7\.attn\.W_Q, which the model does not have"):
        model.load_state_dict(state | {"blocks.7.attn.W_Q": torch.zeros(1)})
    for strict in (True, False):
        with pytest.raises(InputError, match=r"unembed.W_U has shape \[6, 9\], the model's is \[6, 4\]"):
            model.load_state_dict(state | {"unembed.W_U": torch.zeros(6, 9)}, strict=strict)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tokens_and_positions_outside_the_model_are_refused(tokens):
    model = random_model()
    assert model(tokens).shape == (3, 5, 4)
    with pytest.raises(InputError, match="token 5 does not exist: d_vocab = 5"):
        model(torch.tensor([[0, 5]]))
    with pytest.raises(InputError, match="token -1 does not exist"):
        model(torch.tensor([[-1, 3]]))
    with pytest.raises(InputError, match="6 positions but the model has n_ctx = 5"):
        model(torch.zeros(1, 6, dtype=torch.long))
    assert random_model(positional_embedding_type="none")(torch.zeros(1, 9, dtype=torch.long)).shape == (1, 9, 4)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 6), torch.zeros(2, 3, 6, 6), torch.zeros(2, dtype=torch.long)])
@pytest.mark.refusal
def test_inputs_that_are_no_tokens_are_refused(inputs):
    with pytest.raises(InputError, match="give integer tokens"):
        random_model()(inputs)


@pytest.mark.refusal
@pytest.mark.parametrize("inputs", [torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 6), torch.zeros(2, 3, 7)])
def test_inputs_that_are_no_residual_stream_are_refused(inputs):
    model = random_model().float()
    assert model(torch.zeros(2, 3, 6), start_at_layer=1).shape == (2, 3, 4)
    with pytest.raises(InputError, match=r"with start_at_layer give the residual stream \[batch, pos, 6\]"):
        model(inputs, start_at_layer=1)


def test_layers_out_of_range_are_refused(tokens):
    model = random_model()
    for layer in (3, -3):
        with pytest.raises(InputError, match=f"stop_at_layer = {layer} does not exist: the model has 2 layers"):
            model(tokens, stop_at_layer=layer)
        with pytest.raises(InputError, match=f"start_at_layer = {layer} does not exist: the model has 2 layers"):
            model(model(tokens, stop_at_layer=1), start_at_layer=layer)
    with pytest.raises(InputError, match="start_at_layer = 2 lies behind stop_at_layer = 1"):
        model(model(tokens, stop_at_layer=2), start_at_layer=2, stop_at_layer=1)


def test_a_loss_that_does_not_exist_is_refused(tokens):
    model = random_model(d_vocab_out=5)
    assert model(tokens[:, :2], "loss").isfinite()
    with pytest.raises(InputError, match="a single one has no next token"):
        model(tokens[:, :1], "loss")
    with pytest.raises(InputError, match="needs the whole model"):
        model(tokens, "loss", stop_at_layer=1)


@pytest.mark.refusal
def test_an_unknown_return_type_is_refused(tokens):
    with pytest.raises(InputError, match="return_type = 'logit' is unknown: choose 'logits' or 'loss'"):
        random_model()(tokens, "logit")


def test_a_model_without_vocabulary_is_refused():
    with pytest.raises(InputError, match="d_vocab is missing"):
        HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3))
