"""Scores of edges: how far a sender's change moves the metric to first order, computed in the space of heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analyses.edges import INPUTS_OF_HEADS, Edges
from interp.model_adapter import HookedModel, named_weights, needed_weight, weight
from tasks.errors import InputError


@dataclass(frozen=True, eq=False)
class EdgeWeights:
    """What carries a change along an edge: output weights, and input weights as the stream before LayerNorm sees them.

    ``inputs["q"][layer]`` is C γ W_Q [head, d_model, d_head], where γ is LayerNorm's gain (1 if it has none) and C
    takes the mean over d_model away (without LayerNorm both are the identity).
    """

    outputs: Float[Tensor, "layer head d_head d_model"]
    inputs: Mapping[str, Float[Tensor, "layer head d_model d_head"]]
    eps: float | None
    """LayerNorm's, or None without LayerNorm."""

    @classmethod
    def of(cls, model: HookedModel) -> "EdgeWeights":
        """Read them from a model.

        Raises:
            InputError: it has another normalisation than LayerNorm, or keys and values that heads share.
        """
        kind = model.cfg.normalization_type
        if kind not in (None, "LN", "LNPre"):
            raise InputError(f"normalization_type = {kind!r} is no LayerNorm: this reads through none or a LayerNorm")
        named = named_weights(model)
        gains = [named.get(f"blocks.{layer}.ln1.w") for layer in range(model.cfg.n_layers)]
        inputs = {}
        for each in INPUTS_OF_HEADS:
            W = needed_weight(model, f"W_{each.upper()}").detach()
            if W.shape[1] != model.cfg.n_heads:
                raise InputError(f"heads share {W.shape[1]} {each}: edges into heads need one for each")
            if kind is not None:
                W = torch.stack([w if gain is None else gain[:, None] * w for w, gain in zip(W, gains, strict=True)])
                W = W - W.mean(dim=2, keepdim=True)
            inputs[each] = W.detach()
        return cls(needed_weight(model, "W_O").detach(), inputs, None if kind is None else float(model.cfg.eps))


@dataclass(frozen=True, eq=False)
class TokenChange:
    """A change of embeddings that is one of tokens: row ``there`` of W_E less row ``here``, at every position."""

    W_E: Float[Tensor, "d_vocab d_model"]
    here: Int[Tensor, "batch pos"]
    there: Int[Tensor, "batch pos"]

    @classmethod
    def of(cls, model: HookedModel, here: Tensor, there: Tensor, change: Tensor) -> "TokenChange | None":
        """The change as one of tokens, where it is just that and the vocabulary is small enough to gain by it."""
        W_E = weight(model, "W_E")
        if W_E is None or here.is_floating_point() or len(W_E) > here.numel():
            return None
        found = cls(W_E.detach(), here, there)
        return found if torch.equal(found.read(None), change) else None

    def read(self, W_in: Float[Tensor, "d_model read"] | None) -> Float[Tensor, "batch pos read"]:
        """What a matrix reads of the change (of the embeddings themselves without one): of every token only once."""
        table = self.W_E if W_in is None else self.W_E @ W_in
        return F.embedding(self.there, table).sub_(F.embedding(self.here, table))


def points_of_gradients(edges: Edges) -> list[str]:
    """The hook points whose gradients ``edge_scores`` needs."""
    read = (one.point if one.head is None else _point_in_head(one.layer, one.input) for one in edges.receivers)
    return list(dict.fromkeys(read))


def edge_scores(
    edges: Edges,
    weights: EdgeWeights,
    changes: Mapping[str, Float[Tensor, "batch pos *change"]],
    activations: Mapping[str, Float[Tensor, "batch pos *activation"]],
    gradients: Mapping[str, Float[Tensor, "batch pos *gradient"]],
    tokens: TokenChange | None = None,
) -> Float[Tensor, "batch edge"]:
    """Σ_pos ⟨Δ output of the sender, ∂metric / ∂ receiver's input⟩ of every edge, the input taken before LayerNorm.

    A head sends Δz W_O and its q receives g_q W_Qᵀ, so that an edge between heads scores Σ_pos (Δz W_O W_Q) · g_q and
    nothing of shape [batch, pos, head, d_model] is made. Through a LayerNorm with x̂ = (x − mean) / s its exact
    derivative is used: (1/s) [Δ C γ W_Q g − ⟨x̂, Δ⟩ ⟨x̂, C γ W_Q g⟩ / d_model], C and γ as in ``EdgeWeights``.
    ``tokens`` are the change of ``hook_embed``, where it is one of tokens, which saves the products.
    """
    like = next(iter(gradients.values()))
    scores = like.new_zeros(like.shape[0], len(edges.senders), len(edges.receivers))
    groups = [  # positions rarely change
        group for group in _groups(edges) if group.layer is not None or bool(changes[group.point].any())
    ]
    for r, receiver in enumerate(edges.receivers):
        if receiver.head is None:
            for group in groups:
                if group.writes <= receiver.reads:
                    scores[:, group.senders, r] = _into_stream(group, changes, gradients[receiver.point], weights)
        elif receiver.head == 0:  # all heads of the layer together
            same = (receiver.layer, receiver.input)
            columns = [k for k, other in enumerate(edges.receivers) if (other.layer, other.input) == same]
            assert receiver.layer is not None
            into_heads = _IntoHeads(
                weights.inputs[receiver.input][receiver.layer],
                gradients[_point_in_head(receiver.layer, receiver.input)],
                activations.get(f"blocks.{receiver.layer}.hook_resid_pre"),
                weights.eps,
            )
            for group in groups:
                if group.writes <= receiver.reads:
                    W_out = None if group.layer is None else weights.outputs[group.layer]
                    scores[:, torch.tensor(group.senders)[:, None], columns] = into_heads(
                        changes[group.point], W_out, tokens if group.point == "hook_embed" else None
                    )
    chosen = torch.tensor(edges.pairs)
    return scores[:, chosen[:, 0], chosen[:, 1]]


