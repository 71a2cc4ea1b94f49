import copy
import math

import pandas as pd
import pytest
import torch

from analyses.memory import memory_recall
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import InductionCircuit, induction_circuit
from tasks import BigramICL
from tasks.errors import InputError
from tasks.sparse_regression import SparseRegression

EVERY_ROW = [
    ("W_O2", "all tokens"),
    ("W_K1", "all positions"),
    ("W_K1", "first 64 positions"),
    ("W_K2", "triggers"),
    ("W_K2", "triggers, keys of the whole vocabulary"),
    ("W_F", "tokens that are no triggers"),
    ("W_F", "tokens that are no triggers, with the direct path"),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices are tiny: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simplified(seed: int, *, d_vocab: int = 12, d_model: int = 16, n_ctx: int = 10, **fields) -> HookedTransformer:
    """An untrained model of the paper's simplified shape."""
    shape = {
        "n_layers": 2,
        "d_head": d_model,
        "attn_only": True,
        "use_biases": False,
        "identity_queries": True,
        "init_mode": "torch_linear",
        "frozen": ("embed.*",),
    }
    return HookedTransformer(
        HookedTransformerConfig(**{**shape, **fields}, d_vocab=d_vocab, d_model=d_model, n_ctx=n_ctx, seed=seed)
    )


def row(frame: pd.DataFrame, memory: str, index_set: str) -> pd.Series:
    return frame[(frame["memory"] == memory) & (frame["index_set"] == index_set)].iloc[0]


@pytest.fixture(scope="module")
def task() -> BigramICL:
    return BigramICL(seq_len=80)


@pytest.fixture(scope="module")
def circuit(task: BigramICL) -> InductionCircuit:
    smoothed = 0.999 * torch.tensor(task.stats.bigram) + 0.001 / task.d_vocab
    return induction_circuit(
        d_vocab=task.d_vocab, n_ctx=80, triggers=task.trigger_tokens, log_bigram=smoothed.log().float()
    )


def test_ideal_memories_are_recalled_without_exception(circuit: InductionCircuit, task: BigramICL) -> None:
    result = memory_recall(circuit.model, task, init_model=circuit.initial_model)
    frame = result.frame
    assert list(zip(frame["memory"], frame["index_set"], strict=True)) == EVERY_ROW
    assert frame["recall"].tolist()[:5] == [1.0] * 5
    assert frame["n"].tolist() == [63, 79, 63, 5, 5, 58, 58]
    assert frame["chance"].tolist()[:5] == [1 / 63, 1 / 79, 1 / 63, 1 / 5, 1 / 63]
    assert frame["significant"].all()
    assert frame["component"].tolist() == ["L1H0", "L0H0", "L0H0", "L1H0", "L1H0", "L1.mlp", "L1.mlp"]
    assert set(frame["parameter"]) == set(circuit.parameters.values())
    assert (frame["crosstalk"][:5].abs() < 1e-5).all()
    assert (frame["margin"][:5] > 1e4).all()
    assert result.caveat is None
    assert result.notes == ()
    # π_b is stored smoothed by 0.1 %, so the divergence is at most −log 0.999.
    assert 0 < row(frame, *EVERY_ROW[5])["kl"] < -math.log(0.999)
    assert row(frame, *EVERY_ROW[5])["chance"] > 1
    # Orthogonal embeddings have no direct path.
    assert row(frame, *EVERY_ROW[6])["kl"] == pytest.approx(row(frame, *EVERY_ROW[5])["kl"], rel=1e-3)


def test_ideal_memories_are_parallel_to_the_ideal(circuit: InductionCircuit, task: BigramICL) -> None:
    frame = memory_recall(circuit.model, task, init_model=circuit.initial_model).frame
    cosines = [row(frame, *EVERY_ROW[k])["cosine"] for k in (0, 1, 3, 4)]
    assert cosines == pytest.approx([1.0] * 4, abs=1e-6)
    assert row(frame, "W_K1", "first 64 positions")["cosine"] < 0.95  # it stores more than those
    # The feed-forward part stores log π_b uncentred, which no softmax can see.
    assert row(frame, *EVERY_ROW[5])["cosine"] < 1


def test_random_embeddings_are_read_against_the_model_that_the_seed_draws(task: BigramICL) -> None:
    circuit = induction_circuit(
        d_vocab=task.d_vocab, n_ctx=80, triggers=task.trigger_tokens, d_model=256, embeddings="random"
    )
    result = memory_recall(circuit.model, task, memories=["W_O2", "W_K1", "W_K2"])
    assert result.settings["initial"] == "drawn from cfg.seed"
    assert result.frame["cosine"].drop(2).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert (result.frame["recall"] > 0.9).all()
    assert (result.frame["crosstalk"] > 0.01).all()


def test_forgetting_n_tokens_costs_exactly_their_share(circuit: InductionCircuit, task: BigramICL) -> None:
    n = 7
    forgetful = copy.deepcopy(circuit.model)
    with torch.no_grad():
        value = forgetful.W_E @ forgetful.W_V[1, 0]
        for token in range(20, 20 + n):  # token is taken for its neighbour
            wrong = forgetful.W_U[:, token + 1] - forgetful.W_U[:, token]
            forgetful.blocks[1].attn.W_O[0] += 30 * torch.outer(value[token], wrong)
        for t in range(10, 10 + n):
            wrong = forgetful.W_pos[t + 2] - forgetful.W_pos[t]
            forgetful.blocks[0].attn.W_K[0] += 1e4 * torch.outer(forgetful.W_pos[t - 1], wrong)
    frame = memory_recall(forgetful, task, init_model=circuit.initial_model).frame
    assert row(frame, *EVERY_ROW[0])["recall"] == (63 - n) / 63
    # Position t's own key answers no more, and position t + 2 finds key t − 1 louder than its own t + 1.
    assert row(frame, *EVERY_ROW[1])["recall"] == (79 - n - 2) / 79
    assert row(frame, *EVERY_ROW[3])["recall"] == 1


def test_a_transposed_memory_is_caught(circuit: InductionCircuit, task: BigramICL) -> None:
    for parameter, memory in (("blocks.1.attn.W_K", "W_K2"), ("blocks.0.attn.W_K", "W_K1")):
        turned = copy.deepcopy(circuit.model)
        with torch.no_grad():
            weight = turned.get_parameter(parameter)
            weight[0] = weight[0].T.clone()
        frame = memory_recall(turned, task, init_model=circuit.initial_model).frame
        rows = frame[frame["memory"] == memory]
        assert (rows["recall"] <= rows["chance"] + 0.25).all(), parameter
        assert not rows["significant"].any()
        assert (rows["cosine"].abs() < 0.1).all()


@torch.no_grad()
def test_readouts_agree_with_the_papers_formulas_in_column_vectors() -> None:
    model = simplified(4, d_vocab=9, d_model=11, n_ctx=70, attn_only=False, mlp_type="linear")
    triggers = [6, 2, 3, 8]
    bigram = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bigram /= bigram.sum(dim=1, keepdim=True)
    W_O1, W_V1 = model.blocks[0].attn.W_O[0].T, model.blocks[0].attn.W_V[0].T
    W_O2, W_V2 = model.blocks[1].attn.W_O[0].T, model.blocks[1].attn.W_V[0].T
    W_K1, W_K2 = model.blocks[0].attn.W_K[0].T, model.blocks[1].attn.W_K[0].T
    W_F = model.get_parameter("blocks.1.mlp.W_F").T
    w_E = list(model.W_E)
    w_U = [model.W_U[:, j] for j in range(9)]
    p = list(model.W_pos)
    w_1 = [W_O1 @ (W_V1 @ w_E[v]) for v in range(9)]

    def best(candidates, score) -> int:
        return max(candidates, key=lambda candidate: float(score(candidate)))

    def found_position(t: int, length: int) -> bool:
        return best(range(length - 1), lambda s: p[t] @ (W_K1 @ p[s])) == t - 1

    def found_trigger(k: int, keys) -> bool:
        return best(keys, lambda v: w_E[k] @ (W_K2 @ w_1[v])) == k

    def divergence(v: int, direct: float) -> float:
        written = [w_U[j] @ (W_F @ w_E[v]) + direct * (w_U[j] @ w_E[v]) for j in range(9)]
        predicted = torch.stack(written).double().softmax(dim=0)
        return sum(float(bigram[v, j] * (bigram[v, j] / predicted[j]).log()) for j in range(9))

    others = [v for v in range(9) if v not in triggers]
    expected = [
        sum(best(range(9), lambda j, v=v: w_U[j] @ (W_O2 @ (W_V2 @ w_E[v]))) == v for v in range(9)) / 9,
        sum(found_position(t, 70) for t in range(1, 70)) / 69,
        sum(found_position(t, 64) for t in range(1, 64)) / 63,
        sum(found_trigger(k, triggers) for k in triggers) / 4,
        sum(found_trigger(k, range(9)) for k in triggers) / 4,
    ]
    frame = memory_recall(model, triggers=triggers, bigram=bigram).frame
    assert list(zip(frame["memory"], frame["index_set"], strict=True)) == EVERY_ROW
    assert frame["recall"].tolist()[:5] == pytest.approx(expected)
    assert sum(expected) > 0
    for place, direct in ((5, 0.0), (6, 1.0)):
        kl = sum(divergence(v, direct) for v in others) / len(others)
        assert row(frame, *EVERY_ROW[place])["kl"] == pytest.approx(kl, rel=1e-4)
    assert row(frame, *EVERY_ROW[6])["kl"] > 1.1 * row(frame, *EVERY_ROW[5])["kl"]


@torch.no_grad()
def test_where_attention_writes_nothing_the_model_computes_the_row_with_the_direct_path() -> None:
    model = simplified(4, d_vocab=9, d_model=11, attn_only=False, mlp_type="linear", mlp_layers=(1,))
    for block in model.blocks:
        block.attn.W_O.zero_()
    model.pos_embed.W_pos.zero_()
    bigram = torch.rand(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bigram /= bigram.sum(dim=1, keepdim=True)
    predicted = model(torch.arange(9)[:, None])[:, 0].double().log_softmax(dim=1)
    kl = float((bigram * (bigram.log() - predicted)).sum(dim=1)[[0, 1, 2, 4, 5, 6, 7]].mean())
    frame = memory_recall(model, triggers=[3, 8], bigram=bigram, memories=["W_F"]).frame
    assert frame["kl"][1] == pytest.approx(kl, rel=1e-5)
    assert frame["kl"][0] != pytest.approx(kl, rel=0.01)


def test_what_was_learned_is_told_from_what_was_drawn() -> None:
    model = simplified(0, frozen=("embed.*", "pos_embed.*", "unembed.*", "*.W_V", "blocks.0.attn.W_O"))
    with torch.no_grad():
        stored = torch.einsum("vm,vu->mu", model.W_E @ model.W_V[1, 0], model.W_U.T)
        model.blocks[1].attn.W_O[0] += 0.01 * stored
    frame = memory_recall(model, triggers=[1, 2, 3]).frame
    found = row(frame, *EVERY_ROW[0])
    assert found["cosine"] == pytest.approx(1, abs=1e-4)
    assert found["learned_margin"] > found["margin"]
    assert math.isnan(row(frame, *EVERY_ROW[1])["cosine"])  # W_K1 is as it was drawn


def test_an_initial_model_that_cannot_be_known_is_asked_for(circuit: InductionCircuit, task: BigramICL) -> None:
    result = memory_recall(circuit.model, task)
    assert result.frame["cosine"].isna().all()
    assert any("embed.W_E is frozen and yet not what cfg.seed = 0 draws" in note for note in result.notes)
    nothing_frozen = memory_recall(simplified(0, frozen=()), triggers=[0, 1])
    assert any(
        "nothing in the model is frozen, so that this cannot be checked" in note for note in nothing_frozen.notes
    )
    with pytest.raises(InputError, match="init_model's W_E is"):
        memory_recall(circuit.model, task, init_model=simplified(0))


def test_the_model_is_left_as_it_was(circuit: InductionCircuit, task: BigramICL) -> None:
    before = copy.deepcopy(circuit.model.state_dict())
    memory_recall(circuit.model, task, init_model=circuit.initial_model)
    assert all(torch.equal(before[name], weight) for name, weight in circuit.model.state_dict().items())


def significant_share(seeds: int, change, **how) -> pd.Series:
    """Over untrained models, how often each readout is called significant."""
    bigram = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    frames = []
    for seed in range(seeds):
        model = simplified(seed, n_ctx=66, attn_only=False, mlp_type="linear")
        change(model, torch.Generator().manual_seed(seed))
        found = memory_recall(model, triggers=range(5), bigram=bigram, init_model=model, n_permutations=400, **how)
        frames.append(found.frame)
    return pd.concat(frames).groupby(["memory", "index_set"])["significant"].mean()


def test_untrained_models_remember_nothing() -> None:
    def leave(model: HookedTransformer, generator: torch.Generator) -> None:
        pass

    share = significant_share(200, leave)
    assert sorted(share.index) == sorted(EVERY_ROW)
    assert (share <= 0.05).all(), share


def test_untrained_models_with_another_unembedding_remember_nothing() -> None:
    def shuffle(model: HookedTransformer, generator: torch.Generator) -> None:
        with torch.no_grad():
            model.unembed.W_U.copy_(model.W_U[:, torch.randperm(12, generator=generator)])

    share = significant_share(100, shuffle, memories=["W_O2", "W_F"])
    assert len(share) == 3
    assert (share <= 0.05).all(), share


def test_untrained_models_of_the_papers_width_remember_nothing(task: BigramICL) -> None:
    frames = [memory_recall(simplified(s, d_vocab=63, d_model=128, n_ctx=80), task).frame for s in range(20)]
    assert pd.concat(frames)["significant"].sum() <= 2  # of 100 rows


def test_labels_dealt_anew_are_not_remembered(circuit: InductionCircuit, task: BigramICL) -> None:
    significant = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        shuffled = copy.deepcopy(circuit.model)
        with torch.no_grad():
            shuffled.unembed.W_U.copy_(shuffled.W_U[:, torch.randperm(63, generator=generator)])
            shuffled.pos_embed.W_pos.copy_(shuffled.W_pos[torch.randperm(80, generator=generator)])
        frame = memory_recall(shuffled, task, memories=["W_O2", "W_K1"], init_model=circuit.initial_model).frame
        significant += int(frame["significant"].sum())
    assert significant <= 3  # of 60 rows


def test_every_token_counts_where_triggers_are_random() -> None:
    task = BigramICL(seq_len=10, triggers="random")
    result = memory_recall(simplified(0, d_vocab=63), task)
    assert row(result.frame, "W_K2", "all tokens")["n"] == 63
    assert any("draws its triggers per prompt: every token counts as a trigger" in note for note in result.notes)


def test_positions_that_the_task_never_reaches_are_not_asked_about() -> None:
    task = BigramICL(seq_len=8)
    result = memory_recall(simplified(0, d_vocab=63), task)
    assert row(result.frame, "W_K1", "all positions")["n"] == 7
    assert any("of the model's 10 positions the first 8 are asked about" in note for note in result.notes)


def test_what_does_not_apply_is_left_out_with_a_note_and_refused_if_asked_for() -> None:
    blind = simplified(0, positional_embedding_type="none")
    result = memory_recall(blind, triggers=[1, 2])
    assert set(result.frame["memory"]) == {"W_O2", "W_K2"}
    assert any(note.startswith("W_K1 is left out: the model has no position embeddings") for note in result.notes)
    assert any(note.startswith("W_F is left out: layer 1 has no linear feed-forward") for note in result.notes)
    for memory, message in (("W_K1", "no position embeddings W_pos"), ("W_F", "no linear feed-forward part")):
        with pytest.raises(InputError, match=f"{memory} cannot be read: .*{message}"):
            memory_recall(blind, triggers=[1, 2], memories=[memory])
    with_memory = simplified(0, attn_only=False, mlp_type="linear")
    with pytest.raises(InputError, match="W_F cannot be read: π_b is unknown, give the task or bigram"):
        memory_recall(with_memory, triggers=[1], memories=["W_F"])
    uniform = torch.full((12, 12), 1 / 12)
    assert memory_recall(with_memory, triggers=[1], memories=["W_F"], bigram=uniform).frame["n"].tolist() == [11, 11]
    with pytest.raises(InputError, match="every token is a trigger"):
        memory_recall(with_memory, triggers=range(12), memories=["W_F"], bigram=uniform)
    writes_less = simplified(0, d_vocab_out=5)
    with pytest.raises(InputError, match="W_O2 cannot be read: the model reads 12 tokens and writes 5"):
        memory_recall(writes_less, triggers=[1], memories=["W_O2"])


def test_normalisation_and_biases_are_never_silent() -> None:
    model = simplified(0, normalization_type="LN", use_biases=True, identity_queries=False)
    result = memory_recall(model, triggers=[1, 2])
    assert result.caveat is not None
    assert "normalisation" in result.caveat
    assert "biases" in result.caveat
    assert result.caveat in result.notes


def test_few_triggers_are_said_to_be_too_few() -> None:
    circuit = induction_circuit(d_vocab=6, n_ctx=5, triggers=[0, 4])
    result = memory_recall(circuit.model, triggers=[0, 4], init_model=circuit.initial_model)
    found = row(result.frame, "W_K2", "triggers")
    assert (found["recall"], found["p_value"], found["significant"]) == (1.0, 0.5, False)
    assert any("W_K2 (triggers) recalls all 2, yet p = 0.5: 2 keys are too few" in note for note in result.notes)


def test_the_heads_must_be_named_where_there_are_several() -> None:
    circuit = induction_circuit(d_vocab=8, n_ctx=10, triggers=[1, 5], idle_heads=1)
    for heads in ({}, {"previous_token_head": (0, 0)}, {"induction_head": "L1H0"}):
        with pytest.raises(InputError, match="2 layers of 2 heads: name previous_token_head and induction_head"):
            memory_recall(circuit.model, triggers=[1, 5], **heads)
    right = memory_recall(circuit.model, triggers=[1, 5], previous_token_head="L0H0", induction_head=(1, 0))
    assert right.frame["recall"].tolist() == [1.0] * 4
    idle = memory_recall(circuit.model, triggers=[1, 5], previous_token_head="L0H1", induction_head=(1, 1))
    assert not idle.frame["significant"].any()
    with pytest.raises(
        InputError, match="previous_token_head L1H0 is not in an earlier layer than induction_head L1H1"
    ):
        memory_recall(circuit.model, previous_token_head="L1H0", induction_head="L1H1")
    with pytest.raises(InputError, match="L1H2 does not exist"):
        memory_recall(circuit.model, previous_token_head="L0H0", induction_head="L1H2")
    with pytest.raises(InputError, match="is no head"):
        memory_recall(circuit.model, previous_token_head="L0.mlp", induction_head="L1H0")


def test_refusals_say_what_to_do(task: BigramICL) -> None:
    model = simplified(0)
    memory_recall(model, triggers=[0, 11])
    for wrong, message in (
        ({"triggers": []}, "triggers is empty"),
        ({"triggers": [12]}, "trigger 12 does not exist: the model has tokens 0 to 11"),
        ({"triggers": [-1]}, "trigger -1 does not exist"),
        ({"triggers": [3, 3]}, "names a token twice"),
        ({"task": task}, "the task has 63 tokens but the model reads 12"),
        ({"task": task, "triggers": [1]}, "task and triggers were both given"),
        ({"task": SparseRegression()}, "the sparse-regression task has no trigger_tokens"),
        ({"memories": []}, "memories is empty"),
        ({"bigram": torch.ones(3, 3)}, r"bigram is \[3, 3\] but the model reads 12 tokens"),
        ({"bigram": torch.ones(12, 12)}, "bigram's rows are no distributions"),
    ):
        with pytest.raises(InputError, match=message):
            memory_recall(model, **wrong)
    with pytest.raises(InputError, match="the model has 1 layer"):
        memory_recall(simplified(0, n_layers=1), triggers=[1])
    fitting = simplified(0, d_vocab=63)
    with pytest.raises(InputError, match="task and bigram were both given"):
        memory_recall(fitting, task, bigram=torch.full((63, 63), 1 / 63))


@pytest.mark.refusal
def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(InputError, match="memory 'W_V2' is unknown: choose from W_O2, W_K1, W_K2, W_F"):
        memory_recall(simplified(0), triggers=[1], memories=["W_V2"])  # pyright: ignore


def test_the_picture_shows_every_recall_and_its_chance(circuit: InductionCircuit, task: BigramICL) -> None:
    result = memory_recall(circuit.model, task, init_model=circuit.initial_model)
    bars, chance = result.plot().data
    assert list(bars.y) == result.frame["recall"].dropna().tolist()
    assert list(chance.y) == result.frame["chance"][:5].tolist()
    assert "W_K2<br>L1H0 ← L0H0<br>triggers" in bars.x
    assert len(set(bars.x)) == 5
