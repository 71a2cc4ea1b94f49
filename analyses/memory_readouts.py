"""The recall of each memory as one number, cheap enough to be logged at every step of training."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from analyses.memory_probes import EARLY_POSITIONS
from analyses.memory_scores import (
    copying_scores,
    feed_forward_logits,
    kl_table,
    match_scores,
    previous_token_scores,
    written_by,
)
from analyses.memory_statistics import unique_best
from analyses.memory_weights import CircuitWeights, triggers_of
from interp.model_adapter import HookedModel
from tasks.bigram import BigramICL
from tasks.errors import InputError
from tasks.prompts import Prompts

Readout = Callable[[HookedModel, Prompts], float]
"""A number to log: of the model, and of the evaluation prompts (which these readouts do not look at)."""


def recall_readouts(task: BigramICL, *, feed_forward: bool = False) -> dict[str, Readout]:
    """What ``memory_recall`` measures, as functions of the model for the training history.

    recall_W_O2, recall_W_K1, recall_W_K1_first64 (all positions, if there are no more than 64) and recall_W_K2
    (keys of the triggers; of every token if triggers are random): shares from 0 to 1. With ``feed_forward`` also
    kl_W_F, in nats. They are for models of two layers with one head each, and agree with ``memory_recall``.

    Each readout raises InputError for a model of another shape, without the parameter, or with weights not finite.

    Source: the curves of Bietti et al. 2023, section 4 [code].

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> task = BigramICL(seq_len=16)
    >>> cfg = HookedTransformerConfig(n_layers=2, d_model=8, n_ctx=16, d_vocab=task.d_vocab, attn_only=True)
    >>> readout = recall_readouts(task)["recall_W_K2"]
    >>> 0 <= readout(HookedTransformer(cfg), task.sample(2, seed=0)) <= 1
    True
    """
    measures = {
        "recall_W_O2": _recall_W_O2,
        "recall_W_K1": _recall_W_K1,
        "recall_W_K1_first64": partial(_recall_W_K1, at_most=EARLY_POSITIONS),
        "recall_W_K2": _recall_W_K2,
    }
    if feed_forward:
        measures["kl_W_F"] = _kl_W_F
    return {name: partial(_read, task, measure) for name, measure in measures.items()}


def _read(
    task: BigramICL, measure: Callable[[BigramICL, CircuitWeights], float], model: HookedModel, _prompts: Prompts
) -> float:
    weights = CircuitWeights.of(model)
    if (weights.n_layers, weights.n_heads) != (2, 1):
        raise InputError(
            f"the model has {weights.n_layers} layers of {weights.n_heads} heads: recall readouts are for two layers "
            "of one head, ask circuit_recall after training instead"
        )
    return measure(task, weights)


def _recall_W_O2(_task: BigramICL, weights: CircuitWeights) -> float:
    return _share_on_diagonal(copying_scores(weights.W_E, weights.W_V[1, 0], weights.W_O[1, 0], weights.W_U))


def _recall_W_K1(task: BigramICL, weights: CircuitWeights, at_most: int | None = None) -> float:
    if weights.W_pos is None:
        raise InputError("the model has no position embeddings W_pos: leave recall_W_K1 out of its readouts")
    W_pos = weights.W_pos[: task.n_ctx][:at_most]
    return _share_on_diagonal(previous_token_scores(W_pos, weights.W_Q[0, 0], weights.W_K[0, 0]))


def _recall_W_K2(task: BigramICL, weights: CircuitWeights) -> float:
    w_E = weights.W_E[list(triggers_of(task, None, weights.n_tokens) or range(weights.n_tokens))]
    w_1 = written_by(w_E, weights.W_V[0, 0], weights.W_O[0, 0])
    return _share_on_diagonal(match_scores(w_E, weights.W_Q[1, 0], weights.W_K[1, 0], w_1))


def _kl_W_F(task: BigramICL, weights: CircuitWeights) -> float:
    if 1 not in weights.W_F:
        raise InputError("layer 1 has no linear feed-forward part: leave kl_W_F out, feed_forward=False")
    triggers = triggers_of(task, None, weights.n_tokens) or ()
    tokens = [token for token in range(weights.n_tokens) if token not in triggers]
    logits = feed_forward_logits(weights.W_E[tokens], weights.W_F[1], weights.W_U)
    bigram = torch.tensor(task.stats.bigram[tokens])
    return float(kl_table(bigram, logits.to(bigram.dtype)).diagonal().mean())


def _share_on_diagonal(scores: Tensor) -> float:
    return float((unique_best(scores) == torch.arange(len(scores))).double().mean())
