"""Scores of edges: how far a sender's change moves the metric to first order, computed in the space of heads."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.edges import INPUTS_OF_HEADS, Edges, Sender
from interp.model_adapter import HookedModel, named_weights, needed_weight
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


def points_of_gradients(edges: Edges) -> list[str]:
    """The hook points whose gradients ``edge_scores`` needs."""
    read = (one.point if one.head is None else _point_in_head(one.layer, one.input) for one in edges.receivers)
    return list(dict.fromkeys(read))


def edge_scores(
    edges: Edges,
    weights: EdgeWeights,
    changes: Mapping[str, Float[Tensor, "batch pos *rest"]],
    activations: Mapping[str, Float[Tensor, "batch pos *rest"]],
    gradients: Mapping[str, Float[Tensor, "batch pos *rest"]],
) -> Float[Tensor, "batch edge"]:
    """Σ_pos ⟨Δ output of the sender, ∂metric / ∂ receiver's input⟩ of every edge, the input taken before LayerNorm.

    A head sends Δz W_O and its q receives g_q W_Qᵀ, so that an edge between heads scores Σ_pos (Δz W_O W_Q) · g_q and
    nothing of shape [batch, pos, head, d_model] is made. Through a LayerNorm with x̂ = (x − mean) / s its exact
    derivative is used: (1/s) [Δ C γ W_Q g − ⟨x̂, Δ⟩ ⟨x̂, C γ W_Q g⟩ / d_model], C and γ as in ``EdgeWeights``.
    """
    like = next(iter(gradients.values()))
    scores = like.new_zeros(like.shape[0], len(edges.senders), len(edges.receivers))
    for r, receiver in enumerate(edges.receivers):
        if receiver.head is None:
            gradient = gradients[receiver.point]
            for s, sender in enumerate(edges.senders):
                if sender.writes <= receiver.reads:
                    seen = gradient if sender.head is None else gradient @ _W_out(sender, weights).T
                    scores[:, s, r] = (_change(sender, changes) * seen).sum(dim=(1, 2))
        elif receiver.head == 0:  # all heads of the layer together
            same = (receiver.layer, receiver.input)
            columns = [k for k, other in enumerate(edges.receivers) if (other.layer, other.input) == same]
            assert receiver.layer is not None
            into_heads = _IntoHeads(
                weights.inputs[receiver.input][receiver.layer],
                gradients[_point_in_head(receiver.layer, receiver.input)],
                activations[f"blocks.{receiver.layer}.hook_resid_pre"],
                weights.eps,
            )
            for s, sender in enumerate(edges.senders):
                if sender.writes <= receiver.reads:
                    W_out = None if sender.head is None else _W_out(sender, weights)
                    scores[:, s, columns] = into_heads(_change(sender, changes), W_out)
    chosen = torch.tensor(edges.pairs)
    return scores[:, chosen[:, 0], chosen[:, 1]]


class _IntoHeads:
    """What a change of the residual stream does through one input (q, k or v) of every head of a layer."""

    def __init__(
        self,
        W_in: Float[Tensor, "head d_model d_head"],
        gradient: Float[Tensor, "batch pos head d_head"],
        resid: Float[Tensor, "batch pos d_model"],
        eps: float | None,
    ):
        self.W_in, self.gradient, self.normalized = W_in, gradient, None
        if eps is not None:
            centred = resid - resid.mean(dim=-1, keepdim=True)
            scale = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
            self.normalized = centred / scale
            self.gradient = gradient / scale.unsqueeze(-1)
            along = torch.einsum("bpm,hme->bphe", self.normalized, W_in)
            self.along = (along * self.gradient).sum(dim=-1) / resid.shape[-1]

    def __call__(
        self, change: Float[Tensor, "batch pos d_sent"], W_out: Float[Tensor, "d_sent d_model"] | None
    ) -> Float[Tensor, "batch head"]:
        W = self.W_in.transpose(0, 1) if W_out is None else torch.einsum("km,hme->khe", W_out, self.W_in)
        scores = (torch.einsum("bpk,khe->bphe", change, W) * self.gradient).sum(dim=(1, 3))
        if self.normalized is None:
            return scores
        seen = self.normalized if W_out is None else self.normalized @ W_out.T
        return scores - ((change * seen).sum(dim=-1, keepdim=True) * self.along).sum(dim=1)


def _change(sender: Sender, changes: Mapping[str, Tensor]) -> Float[Tensor, "batch pos d_sent"]:
    change = changes[sender.point]
    return change if sender.head is None else change[:, :, sender.head]


def _W_out(sender: Sender, weights: EdgeWeights) -> Float[Tensor, "d_head d_model"]:
    assert sender.layer is not None
    return weights.outputs[sender.layer, sender.head]


def _point_in_head(layer: int | None, each: str) -> str:
    return f"blocks.{layer}.attn.hook_{each}"
