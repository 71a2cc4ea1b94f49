"""The questions that memory_recall asks of one circuit, asked of every head."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.memory_result import (
    COLUMNS,
    SIGNIFICANCE_LEVEL,
    MemoryRecallResult,
    about,
    recall_columns,
    too_few,
    written,
)
from analyses.memory_scores import copying_scores, match_scores, previous_token_scores, written_by
from analyses.memory_statistics import recall_of
from analyses.memory_weights import CircuitWeights, Head, caveat_of, check_size, triggers_of
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import SiteLike
from tasks.errors import InputError
from tasks.protocol import Task


def circuit_recall(
    model: HookedModel,
    task: Task | None = None,
    *,
    heads: Sequence[SiteLike] | None = None,
    writers: Sequence[SiteLike] | None = None,
    triggers: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> MemoryRecallResult:
    """Which heads copy, which attend to the previous token, and which match another head's marks, by weights alone?

    One row per head and question, for any number of layers and heads:

    - copying (memory "OV"): share of tokens v with argmax_j w_E(v) W_V W_O w_U(j) = v.
    - previous token ("QK"): share of positions t ≥ 1 with argmax_s p_t W_Q · p_s W_K = t − 1, s over all positions.
    - match ("QK after OV"), one row per head of an earlier layer (``writer``), with w(v) = w_E(v) W_V W_O of that
      head: share of triggers k with argmax_v w_E(k) W_Q · w(v) W_K = k over the whole vocabulary.

    The readouts see single heads, and pairs of them, and no normalisation, bias, MLP or longer path (``caveat``).
    Each p-value is that of one row: among many rows some are small by chance.

    Args:
        heads: which heads; None means all.
        writers: whose marks may be matched; None means every head of an earlier layer.
        triggers: the tokens k, in place of a task. None and no task, or random triggers: every token.
        tokens: the part of the vocabulary that is considered, as queries and keys; None means all of it.

    Raises:
        InputError: a head, token or trigger that does not exist, or a table of scores too large for memory.

    Source: the probes are those of Bietti et al. 2023, section 4; that they are asked of any head is ours.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> cfg = HookedTransformerConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True)
    >>> circuit_recall(HookedTransformer(cfg), heads=["L1H1"]).frame["memory"].tolist()
    ['OV', 'QK', 'QK after OV', 'QK after OV']
    """
    refuse_other(model)
    weights = CircuitWeights.of(model)
    asked = _heads(weights, heads, "heads")
    writing = _heads(weights, writers, "writers")
    known = _tokens(tokens, weights.n_tokens)
    resolved = triggers_of(task, triggers, weights.n_tokens)
    queries = known if resolved is None else list(resolved)
    for token in queries:
        if token not in known:
            raise InputError(f"trigger {token} is not among the tokens considered: add it to tokens")
    check_size(len(known), len(known))
    notes = _notes(model, weights, asked, writing, explicit=writers is not None)
    rows = []
    for table in _tables(weights, asked, writing, known, queries, every_token=resolved is None):
        found = recall_of(table.scores, table.answer, n_permutations=n_permutations, seed=seed)
        rows.append(table.about | recall_columns(found))
        notes += too_few(rows[-1])
    settings = {
        "heads": [written(head) for head in asked],
        "writers": [written(head) for head in writing],
        "triggers": "all" if resolved is None else queries,
        "tokens": "all" if tokens is None else known,
        "significance_level": SIGNIFICANCE_LEVEL,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    title = "Recall through the circuits of single heads"
    return MemoryRecallResult(
        pd.DataFrame(rows, columns=COLUMNS), title, settings, tuple(notes), caveat=caveat_of(model)
    )


class _Table(NamedTuple):
    about: dict[str, Any]
    scores: Float[Tensor, "query key"]
    answer: Int[Tensor, "query"]


def _tables(
    weights: CircuitWeights,
    heads: Sequence[Head],
    writers: Sequence[Head],
    tokens: list[int],
    queries: list[int],
    *,
    every_token: bool,
) -> Iterator[_Table]:
    """The scores of each question that applies to each head."""
    w_E = weights.W_E[tokens]
    own = torch.tensor([tokens.index(token) for token in queries])
    matched = "tokens" if every_token else "triggers, keys of the whole vocabulary"
    for head in heads:
        attn = f"blocks.{head[0]}.attn"
        QK, W_Q, W_K = f"{attn}.W_Q, {attn}.W_K", weights.W_Q[head], weights.W_K[head]
        if weights.copies:
            scores = copying_scores(w_E, weights.W_V[head], weights.W_O[head], weights.W_U[:, tokens])
            row = about("OV", head, None, "copying", f"{attn}.W_V, {attn}.W_O", "tokens")
            yield _Table(row, scores, torch.arange(len(tokens)))
        if weights.W_pos is not None and len(weights.W_pos) > 1:
            scores = previous_token_scores(weights.W_pos, W_Q, W_K)
            yield _Table(
                about("QK", head, None, "previous_token", QK, "all positions"), scores, torch.arange(len(scores))
            )
        for writer in writers:
            if writer[0] < head[0]:
                marks = written_by(w_E, weights.W_V[writer], weights.W_O[writer])
                scores = match_scores(weights.W_E[queries], W_Q, W_K, marks)
                yield _Table(about("QK after OV", head, writer, "match", QK, matched), scores, own)


def _notes(
    model: HookedModel, weights: CircuitWeights, heads: Sequence[Head], writers: Sequence[Head], *, explicit: bool
) -> list[str]:
    """What is left out, and what the scores do not see."""
    caveat = caveat_of(model)
    notes = [caveat] if caveat else []
    if not weights.copies:
        notes.append(
            f"copying is left out: the model reads {weights.n_tokens} tokens and writes {weights.W_U.shape[1]}"
        )
    if weights.W_pos is None or len(weights.W_pos) < 2:
        notes.append("previous token is left out: the model has no position embeddings W_pos, or only one position")
    for head in heads:
        if not any(writer[0] < head[0] for writer in writers):
            reason = "of the writers named none" if explicit else "no head"
            notes.append(f"match is left out for {written(head)}: {reason} is in an earlier layer")
    return notes


def _heads(weights: CircuitWeights, named: Sequence[SiteLike] | None, argument: str) -> list[Head]:
    if named is None:
        return [(layer, head) for layer in range(weights.n_layers) for head in range(weights.n_heads)]
    if not named:
        raise InputError(f"{argument} is empty: name at least one head, L1H0 say, or None for all")
    return [weights.check_head(head) for head in named]


def _tokens(named: Sequence[int] | None, n_tokens: int) -> list[int]:
    if named is None:
        return list(range(n_tokens))
    if len(set(named)) < 2 or len(set(named)) < len(named):
        raise InputError(f"tokens = {list(named)[:10]} must name two tokens or more, each once")
    for token in named:
        if not 0 <= token < n_tokens:
            raise InputError(f"token {token} does not exist: the model has tokens 0 to {n_tokens - 1}")
    return list(named)
