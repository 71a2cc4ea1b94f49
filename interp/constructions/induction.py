"""The induction circuit of Bietti et al., built by hand from its ideal associative memories."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.hooked_transformer import HookedTransformer
from interp.hooked_transformer_config import HookedTransformerConfig
from tasks.errors import InputError

# What the paper never trains; the memories are everything else.
_FROZEN = ("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.*.attn.W_V", "blocks.0.attn.W_O")


@dataclass(frozen=True, eq=False)
class InductionCircuit:
    """A model whose circuit is known, and the truth about it.

    Attributes:
        model: the model with its memories.
        initial_model: the same model before anything was stored: model's weights minus ``memories``.
        previous_token_head: (layer, head) that writes the previous token to each position.
        induction_head: (layer, head) that finds the last occurrence of a trigger and copies what followed.
        idle_heads: the heads that look around and write nothing.
        triggers: the tokens that the induction head answers to, Q of the paper.
        memories: the stored matrix by the paper's name, W_K1, W_K2, W_O2 (and W_F), in the shape and orientation
            of our parameters (the transpose of the paper's).
        parameters: the parameter that holds each memory, at the circuit's head.
    """

    model: HookedTransformer
    initial_model: HookedTransformer
    previous_token_head: tuple[int, int]
    induction_head: tuple[int, int]
    idle_heads: tuple[tuple[int, int], ...]
    triggers: tuple[int, ...]
    memories: Mapping[str, Float[Tensor, "d_in d_out"]]
    parameters: Mapping[str, str]

    def expected_attention(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "layer batch dest src"]:
        """Where the two heads look when embeddings are orthogonal and the softmax is sharp.

        Layer 0: position t looks at t − 1 (position 0, having no choice, at itself). Layer 1: a trigger looks in
        equal parts at every position whose predecessor is that trigger; without one, in equal parts at all
        positions but the first; any other token looks at everything alike.
        """
        n_pos = tokens.shape[1]
        position = torch.arange(n_pos)
        causal = position[:, None] >= position[None, :]
        previous = (position[:, None] - 1).clamp(min=0) == position[None, :]
        is_trigger = torch.isin(tokens, torch.tensor(self.triggers))
        predecessor = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], dim=1)
        match = (predecessor[:, None, :] == tokens[:, :, None]) & is_trigger[:, :, None] & causal
        has_predecessor = causal & ((position > 0)[None, :] | (position == 0)[:, None])
        unmatched = torch.where(is_trigger[:, :, None], has_predecessor, causal)
        looked_at = torch.where(match.any(dim=2, keepdim=True), match, unmatched).float()
        induction = looked_at / looked_at.sum(dim=2, keepdim=True)
        return torch.stack([previous.float().expand_as(induction), induction])


def induction_circuit(
    *,
    d_vocab: int,
    n_ctx: int,
    triggers: Sequence[int] | None = None,
    d_model: int | None = None,
    embeddings: Literal["orthogonal", "random"] = "orthogonal",
    log_bigram: Float[Tensor, "vocab vocab"] | None = None,
    idle_heads: int = 0,
    attention_logit: float = 30.0,
    copy_logit: float = 30.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> InductionCircuit:
    """A two-layer transformer that solves in-context bigrams by construction.

    The shape is the paper's simplified model: identity queries, d_head = d_model, no norms, no biases. A residual
    is a row x, a key is x W_K. With w_1(v) = w_E(v) W_V1 W_O1, what layer 0 writes on having read token v:

    - ``W_K1 = β₁ Σ_t p_{t−1}ᵀ p_t``, the previous-token head. The key of position s is β₁ p_{s+1}; the query of
      position t holds p_t; so their product is β₁ where s = t − 1 and 0 elsewhere. It adds w_1(z_{t−1}) to the
      residual of position t.
    - ``W_K2 = β₂ Σ_{k∈Q} w_1(k)ᵀ w_E(k)``, the induction head's match. The key of position s is
      β₂ w_E(z_{s−1}) if z_{s−1} is a trigger and 0 if not; the query holds w_E(z_t); so a trigger finds the
      positions that came right after it.
    - ``W_O2 = γ Σ_v (w_E(v) W_V2)ᵀ w_U(v)``, its copy: having read token v it adds γ to the logit of v.
    - ``W_F = Σ_v w_E(v)ᵀ Σ_j log π_b(j|v) w_U(j)`` over tokens v that are no triggers, with ``log_bigram`` only:
      a linear feed-forward part after the second attention that adds the global bigram's log-probabilities.

    β₁, β₂ and γ are such that the median score of a stored pair is ``attention_logit`` (nats, after the division by
    √d_model) and the median logit of a copied token ``copy_logit`` (nats).

    ``embeddings="orthogonal"``: w_E, w_1, w_U and p are d_vocab + d_vocab + d_vocab + n_ctx orthonormal vectors in
    no particular direction and both W_V are rotations, so every other inner product above is zero, and the
    attention reaches 1 − n_ctx e^(−attention_logit). Position 0 has no predecessor, yet its head can only look at
    itself and so writes w_1(z_0) there; p_0 therefore also holds −Σ_{k∈Q} w_1(k), which no other layer reads, so
    that position 0 is never mistaken for what follows trigger z_0.

    ``embeddings="random"``: everything frozen is what ``HookedTransformerConfig(init_mode="torch_linear",
    seed=seed)`` draws, and the memories are added to the initial weights: the paper's picture of a trained model.
    Its recall is high and not exact, and position 0 is ambiguous.

    Args:
        triggers: Q; None means every token (as for triggers drawn per prompt).
        d_model: None means the least that fits, 3 d_vocab + n_ctx (orthogonal embeddings only).
        log_bigram: log π_b(j|v) in row v, finite: smooth zero counts first.
        idle_heads: heads added to either layer, with random W_Q, W_K, W_V and W_O = 0: they attend somewhere and
            do nothing. W_Q is then set to the identity for the circuit's heads, rather than fixed by the config.
        dtype: of the weights. In torch.float64 orthonormal vectors are so to 15 digits; ``model.double()`` afterwards
            would keep what float32 had rounded.

    Raises:
        InputError: triggers outside the vocabulary, repeated or none; a d_model that is too small or, with random
            embeddings, missing; a table of another shape or not finite; a copy weaker than the table.

    Source: Bietti et al. 2023 (arXiv 2306.00802), section 4 [code][mem]; p_0's second part and the idle heads
    are ours.

    >>> circuit = induction_circuit(d_vocab=5, n_ctx=8, triggers=[2])
    >>> logits = circuit.model(torch.tensor([[0, 2, 4, 1, 2]]))
    >>> logits[0, -1].argmax()
    tensor(4)
    """
    stored = _checked_triggers(triggers, d_vocab)
    _check_table(log_bigram, d_vocab, copy_logit if triggers is None else None)
    if embeddings not in ("orthogonal", "random"):
        raise InputError(f"embeddings = {embeddings!r} is unknown: choose 'orthogonal' or 'random'")
    if idle_heads < 0:
        raise InputError(f"idle_heads = {idle_heads} is negative: ask for 0 or more")
    needed = 3 * d_vocab + n_ctx
    if d_model is None:
        if embeddings == "random":
            raise InputError("d_model is missing: random embeddings fit any width, so choose one (the paper: 128)")
        d_model = needed
    if embeddings == "orthogonal" and d_model < needed:
        raise InputError(
            f"d_model = {d_model} is too small for orthogonal embeddings of {d_vocab} tokens (read, previous, "
            f"written) and {n_ctx} positions: give at least {needed}, or embeddings='random'"
        )
    cfg = HookedTransformerConfig(
        n_layers=2,
        d_model=d_model,
        n_ctx=n_ctx,
        n_heads=1 + idle_heads,
        d_head=d_model,
        d_vocab=d_vocab,
        attn_only=log_bigram is None,
        mlp_type="linear",
        mlp_layers=None if log_bigram is None else (1,),
        use_biases=False,
        identity_queries=idle_heads == 0,
        init_mode="torch_linear",
        frozen=_FROZEN,
        seed=seed,
    )
    initial = HookedTransformer(cfg).to(dtype)
    with torch.no_grad():
        _silence_idle_heads(initial)
        if embeddings == "orthogonal":
            _orthogonal_surroundings(initial, stored, seed)
        memories = _ideal_memories(initial, stored, log_bigram, attention_logit, copy_logit)
        model = HookedTransformer(cfg).to(dtype)
        model.load_state_dict(initial.state_dict())
        for name, memory in memories.items():
            _matrix(model, name).add_(memory)
    return InductionCircuit(
        model=model,
        initial_model=initial,
        previous_token_head=(0, 0),
        induction_head=(1, 0),
        idle_heads=tuple((layer, head) for layer in range(2) for head in range(1, 1 + idle_heads)),
        triggers=stored,
        memories=memories,
        parameters={name: _PARAMETERS[name] for name in memories},
    )


_PARAMETERS = {
    "W_K1": "blocks.0.attn.W_K",
    "W_K2": "blocks.1.attn.W_K",
    "W_O2": "blocks.1.attn.W_O",
    "W_F": "blocks.1.mlp.W_F",
}


def _matrix(model: HookedTransformer, memory: str) -> Float[Tensor, "d_in d_out"]:
    weight = model.get_parameter(_PARAMETERS[memory])
    return weight if memory == "W_F" else weight[0]


def _silence_idle_heads(model: HookedTransformer) -> None:
    for block in model.blocks:
        block.attn.W_O[1:] = 0
        block.attn.W_Q[0] = torch.eye(model.cfg.d_model)


def _orthogonal_surroundings(model: HookedTransformer, triggers: tuple[int, ...], seed: int) -> None:
    """Everything that the paper freezes, made orthonormal, and nothing stored yet."""
    cfg = model.cfg
    n_tokens = model.W_E.shape[0]
    generator = torch.Generator().manual_seed(seed)
    w_E, w_1, w_U, p = _orthonormal(3 * n_tokens + cfg.n_ctx, cfg.d_model, generator).split(
        [n_tokens, n_tokens, n_tokens, cfg.n_ctx]
    )
    model.embed.W_E.copy_(w_E)
    model.unembed.W_U.copy_(w_U.T)
    model.pos_embed.W_pos.copy_(p)
    model.pos_embed.W_pos[0] -= w_1[list(triggers)].sum(dim=0).to(model.W_pos.dtype)
    for block in model.blocks:
        block.attn.W_V[0] = _orthonormal(cfg.d_model, cfg.d_model, generator).to(block.attn.W_V.dtype)
        block.attn.W_K[0] = 0
    # w_E(v) W_V1 W_O1 = w_1(v), and nothing else is passed on.
    first = model.blocks[0].attn
    first.W_O[0] = first.W_V[0].T @ (w_E.T @ w_1).to(first.W_O.dtype)
    model.blocks[1].attn.W_O[0] = 0
    if model.blocks[1].has_mlp:
        model.get_parameter("blocks.1.mlp.W_F").zero_()


def _orthonormal(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """n orthonormal rows in random directions, in float64."""
    return torch.linalg.qr(torch.randn(d, n, generator=generator, dtype=torch.float64)).Q.T


def _ideal_memories(
    model: HookedTransformer,
    triggers: tuple[int, ...],
    log_bigram: Float[Tensor, "vocab vocab"] | None,
    attention_logit: float,
    copy_logit: float,
) -> dict[str, Float[Tensor, "d_in d_out"]]:
    w_E, p, w_U = model.W_E, model.W_pos, model.W_U.T
    w_1 = w_E @ model.W_V[0, 0] @ model.W_O[0, 0]
    known = list(triggers)
    scale = math.sqrt(model.cfg.d_model)
    memories = {
        "W_K1": attention_logit * scale * _memory(p[:-1], p[1:]),
        "W_K2": attention_logit * scale * _memory(w_1[known], w_E[known]),
        "W_O2": copy_logit * _memory(w_E @ model.W_V[1, 0], w_U),
    }
    if log_bigram is not None:
        others = [
            token for token in range(model.W_E.shape[0]) if len(known) == model.W_E.shape[0] or token not in known
        ]
        # Divided by the norms, so that w_E(v) W_F w_U(j) is the log-probability itself.
        read = w_E[others] / w_E[others].square().sum(dim=1, keepdim=True)
        written = w_U / w_U.square().sum(dim=1, keepdim=True)
        memories["W_F"] = read.T @ log_bigram[others].to(read.dtype) @ written
    return memories


def _memory(read: Float[Tensor, "pair d_in"], written: Float[Tensor, "pair d_out"]) -> Float[Tensor, "d_in d_out"]:
    """Σ_i read_iᵀ written_i, scaled so that the median of read_i M · written_i is 1."""
    total = torch.zeros(read.shape[1], written.shape[1], dtype=read.dtype)
    for key, value in zip(read, written, strict=True):
        total += torch.outer(key, value)
    return total / torch.einsum("nd,de,ne->n", read, total, written).median()


def _checked_triggers(triggers: Sequence[int] | None, d_vocab: int) -> tuple[int, ...]:
    if triggers is None:
        return tuple(range(d_vocab))
    if len(triggers) == 0:
        raise InputError("triggers is empty: name at least one token, or None for every token")
    if len(set(triggers)) < len(triggers):
        raise InputError(f"triggers = {list(triggers)} names a token twice: name each once")
    for token in triggers:
        if not 0 <= token < d_vocab:
            raise InputError(f"trigger {token} does not exist: the vocabulary has tokens 0 to {d_vocab - 1}")
    return tuple(int(token) for token in triggers)


def _check_table(log_bigram: Tensor | None, d_vocab: int, copy_logit: float | None) -> None:
    if log_bigram is None:
        return
    if tuple(log_bigram.shape) != (d_vocab, d_vocab):
        raise InputError(f"log_bigram is {list(log_bigram.shape)}: give [{d_vocab}, {d_vocab}]")
    if not bool(torch.isfinite(log_bigram).all()):
        raise InputError("log_bigram holds a value that is NaN or infinite: smooth the bigram's zeros first")
    span = float((log_bigram.amax(dim=1) - log_bigram.amin(dim=1)).max())
    if copy_logit is not None and copy_logit <= span:
        raise InputError(
            f"copy_logit = {copy_logit} does not outweigh log_bigram, which spans {span:.3g} nats: "
            f"give more than {span:.3g}"
        )
