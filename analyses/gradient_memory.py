"""What would one gradient step store? The memory readouts, asked of −∂loss/∂W."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor, nn

from analyses.batches import batches
from analyses.memory_circuit import circuit_reading, readable_memories
from analyses.memory_probes import PROBES, CircuitReading, Memory
from analyses.memory_result import COLUMNS, SIGNIFICANCE_LEVEL, MemoryRecallResult, written
from analyses.memory_scores import feed_forward_logits
from analyses.memory_statistics import cosine
from analyses.memory_weights import CircuitWeights, caveat_of
from interp.model_adapter import HookedModel, outputs
from interp.sites import SiteLike
from interp.statistics import jackknife_values, seed_interval
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

_FEWEST_BLOCKS = 5  # what seed_interval needs
_STABLE = 0.9
"""Cosine of two halves' gradients below which the prompts are said to be too few to speak for their distribution."""
_LARGEST_STEP = 1e6  # in units of the logits' standard deviation: for a KL that rounding keeps from ending its fall


@dataclass(frozen=True, eq=False)
class GradientRecallResult(MemoryRecallResult):
    """The memory readouts of −∂loss/∂W, one row for each memory and index set.

    Columns: those of ``MemoryRecallResult`` up to crosstalk, then kl and step_size (W_F only: the KL after the best
    step along the gradient, and its size), cosine (with the ideal memory), ci_low and ci_high (of that cosine under
    the distribution that the prompts come from), stability (cosine between the gradients of one half of the blocks
    and of the other: near 1, more prompts would not change it) and gradient_norm (Frobenius norm, loss in nats).
    """

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "gradient_recall"


def gradient_recall(
    model: HookedModel,
    prompts: Prompts,
    task: Task | None = None,
    *,
    triggers: Sequence[int] | None = None,
    bigram: Float[Tensor, "vocab vocab"] | Float[np.ndarray, "vocab vocab"] | None = None,
    memories: Sequence[Memory] | None = None,
    previous_token_head: SiteLike | None = None,
    induction_head: SiteLike | None = None,
    n_blocks: int = 8,
    confidence: float = 0.95,
    batch_size: int = 512,
    n_permutations: int = 2000,
    seed: int = 0,
) -> GradientRecallResult:
    """Which associative memories does a gradient step write, from where the model is (usually its initialisation)?

    G = −∂L/∂W with L = Σ losses / Σ scored positions over ``prompts``, and the readouts of ``memory_recall`` with W
    replaced by G, so that what W already held does not count; everything else (embeddings, w_1) is the model's. All
    but W_F's kl are the same for any step size. For W_F it is min_η KL(π_b(.|v) ‖ softmax(η w_E(v) G W_U)), mean
    over v, η ≥ 0, without the direct path; its p-value is the same for every η > 0.

    The cosine compares G with the ideal memory. A gradient of few prompts is noisy, which draws its cosine towards 0,
    so the interval is that of the jackknife over ``n_blocks`` blocks of prompts (Student's t on its values), which
    takes off that bias to first order: it may lie above the cosine itself. ``stability`` says how far to trust both.

    A frozen parameter has a gradient too, with a note that training would not follow it. The model is left as it is.

    Args:
        prompts: what the loss is averaged over: the more, the closer to the population's gradient.
        task, triggers, bigram, memories, previous_token_head, induction_head: as for ``memory_recall``.
        n_blocks: equal parts of the prompts, at least 5.
        batch_size: prompts per pass; the result does not depend on it.

    Raises:
        InputError: as for ``memory_recall``; fewer than 5 blocks or more than prompts, a block that scores nothing, a
            gradient that is not finite, or a model whose parameters have other names than TransformerLens'.

    Source: the question is that of Bietti et al. 2023, section 5 and its theorem on one population gradient step each
    on W_O2, W_K2 and W_K1 [abs][mem]; the jackknife over blocks is ours.

    >>> from interp import HookedTransformer
    >>> from interp.presets import preset
    >>> from tasks import BigramICL
    >>> task = BigramICL(seq_len=16, scored="triggers")
    >>> model = HookedTransformer(preset("bietti-simplified", task)[0])
    >>> frame = gradient_recall(model, task.sample(64, seed=0), task, memories=["W_O2"]).frame
    >>> frame["memory"].tolist(), bool(frame["cosine"].gt(0.1).all())
    (['W_O2'], True)
    """
    reading, notes = circuit_reading(model, task, triggers, bigram, previous_token_head, induction_head)
    n_pos = prompts.targets.shape[1]
    if n_pos < reading.n_pos:
        notes.append(f"the prompts have {n_pos} positions, and no others are asked about")
    reading = replace(reading, n_pos=min(n_pos, reading.n_pos), direct_path=False)
    chosen, left_out = readable_memories(reading, memories)
    parameters: dict[Memory, str] = {memory: _parameter(reading, memory) for memory in chosen}
    notes += [*left_out, *_notes_on_frozen(model, parameters)]
    n_scored, by_block = [], []
    for block in _blocks(prompts, n_blocks):
        count, gradients = loss_gradients(model, block, list(parameters.values()), batch_size=batch_size)
        n_scored.append(count)
        by_block.append({memory: -gradients[name] for memory, name in parameters.items()})
    rows = []
    for memory in chosen:
        sums = torch.stack([_of_circuit(reading, memory, block[memory]) for block in by_block])
        found, found_notes = _read(reading, memory, sums, sum(n_scored), (n_permutations, seed, confidence))
        rows += found
        notes += found_notes
    settings = {
        "previous_token_head": written(reading.earlier),
        "induction_head": written(reading.later),
        "triggers": "all" if reading.triggers is None else list(reading.triggers),
        "n_prompts": len(prompts),
        "prompts_seed": prompts.seed,
        "n_blocks": n_blocks,
        "n_scored": sum(n_scored),
        "confidence": confidence,
        "significance_level": SIGNIFICANCE_LEVEL,
        "n_permutations": n_permutations,
        "seed": seed,
    }
    added = ["kl", "step_size", "cosine", "ci_low", "ci_high", "stability", "gradient_norm"]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *added])
    frame["head"] = frame["head"].astype("Int64")
    return GradientRecallResult(
        frame, "Recall of what one gradient step would store", settings, tuple(notes), caveat=caveat_of(model)
    )