class _Group(NamedTuple):
    """The senders at one hook point: all heads of a layer, or one that writes to the stream itself."""

    point: str
    senders: list[int]
    layer: int | None
    """Of heads only."""
    writes: int


def _groups(edges: Edges) -> list[_Group]:
    found: dict[str, list[int]] = {}
    for index, sender in enumerate(edges.senders):
        found.setdefault(sender.point, []).append(index)
    first = {point: edges.senders[indices[0]] for point, indices in found.items()}
    return [
        _Group(point, indices, None if first[point].head is None else first[point].layer, first[point].writes)
        for point, indices in found.items()
    ]


def _into_stream(
    group: _Group,
    changes: Mapping[str, Tensor],
    gradient: Float[Tensor, "batch pos d_model"],
    weights: EdgeWeights,
) -> Float[Tensor, "batch sender"]:
    change = changes[group.point]
    if group.layer is None:
        return (change * gradient).sum(dim=(1, 2)).unsqueeze(-1)
    seen = gradient @ weights.outputs[group.layer].flatten(0, 1).T
    return (change * seen.unflatten(-1, change.shape[2:])).sum(dim=(1, 3))


class _IntoHeads:
    """What a change of the residual stream does through one input (q, k or v) of every head of a layer."""

    def __init__(
        self,
        W_in: Float[Tensor, "head d_model d_head"],
        gradient: Float[Tensor, "batch pos head d_head"],
        resid: Float[Tensor, "batch pos d_model"] | None,
        eps: float | None,
    ):
        self.W_in, self.gradient, self.normalized = W_in, gradient, None
        if eps is not None:
            assert resid is not None
            centred = resid - resid.mean(dim=-1, keepdim=True)
            scale = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
            self.normalized = centred / scale
            self.gradient = gradient / scale.unsqueeze(-1)
            along = torch.einsum("bpm,hme->bphe", self.normalized, W_in)
            self.along = (along * self.gradient).sum(dim=-1) / resid.shape[-1]

    def __call__(
        self,
        change: Float[Tensor, "batch pos *sent"],
        W_out: Float[Tensor, "sender d_head d_model"] | None,
        tokens: TokenChange | None,
    ) -> Float[Tensor, "batch sender head"]:
        """Scores of one sender that writes to the stream itself, or of all heads of a layer."""
        if W_out is None:
            W_in = self.W_in.transpose(0, 1).flatten(1)
            read = change @ W_in if tokens is None else tokens.read(W_in)
            through = read.unflatten(-1, self.gradient.shape[2:]).mul_(self.gradient).sum(dim=(1, 3))
            if self.normalized is not None:
                through = through - ((change * self.normalized).sum(dim=-1, keepdim=True) * self.along).sum(dim=1)
            return through.unsqueeze(1)
        # Summed over positions first: what is left is a product with W_O W_in of every pair of heads, however long.
        met = change.flatten(2).transpose(1, 2) @ self.gradient.flatten(2)
        met = met.unflatten(2, self.gradient.shape[2:]).unflatten(1, change.shape[2:])
        scores = (met * torch.einsum("skm,hme->skhe", W_out, self.W_in)).sum(dim=(2, 4))
        if self.normalized is None:
            return scores
        seen = (self.normalized @ W_out.flatten(0, 1).T).unflatten(-1, change.shape[2:])
        return scores - torch.einsum("bps,bph->bsh", (change * seen).sum(dim=-1), self.along)


def _point_in_head(layer: int | None, each: str) -> str:
    return f"blocks.{layer}.attn.hook_{each}"
