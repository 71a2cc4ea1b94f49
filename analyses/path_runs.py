"""The passes of path patching: what a receiver would get from a sender alone, and what that does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.edited_passes import first_layer, outputs_behind, points_to_watch
from analyses.paired_runs import PassesOfBatch, RunPair
from analyses.references import Target
from interp.hook_gate import HookFunction
from interp.interventions import Intervention, Receipt, Replace, intervene
from interp.model_adapter import HookedModel, activations, hooked, reached_points, watching
from interp.sites import Site
from tasks.errors import InputError

Through = Literal["direct", "mlps"]
Receiver = Target | None
"""Sites that receive together; None is the output."""
OUTPUT = "output"
_SENDERS = ("z", "attn", "mlp", "embed", "pos_embed")
_RECEIVERS = ("q", "k", "v", "mlp")


class PathRuns:
    """The passes of a batch: the base run, the other run, and one for each path (senders varying slowest)."""

    def __init__(self, model: HookedModel, pair: RunPair, paths: Sequence[tuple[Target, Receiver]], through: Through):
        self.model, self.pair = model, pair
        self.of_sender: dict[Target, list[tuple[Receiver, list[Receipt]]]] = {}
        self.receipts: list[list[Receipt]] = []
        for sender, receiver in paths:
            self.receipts.append([Receipt(site) for site in receiver or ()])
            self.of_sender.setdefault(sender, []).append((receiver, self.receipts[-1]))
        reading = [site for _, receiver in paths for site in receiver or ()]
        self.points = points_to_watch(reading)
        self.starts = {first_layer(target) for path in paths for target in path if target is not None}
        self.sent = list(dict.fromkeys(site.hook_name for sender in self.of_sender for site in sender))
        self.held = _held(model, through)

    def __call__(self, rows: slice) -> PassesOfBatch:
        base_inputs, other_inputs = self.pair.inputs(rows)
        starts = {layer: f"blocks.{layer}.hook_resid_pre" for layer in self.starts if layer is not None}
        with watching(self.model, self.points):
            base, at_base = activations(self.model, base_inputs, [*starts.values(), *self.held, *self.sent])
            other, at_other = activations(self.model, other_inputs, self.sent)
        residuals = {layer: at_base[point] for layer, point in starts.items()}
        return base, other, enumerate(self._paths(base_inputs, residuals, at_base, at_other))

    def _paths(
        self,
        inputs: Tensor,
        residuals: Mapping[int, Tensor],
        at_base: Mapping[str, Tensor],
        at_other: Mapping[str, Tensor],
    ) -> Iterator[Tensor]:
        for sender, receivers in self.of_sender.items():
            outputs, received = self._sent_by(sender, receivers, inputs, residuals, at_base, at_other)
            for receiver, receipts in receivers:
                if receiver is None:
                    yield outputs
                else:
                    yield self._received_by(receiver, receipts, inputs, residuals, received)

    def _sent_by(
        self,
        sender: Target,
        receivers: Sequence[tuple[Receiver, list[Receipt]]],
        inputs: Tensor,
        residuals: Mapping[int, Tensor],
        at_base: Mapping[str, Tensor],
        at_other: Mapping[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Step 1: the outputs, and what receivers get, if nothing but the sender changes (and what may pass it on)."""
        first = first_layer(sender)
        written = {point: at_base[point] for point, layer in self.held.items() if first is None or layer >= first}
        for site in sender:
            values = written.get(site.hook_name, at_base[site.hook_name]).clone()
            at = site.index(values)
            values[at] = at_other[site.hook_name][at]
            written[site.hook_name] = values
        received: dict[str, Tensor] = {}
        reading = dict.fromkeys(site.hook_name for receiver, _ in receivers for site in receiver or ())
        # An MLP that receives is read before it is held, so its reader comes first.
        hooks = [(point, _keep(received, point)) for point in reading]
        hooks += [(point, _write(values)) for point, values in written.items()]
        with hooked(self.model, hooks):
            outputs = outputs_behind(self.model, inputs, first, residuals, self.points)
        return outputs, received

    def _received_by(
        self,
        receiver: Target,
        receipts: Sequence[Receipt],
        inputs: Tensor,
        residuals: Mapping[int, Tensor],
        received: Mapping[str, Tensor],
    ) -> Tensor:
        """Step 2: the outputs if the receiver gets that."""
        interventions = [
            Intervention(site, Replace(received[site.hook_name][site.index(received[site.hook_name])]))
            for site in receiver
        ]
        with intervene(self.model, interventions) as of_batch:
            outputs = outputs_behind(self.model, inputs, first_layer(receiver), residuals, self.points)
        for receipt, one in zip(receipts, of_batch, strict=True):
            receipt.add(one)
        return outputs


def is_path(model: HookedModel, sender: Target, receiver: Receiver) -> bool:
    """Whether a site of the sender writes to the residual stream before a site of the receiver reads from it."""
    if receiver is None:
        return True
    parallel = bool(getattr(model.cfg, "parallel_attn_mlp", False))
    return any(_writes(one) <= _reads(other, parallel) for one in sender for other in receiver)


def check_sender(sender: Target) -> None:
    """Raise InputError if a site does not write to the residual stream."""
    for site in sender:
        if site.component not in _SENDERS:
            raise InputError(f"{site} sends nothing: a path starts at a head (L0H1), L0.mlp, L0.attn or embed")


def check_receiver(receiver: Receiver) -> None:
    """Raise InputError if a site does not read from the residual stream."""
    for site in receiver or ():
        if site.component not in _RECEIVERS:
            raise InputError(f"{site} receives nothing: a path ends at L1H0.q, L1H0.k, L1H0.v, L1.mlp or 'output'")


def _writes(site: Site) -> int:
    """When: 2 l is before layer l, 2 l + 1 between its attention and its MLP."""
    if site.layer is None:
        return 0
    return 2 * site.layer + (2 if site.component == "mlp" else 1)


def _reads(site: Site, parallel: bool) -> int:
    assert site.layer is not None
    return 2 * site.layer + (site.component == "mlp" and not parallel)


def _held(model: HookedModel, through: Through) -> dict[str, int]:
    """The hook points that are held at their base values, with their layers."""
    reached = reached_points(model)
    held = {f"blocks.{layer}.attn.hook_z": layer for layer in range(model.cfg.n_layers)}
    for point in held:
        if point not in reached:
            raise InputError(
                f"the model has no hook point {point}: paths are told apart by holding every head's z at its base value"
            )
    mlps = {f"blocks.{layer}.hook_mlp_out": layer for layer in range(model.cfg.n_layers)}
    return held | ({point: layer for point, layer in mlps.items() if point in reached} if through == "direct" else {})


def _keep(received: dict[str, Tensor], point: str) -> HookFunction:
    def observe(activation: Tensor, hook: HookPoint) -> None:  # noqa: ARG001 — TransformerLens' call
        received[point] = activation.detach().clone()

    return observe


def _write(values: Tensor) -> HookFunction:
    def edit(activation: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001 — TransformerLens' call
        return values

    return edit
