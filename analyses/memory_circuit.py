"""Which circuit of a model is asked, about which triggers, and which memories it can have."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.memory_probes import CircuitReading, Memory
from analyses.memory_result import written
from analyses.memory_weights import CircuitWeights, Head, caveat_of, triggers_of
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import SiteLike
from tasks.errors import InputError
from tasks.protocol import Task


def circuit_reading(
    model: HookedModel,
    task: Task | None,
    triggers: Sequence[int] | None,
    bigram: Float[Tensor, "vocab vocab"] | Float[np.ndarray, "vocab vocab"] | None,
    previous_token_head: SiteLike | None,
    induction_head: SiteLike | None,
) -> tuple[CircuitReading, list[str]]:
    """The weights of one circuit with all that is asked of them, but for the weights before training; and notes.

    Raises:
        InputError: as for ``memory_recall``.
    """
    refuse_other(model)
    weights = CircuitWeights.of(model)
    earlier, later = _circuit(weights, previous_token_head, induction_head)
    resolved = triggers_of(task, triggers, weights.n_tokens)
    table = _bigram(task, bigram, weights.n_tokens)
    n_ctx = 0 if weights.W_pos is None else len(weights.W_pos)
    n_pos = n_ctx if task is None else min(n_ctx, task.n_ctx)
    notes = []
    if n_pos < n_ctx:
        notes.append(f"of the model's {n_ctx} positions the first {n_pos} are asked about, those that the task has")
    if resolved is None:
        reason = "no task and no triggers were given" if task is None else "the task draws its triggers per prompt"
        notes.append(f"{reason}: every token counts as a trigger")
    caveat = caveat_of(model)
    if caveat:
        notes.append(caveat)
    return CircuitReading(weights, None, earlier, later, resolved, table, n_pos), notes


def readable_memories(reading: CircuitReading, memories: Sequence[Memory] | None) -> tuple[list[Memory], list[str]]:
    """The memories asked for; if none are named, all that the circuit has, with a note on each that it has not.

    Raises:
        InputError: a memory that does not exist, or that was named and cannot be read.
    """
    readable: list[Memory] = []
    notes = []
    for memory in _checked(memories):
        reason = reading.why_not(memory)
        if reason is None:
            readable.append(memory)
        elif memories is None:
            notes.append(f"{memory} is left out: {reason}")
        else:
            raise InputError(f"{memory} cannot be read: {reason}")
    return readable, notes


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
