"""Folding and centring keep the function, and make readouts of bare matrices mean what they say."""

import numpy as np
import pytest
import torch

from analyses import attribute_heads, circuit_recall, memory_recall
from interp import HookedTransformer, HookedTransformerConfig, InputError
from interp.weight_processing import center_unembed, center_writing_weights, fold_ln
from tasks.prompts import Prompts

ARCHITECTURES = {
    "attention only": {"attn_only": True},
    "MLP": {"n_heads": 2, "act_fn": "gelu_new"},
    "parallel": {"n_heads": 3, "parallel_attn_mlp": True},
    "one MLP of two": {"mlp_layers": (1,), "attention_dir": "bidirectional"},
    "no biases": {"use_biases": False},
    "identity queries": {"identity_queries": True, "positional_embedding_type": "none"},
    "already folded": {"normalization_type": "LNPre"},
    "other outputs": {"d_vocab_out": 4},
}


def built(**architecture):
    config = {"n_layers": 2, "d_model": 12, "n_ctx": 7, "d_vocab": 9, "normalization_type": "LN"}
    model = HookedTransformer(HookedTransformerConfig(**config | architecture))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return built(**ARCHITECTURES[request.param])


@pytest.fixture
def tokens():
    return torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))


def apart(one, other):
    return float((one - other).detach().abs().max())


def test_folding_keeps_the_outputs(model, tokens):
    folded = fold_ln(model)
    assert apart(folded(tokens), model(tokens)) < 1e-5
    assert folded.cfg.normalization_type == "LNPre"


def test_folded_readers_ignore_the_mean(model):
    folded = fold_ln(model)
    readers = [W for name, W in folded.named_parameters() if name.endswith(("W_Q", "W_K", "W_V", "W_in", "W_U"))]
    assert readers
    assert all(apart(W.mean(dim=-2), torch.zeros(())) < 1e-6 for W in readers)


def test_centring_what_is_written_keeps_the_outputs(model, tokens):
    centred = center_writing_weights(model)
    assert apart(centred(tokens), model(tokens)) < 1e-5
    assert apart(centred(tokens, stop_at_layer=2).mean(dim=-1), torch.zeros(())) < 1e-6


def test_centring_the_unembedding_keeps_log_probabilities(model, tokens):
    centred = center_unembed(model)
    assert apart(centred(tokens).log_softmax(-1), model(tokens).log_softmax(-1)) < 1e-5
    assert apart(centred(tokens).mean(dim=-1), torch.zeros(())) < 1e-5
    assert apart(centred(tokens), model(tokens)) > 1e-3


