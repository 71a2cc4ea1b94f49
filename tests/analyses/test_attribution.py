import pytest
import torch

from analyses import attribute_heads
from analyses.attribution import direct_attributions
from interp import HookedTransformer, HookedTransformerConfig
from tasks.errors import InputError
from tasks.prompts import Prompts

VARIANTS = {
    "attn only": {"attn_only": True},
    "attn only, no biases": {"attn_only": True, "use_biases": False},
    "MLP": {},
    "MLP, LN": {"normalization_type": "LN"},
    "MLP, LNPre, no biases": {"normalization_type": "LNPre", "use_biases": False},
    "LN, attn only": {"normalization_type": "LN", "attn_only": True},
    "parallel, LN": {"normalization_type": "LN", "parallel_attn_mlp": True},
    "linear memory in one layer": {"mlp_type": "linear", "mlp_layers": (1,), "use_biases": False},
    "no positions": {"positional_embedding_type": "none"},
    "identity queries": {"identity_queries": True, "n_heads": 1, "d_head": 8, "attn_only": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def random_model(**options) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 5, "n_heads": 2, "d_vocab": 6, "d_vocab_out": 6}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not (model.cfg.identity_queries and name.endswith("W_Q")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, wrong = (torch.randint(6, (11, 5), generator=generator) for _ in range(2))
    scored = torch.rand((11, 5), generator=generator) < 0.7
    labels = {"half": (torch.arange(5) > 2).long().expand(11, -1)}
    return Prompts.from_tensors(tokens, scored=scored, wrong=wrong, labels=labels)


def picked(logits, tokens):
    return torch.stack([torch.stack([row[t, token] for t, token in enumerate(of)]) for row, of in zip(logits, tokens)])  # noqa: B905


@each_variant
def test_contributions_sum_to_the_logit(variant, prompts):
    model = random_model(**VARIANTS[variant])
    with torch.no_grad():
        right = picked(model(prompts.inputs), prompts.targets)
        wrong = picked(model(prompts.inputs), prompts.wrong)
    torch.testing.assert_close(direct_attributions(model, prompts).sum(-1), right, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        direct_attributions(model, prompts, "logit_diff").sum(-1), right - wrong, atol=1e-5, rtol=0
    )


@each_variant
@pytest.mark.parametrize("metric", ["logit", "logit_diff"])
def test_the_rows_sum_to_the_mean_logit_of_the_scored_positions(variant, metric, prompts):
    model = random_model(**VARIANTS[variant])
    frame = attribute_heads(model, prompts, metric=metric).frame
    with torch.no_grad():
        logits = model(prompts.inputs)
    expected = picked(logits, prompts.targets) - (metric == "logit_diff") * picked(logits, prompts.wrong)
    assert frame["attribution"].sum() == pytest.approx(expected[prompts.scored].mean().item(), abs=1e-5)
    assert (frame["ci_low"] <= frame["attribution"]).all()
    assert (frame["attribution"] <= frame["ci_high"]).all()


@each_variant
def test_logit_differences_turn_round_with_the_answers(variant, prompts):
    model = random_model(**VARIANTS[variant])
    turned = Prompts.from_tensors(prompts.inputs, targets=prompts.wrong, scored=prompts.scored, wrong=prompts.targets)
    there, back = (direct_attributions(model, one, "logit_diff") for one in (prompts, turned))
    torch.testing.assert_close(there, -back, atol=1e-6, rtol=0)
    assert there.abs().max() > 0.01


@each_variant
def test_a_heads_column_is_what_the_residual_loses_without_it(variant, prompts):
    """The oracle needs no direction: remove what the head writes from the final stream, at the scale it had."""
    model = random_model(**VARIANTS[variant])
    names = [f"blocks.{layer}.attn.hook_result" for layer in range(2)] + ["blocks.1.hook_resid_post"]
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.inputs, names_filter=names)
        final = cache["blocks.1.hook_resid_post"]

        def logits(stream):
            if not isinstance(model.ln_final, torch.nn.Identity):
                scale = (final.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
                stream = (stream - stream.mean(-1, keepdim=True)) / scale
                stream = stream if model.ln_final.w is None else stream * model.ln_final.w + model.ln_final.b
            return model.unembed(stream)

        attributed = direct_attributions(model, prompts)
        components = attribute_heads(model, prompts).frame["component"].tolist()
        for layer, name in enumerate(names[:2]):
            for head in range(model.cfg.n_heads):
                lost = logits(final) - logits(final - cache[name][:, :, head])
                column = attributed[..., components.index(f"L{layer}H{head}")]
                torch.testing.assert_close(column, picked(lost, prompts.targets), atol=1e-5, rtol=0)


def test_an_idle_head_contributes_exactly_nothing(prompts):
    model = random_model(normalization_type="LN")
    with torch.no_grad():
        model.blocks[1].attn.W_O[0] = 0
    frame = attribute_heads(model, prompts).frame.set_index("component")
    assert frame.loc["L1H0", ["attribution", "ci_low", "ci_high"]].tolist() == [0.0, 0.0, 0.0]
    assert frame.loc["L1H1", "attribution"] != 0.0


def test_an_example_worked_out_by_hand():
    """One head of width 1 that attends evenly: W_Q = 0. The stream has two directions, one per output token."""
    model = HookedTransformer(
        HookedTransformerConfig(n_layers=1, d_model=2, d_head=1, n_ctx=2, d_vocab=2, mlp_type="linear")
    )
    weights = {
        "embed.W_E": [[1.0, 0.0], [0.0, 3.0]],
        "pos_embed.W_pos": [[0.5, 0.0], [0.0, 0.25]],
        "blocks.0.attn.W_Q": [[[0.0], [0.0]]],
        "blocks.0.attn.W_K": [[[1.0], [1.0]]],
        "blocks.0.attn.W_V": [[[1.0], [2.0]]],
        "blocks.0.attn.W_O": [[[4.0, 0.0]]],
        "blocks.0.attn.b_O": [0.0, 7.0],
        "blocks.0.mlp.W_F": [[0.0, 1.0], [0.0, 0.0]],
        "unembed.W_U": [[1.0, 0.0], [0.0, 2.0]],
        "unembed.b_U": [0.125, -1.0],
    }
    with torch.no_grad():
        for name, value in weights.items():
            model.get_parameter(name).copy_(torch.tensor(value))
    prompts = Prompts.from_tensors(torch.tensor([[0, 1]]), targets=torch.tensor([[0, 1]]), wrong=torch.tensor([[1, 0]]))
    # residual: (1.5, 0) and (0, 3.25); v = 1.5 and 6.5; z = 1.5 and 4, so the head writes (6, 0) and (16, 0).
    # mid: (7.5, 7) and (16, 10.25), of which W_F moves the first entry to the second: (0, 7.5) and (0, 16).
    # columns: embed, pos_embed, L0H0, L0.mlp, bias (b_O's 7 and b_U); token 0 reads entry 0, token 1 twice entry 1
    assert direct_attributions(model, prompts).tolist() == [
        [[1.0, 0.5, 6.0, 0.0, 0.125], [6.0, 0.5, 0.0, 32.0, 14.0 - 1.0]]
    ]
    assert direct_attributions(model, prompts, "logit_diff").tolist() == [
        [[1.0, 0.5, 6.0, -15.0, 0.125 - 13.0], [6.0, 0.5, -16.0, 32.0, 13.0 - 0.125]]
    ]


def test_the_table_names_every_component(prompts):
    result = attribute_heads(random_model(mlp_layers=(1,)), prompts, by="half")
    assert result.frame["component"].unique().tolist() == [
        *("embed", "pos_embed", "L0H0", "L0H1", "L1H0", "L1H1", "L1.mlp", "bias")
    ]
    assert list(result.frame) == [
        *("layer", "head", "component", "method", "metric", "half", "attribution", "ci_low", "ci_high", "n_prompts")
    ]
    assert result.matrix("attribution", half=1).shape == (2, 2)


def test_parts_recombine_to_the_whole_and_batches_do_not_matter(prompts):
    model = random_model(normalization_type="LN")
    whole = attribute_heads(model, prompts).frame.set_index("component")["attribution"]
    split = attribute_heads(model, prompts, by="half", batch_size=4).frame
    weights = {value: int((prompts.scored & (prompts.labels["half"] == value)).sum()) for value in (0, 1)}
    for component, rows in split.groupby("component"):
        total = sum(row.attribution * weights[row.half] for row in rows.itertuples()) / sum(weights.values())
        assert total == pytest.approx(whole[component], abs=1e-6)


def test_what_has_no_logit_is_refused(prompts):
    model = random_model()
    with pytest.raises(InputError, match="needs token targets"):
        attribute_heads(model, Prompts.from_tensors(prompts.inputs, targets=torch.zeros(11, 5)))
    with pytest.raises(InputError, match="needs a wrong answer"):
        attribute_heads(model, Prompts.from_tensors(prompts.inputs), metric="logit_diff")
    with pytest.raises(InputError, match="by = 'segment' is no label"):
        attribute_heads(model, prompts, by="segment")
    with pytest.raises(InputError, match="none of the 0 prompts has a scored position"):
        attribute_heads(model, prompts[:0])
    with pytest.raises(InputError, match="batch_size = 0"):
        attribute_heads(model, prompts, batch_size=0)


@pytest.mark.refusal
def test_an_unknown_metric_is_refused(prompts):
    with pytest.raises(InputError, match="metric = 'prob' is unknown: choose 'logit' or 'logit_diff'"):
        attribute_heads(random_model(), prompts, metric="prob")
