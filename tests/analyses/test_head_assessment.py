import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analyses import ablate, ablate_heads, prune_heads
from analyses.head_assessment import assess_heads, effective_heads, effective_heads_ends, share_ends
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.regression import preprocess_then_optimize_transformer
from tasks import SparseRegression
from tasks.errors import InputError
from tasks.prompts import Prompts

N_PROMPTS, N_POS, N_VOCAB, N_HEADS = 30, 4, 5, 3


def random_model(seed=2, **options) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 6, "n_ctx": N_POS, "n_heads": N_HEADS, "d_vocab": N_VOCAB, "attn_only": True}
    model = HookedTransformer(HookedTransformerConfig(**(sizes | options)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.6)
    return model


def prompts_answered_by(model: HookedTransformer, seed=0, n=N_PROMPTS) -> Prompts:
    """Targets that the model itself prefers, so that most of its heads do good; not every position is scored."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_VOCAB, (n, N_POS), generator=generator)
    with torch.no_grad():
        targets = model(tokens).argmax(-1)
    scored = torch.rand((n, N_POS), generator=generator) < 0.6
    scored[0] = False
    return Prompts.from_tensors(tokens, targets, scored, wrong=(targets + 1) % N_VOCAB, seed=seed)


def loss_without(model, prompts, layer=None, head=None, metric="loss") -> float:
    """One prompt and position at a time."""

    def silence(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    hooks = [] if layer is None else [(f"blocks.{layer}.attn.hook_z", silence)]
    total, n = 0.0, 0
    for b in range(len(prompts)):
        tokens = prompts.inputs[b : b + 1]
        with torch.no_grad():
            logits = (model.run_with_hooks(tokens, fwd_hooks=hooks) if hooks else model(tokens))[0].double()
        for t in range(N_POS):
            if prompts.scored[b, t]:
                right = prompts.targets[b, t]
                total += float(
                    logits[t].argmax() == right if metric == "accuracy" else -logits[t].log_softmax(0)[right]
                )
                n += 1
    return total / n


@pytest.mark.parametrize(("metric", "worse"), [("loss", 1), ("accuracy", -1)])
def test_shares_and_numbers_are_those_of_a_loop_over_heads(metric, worse):
    model = random_model()
    prompts = prompts_answered_by(model)
    result = assess_heads(model, prompts, metric=metric)
    clean = loss_without(model, prompts, metric=metric)
    for layer in range(2):
        effects = [loss_without(model, prompts, layer, head, metric) - clean for head in range(N_HEADS)]
        harm = [max(worse * effect, 0.0) for effect in effects]
        shares = [each / sum(harm) for each in harm]
        rows = result.frame[result.frame["layer"] == layer]
        assert rows["component"].tolist() == [f"L{layer}H{head}" for head in range(N_HEADS)]
        assert rows["delta"].tolist() == pytest.approx(effects, abs=1e-6)
        assert rows["share"].tolist() == pytest.approx(shares, abs=1e-5)
        assert (rows["baseline"] + rows["delta"]).tolist() == pytest.approx(rows["ablated"].tolist())
        assert (rows["n_prompts"] == int(prompts.scored.any(1).sum())).all()
        of_layer = result.layers.iloc[layer]
        assert of_layer["effective_heads"] == pytest.approx(1 / sum(each**2 for each in shares), abs=1e-4)
        assert of_layer["dominant"] == f"L{layer}H{int(np.argmax(harm))}"
        assert of_layer["dominant_share"] == pytest.approx(max(shares), abs=1e-5)
        assert of_layer["n_negative"] == sum(worse * effect < 0 for effect in effects)
        assert of_layer["negative"] == pytest.approx(sum(e for e in effects if worse * e < 0), abs=1e-6)
        assert result.ranking(layer) == tuple(sorted(range(N_HEADS), key=lambda head: -worse * effects[head]))


def test_the_table_has_these_columns():
    model = random_model()
    result = assess_heads(model, prompts_answered_by(model))
    assert list(result.frame) == [
        *("layer", "head", "component", "metric", "baseline", "ablated", "delta", "ci_low", "ci_high"),
        *("share", "share_ci_low", "share_ci_high", "n_prompts"),
    ]
    assert result.matrix("share").sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


@pytest.fixture(scope="module")
def construction():
    """Six heads prepare a coordinate each, alike by symmetry; behind them one head works and five are idle."""
    task = SparseRegression(d=6, sparsity=2, n_context=30, noise=0.3, weights="signs")
    model = preprocess_then_optimize_transformer(d=6, n_ctx=31, steps=2, step_size=0.25)
    return assess_heads(model, task.sample(400, seed=1), metric="excess_risk")


def test_heads_that_are_alike_by_construction_have_equal_shares_within_their_intervals(construction):
    rows = construction.frame[construction.frame["layer"] == 0]
    assert ((rows["share_ci_low"] <= 1 / 6) & (rows["share_ci_high"] >= 1 / 6)).sum() >= 5  # of six 95 % intervals
    first = construction.layers.iloc[0]
    assert first["ci_low"] > 5
    assert first["ci_high"] == 6.0
    assert 5 < first["effective_heads"] < 6


def test_a_layer_of_one_head_has_exactly_one_and_idle_heads_are_exactly_zero(construction):
    later = construction.frame[construction.frame["layer"] > 0]
    idle, working = later[later["head"] > 0], later[later["head"] == 0]
    assert (idle[["delta", "ci_low", "ci_high", "share", "share_ci_low", "share_ci_high"]] == 0.0).all(axis=None)
    assert (working[["share", "share_ci_low", "share_ci_high"]] == 1.0).all(axis=None)
    assert (working["ci_low"] > 0).all()
    layers = construction.layers.iloc[1:]
    assert (layers[["effective_heads", "ci_low", "ci_high"]] == 1.0).all(axis=None)
    assert layers["dominant"].tolist() == ["L1H0", "L2H0"]
    assert construction.notes == ()


def model_of_heads_that_write(*logits: float) -> tuple[HookedTransformer, Prompts]:
    """One layer in which head h adds logits[h] to the right answer, token 0, whatever the prompt."""
    model = random_model(n_layers=1, n_heads=len(logits), d_model=6, d_head=2, use_biases=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.embed.W_E[:, 0] = 1.0
        model.blocks[0].attn.W_V[:, 0, 0] = 1.0
        for head, logit in enumerate(logits):
            model.blocks[0].attn.W_O[head, 0, 1] = logit
        model.unembed.W_U[1, 0] = 1.0
    tokens = torch.randint(N_VOCAB, (12, N_POS), generator=torch.Generator().manual_seed(0))
    return model, Prompts.from_tensors(tokens, torch.zeros_like(tokens))


def test_a_planted_harmful_head_has_share_zero_and_is_counted():
    model, prompts = model_of_heads_that_write(2.0, -1.0, 1.0)

    def loss(logit):
        return np.log1p(4 * np.exp(-logit))

    result = assess_heads(model, prompts)
    effects = [loss(2.0 - own) - loss(2.0) for own in (2.0, -1.0, 1.0)]
    assert result.frame["delta"].tolist() == pytest.approx(effects, abs=1e-6)
    assert effects[1] < 0
    positive = effects[0] + effects[2]
    assert result.frame["share"].tolist() == pytest.approx(
        [effects[0] / positive, 0.0, effects[2] / positive], abs=1e-6
    )
    assert result.frame["share"][1] == 0.0
    assert result.layers["n_negative"].tolist() == [1]
    assert result.layers["negative"].tolist() == pytest.approx([effects[1]], abs=1e-6)
    assert result.notes == ("L0: 1 of 3 heads the model does better without (loss): their shares are 0",)


def test_a_layer_whose_heads_all_do_harm_has_no_shares_and_a_note():
    model, prompts = model_of_heads_that_write(-1.0, -2.0)
    result = assess_heads(model, prompts)
    assert (result.frame["delta"] < 0).all()
    assert result.frame[["share", "share_ci_low", "share_ci_high"]].isna().all(axis=None)
    of_layer = result.layers.iloc[0]
    assert of_layer[["effective_heads", "ci_low", "ci_high", "dominant", "dominant_share"]].isna().all()
    assert of_layer["n_negative"] == 2
    assert len(result.notes) == 1
    assert "L0: no head's loss does harm, so there are no shares (2 of 2 heads" in result.notes[0]
    assert result.plot().data[0].z.shape == (1, 2)
    assert "no shares" in result._repr_html_()


def test_heads_that_do_nothing_have_no_shares_either():
    model, prompts = model_of_heads_that_write(0.0, 0.0)
    result = assess_heads(model, prompts)
    assert (result.frame["delta"] == 0.0).all()
    assert result.frame["share"].isna().all()
    assert result.layers["n_negative"].tolist() == [0]


def test_shares_of_noise_are_noted():
    model = random_model()
    noise = prompts_answered_by(model)
    random = Prompts.from_tensors(
        noise.inputs, torch.randint(N_VOCAB, noise.targets.shape, generator=torch.Generator().manual_seed(3))
    )
    weak = random_model()
    with torch.no_grad():
        for block in weak.blocks:
            block.attn.W_O *= 1e-3
    notes = assess_heads(weak, random).notes
    assert any("may be shares of noise" in note for note in notes)
    assert not any("noise" in note for note in assess_heads(model, noise).notes if note.startswith("L1"))


def test_two_copies_of_a_head_have_exactly_half_in_every_resample():
    """Only if a resample is the same prompts for both heads does the interval have no width."""
    model = random_model(n_heads=2, d_head=3)
    with torch.no_grad():
        for block in model.blocks:
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
                weight = getattr(block.attn, name)
                weight[1] = weight[0]
    result = assess_heads(model, prompts_answered_by(model))
    last = result.frame[result.frame["layer"] == 1]
    assert (last["delta"] > 0).all()
    assert last["ci_high"].iloc[0] - last["ci_low"].iloc[0] > 0.1
    for column in ("share", "share_ci_low", "share_ci_high"):
        assert last[column].tolist() == pytest.approx([0.5, 0.5], abs=1e-4)
    assert result.layers["ci_low"][1] == pytest.approx(2.0, abs=1e-3)


def test_the_unit_of_the_metric_does_not_matter():
    model = random_model()
    prompts = prompts_answered_by(model)

    def per_prompt(factor):
        def own(outputs, prompts):
            chosen = outputs.log_softmax(-1).gather(-1, prompts.targets[..., None]).squeeze(-1)
            return -factor * (chosen * prompts.scored).sum(dim=1)

        return assess_heads(model, prompts, metric=own)

    one, other = per_prompt(1.0), per_prompt(40.0)
    shares = ["share", "share_ci_low", "share_ci_high"]
    numbers = ["effective_heads", "ci_low", "ci_high"]
    np.testing.assert_allclose(one.frame[shares], other.frame[shares], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.layers[numbers], other.layers[numbers], rtol=1e-4)
    np.testing.assert_allclose(40 * one.frame["delta"], other.frame["delta"], rtol=1e-4, atol=1e-5)


def test_the_order_of_heads_does_not_matter():
    model, order = random_model(), [2, 0, 1]
    prompts = prompts_answered_by(model)
    shuffled = random_model()
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            getattr(shuffled.blocks[1].attn, name).copy_(getattr(model.blocks[1].attn, name)[order])
    one, other = assess_heads(model, prompts), assess_heads(shuffled, prompts)
    shares = one.frame[one.frame["layer"] == 1]["share"].to_numpy()
    assert other.frame[other.frame["layer"] == 1]["share"].to_numpy() == pytest.approx(shares[order], abs=1e-5)
    np.testing.assert_allclose(one.layers["ci_low"], other.layers["ci_low"], atol=1e-4)


def test_the_batch_size_does_not_matter():
    model = random_model()
    prompts = prompts_answered_by(model)
    one, other = (assess_heads(model, prompts, method="mean", batch_size=size) for size in (7, 512))
    columns = ["delta", "ci_low", "share", "share_ci_low", "share_ci_high"]
    np.testing.assert_allclose(one.frame[columns], other.frame[columns], atol=1e-5)


def test_prompts_of_which_one_scores_give_shares_without_intervals():
    model = random_model()
    prompts = prompts_answered_by(model)
    where = torch.zeros_like(prompts.scored)
    where[int(prompts.scored.any(1).nonzero()[0])] = True
    result = assess_heads(model, prompts.score_only(where))
    assert result.frame["share"].notna().all()
    assert result.frame[["ci_low", "share_ci_low"]].isna().all(axis=None)
    assert result.layers["ci_low"].isna().all()
    assert "fewer than 2 prompts score there" in result.notes[0]


def test_both_tables_are_saved_and_shown(tmp_path):
    model = random_model()
    result = assess_heads(model, prompts_answered_by(model), seed=4)
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "head_assessment.csv",
        "head_assessment.json",
        "head_assessment_layers.csv",
    ]
    saved = pd.read_csv(tmp_path / "head_assessment_layers.csv")
    assert saved["effective_heads"].tolist() == pytest.approx(result.layers["effective_heads"].tolist())
    assert "effective_heads" in result._repr_html_()
    assert {"seed": 4, "method": "zero", "metric": "loss", "prompts_seed": 0}.items() <= result.settings.items()
    heat, points = result.plot().data[:2]
    assert heat.z.tolist() == result.matrix("share").tolist()
    assert list(points.x) == result.layers["effective_heads"].tolist()


def test_the_number_counts_heads():
    assert effective_heads(torch.tensor([2.0, 2.0, 2.0])).item() == pytest.approx(3.0)
    assert effective_heads(torch.tensor([[0.0, 7.0, 0.0], [1.0, 1.0, 0.0]])).tolist() == pytest.approx([1.0, 2.0])
    # by hand: shares 3/4 and 1/4, squares 9/16 + 1/16
    assert effective_heads(torch.tensor([3.0, 1.0])).item() == pytest.approx(16 / 10)
    random = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    number = effective_heads(random)
    assert (number >= 1).all()
    assert (number <= 8).all()
    torch.testing.assert_close(effective_heads(random * 1e-6), number)


@pytest.mark.parametrize(
    ("effects", "message"),
    [
        ([[1.0, -0.5]], r"an effect is -0.5: give effects of at least 0, max\(effect, 0\) say"),
        ([[1.0, float("nan")]], "an effect is nan"),
        ([[1.0, 1.0], [0.0, 0.0]], "a layer's effects are all zero"),
    ],
)
def test_effects_that_have_no_shares_are_refused(effects, message):
    with pytest.raises(InputError, match=message) as refusal:
        effective_heads(torch.tensor(effects))
    assert "\n" not in str(refusal.value)


def test_what_ablate_refuses_is_refused():
    model = random_model()
    prompts = prompts_answered_by(model)
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        assess_heads(model, prompts[:0])
    with pytest.raises(InputError, match="needs a wrong answer to compare with"):
        assess_heads(model, Prompts.from_tensors(prompts.inputs), metric="logit_diff")
    with pytest.raises(InputError, match="drop it, or choose method = 'mean'"):
        assess_heads(model, prompts, over="batch_pos")
    with pytest.raises(InputError, match="L2 was not assessed: choose a layer from 0 to 1"):
        assess_heads(model, prompts).ranking(2)


@pytest.mark.refusal
def test_a_run_in_place_of_its_model_is_refused():
    class Run:
        model = random_model()

    with pytest.raises(InputError, match=r"Run is no model, did you mean its \.model\?"):
        assess_heads(Run(), prompts_answered_by(Run.model))


# Do the intervals hold the truth? Effects per prompt are drawn, so that the truth is known.

TRUTHS = {
    "even": np.ones(8),
    "graded": np.linspace(0.5, 1.5, 8),
    "dominated": np.array([8, 1, 0.5, 0.5, 0.3, 0.2, 0.1, 0.1]),
    "negative": np.array([4, 2, 1, 0.5, -0.2, -0.2, 0.1, 0.1]),
    "idle": np.array([8.0, 1, 0, 0, 0, 0, 0, 0]),
}


def skewed_effects(rng, truth, n):
    """A difficulty that a prompt's heads share, one of each head's own, and noise that grows with the prompt's."""
    difficulty, own = rng.exponential(1, (n, 1)), rng.exponential(1, (n, len(truth)))
    noise = rng.normal(0, 0.5, (n, len(truth))) * np.abs(truth).max() * difficulty
    return truth * (difficulty + own) / 2 + noise * (truth != 0)


def coverage(truth, n_prompts, n_simulations, ends):
    """Share of simulated layers whose interval of the number, and of every share, holds the truth."""
    rng = np.random.default_rng(5)
    positive = np.maximum(truth, 0)
    number, shares = positive.sum() ** 2 / (positive**2).sum(), positive / positive.sum()
    held_number, held_shares = [], []
    for simulation in range(n_simulations):
        if simulation % 20 == 0:
            weights = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=1000) / n_prompts
        resampled = weights @ skewed_effects(rng, truth, n_prompts)
        low, high = ends(resampled, n_prompts)
        held_number.append(low - 1e-9 <= number <= high + 1e-9)
        low, high = share_ends(resampled, n_prompts)
        held_shares.append((low - 1e-9 <= shares) & (shares <= high + 1e-9))
    return np.mean(held_number), np.mean(held_shares, axis=0)


