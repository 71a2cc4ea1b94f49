"""Do the weights hold the associative memories of an induction circuit, and how cleanly?"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.memory_probes import PROBES, CircuitReading, Memory
from analyses.memory_result import COLUMNS, SIGNIFICANCE_LEVEL, MemoryRecallResult, written
from analyses.memory_weights import CircuitWeights, Head, caveat_of, initial_weights, triggers_of
from interp.model_adapter import HookedModel
from interp.sites import SiteLike
from tasks.errors import InputError
from tasks.protocol import Task


def memory_recall(
    model: HookedModel,
    task: Task | None = None,
    *,
    triggers: Sequence[int] | None = None,
    bigram: Float[Tensor, "vocab vocab"] | Float[np.ndarray, "vocab vocab"] | None = None,
    memories: Sequence[Memory] | None = None,
    previous_token_head: SiteLike | None = None,
    induction_head: SiteLike | None = None,
    init_model: HookedModel | None = None,
    n_permutations: int = 2000,
    seed: int = 0,
) -> MemoryRecallResult:
    """Do the weights of an induction circuit recall what the paper says they store?

    With w_1(v) = w_E(v) W_V1 W_O1 (rows; the paper's w_1(v) = W_O1 W_V1 w_E(v)), Q the triggers:

    - W_O2, ``blocks.1.attn.W_O``: share of tokens v with argmax_j w_E(v) W_V2 W_O2 w_U(j) = v.
    - W_K1, ``blocks.0.attn.W_K``: share of positions t ≥ 1 with argmax_s p_t · p_s W_K1 = t − 1 over all positions
      s = 0 … T − 2 (T: positions of the model, or of the task if those are fewer); again with both t and s cut to
      the first 64 positions.
    - W_K2, ``blocks.1.attn.W_K``: share of triggers k with argmax_v w_E(k) · w_1(v) W_K2 = k over v in Q (chance
      1/|Q|); again over the whole vocabulary.
    - W_F, ``blocks.1.mlp.W_F``: KL(π_b(.|v) ‖ softmax(w_E(v) W_F W_U)), mean over tokens v not in Q; over all tokens
      where every token can be a trigger. Again "with the direct path" from embedding to unembedding,
      softmax(w_E(v) (W_F + 1) W_U), which no cosine belongs to: the feed-forward part reads the residual stream and
      adds to it, so that a two-layer model without normalisation computes exactly this where both attention layers
      write nothing, but for the position, w_E(v) + p_t in place of w_E(v). The first row is the paper's readout.

    Where queries are not the identity, W_Q is part of the score. Ties are no recall. The cosine compares W − W_init
    with ``ideal_memory``, built from the model's present embeddings (W_F: over the tokens it is asked about).

    Args:
        task: a bigram task; gives the triggers and π_b.
        triggers: Q, in place of a task. None and no task, or random triggers: every token.
        bigram: π_b(j|v) in row v, where no task gives it.
        memories: which to read; None means all that this model has, with a note on each that it has not.
        previous_token_head: where W_V1, W_O1 and W_K1 are; L0H0 in a model of two layers with one head each.
        induction_head: where W_K2, W_V2 and W_O2 are; L1H0 in such a model. Its layer holds W_F.
        init_model: the model before training; None draws it again from ``model.cfg`` where that is possible.
        n_permutations: permutations drawn where the p-value is not exact (W_F, and more than 512 keys).

    Raises:
        InputError: a memory asked for that the model or the task cannot have, fewer than two layers, several heads
            and none named, triggers that do not exist, a task or table that does not fit the vocabulary.

    Source: Bietti et al. 2023 (arXiv 2306.00802), section 4 and the published code's probes [code].

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> memory_recall(model, triggers=[1, 2]).frame["memory"].tolist()
    ['W_O2', 'W_K1', 'W_K2', 'W_K2']
    """
    weights = CircuitWeights.of(model)
    earlier, later = _circuit(weights, previous_token_head, induction_head)
    resolved = triggers_of(task, triggers, weights.n_tokens)
    before, init_note = initial_weights(model, init_model)
    table = _bigram(task, bigram, weights.n_tokens)
    n_ctx = 0 if weights.W_pos is None else len(weights.W_pos)
    n_pos = n_ctx if task is None else min(n_ctx, task.n_ctx)
    reading = CircuitReading(weights, before, earlier, later, resolved, table, n_pos)
    notes = [init_note] if init_note else []
    if n_pos < n_ctx:
        notes.append(f"of the model's {n_ctx} positions the first {n_pos} are asked about, those that the task has")
    if resolved is None:
        reason = "no task and no triggers were given" if task is None else "the task draws its triggers per prompt"
        notes.append(f"{reason}: every token counts as a trigger")
    caveat = caveat_of(model)
    if caveat:
        notes.append(caveat)
    rows = []
    for memory in _checked(memories):
        reason = reading.why_not(memory)
        if reason is None:
            found, found_notes = PROBES[memory](reading, n_permutations, seed)
            rows += found
            notes += found_notes
        elif memories is None:
            notes.append(f"{memory} is left out: {reason}")
        else:
            raise InputError(f"{memory} cannot be read: {reason}")
    settings = {
        "previous_token_head": written(earlier),
        "induction_head": written(later),
        "triggers": "all" if resolved is None else list(resolved),
        "initial": "unknown" if before is None else "given" if init_model is not None else "drawn from cfg.seed",
        "significance_level": SIGNIFICANCE_LEVEL,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "kl", "cosine", "learned_margin", "learned_crosstalk"])
    frame["head"] = frame["head"].astype("Int64")  # W_F belongs to no head
    return MemoryRecallResult(frame, "Recall of the associative memories", settings, tuple(notes), caveat=caveat)


def _circuit(weights: CircuitWeights, earlier: SiteLike | None, later: SiteLike | None) -> tuple[Head, Head]:
    if weights.n_layers < 2:
        raise InputError(
            "the model has 1 layer: an induction circuit needs 2, ask circuit_recall about single heads instead"
        )
    if earlier is None or later is None:
        if (weights.n_layers, weights.n_heads) != (2, 1):
            raise InputError(
                f"the model has {weights.n_layers} layers of {weights.n_heads} heads: name previous_token_head and "
                "induction_head, or ask circuit_recall about every head"
            )
        earlier, later = earlier or (0, 0), later or (1, 0)
    heads = weights.check_head(earlier), weights.check_head(later)
    if heads[0][0] >= heads[1][0]:
        raise InputError(
            f"previous_token_head {written(heads[0])} is not in an earlier layer than induction_head "
            f"{written(heads[1])}: what it writes could not be matched there"
        )
    return heads


def _checked(memories: Sequence[Memory] | None) -> Sequence[Memory]:
    known = get_args(Memory)
    for memory in memories or ():
        if memory not in known:
            raise InputError(f"memory {memory!r} is unknown: choose from {', '.join(known)}")
    if memories is not None and not memories:
        raise InputError(f"memories is empty: choose from {', '.join(known)}, or None for all")
    return known if memories is None else memories


def _bigram(task: Task | None, given: Any, n_tokens: int) -> Float[Tensor, "vocab vocab"] | None:
    if given is None:
        stats = getattr(task, "stats", None)
        return None if stats is None else torch.tensor(stats.bigram)
    if task is not None:
        raise InputError("task and bigram were both given: give one, the task knows its bigram")
    bigram = torch.as_tensor(given).double().cpu()
    if tuple(bigram.shape) != (n_tokens, n_tokens):
        raise InputError(
            f"bigram is {list(bigram.shape)} but the model reads {n_tokens} tokens: give π_b(j|v) in row v"
        )
    if bool((bigram < 0).any()) or not torch.allclose(bigram.sum(dim=1), torch.ones(n_tokens).double(), atol=1e-4):
        raise InputError("bigram's rows are no distributions: every row must be non-negative and sum to 1")
    return bigram
