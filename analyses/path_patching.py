"""Along which paths a difference between two prompts travels: from head to head through q, k or v, to the output."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.activation_patching import targets_of
from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.metrics import MetricLike, as_metrics, groups
from analyses.paired_runs import Direction, RunPair, measure_patches, notes_on_effects
from analyses.patching_figures import SHARE, effect_map
from analyses.path_runs import OUTPUT, PathRuns, Receiver, Through, check_receiver, check_sender, is_path
from analyses.references import Target, counterfactual_of
from analyses.result import Result, notes_on_intervals
from interp.interventions import Receipt
from interp.model_adapter import HookedModel, refuse_other
from interp.sites import SiteLike
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task


@dataclass(frozen=True, eq=False)
class PathPatchingResult(Result):
    """Effects of paths: ``delta`` is the metric after minus before, ``effect`` its share of the way to the other run.

    Columns: sender, sender_layer, sender_head, receiver, receiver_layer, receiver_head (missing for what has none),
    through, metric, the label split by (if any), baseline (of the run that is edited), other (of the run that the
    sender's activation comes from), patched, delta, ci_low and ci_high (of delta), effect (0: as if nothing was
    patched; 1: the other run's value), effect_low and effect_high, n_prompts. Intervals are over prompts, paired.
    """

    receipts: tuple[tuple[Receipt, ...], ...] = field(default=())
    """Per path, one receipt for each site of its receiver: how far the path moved what it receives; none for output."""

    value_column = "delta"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "path_patching"

    def plot(self) -> go.Figure:
        """Effects as a map, senders by receivers; a path whose interval excludes 0 has a star."""
        return effect_map(
            self.frame, down="sender", across="receiver", title=self.title, by=self.settings.get("by"), of=SHARE
        )


def patch_paths(
    model: HookedModel,
    prompts: Prompts,
    counterfactual: Prompts | Task | None = None,
    *,
    senders: str | Iterable[SiteLike | Sequence[SiteLike]] = "z",
    receivers: str | Iterable[SiteLike | Sequence[SiteLike]] = ("q", "k", "v", OUTPUT),
    through: Through = "direct",
    direction: Direction = "noising",
    metric: MetricLike | Sequence[MetricLike] = "loss",
    by: str | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
) -> PathPatchingResult:
    """Which component speaks to which, by what input, and does the answer hang on it?

    For a path from a sender to a receiver, with the base run and the other run as for ``patch_activations``:

    1. What the receiver would get: the base run is repeated with the sender's output taken from the other run, while
       every other head's z, and with ``through="direct"`` every other MLP's output, is held at its base value. So the
       receiver's input changes by just what the sender writes (r̂ = r + s′ − s in the residual stream, where nothing
       normalises), and with ``through="mlps"`` by what MLPs in between make of that as well. LayerNorms are computed
       anew, not linearised. Of a head that receives, its q, k or v is read there; of an MLP its output.
    2. What that does: the base run with the receiver's q, k, v or output replaced by that; all else is computed.

    ``effect = (patched − baseline) / (other − baseline)``. The receiver "output" has no second step: the logits are
    those of the first, with every other component at its base value.

    Args:
        senders: what writes to the residual stream: "z" (every head), "mlp", "attn" (whole attention layers), "embed",
            or sites (``L0H1``, ``L0H1@3`` at a position); those in an inner list send together.
        receivers: what reads from it: "q", "k", "v" (of every head), "mlp", "output", or sites (``L1H0.k``); those in
            an inner list receive together.
        through: "direct", or "mlps" to let MLPs between the two pass the change on.
        counterfactual, direction, metric, by: as for ``patch_activations``.

    There is a row for every pair that a path joins, and a pass for each and one for every sender: for all heads of a
    large model name fewer senders or receivers.

    Raises:
        InputError: a sender that does not write to the residual stream or a receiver that does not read from it, one
            that nothing joins to another, a hook point that the model lacks; and as for ``patch_activations``.

    Source: path patching as in Wang et al. (2022), Interpretability in the Wild, which lets MLPs pass the change on,
    and Goldowsky-Dill et al. (2023), Localizing Model Behavior with Path Patching [mem].

    >>> import torch
    >>> from interp.constructions.induction import induction_circuit
    >>> model = induction_circuit(d_vocab=5, n_ctx=6, triggers=[2]).model
    >>> prompts = Prompts.from_tensors(torch.tensor([[0, 2, 4, 1, 0, 2], [3, 2, 1, 0, 4, 2]]), torch.tensor([[4], [1]])
    ...     .expand(2, 6), scored=torch.arange(6).expand(2, 6) == 5)
    >>> without_trigger = Prompts.from_tensors(prompts.inputs * (torch.arange(6) != 1))
    >>> result = patch_paths(model, prompts, without_trigger, metric="prob")
    >>> result.frame.set_index(["sender", "receiver"])["effect"].round(2).to_dict()[("L0H0", "L1H0.k")]
    1.0
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    if through not in ("direct", "mlps"):
        raise InputError(f"through = {through!r} is unknown: choose 'direct' or 'mlps'")
    pair = RunPair(prompts, counterfactual_of(prompts, counterfactual, seed=seed), direction)
    metrics, parts = as_metrics(metric), list(groups(prompts, by))
    paths = _paths(model, senders, receivers)
    runs = PathRuns(model, pair, paths, through)
    values = measure_patches(
        pair, runs, len(paths), metrics, parts, batch_size=batch_size, confidence=confidence, seed=seed
    )
    rows = [
        _facts(sender, receiver) | {"through": through} | row
        for index, (sender, receiver) in enumerate(paths)
        for row in values.rows(index, metrics, parts, by)
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))
    settings = {"direction": direction, "through": through, "by": by, "seed": seed, "confidence": confidence}
    settings |= {"n_prompts": len(prompts), "prompts_seed": prompts.seed}
    settings |= {"counterfactual_seed": pair.counterfactual.seed}
    title = f"Path patching ({direction}, {through}): {' and '.join(one.name for one in metrics)}"
    notes = notes_on_intervals(frame) + notes_on_effects(frame)
    return PathPatchingResult(frame, title, settings, notes, receipts=tuple(map(tuple, runs.receipts)))


