"""Do the weights hold the associative memories of an induction circuit, and how cleanly?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.memory_circuit import circuit_reading, readable_memories
from analyses.memory_probes import PROBES, Memory
from analyses.memory_result import COLUMNS, SIGNIFICANCE_LEVEL, MemoryRecallResult, written
from analyses.memory_weights import caveat_of, initial_weights
from interp.model_adapter import HookedModel
from interp.sites import SiteLike
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
    reading, notes = circuit_reading(model, task, triggers, bigram, previous_token_head, induction_head)
    before, init_note = initial_weights(model, init_model)
    reading = replace(reading, then=before)
    readable, left_out = readable_memories(reading, memories)
    notes = [*([init_note] if init_note else []), *notes, *left_out]
    rows = []
    for memory in readable:
        found, found_notes = PROBES[memory](reading, n_permutations, seed)
        rows += found
        notes += found_notes
    settings = {
        "previous_token_head": written(reading.earlier),
        "induction_head": written(reading.later),
        "triggers": "all" if reading.triggers is None else list(reading.triggers),
        "initial": "unknown" if before is None else "given" if init_model is not None else "drawn from cfg.seed",
        "significance_level": SIGNIFICANCE_LEVEL,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "kl", "cosine", "learned_margin", "learned_crosstalk"])
    frame["head"] = frame["head"].astype("Int64")  # W_F belongs to no head
    return MemoryRecallResult(
        frame, "Recall of the associative memories", settings, tuple(notes), caveat=caveat_of(model)
    )
