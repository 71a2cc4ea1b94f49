"""Exact edge patching: the metric when one receiver, and nothing else, gets a sender's changed output."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.edges import Edges, Receiver, Sender
from analyses.metrics import Group, Metric
from analyses.sweep import measured
from interp.hook_gate import HookFunction
from interp.model_adapter import HookedModel, hooked, outputs_from, watching
from tasks.prompts import Prompts


def patched_edges(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    edges: Edges,
    W_O: Float[Tensor, "layer head d_head d_model"],
    changes: Mapping[str, Float[Tensor, "batch pos *rest"]],
    residuals: Mapping[str, Float[Tensor, "batch pos d_model"]],
) -> tuple[Float[ndarray, "batch edge part"], Float[ndarray, "batch part"]]:
    """The metric's sum after minus before of every edge, and counts; one pass per edge from the receiver's layer on.

    The receiver's input, before LayerNorm, is what it was plus the sender's change; all behind it is computed anew.
    Both passes that are compared watch the receiver's input, so that a change of nothing does exactly nothing.
    """
    found = np.zeros((len(batch), len(edges.pairs), len(parts)))
    counts = np.zeros((len(batch), len(parts)))
    baselines: dict[str, tuple[Tensor, ndarray]] = {}
    with torch.no_grad():
        for index, (s, r) in enumerate(edges.pairs):
            receiver = edges.receivers[r]
            layer = model.cfg.n_layers - 1 if receiver.layer is None else receiver.layer
            resid = residuals[f"blocks.{layer}.hook_resid_pre"]
            if receiver.point not in baselines:
                with watching(model, [receiver.point]):
                    clean = outputs_from(model, batch.inputs, layer, resid)
                before, counts = measured([metric], parts, clean, batch, clean)
                baselines[receiver.point] = clean, before
            clean, before = baselines[receiver.point]
            sent = _sent(edges.senders[s], W_O, changes)
            with hooked(model, [(receiver.point, _adding(sent, receiver))]):
                patched = outputs_from(model, batch.inputs, layer, resid)
            found[:, index] = measured([metric], parts, patched, batch, clean)[0] - before
    return found, counts


def _sent(
    sender: Sender, W_O: Float[Tensor, "layer head d_head d_model"], changes: Mapping[str, Tensor]
) -> Float[Tensor, "batch pos d_model"]:
    change = changes[sender.point]
    if sender.head is None:
        return change
    return change[:, :, sender.head] @ W_O[sender.layer, sender.head]


def _adding(sent: Float[Tensor, "batch pos d_model"], receiver: Receiver) -> HookFunction:
    def add(activation: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001 — TransformerLens' call
        edited = activation.clone()
        if receiver.head is None:
            return edited + sent
        edited[:, :, receiver.head] += sent
        return edited

    return add