_WHOLE_NUMBERS = ("sender_layer", "sender_head", "receiver_layer", "receiver_head")


def _paths(model: HookedModel, senders: Any, receivers: Any) -> list[tuple[Target, Receiver]]:
    """Every sender with every receiver behind it, senders varying slowest."""
    starts = list(targets_of(model, senders, "senders"))
    written = [receivers] if isinstance(receivers, str) else list(receivers)
    ends: list[tuple[Receiver, bool]] = []
    for one in written:
        ends += [(None, True)] if isinstance(one, str) and one == OUTPUT else targets_of(model, [one])
    if not ends:
        raise InputError("receivers is empty: name at least one, q, L1H0.k or output say")
    for sender, _ in starts:
        check_sender(sender)
    for receiver, _ in ends:
        check_receiver(receiver)
    paths = [(sender, receiver) for sender, _ in starts for receiver, _ in ends if is_path(model, sender, receiver)]
    for role, named in ((0, starts), (1, ends)):
        joined = {path[role] for path in paths}
        for target, by_itself in named:
            if by_itself and target not in joined:
                why = ("no receiver reads behind it", "no sender writes before it reads")[role]
                raise InputError(f"{_written(target)} is on no path: {why}")
    if twice := [path for path in paths if paths.count(path) > 1]:
        sender, receiver = twice[0]
        raise InputError(f"the path from {_written(sender)} to {_written(receiver)} is named twice: name it once")
    if not paths:
        raise InputError("no sender writes before a receiver reads: name a receiver in a later layer, or 'output'")
    return paths


def _facts(sender: Target, receiver: Receiver) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for role, target in (("sender", sender), ("receiver", receiver)):
        alone = target is not None and len(target) == 1
        layers = {site.layer for site in target or ()}
        facts[role] = _written(target)
        facts[f"{role}_layer"] = next(iter(layers)) if len(layers) == 1 else None
        facts[f"{role}_head"] = target[0].head if target is not None and alone else None
    return facts


def _written(target: Receiver) -> str:
    return OUTPUT if target is None else "+".join(map(str, target))
