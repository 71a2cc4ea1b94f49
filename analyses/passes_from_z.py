"""Passes that go on from edited head outputs: what many sets of edits have in common is computed once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp import HookedTransformer
from interp.interventions import Intervention, Receipt, edited
from interp.model_adapter import HookedModel
from interp.sites import Site

_POSITIONS_AT_ONCE = 2048  # of all prompts of a stack: small passes share the cost of calls, large ones gain nothing

Edits = tuple[tuple[Intervention, Receipt], ...]
"""Interventions, and the receipts that they are entered in."""
OfHead = tuple[int, tuple[int, ...]]
"""A head of a layer, and which interventions are made at it."""
Key = tuple[OfHead, ...]
"""All heads of a layer that are changed, and how."""
_BY_ANOTHER_PATH = ("hook_attn_scores", "hook_pattern", "hook_result")


def can_go_on_from_z(model: HookedModel, watched: Iterable[str]) -> bool:
    """Whether passes may skip what lies before z: in this project's class, where no hook would miss its turn.

    Not where hook points are watched that send attention another way, which gives other roundings.
    """
    if type(model) is not HookedTransformer or any(point.endswith(_BY_ANOTHER_PATH) for point in watched):
        return False
    return not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in model.modules()
    )


def at_z(sites: Sequence[Site]) -> bool:
    """Whether all that is edited are outputs of heads."""
    return bool(sites) and all(site.component == "z" for site in sites)


@dataclass(eq=False)
class Run:
    """A pass as far as it is known: the residual stream before some layers, z in some, perhaps the outputs."""

    model: HookedTransformer
    residuals: dict[int, Float[Tensor, "batch pos d_model"]]
    z: dict[int, Float[Tensor, "batch pos head d_head"]] = field(default_factory=dict)
    outputs: Float[Tensor, "batch pos *d_out"] | None = None
    stacked: bool = True
    """Whether sets of edits may run side by side in one pass, for which there must be memory."""

    def reach(self, layer: int) -> tuple[Tensor, Tensor]:
        """The residual stream before a layer and z in it, from what is known before."""
        if layer not in self.residuals:
            known = max(before for before in self.residuals if before < layer)
            self.residuals[layer] = self.model(self.residuals[known], start_at_layer=known, stop_at_layer=layer)
        resid = self.residuals[layer]
        if layer not in self.z:
            block = self.model.blocks[layer]
            self.z[layer] = block.attn.mixed(*block.attention_inputs(resid))
        return resid, self.z[layer]

    def finished(self) -> Tensor:
        """The outputs."""
        if self.outputs is None:
            known = max(self.residuals)
            self.outputs = self.model(self.residuals[known], start_at_layer=known)
            assert self.outputs is not None
        return self.outputs


def outputs_of_edits(run: Run, plans: Mapping[int, Edits]) -> Iterator[tuple[int, Tensor]]:
    """The outputs of the run with the edits of each plan, by the plan's number, in whatever order is cheapest.

    A plan's interventions are in the order of their layers. Plans that change the same things in early layers share
    the passes through these: a tree that branches at every layer. What changes nothing is left out, so that its
    effect is exactly zero. In a last layer that nothing but the unembedding follows, the outputs are the run's plus
    (z′ − z) W_O W_U, without a pass.
    """
    waiting: dict[int, dict[int, Edits]] = {}
    for number, plan in plans.items():
        waiting.setdefault(_layer(plan[0][0]), {})[number] = plan
    while waiting:
        layer = min(waiting)
        branches = _Branches(run, layer)
        for number, plan in waiting.pop(layer).items():
            here = sum(_layer(one) == layer for one, _ in plan)
            key, rest = branches.key(plan[:here]), plan[here:]
            if key:
                branches.add(key, number, rest)
            elif rest:
                waiting.setdefault(_layer(rest[0][0]), {})[number] = rest
            else:
                yield number, run.finished()
        yield from branches.outputs()


def _layer(intervention: Intervention) -> int:
    assert intervention.site.layer is not None
    return intervention.site.layer


class _Branches:
    """Everything that is done to z of one layer of a run."""

    def __init__(self, run: Run, layer: int):
        self.run, self.layer, self.block = run, layer, run.model.blocks[layer]
        self.resid, self.z = run.reach(layer)
        self.changes: dict[OfHead, tuple[Tensor | None, list[Receipt]]] = {}
        self.ending: dict[Key, list[int]] = {}
        self.going_on: dict[Key, dict[int, Edits]] = {}

    def key(self, edits: Edits) -> Key:
        """What the edits change; receipts are written."""
        by_head: dict[int, list[tuple[Intervention, Receipt]]] = {}
        for one, receipt in edits:
            assert one.site.head is not None
            by_head.setdefault(one.site.head, []).append((one, receipt))
        changed = []
        for head, several in sorted(by_head.items()):
            of_head = head, tuple(id(one) for one, _ in several)
            if of_head not in self.changes:
                self.changes[of_head] = self._change(head, [one for one, _ in several])
            change, receipts = self.changes[of_head]
            for (_, total), receipt in zip(several, receipts, strict=True):
                total.add(receipt)
            if change is not None:
                changed.append(of_head)
        return tuple(changed)

    def _change(self, head: int, interventions: Sequence[Intervention]) -> tuple[Tensor | None, list[Receipt]]:
        z, receipts = edited(self.z, interventions)
        change = z[:, :, head] - self.z[:, :, head]
        return (change if bool(change.any()) else None), receipts

    def add(self, key: Key, number: int, rest: Edits) -> None:
        """A plan that changes this here, and something more in later layers if there is a rest."""
        if rest:
            self.going_on.setdefault(key, {})[number] = rest
        else:
            self.ending.setdefault(key, []).append(number)

    def outputs(self) -> Iterator[tuple[int, Tensor]]:
        """The outputs of all plans that were added."""
        if self._nothing_but_the_unembedding_follows():
            W_U = self.run.model.unembed.W_U
            moved = _Moved(self.changes, self.ending, [W_O @ W_U for W_O in self.block.attn.W_O])
            for key, numbers in self.ending.items():
                outputs = moved.onto(self.run.finished(), key)
                for number in numbers:
                    yield number, outputs
            return
        attn_out = self.block.attn.written(self.z)
        keys = list(dict.fromkeys([*self.ending, *self.going_on]))
        moved = _Moved(self.changes, keys, self.block.attn.W_O)
        n_batch, n_pos = self.resid.shape[:2]
        at_once = max(1, _POSITIONS_AT_ONCE // (n_batch * n_pos)) if self.run.stacked else 1
        for start in range(0, len(keys), at_once):
            some = keys[start : start + at_once]
            added = torch.cat([moved.onto(attn_out, key) for key in some])
            yield from self._followed(some, self.block.after_attention(self.resid.repeat(len(some), 1, 1), added))

    def _followed(
        self, keys: Sequence[Key], behind: Float[Tensor, "stack pos d_model"]
    ) -> Iterator[tuple[int, Tensor]]:
        """The outputs of branches that are stacked on the batch axis, behind the layer."""
        n_batch = len(self.resid)
        ending = [k for k, key in enumerate(keys) if key in self.ending]
        found: dict[Key, Tensor] = {}
        if ending:
            whole = len(ending) == len(keys)
            resid = behind if whole else torch.cat([behind.split(n_batch)[k] for k in ending])
            outputs = self.run.model(resid, start_at_layer=self.layer + 1)
            found = {keys[k]: one for k, one in zip(ending, outputs.split(n_batch), strict=True)}
            for key, one in found.items():
                for number in self.ending[key]:
                    yield number, one
        for key, resid in zip(keys, behind.split(n_batch), strict=True):
            if key in self.going_on:
                child = Run(self.run.model, {self.layer + 1: resid}, outputs=found.get(key), stacked=self.run.stacked)
                yield from outputs_of_edits(child, self.going_on[key])

    def _nothing_but_the_unembedding_follows(self) -> bool:
        cfg, block = self.run.model.cfg, self.block
        return (
            self.layer == cfg.n_layers - 1
            and cfg.normalization_type is None
            and (not block.has_mlp or cfg.parallel_attn_mlp)
        )


class _Moved:
    """What changes of z move by way of the heads' output matrices; those that several keys hold are kept."""

    def __init__(
        self,
        changes: Mapping[OfHead, tuple[Tensor | None, list[Receipt]]],
        keys: Iterable[Key],
        W_out: Sequence[Float[Tensor, "d_head d_out"]] | Float[Tensor, "head d_head d_out"],
    ):
        self.changes, self.W_out = changes, W_out
        self.uses = Counter(of_head for key in keys for of_head in key)
        self.kept: dict[OfHead, Tensor] = {}

    def onto(self, base: Float[Tensor, "batch pos d_out"], key: Key) -> Float[Tensor, "batch pos d_out"]:
        """The base with all that the key's changes move."""
        for of_head in key:
            base = base + self._by(of_head)
        return base

    def _by(self, of_head: OfHead) -> Float[Tensor, "batch pos d_out"]:
        if of_head in self.kept:
            return self.kept[of_head]
        change, _ = self.changes[of_head]
        assert change is not None
        moved = change @ self.W_out[of_head[0]]
        if self.uses[of_head] > 1:
            self.kept[of_head] = moved
        return moved