def test_intervals_hold_the_truth_of_even_heads_where_uncorrected_ones_never_do():
    def uncorrected(resampled, n):
        positive = np.maximum(resampled, 0)
        return np.quantile(positive.sum(1) ** 2 / (positive**2).sum(1), [0.025, 0.975])

    assert coverage(TRUTHS["even"], 200, 60, effective_heads_ends)[0] == 1.0
    assert coverage(TRUTHS["even"], 200, 60, uncorrected)[0] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("n_prompts", [128, 512])
@pytest.mark.parametrize("truth", ["graded", "dominated", "negative", "idle"])
def test_95_percent_intervals_of_number_and_shares_hold_the_truth_in_90_to_97_percent(truth, n_prompts):
    of_number, of_shares = coverage(TRUTHS[truth], n_prompts, 600, effective_heads_ends)
    error = np.sqrt(0.9 * 0.1 / 600)
    assert 0.90 - 2 * error <= of_number <= 0.97 + 2 * error
    assert (of_shares >= 0.90 - 2 * error).all()  # and up to 1, where the truth is 0


def test_the_ends_are_those_of_the_formula():
    resampled = np.random.default_rng(1).normal([2.0, 1.0, -0.1], 0.3, (400, 3))
    positive = resampled.clip(0)
    centre = resampled.mean(0).clip(0)
    S1, S2, T = positive.sum(1) ** 2, (positive**2).sum(1), positive.sum(1)
    S1 = S1 - 2 * (S1.mean() - centre.sum() ** 2)
    S2 = S2 - 2 * (S2.mean() - (centre**2).sum())
    T = T - 2 * (T.mean() - centre.sum())
    tail = stats.norm.cdf(np.sqrt(50 / 49) * stats.t.ppf(0.05, 49))
    expected = np.quantile((S1 / S2).clip(1, 3), [tail, 1 - tail])
    np.testing.assert_allclose(effective_heads_ends(resampled, 50, confidence=0.9), expected)
    expected = np.quantile((positive / T[:, None]).clip(0, 1), [tail, 1 - tail], axis=0)
    np.testing.assert_allclose(share_ends(resampled, 50, confidence=0.9), expected)


