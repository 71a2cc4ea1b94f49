"""What a head's weights do as one low-rank matrix: from what it reads to what it writes, and who attends to whom."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from analyses.edge_scores import EdgeWeights
from interp.model_adapter import HookedModel, final_norm, heads_of, needed_weight, refuse_other
from interp.sites import Site
from tasks.errors import InputError

CircuitName = Literal["OV", "QK"]
Ends = Literal["residual", "tokens"]
INPUTS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of all heads in double precision, with the gains of LayerNorms folded in."""

    heads: tuple[tuple[int, int], ...]
    d_model: int
    outputs: Float[Tensor, "layer head d_head d_model"]
    inputs: Mapping[str, Float[Tensor, "layer head d_model d_head"]]

    @classmethod
    def of(cls, model: HookedModel) -> "HeadWeights":
        """Read them from a model.

        Raises:
            InputError: it has not these weights, or some that are not finite, another normalisation than LayerNorm, or
                keys that heads share.
        """
        edges = EdgeWeights.of(model)
        inputs = {
            each: torch.stack([edges.inputs[each][layer] for layer in range(model.cfg.n_layers)]).double().cpu()
            for each in INPUTS
        }
        outputs = edges.outputs.double().cpu()
        if not all(each.isfinite().all() for each in (outputs, *inputs.values())):
            raise InputError("the heads' weights hold NaN or infinity: look at the model's training history")
        return cls(tuple(heads_of(model)), outputs.shape[-1], outputs, inputs)

    def circuit(self, layer: int, head: int, name: CircuitName) -> FactoredMatrix:
        """W_V W_O, or W_Q W_Kᵀ, [d_model, d_model]."""
        if name == "OV":
            return FactoredMatrix(self.inputs["v"][layer, head], self.outputs[layer, head])
        return FactoredMatrix(self.inputs["q"][layer, head], self.inputs["k"][layer, head].T)

    def read_by(self, layer: int, head: int, each: str) -> FactoredMatrix:
        """What reads through one input: W_Q W_Kᵀ through the queries, its transpose through the keys, W_V W_O."""
        if each == "v":
            return self.circuit(layer, head, "OV")
        matching = self.circuit(layer, head, "QK")
        return matching if each == "q" else matching.T


def head_circuit(
    model: HookedModel, head: str | tuple[int, int], circuit: CircuitName = "OV", ends: Ends = "tokens"
) -> FactoredMatrix:
    """What a head does by itself, as a matrix whose ``svd()``, ``eigenvalues`` and ``norm()`` cost little.

    "OV" is W_V W_O, what reading a position writes; "QK" is W_Q W_Kᵀ, who attends to whom (not divided by √d_head).
    With ``ends="tokens"``, W_E W_V W_O W_U and W_E W_Q W_Kᵀ W_Eᵀ, from token to token. The gains of LayerNorms, the
    final one included, are folded in and centring is part of what reads; scales, which depend on the prompt, and
    biases are left out.

    Raises:
        InputError: no such head, circuit or end; ends in tokens of a model whose two ends are not the same tokens; a
            model without the weights, with another normalisation than LayerNorm, or keys that heads share.

    Source: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits [mem].

    >>> from interp.constructions.induction import induction_circuit
    >>> model = induction_circuit(d_vocab=4, n_ctx=6, triggers=[1], copy_logit=30.0).model
    >>> head_circuit(model, "L1H0").AB.detach().diagonal().round()
    tensor([30., 30., 30., 30.], dtype=torch.float64)
    """
    refuse_other(model)
    site = Site.parse(head)
    if site.component != "z" or site.layer is None or site.head is None:
        raise InputError(f"{site} is no head: name one, L1H0 say")
    site.check(model.cfg.n_layers, model.cfg.n_heads)
    weights, name = HeadWeights.of(model), checked_circuit(circuit)
    return at_ends(model, weights.circuit(site.layer, site.head, name), name, ends)


def checked_circuit(circuit: str) -> CircuitName:
    """The name of a circuit.

    Raises:
        InputError: there is none of that name.
    """
    if circuit == "OV" or circuit == "QK":
        return circuit
    raise InputError(f"circuit = {circuit!r} is unknown: choose 'OV' or 'QK'")


def at_ends(model: HookedModel, matrix: FactoredMatrix, circuit: CircuitName, ends: Ends) -> FactoredMatrix:
    """The matrix between residual streams, or between tokens.

    Raises:
        InputError: an end that does not exist, or a model whose two ends are not the same tokens.
    """
    if ends not in ("residual", "tokens"):
        raise InputError(f"ends = {ends!r} is unknown: choose 'tokens' or 'residual'")
    if ends == "residual":
        return matrix
    W_E, W_U = (needed_weight(model, name).detach().double().cpu() for name in ("W_E", "W_U"))
    if getattr(model.cfg, "d_in", None) is not None or (circuit == "OV" and W_E.shape[0] != W_U.shape[1]):
        raise InputError(
            f"the model reads {W_E.shape[0]} and writes {W_U.shape[1]} values, which are not the same tokens: give "
            "ends = 'residual'"
        )
    if circuit == "QK":
        return FactoredMatrix(W_E @ matrix.A, matrix.B @ W_E.T)
    norm = final_norm(model)
    if norm is not None:
        W_U = W_U if norm.gain is None else norm.gain.detach().double().cpu()[:, None] * W_U
        W_U = W_U - W_U.mean(dim=0)
    return FactoredMatrix(W_E @ matrix.A, matrix.B @ W_U)


def quantile_note(n_rows: int, n_random: int) -> str:
    """What p means in a table of many rows."""
    return (
        f"p is of each of {n_rows} rows by itself and at least {1 / (1 + n_random):.2g}: for a claim about the whole "
        "table, divide the level by the number of rows"
    )