def loss_gradients(
    model: HookedModel, prompts: Prompts, names: Sequence[str], *, batch_size: int = 512
) -> tuple[int, dict[str, Tensor]]:
    """The number of scored positions, and ∂(Σ losses over them)/∂W for parameters by name, on the CPU in float64.

    Frozen parameters have their gradient too. A copy of the model is differentiated, so that the model keeps its
    weights, its ``requires_grad`` and its ``.grad``.

    Raises:
        InputError: a parameter that the model has not, or a gradient that is not finite.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=6, d_vocab=5, attn_only=True))
    >>> prompts = Prompts.from_tensors(torch.tensor([[0, 1, 2]]))
    >>> n_scored, gradients = loss_gradients(model, prompts, ["blocks.0.attn.W_O"])
    >>> n_scored, gradients["blocks.0.attn.W_O"].shape
    (2, torch.Size([1, 8, 8]))
    """
    copied = copy.deepcopy(model)
    parameters = _parameters(copied)
    for name in names:
        if name not in parameters:
            raise InputError(
                f"the model has no parameter {name}: gradients are taken of models with TransformerLens' own "
                "parameters, such as HookedTransformer"
            )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    asked = [parameters[name] for name in names]
    totals = [torch.zeros(parameter.shape, dtype=torch.float64) for parameter in asked]
    n_scored = 0
    device = asked[0].device
    for rows in batches(prompts, batch_size):
        batch = prompts[rows].to(device)
        if not batch.scored.any():
            continue
        with torch.enable_grad():
            losses, counts = batch.loss(outputs(copied, batch.inputs))
            found = torch.autograd.grad(losses.sum(), asked)
        totals = [total + one.double().cpu() for total, one in zip(totals, found, strict=True)]
        n_scored += int(counts.sum())
    for name, total in zip(names, totals, strict=True):
        if not bool(torch.isfinite(total).all()):
            raise InputError(
                f"the gradient of {name} holds NaN or infinity: the model's weights or its loss are broken"
            )
    return n_scored, dict(zip(names, totals, strict=True))


def best_step(bigram: Float[Tensor, "token candidate"], logits: Float[Tensor, "token candidate"]) -> float:
    """The η ≥ 0 with the least mean KL(π_b(.|v) ‖ softmax(η logits of v)); 0 if every step makes it worse.

    The KL is convex in η, so that its least value lies where Σ_j softmax(η l)_j l_j = Σ_j π_b(j) l_j on average. If
    it falls without end (π_b has one successor each, and the logits rank it first), the step is one beyond which
    rounding hides the rest.

    >>> round(best_step(torch.tensor([[0.75, 0.25]]), torch.tensor([[1.0, 0.0]])), 4)  # log 3
    1.0986
    """
    logits, bigram = logits.double(), bigram.double()
    spread = float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt())
    if spread == 0:
        return 0.0
    scaled = logits / spread
    wanted = float((bigram * scaled).sum(dim=1).mean())

    def slope(step: float) -> float:
        return float(((step * scaled).softmax(dim=1) * scaled).sum(dim=1).mean()) - wanted

    if slope(0.0) >= 0:
        return 0.0
    high = 1.0
    while slope(high) < 0:
        high *= 2
        if high > _LARGEST_STEP:
            return _LARGEST_STEP / spread
    return float(brentq(slope, 0.0, high)) / spread  # pyright: ignore[reportArgumentType]


