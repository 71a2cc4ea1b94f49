"""The passes of a batch: a clean one, and one for every plan of edits, computed with as little as gives the same."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from analyses.memory_budget import return_freed_memory
from analyses.passes_from_z import Run, at_z, can_go_on_from_z, outputs_of_edits
from interp.interventions import Intervention, Receipt, intervene
from interp.model_adapter import HookedModel, activations, outputs, outputs_from, watching
from interp.sites import Site


class EditedPasses:
    """Runs sets of edits on one batch after another, and keeps a receipt for every site of every set.

    A set runs from the first layer that it edits, on the clean residual stream before that layer. Where only outputs
    of heads are edited, in a HookedTransformer that nobody else hooks, it goes on from the edited z (see
    ``outputs_of_edits``), several sets in one pass if they are ``stacked`` and small; anything else is edited by hooks
    within a pass. Not ``stacked`` means that memory is short: what a pass has freed goes back before the next.
    """

    def __init__(self, model: HookedModel, plans: Sequence[Sequence[Site]], *, stacked: bool = True):
        for site in {site for plan in plans for site in plan}:
            site.check(model.cfg.n_layers, model.cfg.n_heads)
        self.model, self.stacked = model, stacked
        self.receipts = [[Receipt(site) for site in plan] for plan in plans]
        self.firsts = [first_layer(plan) for plan in plans]
        self.points = points_to_watch(site for plan in plans for site in plan)
        can = can_go_on_from_z(model, self.points)
        self.from_z = [can and at_z(plan) for plan in plans]
        self.residuals: dict[int, Tensor] = {}
        self.z: dict[int, Tensor] = {}

    def clean(self, inputs: Tensor) -> Tensor:
        """The clean outputs; what edited passes start from is kept for ``edited``."""
        self.inputs = inputs
        layers = {first for first in self.firsts if first is not None}
        starts = {layer: f"blocks.{layer}.hook_resid_pre" for layer in layers}
        mixed = {layer: f"blocks.{layer}.attn.hook_z" for layer in layers if self._is_first_of_a_pass_from_z(layer)}
        with watching(self.model, self.points):
            self.outputs, kept = activations(self.model, inputs, [*starts.values(), *mixed.values()])
        self.residuals = {layer: kept[point] for layer, point in starts.items()}
        self.z = {layer: kept[point] for layer, point in mixed.items()}
        return self.outputs

    def edited(self, plans: Sequence[Sequence[Intervention]]) -> Iterator[tuple[int, Tensor]]:
        """The outputs of every plan with its number, in any order; a plan without interventions is a clean pass.

        ``plans`` are those of the class in the same order, as interventions on this batch. Sets that hold the same
        Intervention share its work.
        """
        for number, outputs_of_plan in self._found(plans):
            yield number, outputs_of_plan
            if not self.stacked:
                return_freed_memory()

    def _found(self, plans: Sequence[Sequence[Intervention]]) -> Iterator[tuple[int, Tensor]]:
        through_z = {}
        for number, plan in enumerate(plans):
            if not plan:
                yield number, self.outputs
            elif self.from_z[number]:
                edits = zip(plan, self.receipts[number], strict=True)
                through_z[number] = tuple(sorted(edits, key=lambda edit: edit[0].site.layer or 0))
            else:
                yield number, self._by_hooks(number, plan)
        if through_z:
            model: Any = self.model
            yield from outputs_of_edits(Run(model, self.residuals, self.z, self.outputs, self.stacked), through_z)

    def _is_first_of_a_pass_from_z(self, layer: int) -> bool:
        return any(from_z and first == layer for first, from_z in zip(self.firsts, self.from_z, strict=True))

    def _by_hooks(self, number: int, plan: Sequence[Intervention]) -> Tensor:
        with intervene(self.model, plan) as receipts:
            found = outputs_behind(self.model, self.inputs, self.firsts[number], self.residuals, self.points)
        for total, one in zip(self.receipts[number], receipts, strict=True):
            total.add(one)
        return found


def first_layer(sites: Iterable[Site]) -> int | None:
    """The first layer that edits at these sites act in; None if they act before the layers."""
    layers = [site.layer for site in sites]
    return None if None in layers else min(layer for layer in layers if layer is not None)


def points_to_watch(sites: Iterable[Site]) -> dict[str, int]:
    """The hook points of heads, with their layers, that edited and clean passes alike must watch.

    Attention takes another path where someone watches its scores, say, which gives other roundings; so that an edit
    that changes nothing has an effect of exactly zero, both arms of a comparison take the same path.
    """
    return {site.hook_name: site.layer for site in sites if site.head is not None and site.layer is not None}


def outputs_behind(
    model: HookedModel, inputs: Tensor, first: int | None, residuals: Mapping[int, Tensor], points: Mapping[str, int]
) -> Tensor:
    """The outputs of a pass from the residual stream before a layer, or of a whole one."""
    with watching(model, [point for point, layer in points.items() if first is None or layer >= first]):
        return outputs(model, inputs) if first is None else outputs_from(model, inputs, first, residuals[first])
