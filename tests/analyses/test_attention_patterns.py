import itertools

import pytest
import torch

from analyses import score_attention_patterns
from interp import HookedTransformer, HookedTransformerConfig
from tasks import BigramICL
from tasks.errors import InputError
from tasks.prompts import Prompts

SIZES = {"n_layers": 1, "d_model": 8, "n_ctx": 7, "n_heads": 2, "d_vocab": 4, "attn_only": True}


def model_of(**options) -> HookedTransformer:
    return HookedTransformer(HookedTransformerConfig(**(SIZES | options)))


def random_prompts(n=12, seed=0, triggers=False) -> Prompts:
    tokens = torch.randint(4, (n, 7), generator=torch.Generator().manual_seed(seed))
    return Prompts.from_tensors(tokens, labels={"trigger": tokens < 2} if triggers else {})


def with_patterns(model, patterns):
    """The model with its attention patterns replaced until reset_hooks: [batch, head, dest, src]."""

    def write(pattern, hook):
        return patterns[: len(pattern)].to(pattern)

    model.add_hook("blocks.0.attn.hook_pattern", write)
    return model


def frame_of(model, prompts, **how):
    return score_attention_patterns(model, prompts, **how).frame.set_index(["metric", "component"])


# Which pairs a relation names, from its definition, one pair at a time.


def is_related(relation, x, trigger, q, k):
    """Whether destination q looks at source k along the relation, in the prompt x."""
    before = k == q - 1
    follows_the_same = 1 <= k <= q and x[k - 1] == x[q]
    return {
        "previous_token": before,
        "duplicate": k < q and x[k] == x[q],
        "induction": follows_the_same,
        "first_token": q > 0 and k == 0,
        "previous_token_after_trigger": before and trigger[k],
        "induction_at_trigger": follows_the_same and trigger[q],
    }[relation]


RELATIONS = (
    *("previous_token", "duplicate", "induction", "first_token"),
    *("previous_token_after_trigger", "induction_at_trigger"),
)


def by_hand(relation, prompts, pattern, causal=True):
    """(score, top, uniform) of one head's pattern [batch, dest, src]."""
    paid, top, even, n = 0.0, 0, 0.0, 0
    for b, tokens in enumerate(prompts.inputs.tolist()):
        trigger = prompts.labels["trigger"][b].tolist()
        for q in range(len(tokens)):
            related = [k for k in range(len(tokens)) if is_related(relation, tokens, trigger, q, k)]
            if not related:
                continue
            row = pattern[b, q].tolist()
            n += 1
            paid += sum(row[k] for k in related)
            top += max(range(len(row)), key=lambda k: row[k]) in related
            even += len(related) / (q + 1 if causal else len(tokens))
    return paid / n, top / n, even / n


@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
def test_scores_are_those_of_a_loop_over_pairs(direction):
    model, prompts = model_of(attention_dir=direction, init_mode="torch_linear"), random_prompts(triggers=True)
    _, cache = model.run_with_cache(prompts.inputs)
    frame = frame_of(model, prompts, batch_size=5)
    assert set(frame.index) == set(itertools.product(RELATIONS, ["L0H0", "L0H1"]))
    for relation, head in itertools.product(RELATIONS, range(2)):
        row = frame.loc[(relation, f"L0H{head}")]
        expected = by_hand(relation, prompts, cache["pattern", 0][:, head], causal=direction == "causal")
        assert (row["score"], row["top"], row["uniform"]) == pytest.approx(expected, abs=1e-6), relation
        assert row["ci_low"] <= row["score"] <= row["ci_high"]