def _read(
    reading: CircuitReading,
    memory: Memory,
    sums: Float[Tensor, "block d_in d_out"],
    n_scored: int,
    how: tuple[int, int, float],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one memory from its gradient, summed over the scored positions of each block of prompts."""
    n_permutations, seed, confidence = how
    gradient = sums.sum(dim=0) / n_scored
    norm = float(gradient.norm())
    stability = cosine(sums[::2].sum(dim=0), sums[1::2].sum(dim=0))
    whole = _cosines(reading, memory, gradient)
    without = [_cosines(reading, memory, sums.sum(dim=0) - block) for block in sums]
    step_size = math.nan
    if memory == "W_F":
        step_size = _best_step_of(reading, gradient)
        gradient = step_size * gradient
    rows, notes = PROBES[memory](_as_step(reading, memory, gradient), n_permutations, seed)
    for index, row in enumerate(rows):
        values = jackknife_values(whole[index], np.array([one[index] for one in without]))
        row |= {"cosine": whole[index], "stability": stability, "gradient_norm": norm, "step_size": step_size}
        if np.isfinite(values).all():
            interval = seed_interval(values, confidence=confidence)
            row |= {"ci_low": float(interval.low), "ci_high": float(interval.high)}
    if norm == 0:
        notes.append(f"{memory} has a gradient of exactly zero: a step would store nothing")
    elif stability < _STABLE:
        notes.append(
            f"the gradients of {memory} on two halves of the prompts have a cosine of {stability:.2f}: with more "
            "prompts its readouts would change"
        )
    return rows, notes


def _cosines(reading: CircuitReading, memory: Memory, gradient: Float[Tensor, "d_in d_out"]) -> list[float]:
    length = float(gradient.norm()) or 1.0  # sums over more prompts are longer, and some gradients are tiny
    rows, _ = PROBES[memory](_as_step(reading, memory, gradient / length), 1, 0)
    return [row["cosine"] for row in rows]


def _as_step(reading: CircuitReading, memory: Memory, step: Float[Tensor, "d_in d_out"]) -> CircuitReading:
    """The circuit with the memory's matrix replaced by the step, from a matrix of zeros."""
    now, place = reading.now, _place(reading, memory)
    if memory == "W_F":
        stored, empty = {place[0]: step.to(now.W_E.dtype)}, {place[0]: torch.zeros_like(now.W_F[place[0]])}
        return replace(reading, now=replace(now, W_F=stored), then=replace(now, W_F=empty))
    name = "W_O" if memory == "W_O2" else "W_K"
    weights: Tensor = getattr(now, name).clone()
    weights[place] = step.to(weights.dtype)
    return replace(reading, now=replace(now, **{name: weights}), then=replace(now, **{name: torch.zeros_like(weights)}))


def _place(reading: CircuitReading, memory: Memory) -> tuple[int, int]:
    return reading.earlier if memory == "W_K1" else reading.later


def _parameter(reading: CircuitReading, memory: Memory) -> str:
    layer = _place(reading, memory)[0]
    return f"blocks.{layer}.mlp.W_F" if memory == "W_F" else f"blocks.{layer}.attn.{memory[:3]}"


def _of_circuit(reading: CircuitReading, memory: Memory, gradient: Tensor) -> Float[Tensor, "d_in d_out"]:
    return gradient if memory == "W_F" else gradient[_place(reading, memory)[1]]


def _best_step_of(reading: CircuitReading, gradient: Float[Tensor, "d_model d_model"]) -> float:
    weights: CircuitWeights = reading.now
    assert reading.bigram is not None  # readable_memories has seen to it
    tokens = reading.global_tokens
    logits = feed_forward_logits(weights.W_E[tokens].double(), gradient, weights.W_U.double())
    return best_step(reading.bigram[tokens], logits)


def _blocks(prompts: Prompts, n_blocks: int) -> list[Prompts]:
    if n_blocks < _FEWEST_BLOCKS:
        raise InputError(f"n_blocks = {n_blocks} gives no interval over blocks: ask for at least {_FEWEST_BLOCKS}")
    if n_blocks > len(prompts):
        raise InputError(
            f"n_blocks = {n_blocks} exceeds the {len(prompts)} prompts: sample more, or ask for fewer blocks"
        )
    parts = [prompts[part.tolist()] for part in np.array_split(np.arange(len(prompts)), n_blocks)]
    for index, part in enumerate(parts):
        if not part.scored.any():
            raise InputError(
                f"block {index} of {n_blocks}, {len(part)} prompts, has no scored position: sample more prompts"
            )
    return parts


def _notes_on_frozen(model: HookedModel, parameters: dict[Memory, str]) -> list[str]:
    own = _parameters(model)
    return [
        f"{name} is frozen in this model: training would not take the step of {memory}"
        for memory, name in parameters.items()
        if name in own and not own[name].requires_grad
    ]


def _parameters(model: HookedModel) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