def test_processing_leaves_the_model_alone(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    cfg = model.cfg
    for process in (fold_ln, center_writing_weights, center_unembed):
        with torch.no_grad():
            for weight in process(model).parameters():
                weight.zero_()
    assert model.cfg == cfg
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_processed_weights_claim_no_seed_and_no_freezing(model):
    for process in (fold_ln, center_writing_weights, center_unembed):
        cfg = process(model).cfg
        assert (cfg.seed, cfg.frozen) == (None, ())


def test_precision_is_kept(model, tokens):
    folded = fold_ln(model.double())
    assert apart(folded(tokens), model(tokens)) < 1e-12


@pytest.mark.parametrize("process", [fold_ln, center_writing_weights])
def test_a_model_without_layer_norm_is_refused(process):
    with pytest.raises(InputError, match="normalization_type is None"):
        process(built(normalization_type=None))


def test_a_linear_memory_is_refused_for_want_of_a_bias():
    with pytest.raises(InputError, match="mlp_type = 'linear' has no bias"):
        fold_ln(built(mlp_type="linear"))
    assert fold_ln(built(mlp_type="linear", attn_only=True)).cfg.use_biases


@pytest.fixture
def of_vectors():
    return built(d_vocab=None, d_in=4, d_out=1, attn_fn="relu", attention_dir="query_masked")


def test_a_model_of_vectors_is_folded_and_centred_without_changing_its_outputs(of_vectors):
    vectors = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    centred = center_writing_weights(of_vectors)
    for processed in (fold_ln(of_vectors), centred):
        assert apart(processed(vectors), of_vectors(vectors)) < 1e-5
    assert apart(of_vectors(vectors, stop_at_layer=0).mean(-1), torch.zeros(())) > 0.01
    assert apart(centred(vectors, stop_at_layer=2).mean(-1), torch.zeros(())) < 1e-5


def test_real_outputs_are_not_centred(of_vectors):
    with pytest.raises(InputError, match="d_out = 1: the model gives real numbers and no logits"):
        center_unembed(of_vectors)


def test_direct_attribution_is_the_same_before_and_after_folding(model, tokens):
    if model.cfg.d_vocab_out != model.cfg.d_vocab:
        tokens = tokens % model.cfg.d_vocab_out
    prompts = Prompts.from_tensors(tokens)
    before, after = (attribute_heads(each, prompts).frame for each in (model, fold_ln(model)))
    assert before["component"].tolist() == after["component"].tolist()
    np.testing.assert_allclose(before["attribution"], after["attribution"], atol=1e-5)


@pytest.fixture
def hidden_copier():
    """A head that copies every token, with LayerNorm gains that hide it from products of its bare matrices."""
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=64, n_ctx=8, d_vocab=20, attn_only=True, normalization_type="LN", seed=0
    )
    model = HookedTransformer(cfg)
    generator = torch.Generator().manual_seed(2)
    gain = torch.randn(64, generator=generator).exp()
    final_gain = torch.randn(64, generator=generator).exp() * (-1) ** torch.arange(64)
    with torch.no_grad():
        model.W_E.copy_(torch.randn(20, 64, generator=generator) / 8)
        attn = model.blocks[0].attn
        attn.W_V[0].copy_(torch.eye(64) / gain[:, None])
        attn.W_O[0].copy_(torch.eye(64))
        model.W_U.copy_(model.W_E.T / final_gain[:, None])
        for name, weight in model.named_parameters():
            if name.endswith(".w"):
                weight.copy_(final_gain if "final" in name else gain)
    return model


def copying(model):
    frame = circuit_recall(model).frame
    return float(frame.loc[frame["memory"] == "OV", "recall"].iloc[0])


def test_folding_uncovers_a_memory_that_gains_hide(hidden_copier):
    assert copying(hidden_copier) < 0.5
    assert copying(fold_ln(hidden_copier)) == 1.0


def test_the_hidden_copier_copies_in_a_forward_pass(hidden_copier):
    # One position, so that all attention is on the token itself; only what the head writes reaches the logits.
    with torch.no_grad():
        tokens = torch.arange(20)[:, None]
        _, cache = hidden_copier.run_with_cache(tokens, names_filter="blocks.0.hook_attn_out")
        logits = hidden_copier(cache["blocks.0.hook_attn_out"], start_at_layer=1)
    assert torch.equal(logits[:, 0].argmax(dim=-1), torch.arange(20))


def test_the_caveat_advises_folding_until_it_is_done(hidden_copier):
    before, after = circuit_recall(hidden_copier).caveat, circuit_recall(fold_ln(hidden_copier)).caveat
    assert "fold_ln" in before
    assert "normalisation's scale" in before
    assert "fold_ln" not in after
    assert "normalisation's scale" in after  # each position's own, which no matrix can hold


def test_the_weights_before_training_of_a_processed_model_are_unknown():
    trained = built(attn_only=True)
    assert memory_recall(trained).settings["initial"] == "drawn from cfg.seed"
    folded = memory_recall(fold_ln(trained))
    assert folded.settings["initial"] == "unknown"
    assert any("converted or processed, give init_model" in note for note in folded.notes)
    given = memory_recall(fold_ln(trained), init_model=fold_ln(HookedTransformer(trained.cfg)))
    assert given.settings["initial"] == "given"
