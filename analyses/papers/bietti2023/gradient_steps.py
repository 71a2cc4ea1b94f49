"""The idealised experiment of the theory: one step along the population's gradient for each memory, in some order.

Everything frozen is Gaussian with entries of variance 1/width, so that embeddings have norms about 1 and are the nearer
to orthogonal the wider they are; W_K1, W_K2 and W_O2 start at zero; the data are uniform.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.gradient_memory import loss_gradients
from analyses.memory_scores import copying_scores, match_scores, previous_token_scores, written_by
from analyses.memory_statistics import unique_best
from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks import BigramICL, BigramStatistics
from tasks.prompts import Prompts

PARAMETERS = {"W_O2": "blocks.1.attn.W_O", "W_K1": "blocks.0.attn.W_K", "W_K2": "blocks.1.attn.W_K"}
PAPERS_ORDER = ("W_O2", "W_K2", "W_K1")
ORDERS = tuple(itertools.permutations(PAPERS_ORDER))

LARGEST_SCORE = {"W_O2": 1.0, "W_K1": 10.0, "W_K2": 10.0}
"""How far a step goes: until its largest score is this [ours]; in logits (W_O2) or attention logits (W_K1, W_K2).

The sign of the step is the gradient's and its direction too, so that this is a step size and no more. The paper's are
not known to us; small for W_O2, so that predictions stay soft, and large for the attentions, so that they harden [mem].
"""


def gradient_steps(
    *,
    seed: int,
    width: int,
    order: Sequence[str],
    d_vocab: int,
    seq_len: int,
    n_triggers: int,
    n_prompts: int,
    shuffled: bool,
) -> pd.DataFrame:
    """Recall of the three memories after each step: step, stored, memory, recall, chance.

    Each step takes fresh prompts, with triggers drawn per prompt from a uniform law (so that every token is one), and
    the loss at their second and later occurrences. ``shuffled``: targets dealt anew among the scored positions, so
    that nothing in a prompt tells them.

    Source: Bietti et al. 2023, section 5 and its theorem [mem].
    """
    task = uniform_task(d_vocab, seq_len, n_triggers)
    model = idealised_model(width, task, seed)
    rows = []
    for step, memory in enumerate(order, start=1):
        prompts = task.sample(n_prompts, seed=(seed, step))
        if shuffled:
            prompts = with_shuffled_targets(prompts, seed)
        take_step(model, prompts, memory)
        for read in PAPERS_ORDER:
            recall = recall_of(model, read)
            rows.append({"step": step, "stored": memory, "memory": read, **recall})
    return pd.DataFrame(rows)


def uniform_task(d_vocab: int, seq_len: int, n_triggers: int) -> BigramICL:
    """Uniform unigrams, bigrams, triggers and outputs."""
    vocab = tuple(chr(ord("!") + index) for index in range(d_vocab))
    statistics = BigramStatistics(vocab, np.ones((d_vocab, d_vocab), dtype=int))
    return BigramICL(statistics, n_triggers=n_triggers, seq_len=seq_len, triggers="random")


@torch.no_grad()
def idealised_model(width: int, task: BigramICL, seed: int) -> HookedTransformer:
    """A model with the inner products of one of this width, in as few dimensions as they need.

    Scores and gradients depend on the vectors through their inner products alone: of w_E, p and what the first layer's
    W_V1 W_O1 makes of them, w_U, and of their values under W_V2. So a rotation into the space that they span changes
    nothing, and a width of thousands costs no more than one of hundreds.
    """
    rng = np.random.default_rng((seed, width))

    def gaussian(rows: int) -> Float[Tensor, "rows width"]:
        return torch.tensor(rng.standard_normal((rows, width)) / math.sqrt(width))

    n_tokens, n_pos = task.d_vocab, task.n_ctx
    read, W_U = gaussian(n_tokens + n_pos), gaussian(n_tokens)
    passed_on = _mapped(_mapped(read, gaussian), gaussian)
    written = torch.cat([read, passed_on])
    values = _mapped(written, gaussian)

    residual = _coordinates(torch.cat([written, W_U]))
    written_here, W_U_here = residual[: len(written)], residual[len(written) :]
    values_here = _coordinates(values)
    d_model = max(residual.shape[1], values_here.shape[1])
    written_here, W_U_here, values_here = (_padded(one, d_model) for one in (written_here, W_U_here, values_here))
    read_here, passed_on_here = written_here[: len(read)], written_here[len(read) :]
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=2,
            d_model=d_model,
            n_ctx=n_pos,
            d_vocab=n_tokens,
            attn_only=True,
            use_biases=False,
            identity_queries=True,
            seed=None,
        )
    )
    model.embed.W_E.copy_(read_here[:n_tokens])
    model.pos_embed.W_pos.copy_(read_here[n_tokens:])
    model.unembed.W_U.copy_(W_U_here.T)
    model.blocks[0].attn.W_V[0] = torch.eye(d_model)
    model.blocks[0].attn.W_O[0] = torch.linalg.pinv(read_here) @ passed_on_here
    model.blocks[1].attn.W_V[0] = torch.linalg.pinv(written_here) @ values_here
    return model


def take_step(model: HookedTransformer, prompts: Prompts, memory: str) -> None:
    """Replace a memory's matrix of zeros by a step along the negative gradient; none if that is zero."""
    name = PARAMETERS[memory]
    _, gradients = loss_gradients(model, prompts, [name], batch_size=256)
    step = -gradients[name]
    if float(step.norm()) == 0:
        return  # nothing written is read yet
    with torch.no_grad():
        weight = model.get_parameter(name)
        weight.copy_(step / step.norm())
        weight.mul_(LARGEST_SCORE[memory] / scores_of(model, memory).abs().max())


