"""Gradients of a metric with respect to activations, prompt by prompt, that leave the model as it was."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from analyses.metrics import CleanOutputs, Group, Metric
from interp.hook_gate import HookFunction
from interp.model_adapter import HookedModel, hooked, outputs
from tasks.errors import InputError
from tasks.prompts import Prompts


class Gradients(NamedTuple):
    """Activations at hook points, and the gradients of the metric's sum in each part with respect to them."""

    activations: dict[str, Float[Tensor, "batch *rest"]]
    by_part: list[dict[str, Float[Tensor, "batch *rest"]]]
    counts: Float[Tensor, "batch part"]


def metric_gradients(
    model: HookedModel,
    batch: Prompts,
    metric: Metric,
    parts: Sequence[Group],
    points: Sequence[str],
    *,
    leaf: str,
    seen: Sequence[str] = (),
    value: Float[Tensor, "batch *rest"] | None = None,
    clean: CleanOutputs | None = None,
) -> Gradients:
    """∂ (the metric's sum over a part) / ∂ activation at every point, from one pass and one backward pass per part.

    Prompts do not see each other, so row b of the gradient is that of prompt b's own sum. Gradients start at
    ``leaf``, a point before all others (or the first of them), which is made to require them whatever the model's
    parameters do; with a ``value`` that is written there. Points ``seen`` are activations only. ``parts`` are those of
    the batch; ``clean`` the clean outputs, where a metric compares with them (the pass's own by default).

    Parameters get no ``.grad``, gradient mode is as it was afterwards, and so are the hooks.

    Raises:
        InputError: the metric has no gradient (an accuracy), or none of it reaches a point.
    """
    nodes: dict[str, Tensor] = {}

    def start(activation: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001 — TransformerLens' call
        given = (activation if value is None else value).detach()
        nodes[leaf] = (given.clone() if given.is_inference() else given).requires_grad_()
        return nodes[leaf]

    def keep(point: str) -> HookFunction:
        def write_itself(activation: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001 — TransformerLens' call
            # What a hook is shown need not be what the model goes on with (a bridge's is not); what it returns is.
            nodes[point] = activation.view_as(activation)
            return nodes[point]

        return write_itself

    def look(point: str) -> HookFunction:
        def observe(activation: Tensor, hook: HookPoint) -> None:  # noqa: ARG001 — TransformerLens' call
            only_seen[point] = activation.detach().clone()

        return observe

    only_seen: dict[str, Tensor] = {}
    later = [point for point in dict.fromkeys(points) if point != leaf]
    with torch.inference_mode(False), torch.enable_grad():
        with hooked(
            model,
            [(leaf, start), *((point, keep(point)) for point in later), *((point, look(point)) for point in seen)],
        ):
            out = outputs(model, batch.inputs)
        totals, counts = [], []
        for part in parts:
            sums, count = metric.measure(out, part.of(batch), out.detach() if clean is None else clean)
            if not sums.requires_grad:
                raise InputError(
                    f"metric = {metric.name!r} has no gradient (it counts, or does not see the outputs): choose loss, "
                    "logit_diff or prob, or a method without gradients"
                )
            totals.append(sums.sum())
            counts.append(count)
        by_part = []
        for index, total in enumerate(totals):
            again = index < len(totals) - 1
            wanted = {point: nodes[point] for point in points}
            found = torch.autograd.grad(total, list(wanted.values()), retain_graph=again, allow_unused=True)
            by_part.append({point: _met(point, gradient) for point, gradient in zip(wanted, found, strict=True)})
    activations = {point: node.detach() for point, node in nodes.items()} | only_seen
    return Gradients(activations, by_part, torch.stack(counts, dim=1).double())


def _met(point: str, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise InputError(
            f"no gradient of the metric reaches {point}: the model does not go on from what its hook shows there, so "
            "use a method without gradients"
        )
    return gradient


def refuse_flat(metric: Metric, method: str, instead: str) -> None:
    """Raise InputError for a metric whose gradient at the clean run is zero by definition: a KL from that very run."""
    if metric.name == "kl":
        raise InputError(
            f"metric = 'kl' is least at the clean run, so its gradient there is 0 and method = {method!r} would find "
            f"nothing: choose method = {instead}, or another metric"
        )