def test_absent_heads_are_no_heads():
    model = random_model(absent_heads=("L1H[1-2]",))
    prompts = prompts_answered_by(model)
    found = assess_heads(model, prompts)
    assert found.frame["component"].tolist() == ["L0H0", "L0H1", "L0H2", "L1H0"]
    assert found.layers["n_heads"].tolist() == [3, 1]
    assert found.ranking(1) == (0,)
    found.plot()
    with pytest.raises(InputError, match="L1H2 is absent from this model"):
        ablate(model, prompts, ["L1H2"])
    assert ablate_heads(model, prompts).frame["component"].tolist() == found.frame["component"].tolist()


def test_pruning_keeps_and_draws_only_heads_that_are_there():
    model = random_model(absent_heads=("L1H0",))
    pruned = prune_heads(model, prompts_answered_by(model), importance=prompts_answered_by(model, seed=1), n_random=3)
    ranked = pruned.frame.loc[pruned.frame["arm"] == "by importance", "heads"]
    assert {head for heads in ranked for head in heads.split()} == {"L1H1", "L1H2"}
    drawn = pruned.frame.loc[(pruned.frame["arm"] == "at random") & (pruned.frame["kept"] == 2), "delta"]
    assert drawn.tolist() == [0.0]  # both heads of that layer
