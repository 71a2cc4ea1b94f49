"""The paper's probes of one induction circuit: which queries, which keys, and what the weights answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.memory_result import SIGNIFICANCE_LEVEL, about, recall_columns, too_few
from analyses.memory_scores import (
    copying_scores,
    feed_forward_logits,
    ideal_memory,
    kl_table,
    log_bigram_directions,
    match_scores,
    previous_token_scores,
    written_by,
)
from analyses.memory_statistics import cosine, pairing_p_value, recall_of, separation
from analyses.memory_weights import CircuitWeights, Head, check_size

Memory = Literal["W_O2", "W_K1", "W_K2", "W_F"]

EARLY_POSITIONS = 64
"""Where the paper cuts the positions in its second W_K1 probe [code]."""

WITH_DIRECT_PATH = "with the direct path"
"""Marks the W_F row whose logits include what the embedding itself sends to the unembedding."""

Rows = tuple[list[dict[str, Any]], list[str]]
"""Rows of the frame and notes on them."""


@dataclass(frozen=True, eq=False)
class CircuitReading:
    """Everything the probes of one circuit need.

    Attributes:
        now: the weights as they are.
        then: the weights before training; None where they are unknown.
        earlier: the previous-token head.
        later: the induction head.
        triggers: Q; None means every token.
        n_pos: positions 0 … n_pos − 1 are asked about.
        direct_path: whether W_F is read with the direct path as well.
    """

    now: CircuitWeights
    then: CircuitWeights | None
    earlier: Head
    later: Head
    triggers: tuple[int, ...] | None
    bigram: Float[Tensor, "vocab vocab"] | None
    n_pos: int
    direct_path: bool = True

    def why_not(self, memory: Memory) -> str | None:
        """Why a memory does not apply to this model and task, or None if it does."""
        if memory == "W_O2" and not self.now.copies:
            return f"the model reads {self.now.n_tokens} tokens and writes {self.now.W_U.shape[1]}, so none is copied"
        if memory == "W_K1" and self.now.W_pos is None:
            return "the model has no position embeddings W_pos"
        if memory == "W_K1" and self.n_pos < 2:
            return "there is a single position"
        if memory == "W_F":
            if self.later[0] not in self.now.W_F:
                return f"layer {self.later[0]} has no linear feed-forward part (mlp_type = 'linear')"
            if self.bigram is None:
                return "π_b is unknown, give the task or bigram"
            if not self.global_tokens:
                return "every token is a trigger, so none follows the global bigram"
        return None

    @property
    def queries(self) -> list[int]:
        """Q, or every token."""
        return list(range(self.now.n_tokens)) if self.triggers is None else list(self.triggers)

    @property
    def global_tokens(self) -> list[int]:
        """The tokens that W_F is asked about."""
        tokens = range(self.now.n_tokens)
        return [token for token in tokens if self.triggers is None or token not in self.triggers]

    def w_1(self) -> Float[Tensor, "vocab d_model"]:
        return written_by(self.now.W_E, self.now.W_V[self.earlier], self.now.W_O[self.earlier])

    def learned(self, name: Literal["W_K", "W_O"], head: Head) -> Float[Tensor, "d_in d_out"] | None:
        """W − W_init of one head."""
        return None if self.then is None else getattr(self.now, name)[head] - getattr(self.then, name)[head]


def _probe_W_O2(reading: CircuitReading, n_permutations: int, seed: int) -> Rows:
    weights, head = reading.now, reading.later
    check_size(weights.n_tokens, weights.n_tokens)
    W_V = weights.W_V[head]
    learned = reading.learned("W_O", head)

    def scores(W_O: Tensor) -> Tensor:
        return copying_scores(weights.W_E, W_V, W_O, weights.W_U)

    row = about("W_O2", head, None, "copying", f"blocks.{head[0]}.attn.W_O", "all tokens")
    found = recall_of(scores(weights.W_O[head]), torch.arange(weights.n_tokens), **_draw(n_permutations, seed))
    ideal = ideal_memory(weights.W_E @ W_V, weights.W_U.T)
    row |= recall_columns(found) | _distance(learned, ideal, scores, torch.arange(weights.n_tokens))
    return [row], too_few(row)


def _probe_W_K1(reading: CircuitReading, n_permutations: int, seed: int) -> Rows:
    weights, head = reading.now, reading.earlier
    W_pos = weights.W_pos
    assert W_pos is not None  # why_not has seen to it
    W_Q, learned = weights.W_Q[head], reading.learned("W_K", head)
    cuts = [(reading.n_pos, "all positions")]
    notes = []
    if reading.n_pos > EARLY_POSITIONS:
        cuts.append((EARLY_POSITIONS, f"first {EARLY_POSITIONS} positions"))
    else:
        notes.append(f"W_K1 on the first {EARLY_POSITIONS} positions is left out: there are {reading.n_pos} in all")
    rows = []
    for cut, index_set in cuts:

        def scores(W_K: Tensor, cut: int = cut) -> Tensor:
            return previous_token_scores(W_pos[:cut], W_Q, W_K)

        answer = torch.arange(cut - 1)
        row = about("W_K1", head, None, "previous_token", f"blocks.{head[0]}.attn.W_K", index_set)
        found = recall_of(scores(weights.W_K[head]), answer, **_draw(n_permutations, seed))
        ideal = ideal_memory(W_pos[: cut - 1], W_pos[1:cut] @ W_Q)
        rows.append(row | recall_columns(found) | _distance(learned, ideal, scores, answer))
        notes += too_few(rows[-1])
    return rows, notes


def _probe_W_K2(reading: CircuitReading, n_permutations: int, seed: int) -> Rows:
    weights, head = reading.now, reading.later
    queries, w_1 = reading.queries, reading.w_1()
    w_E, W_Q, learned = weights.W_E[queries], weights.W_Q[head], reading.learned("W_K", head)
    ideal = ideal_memory(w_1[queries], w_E @ W_Q)
    everything = list(range(weights.n_tokens))
    sets = [(queries, "triggers")]
    notes = []
    if reading.triggers is None:
        sets = [(queries, "all tokens")]
        notes.append("W_K2 has one row: with every token a trigger, the keys are the whole vocabulary")
    else:
        sets.append((everything, "triggers, keys of the whole vocabulary"))
    rows = []
    for keys, index_set in sets:
        check_size(len(queries), len(keys))

        def scores(W_K: Tensor, keys: list[int] = keys) -> Tensor:
            return match_scores(w_E, W_Q, W_K, w_1[keys])

        answer = torch.tensor([keys.index(token) for token in queries])
        row = about("W_K2", head, reading.earlier, "match", f"blocks.{head[0]}.attn.W_K", index_set)
        found = recall_of(scores(weights.W_K[head]), answer, **_draw(n_permutations, seed))
        rows.append(row | recall_columns(found) | _distance(learned, ideal, scores, answer))
        notes += too_few(rows[-1])
    return rows, notes


def _probe_W_F(reading: CircuitReading, n_permutations: int, seed: int) -> Rows:
    weights, layer, tokens = reading.now, reading.later[0], reading.global_tokens
    W_F, bigram, w_E = weights.W_F[layer], reading.bigram, weights.W_E[tokens]
    assert bigram is not None  # why_not has seen to it
    asked = "all tokens" if reading.triggers is None else "tokens that are no triggers"
    written = {asked: feed_forward_logits(w_E, W_F, weights.W_U)}
    if reading.direct_path:
        written[f"{asked}, {WITH_DIRECT_PATH}"] = written[asked] + w_E @ weights.W_U
    rows = []
    for index_set, logits in written.items():
        table = kl_table(bigram[tokens], logits.to(bigram.dtype))
        p_value = pairing_p_value(table, n_permutations=n_permutations, seed=seed)
        row = about("W_F", (layer, None), None, "bigram", f"blocks.{layer}.mlp.W_F", index_set)
        row |= {"n": len(tokens), "kl": float(table.diagonal().mean()), "chance": float(table.mean())}
        rows.append(row | {"p_value": p_value, "significant": p_value <= SIGNIFICANCE_LEVEL})
    if reading.then is not None:
        directions = log_bigram_directions(bigram[tokens].to(W_F.dtype), weights.W_U)
        rows[0]["cosine"] = cosine(W_F - reading.then.W_F[layer], ideal_memory(w_E, directions))
    return rows, []


PROBES: dict[Memory, Callable[[CircuitReading, int, int], Rows]] = {
    "W_O2": _probe_W_O2,
    "W_K1": _probe_W_K1,
    "W_K2": _probe_W_K2,
    "W_F": _probe_W_F,
}


def _distance(
    learned: Float[Tensor, "d_in d_out"] | None,
    ideal: Float[Tensor, "d_in d_out"],
    scores: Callable[[Tensor], Tensor],
    answer: Int[Tensor, "query"],
) -> dict[str, float]:
    """How far W − W_init is from the ideal memory, as a whole and on the pairs that it should store."""
    if learned is None:
        return {}
    margin, crosstalk = separation(scores(learned), answer)
    return {"cosine": cosine(learned, ideal), "learned_margin": margin, "learned_crosstalk": crosstalk}


def _draw(n_permutations: int, seed: int) -> dict[str, int]:
    return {"n_permutations": n_permutations, "seed": seed}