@torch.no_grad()
def recall_of(model: HookedTransformer, memory: str) -> dict[str, float]:
    """The paper's probe: share of queries whose best key is their own; and its chance. Ties are no recall."""
    scores = scores_of(model, memory)
    return {
        "recall": float((unique_best(scores) == torch.arange(len(scores))).double().mean()),
        "chance": 1 / scores.shape[1],
    }


@torch.no_grad()
def scores_of(model: HookedTransformer, memory: str) -> Float[Tensor, "query key"]:
    """The scores that a memory's probe compares, those of attention divided by √d_head as in the model."""
    if memory == "W_O2":
        return copying_scores(model.W_E, model.W_V[1, 0], model.W_O[1, 0], model.W_U)
    scale = math.sqrt(model.cfg.d_model)
    if memory == "W_K1":
        return previous_token_scores(model.W_pos, model.W_Q[0, 0], model.W_K[0, 0]) / scale
    w_1 = written_by(model.W_E, model.W_V[0, 0], model.W_O[0, 0])
    return match_scores(model.W_E, model.W_Q[1, 0], model.W_K[1, 0], w_1) / scale


def with_shuffled_targets(prompts: Prompts, seed: int) -> Prompts:
    """The targets of the scored positions dealt anew among them, over all prompts."""
    targets = prompts.targets.clone()
    at_stake = targets[prompts.scored]
    order = torch.randperm(len(at_stake), generator=torch.Generator().manual_seed(seed))
    targets[prompts.scored] = at_stake[order]
    return replace(prompts, targets=targets, wrong=None)


def _mapped(
    vectors: Float[Tensor, "vector width"], gaussian: Callable[[int], Float[Tensor, "rows width"]]
) -> Float[Tensor, "vector width"]:
    """What a Gaussian width × width matrix makes of the vectors, without drawing more of it than they meet.

    With vectors = Rᵀ Qᵀ, Q orthonormal, Qᵀ times the matrix is Gaussian of the same variance, with rank rows.
    """
    R = torch.linalg.qr(vectors.T).R
    return R.T @ gaussian(len(R))


def _coordinates(vectors: Float[Tensor, "vector width"]) -> Float[Tensor, "vector dim"]:
    """The vectors in an orthonormal basis of the space they span: the same inner products in fewer numbers."""
    if vectors.shape[1] <= vectors.shape[0]:
        return vectors
    return torch.linalg.qr(vectors.T).R.T


def _padded(vectors: Float[Tensor, "vector dim"], dim: int) -> Float[Tensor, "vector dim_out"]:
    return torch.nn.functional.pad(vectors, (0, dim - vectors.shape[1]))
