"""Composition scores and spectra of weights, against dense numpy and a circuit whose weights were written by hand."""

import math

import numpy as np
import pytest
import torch

from analyses.composition import score_composition
from analyses.head_weights import head_circuit
from analyses.spectra import weight_spectra
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.copying import copy_circuit
from interp.constructions.induction import induction_circuit
from interp.constructions.regression import gradient_descent_transformer
from tasks.errors import InputError


def random_model(**options):
    sizes = {"n_layers": 3, "d_model": 12, "n_ctx": 5, "n_heads": 2, "d_head": 4, "d_vocab": 9, "attn_only": True}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def dense(model, layer, head):
    """W_Q W_Kᵀ and W_V W_O in numpy, what reads having LayerNorm's gain and centring."""
    W = {name: getattr(model, f"W_{name}")[layer, head].detach().double().numpy() for name in "QKVO"}
    if model.cfg.normalization_type == "LN":
        d = model.cfg.d_model
        read = (np.eye(d) - np.ones((d, d)) / d) @ np.diag(model.blocks[layer].ln1.w.detach().double().numpy())
        W |= {name: read @ W[name] for name in "QKV"}
    return W["Q"] @ W["K"].T, W["V"] @ W["O"]


@pytest.mark.parametrize("norm", [None, "LN"])
def test_scores_are_those_of_dense_matrices(norm):
    model = random_model(normalization_type=norm)
    frame = score_composition(model, n_random=20).frame
    assert len(frame) == 3 * 4 * 3  # pairs of layers, pairs of heads, inputs
    for row in frame.itertuples():
        _, OV = dense(model, row.writer_layer, row.writer_head)
        QK, OV_reader = dense(model, row.reader_layer, row.reader_head)
        B = {"q": QK, "k": QK.T, "v": OV_reader}[row.input]
        expected = np.linalg.norm(OV @ B) / (np.linalg.norm(OV) * np.linalg.norm(B))
        assert row.score == pytest.approx(expected, rel=1e-6)


