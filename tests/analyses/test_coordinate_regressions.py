import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from analyses.coordinate_regressions import Regressions, preprocessed_features
from interp import HookedTransformer, HookedTransformerConfig
from tasks import SparseRegression

TASK = SparseRegression(d=3, sparsity=1, n_context=8, n_queries=2)
PROMPTS, FIT = TASK.sample(30, seed=1), TASK.sample(40, seed=2)


def model(d_head) -> HookedTransformer:
    fields = {"n_layers": 2, "n_heads": 2, "d_model": 5, "d_head": d_head, "n_ctx": 10, "d_in": 4, "d_out": 1}
    fields |= {"attention_dir": "query_masked", "n_queries": 2, "normalization_type": "LN"}
    return HookedTransformer(HookedTransformerConfig(**fields, positional_embedding_type="none", init_mode="gpt2"))


def test_candidates_are_r_times_x_by_a_loop():
    features = preprocessed_features(PROMPTS)
    assert features.shape == (30, 10, 3)
    x, y = PROMPTS.inputs[..., :3].double(), PROMPTS.inputs[..., 3].double()
    for b in (0, 17):
        for j in range(3):
            r = sum(float(x[b, i, j] * y[b, i]) for i in range(8)) / 8  # eight pairs; the two queries have no y
            for t in range(10):
                assert features[b, t, j].item() == pytest.approx(r * float(x[b, t, j]), abs=1e-9)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("d_head", [2, 7])  # below and above d_model
def test_both_r2_are_scikit_learns_on_what_the_heads_write(d_head, layer):
    net = model(d_head)
    fitted = Regressions.fit(net, FIT, layer, batch_size=16)
    reading, writing = fitted.explained_squares(net, PROMPTS, layer, batch_size=16)
    r2, share = ((sums.sum(0) / totals.sum(0)).reshape(2, 3) for sums, totals in (reading, writing))

    def data(prompts):
        point = f"blocks.{layer}.attn.hook_result"
        _, cache = net.run_with_cache(prompts.inputs, names_filter=[point])
        written = cache[point].detach().double().flatten(0, 1).numpy()
        return written, preprocessed_features(prompts).flatten(0, 1).numpy()

    (written_fit, features_fit), (written, features) = data(FIT), data(PROMPTS)
    for head in range(2):
        explained = []
        for j in range(3):
            line = LinearRegression().fit(written_fit[:, head], features_fit[:, j])
            missed = features[:, j] - line.predict(written[:, head])
            expected = 1 - (missed**2).sum() / ((features[:, j] - features_fit[:, j].mean()) ** 2).sum()
            assert r2[head, j] == pytest.approx(expected, abs=1e-5)
            line = LinearRegression().fit(features_fit[:, j : j + 1], written_fit[:, head])
            missed = written[:, head] - line.predict(features[:, j : j + 1])
            around = written[:, head] - written_fit[:, head].mean(axis=0)
            assert share[head, j] == pytest.approx(1 - (missed**2).sum() / (around**2).sum(), abs=1e-5)
            in_sample = written_fit[:, head] - line.predict(features_fit[:, j : j + 1])
            explained.append(-(in_sample**2).sum())
        assert fitted.own_coordinate[head] == int(np.argmax(explained))


def test_a_head_that_always_writes_the_same_has_no_coordinate():
    net = model(2)
    with torch.no_grad():
        net.blocks[0].attn.W_V[0].zero_()
        net.blocks[0].attn.b_V[0] = 1.0
    own = Regressions.fit(net, FIT, 0, batch_size=512).own_coordinate
    assert own[0] is None
    assert own[1] in (0, 1, 2)
