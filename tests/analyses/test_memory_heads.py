import pandas as pd
import pytest
import torch

from analyses import memory_weights
from analyses.memory import memory_recall
from analyses.memory_heads import circuit_recall
from interp import HookedTransformer, HookedTransformerConfig
from interp.constructions.induction import InductionCircuit, induction_circuit
from tasks import BigramICL
from tasks.errors import InputError


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The matrices are tiny: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> BigramICL:
    return BigramICL(seq_len=32)


@pytest.fixture(scope="module")
def circuit(task: BigramICL) -> InductionCircuit:
    return induction_circuit(d_vocab=task.d_vocab, n_ctx=32, triggers=task.trigger_tokens, idle_heads=2)


def test_the_true_heads_get_the_credit_and_idle_heads_none(circuit: InductionCircuit, task: BigramICL) -> None:
    frame = circuit_recall(circuit.model, task).frame
    assert len(frame) == 6 * 2 + 3 * 3  # every head copying and previous-token, and every later head with each earlier
    credited = frame[frame["significant"]]
    found = {(line.memory, line.component, line.writer) for line in credited.itertuples()}
    assert {("QK", "L0H0"), ("QK after OV", "L1H0"), ("OV", "L1H0")} == {(m, c) for m, c, _ in found}
    assert (credited["recall"] == 1).all()
    match = credited[credited["memory"] == "QK after OV"]
    assert match["writer"].tolist() == ["L0H0"]
    silent = frame[(frame["memory"] == "OV") & (frame["head"] > 0)]
    assert (silent["recall"] == 0).all()  # W_O = 0: every score ties


def test_an_untrained_model_has_no_head_to_credit() -> None:
    cfg = {"n_layers": 2, "n_heads": 2, "d_model": 16, "n_ctx": 20, "d_vocab": 12, "attn_only": True}
    frames = [
        circuit_recall(HookedTransformer(HookedTransformerConfig(**cfg, seed=seed)), triggers=range(5)).frame
        for seed in range(50)
    ]
    share = pd.concat(frames).groupby("memory")["significant"].mean()
    assert set(share.index) == {"OV", "QK", "QK after OV"}
    assert (share <= 0.05).all(), share


def test_a_head_of_the_papers_model_is_read_as_memory_recall_reads_it() -> None:
    cfg = HookedTransformerConfig(n_layers=2, d_model=9, n_ctx=30, d_vocab=14, attn_only=True, seed=3)
    model = HookedTransformer(cfg)
    paper = memory_recall(model, triggers=[4, 1]).frame
    heads = circuit_recall(model, triggers=[4, 1]).frame
    columns = ["recall", "n", "chance", "p_value", "margin", "crosstalk"]
    for memory, index_set, circuit, component in (
        ("W_O2", "all tokens", "OV", "L1H0"),
        ("W_K1", "all positions", "QK", "L0H0"),
        ("W_K2", "triggers, keys of the whole vocabulary", "QK after OV", "L1H0"),
    ):
        one = paper[(paper["memory"] == memory) & (paper["index_set"] == index_set)]
        other = heads[(heads["memory"] == circuit) & (heads["component"] == component)]
        assert one[columns].to_numpy().tolist() == other[columns].to_numpy().tolist()


@torch.no_grad()
def test_scores_agree_with_loops_over_heads_and_tokens() -> None:
    cfg = HookedTransformerConfig(n_layers=3, n_heads=2, d_model=8, d_head=3, n_ctx=6, d_vocab=7, attn_only=True)
    model = HookedTransformer(cfg)
    frame = circuit_recall(model, heads=["L2H1"], writers=[(0, 1)], triggers=[6, 0, 3]).frame
    block, earlier = model.blocks[2].attn, model.blocks[0].attn
    W_Q, W_K, W_V, W_O = (getattr(block, name)[1].T for name in ("W_Q", "W_K", "W_V", "W_O"))  # the paper's columns
    hits = [0, 0, 0]
    for v in range(7):
        logits = [float(model.W_U[:, j] @ W_O @ W_V @ model.W_E[v]) for j in range(7)]
        hits[0] += logits.index(max(logits)) == v
    for t in range(1, 6):
        scores = [float((W_Q @ model.W_pos[t]) @ (W_K @ model.W_pos[s])) for s in range(5)]
        hits[1] += scores.index(max(scores)) == t - 1
    for k in (6, 0, 3):
        marks = [earlier.W_O[1].T @ earlier.W_V[1].T @ model.W_E[v] for v in range(7)]
        scores = [float((W_Q @ model.W_E[k]) @ (W_K @ mark)) for mark in marks]
        hits[2] += scores.index(max(scores)) == k
    assert sum(hits) > 0
    assert frame["recall"].tolist() == pytest.approx([hits[0] / 7, hits[1] / 5, hits[2] / 3])
    assert frame["writer"].tolist()[2] == "L0H1"


def test_a_part_of_the_vocabulary_is_asked_about_on_its_own(circuit: InductionCircuit, task: BigramICL) -> None:
    triggers = list(task.trigger_tokens or ())
    tokens = [*triggers, *(token for token in range(20) if token not in triggers)]
    frame = circuit_recall(circuit.model, task, heads=["L1H0"], writers=["L0H0"], tokens=tokens).frame
    assert frame["n"].tolist() == [len(tokens), 31, 5]
    assert frame["recall"].tolist()[::2] == [1, 1]
    with pytest.raises(InputError, match="is not among the tokens considered"):
        circuit_recall(circuit.model, task, tokens=triggers[1:])


def test_a_table_too_large_for_memory_is_refused(monkeypatch: pytest.MonkeyPatch, circuit: InductionCircuit) -> None:
    monkeypatch.setattr(memory_weights, "_MOST_SCORES", 1000)
    with pytest.raises(InputError, match="63 × 63 scores would take"):
        circuit_recall(circuit.model)
    circuit_recall(circuit.model, tokens=range(30), heads=["L0H0"])


def test_what_does_not_apply_is_left_out_with_a_note() -> None:
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=6, d_vocab=7, d_vocab_out=4, positional_embedding_type="none", attn_only=True
    )
    result = circuit_recall(HookedTransformer(cfg))
    assert result.frame.empty
    for start in ("copying is left out", "previous token is left out", "match is left out for L0H0"):
        assert any(note.startswith(start) for note in result.notes)
    assert result.caveat is not None  # the default model has biases


def test_heads_and_tokens_that_do_not_exist_are_refused(circuit: InductionCircuit) -> None:
    assert len(circuit_recall(circuit.model, heads=["L0H0"], triggers=[1]).frame) == 2
    for wrong, message in (
        ({"heads": ["L2H0"]}, "L2H0 does not exist"),
        ({"heads": []}, "heads is empty"),
        ({"writers": []}, "writers is empty"),
        ({"tokens": [3]}, "must name two tokens or more"),
        ({"tokens": [3, 3]}, "each once"),
        ({"tokens": [3, 63]}, "token 63 does not exist"),
        ({"triggers": []}, "triggers is empty"),
    ):
        with pytest.raises(InputError, match=message):
            circuit_recall(circuit.model, **wrong)


def test_one_question_is_a_layer_by_head_matrix(circuit: InductionCircuit, task: BigramICL) -> None:
    result = circuit_recall(circuit.model, task)
    matrix = result.matrix("recall", memory="QK")
    assert matrix.shape == (2, 3)
    assert torch.equal(matrix == matrix.max(), torch.tensor([[True, False, False], [False, False, False]]))