def test_chance_is_the_same_matrices_with_a_rotation_between_them():
    model = random_model()
    frame = score_composition(model, n_random=4000, seed=1).frame
    row = frame[(frame["writer"] == "L0H1") & (frame["reader"] == "L2H0") & (frame["input"] == "k")].iloc[0]
    OV, QK = dense(model, 0, 1)[1], dense(model, 2, 0)[0]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        rotation, _ = np.linalg.qr(rng.standard_normal((12, 12)))
        drawn.append(np.linalg.norm(OV @ rotation @ QK.T) / (np.linalg.norm(OV) * np.linalg.norm(QK)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert row["chance"] == pytest.approx(np.mean(drawn), abs=0.005)
    assert [row["chance_low"], row["chance_high"]] == pytest.approx([low, high], abs=0.012)
    assert np.mean(np.square(drawn)) == pytest.approx(1 / 12, rel=0.03)  # whatever the matrices


def test_unrelated_heads_are_above_chance_as_often_as_p_says():
    frame = score_composition(random_model(n_layers=4, n_heads=6, d_head=3), n_random=400).frame
    assert len(frame) == 6 * 36 * 3
    share = float((frame["p"] <= 0.05).mean())
    assert 0.02 < share < 0.09
    outside = (frame["score"] < frame["chance_low"]) | (frame["score"] > frame["chance_high"])
    assert 0.02 < float(outside.mean()) < 0.09


def test_the_induction_head_composes_with_the_previous_token_head_by_its_keys_alone():
    """A = Σ_v w_E(v)ᵀ w_1(v) over n tokens, B = β Σ_k w_1(k)ᵀ w_E(k) over triggers: |A B| = β √|Q| = |B|, |A| = √n."""
    n = 9
    model = induction_circuit(d_vocab=n, n_ctx=8, triggers=[1, 4], dtype=torch.float64).model
    frame = score_composition(model).frame.set_index("input")
    assert frame["score"].tolist() == pytest.approx([0, 1 / math.sqrt(n), 0], abs=1e-12)
    assert frame.loc["k", "score"] > frame.loc["k", "chance_high"]
    assert frame.loc["k", "p"] == pytest.approx(1 / 201)
    assert frame.loc["q", "p"] == 1
    assert frame.loc["k", "chance"] == pytest.approx(1 / math.sqrt(model.cfg.d_model), rel=0.05)


def test_heads_that_write_nothing_have_no_score():
    model = induction_circuit(d_vocab=4, n_ctx=5, triggers=[0], idle_heads=1).model
    found = score_composition(model, n_random=10)
    idle = found.frame["writer"] == "L0H1"
    assert found.frame.loc[idle, "score"].isna().all()
    assert found.frame.loc[idle, "p"].isna().all()
    assert found.frame.loc[(found.frame["reader"] == "L1H1") & ~idle, "score"].isna().tolist() == [False, False, True]
    assert any("have no score" in note for note in found.notes)


def test_an_absent_head_is_no_partner():
    frame = score_composition(random_model(absent_heads=("L1H1",)), n_random=5).frame
    assert "L1H1" not in set(frame["writer"]) | set(frame["reader"])


# Spectra.


def full_circuits(model, layer, head):
    QK, OV = dense(model, layer, head)
    W_E, W_U = (weight.detach().double().numpy() for weight in (model.W_E, model.W_U))
    return {"OV": W_E @ OV @ W_U, "QK": W_E @ QK @ W_E.T}


def test_eigenvalues_and_singular_values_are_those_of_the_full_circuits():
    model = random_model(n_layers=2)
    found = weight_spectra(model, n_random=5)
    for row in found.frame.itertuples():
        matrix = full_circuits(model, row.layer, row.head)[row.circuit]
        expected = np.linalg.eigvals(matrix)
        assert row.positive == pytest.approx(expected.sum().real / np.abs(expected).sum(), abs=1e-6)
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert row.norm == pytest.approx(np.linalg.norm(matrix), rel=1e-6)
        assert row.largest == pytest.approx(singular[0], rel=1e-6)
        assert row.effective_rank == pytest.approx((singular**2).sum() ** 2 / (singular**4).sum(), rel=1e-6)
        of_it = (found.singular_values["component"] == row.component) & (
            found.singular_values["circuit"] == row.circuit
        )
        np.testing.assert_allclose(found.singular_values.loc[of_it, "value"], singular[:4], rtol=1e-6)
        largest = found.eigenvalues[
            (found.eigenvalues["component"] == row.component) & (found.eigenvalues["circuit"] == row.circuit)
        ]
        sizes = np.hypot(largest["real"], largest["imaginary"])
        np.testing.assert_allclose(sizes, np.sort(np.abs(expected))[::-1][:4], rtol=1e-5)


def test_chance_of_eigenvalues_is_a_rotation_of_what_is_written():
    model = random_model(n_layers=1, n_heads=1)
    row = weight_spectra(model, circuits=["OV"], n_random=3000).frame.iloc[0]
    matrix = full_circuits(model, 0, 0)["OV"]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        Q, R = np.linalg.qr(rng.standard_normal((9, 9)))
        values = np.linalg.eigvals(matrix @ (Q * np.sign(np.diag(R))))
        drawn.append(values.sum().real / np.abs(values).sum())
    assert [row["chance_low"], row["chance_high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.05)
    assert np.mean(drawn) == pytest.approx(0, abs=0.03)


def test_copying_heads_have_positive_eigenvalues_and_their_negative_negative_ones():
    known = copy_circuit(copy_logit=3.0)
    found = weight_spectra(known.model, circuits=["OV"]).frame.set_index("component")
    assert found.loc["L0H0", "positive"] == pytest.approx(1)
    assert found.loc["L0H0", "largest"] == pytest.approx(3)
    assert found.loc["L0H0", "effective_rank"] == pytest.approx(12)
    assert found.loc["L0H0", "p"] < 0.01
    assert math.isnan(found.loc["L0H1", "positive"])  # the decoy writes where nobody reads
    with torch.no_grad():
        known.model.blocks[0].attn.W_O.neg_()
    negative = weight_spectra(known.model, circuits=["OV"]).frame.set_index("component")
    assert negative.loc["L0H0", "positive"] == pytest.approx(-1)


def test_the_final_layer_norm_is_part_of_what_is_written():
    model = random_model(n_layers=1, normalization_type="LN")
    found = head_circuit(model, "L0H1").AB.numpy()
    OV, d = dense(model, 0, 1)[1], model.cfg.d_model
    centred = np.eye(d) - np.ones((d, d)) / d
    gain = np.diag(model.ln_final.w.detach().double().numpy())
    expected = model.W_E.detach().double().numpy() @ OV @ centred @ gain @ model.W_U.detach().double().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_models_of_real_vectors_have_circuits_between_residuals():
    model = gradient_descent_transformer(d=3, n_ctx=5, steps=2, step_size=0.1)
    found = weight_spectra(model, circuits=["OV"], ends="residual", n_random=5)
    assert found.frame["norm"].tolist() == pytest.approx([0.1 * math.sqrt(2)] * 2)
    with pytest.raises(InputError, match=r"reads 4 and writes 1 values, .* give ends = 'residual'"):
        weight_spectra(model)


def test_results_draw_and_save(tmp_path):
    model = random_model(n_layers=2)
    for found in (score_composition(model, n_random=5), weight_spectra(model, n_random=5)):
        assert len(found.plot().data) > 0
        folder = found.save(tmp_path / found.name)
        assert (folder / f"{found.name}.csv").is_file()
        assert "<table" in found._repr_html_()


def test_the_same_seed_draws_the_same_chance():
    model = random_model(n_layers=2)
    one, two, other = (score_composition(model, n_random=20, seed=seed).frame["chance"] for seed in (3, 3, 4))
    assert one.equals(two)
    assert not one.equals(other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: score_composition(random_model(n_layers=1)), "composition needs heads in two layers"),
        (lambda model: score_composition(model, n_random=1), "n_random = 1 must be a whole number, at least 2"),
        (lambda model: score_composition(model, confidence=1.0), "confidence = 1.0: give a share between 0 and 1"),
        (lambda model: weight_spectra(model, n_random=0), "n_random = 0 must be"),
        (lambda model: weight_spectra(model, confidence=0.0), "confidence = 0.0: give a share"),
        (lambda model: weight_spectra(model, circuits=[]), "circuits is empty: choose 'OV', 'QK' or both"),
        (lambda model: head_circuit(model, "L7H0"), "L7H0 does not exist"),
        (lambda model: head_circuit(model, "L0.mlp"), "L0.mlp is no head: name one, L1H0 say"),
    ],
)
def test_refusals_say_what_to_do(call, message):
    model = random_model()
    assert head_circuit(model, (2, 1), "QK").shape == (9, 9)
    with pytest.raises(InputError, match=message) as refusal:
        call(model)
    assert "\n" not in str(refusal.value)


@pytest.mark.refusal
def test_unknown_names_are_refused():
    model = random_model()
    with pytest.raises(InputError, match="circuit = 'VO' is unknown: choose 'OV' or 'QK'"):
        weight_spectra(model, circuits=["VO"])  # pyright: ignore
    with pytest.raises(InputError, match="ends = 'vocab' is unknown: choose 'tokens' or 'residual'"):
        head_circuit(model, "L0H0", ends="vocab")  # pyright: ignore
    with pytest.raises(InputError, match=r"did you mean its \.model"):
        score_composition(induction_circuit(d_vocab=3, n_ctx=4, triggers=[0]))  # pyright: ignore