def test_scores_of_hand_made_patterns():
    tokens = torch.tensor([[2, 3, 2, 2, 3]] * 3)
    prompts = Prompts.from_tensors(tokens, labels={"trigger": tokens == 3})
    pattern = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.6, 0.4, 0.0, 0.0, 0.0],
            [0.1, 0.7, 0.2, 0.0, 0.0],
            [0.0, 0.3, 0.1, 0.6, 0.0],
            [0.2, 0.1, 0.4, 0.1, 0.2],
        ]
    )
    # the second head looks at the first token only
    first = torch.zeros(5, 5)
    first[:, 0] = 1
    model = with_patterns(model_of(n_ctx=5), torch.stack([pattern, first]).expand(3, -1, -1, -1))
    frame = frame_of(model, prompts)
    expected = {
        "previous_token": ((0.6 + 0.7 + 0.1 + 0.1) / 4, 2 / 4, (1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4),
        "duplicate": ((0.1 + (0.0 + 0.1) + 0.1) / 3, 0.0, (1 / 3 + 2 / 4 + 1 / 5) / 3),
        # 2 at position 2 looks for what followed position 0: 1; at 3 for what followed 0 and 2: 1 and itself
        "induction": ((0.7 + (0.3 + 0.6) + 0.4) / 3, 3 / 3, (1 / 3 + 2 / 4 + 1 / 5) / 3),
        "first_token": ((0.6 + 0.1 + 0.0 + 0.2) / 4, 1 / 4, (1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4),
        "previous_token_after_trigger": (0.7, 1.0, 1 / 3),
        "induction_at_trigger": (0.4, 1.0, 1 / 5),
    }
    for metric, values in expected.items():
        row = frame.loc[(metric, "L0H0")]
        assert (row["score"], row["top"], row["uniform"]) == pytest.approx(values, abs=1e-6), metric
    assert frame.loc[("first_token", "L0H1"), "score"] == 1.0
    assert frame.loc[("induction", "L0H1"), "score"] == 0.0
    assert frame["n_prompts"].unique().tolist() == [3]


def test_a_head_that_looks_back_is_significant_and_only_there():
    prompts = random_prompts(n=40)
    previous = torch.eye(7).roll(-1, dims=1).tril(-1)
    previous[0, 0] = 1
    even = torch.ones(7, 7).tril() / torch.arange(1.0, 8)[:, None]
    model = with_patterns(model_of(), torch.stack([previous, even]).expand(40, -1, -1, -1))
    frame = frame_of(model, prompts)
    assert frame.loc[("previous_token", "L0H0"), "score"] == 1.0
    assert frame.loc[("previous_token", "L0H0"), "p_value"] == pytest.approx(1 / 40)  # before the 39 heads of twins
    assert bool(frame.loc[("previous_token", "L0H0"), "significant"])
    assert frame.loc[("first_token", "L0H0"), "p_value"] > 0.9
    for metric in ("previous_token", "first_token"):
        assert frame.loc[(metric, "L0H1"), "score"] == pytest.approx(frame.loc[(metric, "L0H1"), "uniform"])


def test_a_relation_that_no_prompt_has_is_left_out_with_a_note():
    distinct = Prompts.from_tensors(torch.arange(4).repeat(5, 1))
    result = score_attention_patterns(model_of(), distinct)
    assert set(result.frame["metric"]) == {"previous_token", "first_token"}
    assert any("no position has the relation of induction, duplicate: left out" in note for note in result.notes)
    assert score_attention_patterns(model_of(), random_prompts()).notes == ()


def test_a_relation_that_the_twins_never_saw_has_no_p_value():
    tokens = torch.arange(4).repeat(70, 1)
    tokens[66:, 3] = 0  # beyond the prompts that the twins are shown
    frame = frame_of(model_of(), Prompts.from_tensors(tokens))
    assert frame.loc["duplicate", "score"].notna().all()
    assert frame.loc["duplicate", "p_value"].isna().all()
    assert frame.loc["duplicate", "significant"].isna().all()
    assert frame.loc["previous_token", "p_value"].notna().all()


FAMILIES = {
    "one head": {"n_heads": 1},
    "two layers, no positions": {"n_layers": 2, "positional_embedding_type": "none"},
    "eight heads, MLP, LN": {"n_layers": 2, "n_heads": 8, "attn_only": False, "normalization_type": "LN"},
    "torch linear": {"n_layers": 2, "init_mode": "torch_linear"},
    "four large heads": {"n_heads": 4, "d_head": 8, "init_mode": "torch_linear", "normalization_type": "LNPre"},
    "identity queries": {"n_layers": 2, "n_heads": 1, "identity_queries": True, "init_mode": "torch_linear"},
}


def share_significant(n_models: int) -> float:
    n_significant = n_scores = 0
    for index, options in zip(range(n_models), itertools.cycle(FAMILIES.values()), strict=False):
        frame = frame_of(model_of(**options, seed=index), random_prompts(n=16, seed=index, triggers=True))
        n_significant += int(frame["significant"].astype(bool).sum())
        n_scores += len(frame)
    return n_significant / n_scores


def test_a_few_untrained_models_have_few_significant_scores():
    assert share_significant(len(FAMILIES)) <= 0.05


@pytest.mark.slow
def test_at_most_5_percent_of_the_scores_of_200_untrained_models_are_significant():
    assert share_significant(200) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_in_no_family_of_untrained_models_more_than_5_percent_are_significant(family):
    # scores of one model depend on one another, so the allowance is two standard errors of 25 independent models
    shares = []
    for seed in range(25):
        frame = frame_of(model_of(**FAMILIES[family], seed=seed), random_prompts(n=16, seed=seed, triggers=True))
        shares.append(frame["significant"].astype(bool).mean())
    shares = torch.tensor(shares)
    assert shares.mean() <= 0.05 + 2 * shares.std() / 25**0.5


def test_what_has_no_tokens_is_refused():
    with pytest.raises(InputError, match="attention scores need tokens"):
        score_attention_patterns(model_of(), Prompts.from_tensors(torch.zeros(2, 3, 8), targets=torch.zeros(2, 3)))
    with pytest.raises(InputError, match="prompts holds 0 prompts"):
        score_attention_patterns(model_of(), random_prompts(n=0))
    with pytest.raises(InputError, match="batch_size = -1"):
        score_attention_patterns(model_of(), random_prompts(), batch_size=-1)


def test_scores_split_by_a_label_recombine_to_the_whole():
    """Attention paid adds up over the groups of attending positions, and so do the positions."""
    task = BigramICL(seq_len=24, scored="in_context")
    prompts = task.sample(16, seed=3)
    config = HookedTransformerConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=24, d_vocab=task.d_vocab, attn_only=True)
    model = HookedTransformer(config)
    whole = score_attention_patterns(model, prompts).frame.set_index(["component", "metric"])
    parts = score_attention_patterns(model, prompts, by="segment").frame
    assert set(parts["segment"]) == {"global", "first", "in_context"}
    segment = prompts.labels["segment"][:, 1:]
    sizes = {name: int((segment == value).sum()) for value, name in enumerate(("global", "first", "in_context"))}
    for component in ("L0H0", "L0H1"):
        rows = parts[(parts["component"] == component) & (parts["metric"] == "previous_token")]
        weighted = sum(row.score * sizes[row.segment] for row in rows.itertuples()) / sum(sizes.values())
        assert weighted == pytest.approx(whole.loc[(component, "previous_token"), "score"], abs=1e-6)


def test_a_label_that_does_not_exist_is_refused_for_attention_scores():
    prompts = BigramICL(seq_len=24).sample(4, seed=3)
    config = HookedTransformerConfig(n_layers=1, d_model=16, n_ctx=24, d_vocab=63, attn_only=True)
    with pytest.raises(InputError, match="by = 'segmant'"):
        score_attention_patterns(HookedTransformer(config), prompts, by="segmant")
