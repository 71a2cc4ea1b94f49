"""Runs of a model in which every input gets, of each sender, what it adds here or what it adds in a reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.argument_checks import refuse_no_prompts
from analyses.batches import batches
from analyses.edge_attribution import EdgeReference
from analyses.edges import INPUTS_OF_HEADS, Edges, Receiver, Sender, edges_of
from analyses.references import counterfactual_of
from interp.hook_gate import HookFunction
from interp.model_adapter import HookedModel, Inputs, activations_alone, hooked, named_weights, needed_weight, outputs
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

_CELLS = 16_000_000  # numbers that the outputs of all senders of circuits run together may take: 64 MB
_CELLS_KEPT = 64_000_000  # numbers of counterfactual runs that are kept for the next circuits: 256 MB
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Stream:
    """What a run's senders add to the residual stream, and what its inputs read from it.

    One row per prompt; a single row stands for all prompts.
    """

    sent: Float[Tensor, "sender rows pos d_model"]
    read: dict[str, Float[Tensor, "rows pos d_model"]]
    """By hook point, before any LayerNorm; the same for all heads of a layer."""


class CircuitRuns:
    """A model's parts, put together edge by edge.

    Senders are seen where they write, and inputs written where they are computed from the stream: q, k and v from the
    weights (so that models without split inputs will do), the MLPs' and the output's in the stream.

    Raises:
        InputError: another normalisation than LayerNorm, or heads that share keys.
    """

    def __init__(self, model: HookedModel):
        self.model, self.edges = model, edges_of(model)
        self.weights = _AttentionWeights(model)
        self.W_O = needed_weight(model, "W_O").detach()
        pairs = torch.tensor(self.edges.pairs, device=self.W_O.device)
        self.of_sender, self.of_receiver = pairs[:, 0], pairs[:, 1]
        self.last = self.edges.receivers[-1].point
        self.mlps = [one.point for one in self.edges.receivers[:-1] if one.head is None]
        self.points_sent = list(dict.fromkeys(one.point for one in self.edges.senders))
        self.points_read = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
        self.points_read += [*self.mlps, self.last]

    def stream(self, inputs: Inputs) -> Stream:
        """The stream of a clean run."""
        kept = activations_alone(self.model, inputs, [*self.points_sent, *self.points_read])
        sent = torch.stack([_added(one, kept[one.point], self.W_O) for one in self.edges.senders])
        return Stream(sent, {point: kept[point] for point in self.points_read})

    def outputs(
        self, inputs: Inputs, masks: Bool[Tensor, "circuit edge"], reference: Stream
    ) -> Float[Tensor, "circuit batch pos *d_out"]:
        """The outputs of every circuit: the edges in its mask carry what this run adds, the others the reference.

        Circuits run side by side on the batch axis. ``inputs`` are as many as the reference's rows, or any if that has
        a single one.
        """
        of_one = reference.sent.shape[0] * len(inputs) * inputs.shape[1] * self.W_O.shape[-1]
        at_once = max(1, _CELLS // of_one)
        parts = [self._run(inputs, some, reference) for some in masks.split(at_once)]
        return torch.cat(parts)

    def joined(self, masks: Bool[Tensor, "circuit edge"]) -> Float[Tensor, "circuit receiver sender"]:
        """1 where an edge of the circuit joins the two."""
        shape = (len(masks), len(self.edges.receivers), len(self.edges.senders))
        found = torch.zeros(shape, dtype=self.W_O.dtype, device=self.W_O.device)
        found[:, self.of_receiver, self.of_sender] = masks.to(found)
        return found

    def _run(
        self, inputs: Inputs, masks: Bool[Tensor, "circuit edge"], reference: Stream
    ) -> Float[Tensor, "circuit batch pos *d_out"]:
        with torch.no_grad():
            one = _Pass(self, self.joined(masks), reference, len(inputs))
            with hooked(self.model, one.hooks()):
                found = outputs(self.model, inputs.repeat(len(masks), *[1] * (inputs.ndim - 1)))
        return found.unflatten(0, (len(masks), len(inputs)))

    def check(self, inputs: Inputs, reference: Stream) -> None:
        """Raise InputError unless the model with all its edges is the model."""
        with torch.no_grad():
            clean = outputs(self.model, inputs)
            whole = self._run(inputs, torch.ones(1, len(self.edges.pairs), dtype=torch.bool), reference)[0]
        apart = float((whole - clean).abs().max())
        if apart > _TOLERANCE * (1 + float(clean.abs().max())):
            raise InputError(
                f"the model's outputs are not those of its edges put together (they differ by {apart:.2g}): it "
                "computes queries, keys, values or the stream in another way than a circuit's run does"
            )


class References:
    """What the edges outside a circuit carry, for any rows of the prompts.

    Raises:
        InputError: a reference that does not exist; no counterfactual, one that is not aligned, or one that the
            reference does not read; no prompts; a model whose outputs are not those of its edges put together.
    """

    def __init__(
        self,
        runs: CircuitRuns,
        prompts: Prompts,
        counterfactual: Prompts | Task | None,
        reference: EdgeReference,
        *,
        seed: int,
        batch_size: int,
    ):
        if reference not in ("counterfactual", "zero", "mean"):
            raise InputError(f"reference = {reference!r} is unknown: choose 'counterfactual', 'zero' or 'mean'")
        if reference != "counterfactual" and counterfactual is not None:
            raise InputError(f"reference = {reference!r} takes no counterfactual: drop it, or the reference")
        refuse_no_prompts(prompts)
        if not len(prompts):
            raise InputError("prompts holds 0 prompts: sample some")
        self.runs, self.prompts, self.batch_size = runs, prompts, batch_size
        self.kept: dict[int, Stream] = {}
        self.counterfactual: Prompts | None = None
        self.of_all: Stream | None = None
        if reference == "counterfactual":
            self.counterfactual = counterfactual_of(prompts, counterfactual, seed=seed)
        else:
            mean = self._mean()
            self.of_all = mean if reference == "mean" else _without_senders(mean, runs.edges)
        some = prompts.inputs[:2]
        there = runs.stream(self.counterfactual.inputs[:2]) if self.counterfactual is not None else self.of_all
        assert there is not None
        runs.check(some, there)

    def __call__(self, rows: slice) -> Stream:
        """The reference of these prompts."""
        if self.of_all is not None:
            return self.of_all
        assert self.counterfactual is not None
        if rows.start not in self.kept:
            found = self.runs.stream(self.counterfactual.inputs[rows])
            if sum(one.sent.numel() for one in self.kept.values()) + found.sent.numel() > _CELLS_KEPT:
                self.kept.clear()
            self.kept[rows.start] = found
        return self.kept[rows.start]

    def whole(self) -> Stream:
        """The reference of all prompts."""
        if self.of_all is not None:
            return self.of_all
        parts = [self(rows) for rows in batches(self.prompts, self.batch_size)]
        read = {point: torch.cat([part.read[point] for part in parts]) for point in parts[0].read}
        return Stream(torch.cat([part.sent for part in parts], dim=1), read)

    def _mean(self) -> Stream:
        """Over the prompts, at each position."""
        total: Stream | None = None
        for rows in batches(self.prompts, self.batch_size):
            found = self.runs.stream(self.prompts.inputs[rows])
            sent = found.sent.sum(dim=1, keepdim=True)
            read = {point: each.sum(dim=0, keepdim=True) for point, each in found.read.items()}
            if total is None:
                total = Stream(sent, read)
            else:
                total = Stream(total.sent + sent, {point: total.read[point] + each for point, each in read.items()})
        assert total is not None
        n = len(self.prompts)
        return Stream(total.sent / n, {point: each / n for point, each in total.read.items()})


def _without_senders(stream: Stream, edges: Edges) -> Stream:
    """What is left when all senders add nothing: biases."""
    reads = {
        f"blocks.{one.layer}.hook_resid_pre" if one.head is not None else one.point: one for one in edges.receivers
    }
    left = {}
    for point, receiver in reads.items():
        left[point] = stream.read[point] - stream.sent[: _n_before(edges, receiver)].sum(dim=0)
    return Stream(torch.zeros_like(stream.sent), left)


class _Pass:
    """The hooks of one pass, and what its senders have added so far beyond the reference."""

    def __init__(
        self, runs: CircuitRuns, joined: Float[Tensor, "circuit receiver sender"], reference: Stream, n_rows: int
    ):
        self.runs, self.joined, self.reference = runs, joined, reference
        n_circuits, _, n_senders = joined.shape
        n_pos, d_model = reference.sent.shape[-2:]
        self.beyond = joined.new_zeros(n_circuits, n_senders, n_rows, n_pos, d_model)

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """In the order of the pass, so that what reads at a point comes before what writes there."""
        edges, found = self.runs.edges, []
        for point in self.runs.points_sent:
            senders = [place for place, one in enumerate(edges.senders) if one.point == point]
            found.append((point, partial(self._see, senders=senders)))
        for layer in range(self.runs.model.cfg.n_layers):
            found += [
                (f"blocks.{layer}.attn.hook_{each}", partial(self._write_heads, layer=layer, each=each))
                for each in INPUTS_OF_HEADS
            ]
        for place, receiver in enumerate(edges.receivers):
            if receiver.head is None:
                found.append((receiver.point, partial(self._write_stream, place=place)))
        return found

    def _see(self, activation: Tensor, hook: HookPoint, senders: Sequence[int]) -> None:  # noqa: ARG002
        for place in senders:
            added = _added(self.runs.edges.senders[place], activation, self.runs.W_O)
            n_circuits = len(self.beyond)
            self.beyond[:, place] = added.unflatten(0, (n_circuits, -1)) - self.reference.sent[place]

    def _write_heads(self, activation: Tensor, hook: HookPoint, layer: int, each: str) -> Tensor:  # noqa: ARG002
        receivers = self.runs.edges.receivers
        places = [k for k, one in enumerate(receivers) if (one.layer, one.input) == (layer, each)]
        stream = self._read(places, f"blocks.{layer}.hook_resid_pre")
        projected = self.runs.weights.projected(stream, layer, each)
        return projected.reshape(activation.shape).to(activation.dtype)

    def _write_stream(self, activation: Tensor, hook: HookPoint, place: int) -> Tensor:  # noqa: ARG002
        stream = self._read([place], self.runs.edges.receivers[place].point)
        return stream[:, 0].reshape(activation.shape).to(activation.dtype)

    def _read(self, places: Sequence[int], point: str) -> Float[Tensor, "circuit receiver batch pos d_model"]:
        """What these receivers, which read at the same moment, get."""
        n = _n_before(self.runs.edges, self.runs.edges.receivers[places[0]])
        beyond = self.beyond[:, :n].flatten(2)
        added = torch.bmm(self.joined[:, places, :n], beyond)
        return added.unflatten(2, self.beyond.shape[2:]) + self.reference.read[point]


class _AttentionWeights:
    """How heads make q, k and v of the stream: LayerNorm, if any, and a matrix for each."""

    def __init__(self, model: HookedModel):
        kind = model.cfg.normalization_type
        if kind not in (None, "LN", "LNPre"):
            raise InputError(f"normalization_type = {kind!r} is no LayerNorm: this reads through none or a LayerNorm")
        named = named_weights(model)
        self.eps = None if kind is None else float(model.cfg.eps)
        self.of_norm = [
            [_detached(named.get(f"blocks.{layer}.ln1.{part}")) for part in "wb"] for layer in range(model.cfg.n_layers)
        ]
        self.W, self.b = {}, {}
        for each in INPUTS_OF_HEADS:
            W = needed_weight(model, f"W_{each.upper()}").detach()
            if W.shape[1] != model.cfg.n_heads:
                raise InputError(f"heads share {W.shape[1]} {each}: edges into heads need one for each")
            self.W[each] = W
            biases = [named.get(f"blocks.{layer}.attn.b_{each.upper()}") for layer in range(model.cfg.n_layers)]
            self.b[each] = [_detached(bias) for bias in biases]

    def projected(
        self, stream: Float[Tensor, "circuit head batch pos d_model"], layer: int, each: str
    ) -> Float[Tensor, "circuit batch pos head d_head"]:
        """q, k or v of every head, from what it reads."""
        if self.eps is not None:
            gain, shift = self.of_norm[layer]
            stream = F.layer_norm(stream, stream.shape[-1:], gain, shift, self.eps)
        found = torch.einsum("chbpm,hme->cbphe", stream, self.W[each][layer])
        bias = self.b[each][layer]
        return found if bias is None else found + bias


def _added(
    sender: Sender, activation: Tensor, W_O: Float[Tensor, "layer head d_head d_model"]
) -> Float[Tensor, "rows pos d_model"]:
    """What a sender adds to the stream, from the activation at its point."""
    if sender.head is None:
        return activation
    return activation[:, :, sender.head] @ W_O[sender.layer, sender.head]


def _n_before(edges: Edges, receiver: Receiver) -> int:
    """How many senders, which stand in the order of their writing, have written when this one reads."""
    return sum(one.writes <= receiver.reads for one in edges.senders)


def _detached(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.detach()
