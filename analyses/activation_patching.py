"""Where in a model the difference between two prompts is carried: activations of one run written into the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jaxtyping import Bool
from torch import Tensor

from analyses.ablation import as_target
from analyses.argument_checks import check_seed, refuse_no_prompts
from analyses.edited_passes import EditedPasses, first_layer
from analyses.memory_budget import PROBED, MemoryBudget, batch_size_within
from analyses.metrics import MetricLike, as_metrics, groups, loss_unit
from analyses.paired_runs import Direction, PassesOfBatch, PatchedValues, RunPair, measure_patches, notes_on_effects
from analyses.patching_figures import patching_figure
from analyses.references import Target, counterfactual_of
from analyses.result import Result, frame_of_rows, notes_on_intervals
from interp.interventions import Intervention, Receipt, Replace
from interp.model_adapter import HookedModel, activations, reached_points, refuse_other, watching
from interp.position_masks import mask_of
from interp.sites import COMPONENTS, OF_HEADS, Site, SiteLike
from tasks.errors import InputError
from tasks.prompts import Prompts
from tasks.protocol import Task

Positions = str | Sequence[int] | tuple[str | int | bool | float, ...] | Bool[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class PatchingResult(Result):
    """Effects of patches: ``delta`` is the metric after minus before, ``effect`` its share of the way to the other run.

    Columns: layer and head (missing for what has none), component, pos (the position, a label's value, or "all"),
    metric, the label split by (if any), baseline (of the run that is edited), other (of the run that the activations
    come from), patched, delta, ci_low and ci_high (of delta), effect (0: as if nothing was patched; 1: the other run's
    value), effect_low and effect_high, n_prompts. Intervals are over prompts, paired.
    """

    receipts: tuple[tuple[Receipt, ...], ...] = field(default=())
    """Per patch, in the order of the rows, one receipt for each of its sites."""

    value_column = "delta"

    @property
    def name(self) -> str:
        """Short name, used for files."""
        return "activation_patching"

    def plot(self) -> go.Figure:
        """Effects as a map: sites by positions, or layers by heads; a cell whose interval excludes 0 has a star."""
        return patching_figure(
            self.frame, title=self.title, by=self.settings.get("by"), loss_unit=self.settings["loss_unit"]
        )


def patch_activations(
    model: HookedModel,
    prompts: Prompts,
    counterfactual: Prompts | Task | None = None,
    *,
    sites: str | Iterable[SiteLike | Sequence[SiteLike]] = "resid_pre",
    positions: Positions | None = None,
    direction: Direction = "noising",
    metric: MetricLike | Sequence[MetricLike] = "loss",
    by: str | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 512,
    memory_budget: MemoryBudget | None = None,
) -> PatchingResult:
    """Which sites and positions carry what tells the prompts from their counterfactuals?

    For every site and position, the model runs on one of the two with that activation taken from its run on the
    other: ``effect = (patched − baseline) / (other − baseline)``, each a ratio of sums over prompts. "noising" edits
    the run on the prompts (is the site needed?), "denoising" the run on the counterfactuals (is it enough?). The
    answers judged are those of ``prompts`` in both, and so is ``by``.

    Args:
        counterfactual: prompts aligned with ``prompts``, or their task, which draws them with ``seed``; by default
            those that the prompts carry.
        sites: a component ("resid_pre", "attn", "mlp", "z", "q", "pattern", "embed" …: one row for every layer, or
            head, that has it), or several sites and components; sites in an inner list are patched together.
        positions: None patches all positions together; "each" every position by itself, a list of numbers each of
            them; a label of the prompts patches the positions of each of its values; ``("segment", "first")`` or a
            mask [batch, pos] those positions together. Of ``pattern`` and ``scores``, positions are those that look.
        metric, by: as for ``ablate``; a KL is taken from the run on ``prompts``, and a logit difference from the
            prompts' ``wrong`` answers (``replace(prompts, wrong=counterfactual.targets)`` makes it one between the
            answers of the two runs).
        batch_size: pairs of prompts per pass; each batch runs twice clean, and each patch from its first layer on.
        memory_budget: as for ``ablate``.

    Raises:
        InputError: no counterfactual or one that is not aligned; a site, component, position, metric or label that
            does not exist; an activation that is not finite.

    Source: activation patching as in Meng et al. (2022), Locating and Editing Factual Associations in GPT, and
    Heimersheim and Nanda (2024), How to use and interpret activation patching [mem].

    >>> from interp.constructions.induction import induction_circuit
    >>> from tasks import BigramICL, BigramStatistics
    >>> stats = BigramStatistics.from_text("the cat sat on the mat and the rat ate the cake")
    >>> task = BigramICL(stats, n_triggers=2, seq_len=16)
    >>> circuit = induction_circuit(d_vocab=task.d_vocab, n_ctx=16, triggers=task.trigger_tokens)
    >>> result = patch_activations(circuit.model, task.sample(32, seed=0), task, sites="z", metric="accuracy")
    >>> result.frame.set_index("component")["effect"].round(2).to_dict()
    {'L0H0': 0.0, 'L1H0': 1.0}
    """
    refuse_other(model)
    refuse_no_prompts(prompts)
    check_seed(seed)
    pair = RunPair(prompts, counterfactual_of(prompts, counterfactual, seed=seed), direction)
    metrics, parts = as_metrics(metric), list(groups(prompts, by))
    targets = [target for target, _ in targets_of(model, sites)]
    places = _places(prompts, positions)
    patches = [_Patch(_at(target, place), place) for target in targets for place in places]

    def measure(some: RunPair, size: int) -> tuple[PatchedValues, EditedPasses]:
        runs = _PatchedRuns(model, some, patches, stacked=memory_budget is None)
        how = {"batch_size": size, "confidence": confidence, "seed": seed}
        return measure_patches(some, runs, len(patches), metrics, parts, **how), runs.passes

    if memory_budget is not None:
        two = RunPair(pair.prompts[:PROBED], pair.counterfactual[:PROBED], direction)
        batch_size = batch_size_within(memory_budget, batch_size, len(prompts), lambda: measure(two, PROBED))
    values, passes = measure(pair, batch_size)
    rows = [
        _facts(patch, positions) | row
        for index, patch in enumerate(patches)
        for row in values.rows(index, metrics, parts, by)
    ]
    frame = frame_of_rows(rows)
    settings = {"direction": direction, "by": by, "seed": seed, "confidence": confidence, "n_prompts": len(prompts)}
    settings |= {"positions": "mask" if isinstance(positions, Tensor) else positions, "prompts_seed": prompts.seed}
    settings |= {"counterfactual_seed": pair.counterfactual.seed, "loss_unit": loss_unit(prompts)}
    title = f"Activation patching ({direction}): {' and '.join(one.name for one in metrics)}"
    notes = notes_on_intervals(frame) + notes_on_effects(frame)
    return PatchingResult(frame, title, settings, notes, receipts=tuple(map(tuple, passes.receipts)))


def sites_of_component(model: HookedModel, component: str) -> list[Site]:
    """Every site of a component: one for each layer, or each head, that has it.

    Raises:
        InputError: there is no such component, or the model has none of it.

    >>> from interp import HookedTransformer, HookedTransformerConfig
    >>> model = HookedTransformer(HookedTransformerConfig(n_layers=2, d_model=4, n_ctx=3, d_vocab=5, attn_only=True))
    >>> [str(site) for site in sites_of_component(model, "q")]
    ['L0H0.q', 'L1H0.q']
    """
    reached = reached_points(model)
    n_heads = model.cfg.n_heads
    if component in ("k", "v"):  # which several heads may share
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    heads = range(n_heads) if component in OF_HEADS else [None]
    layers = [None] if component in ("embed", "pos_embed") else range(model.cfg.n_layers)
    every = [Site(layer, component, head) for layer in layers for head in heads]
    found = [site for site in every if site.hook_name in reached]
    if not found:
        raise InputError(f"the model has no {component}: there is no hook point {every[0].hook_name}, nor any like it")
    return found


def targets_of(
    model: HookedModel, sites: str | Iterable[SiteLike | Sequence[SiteLike]], argument: str = "sites"
) -> Iterator[tuple[Target, bool]]:
    """The sites that are patched together, each with whether it was named itself (or else by its component).

    Raises:
        InputError: none at all, or a site or component that does not exist; ``argument`` is what the caller calls them.
    """
    if not isinstance(sites, Iterable):
        raise InputError(f"{argument} = {sites!r} is no list of sites: give one, ['L1H0'] say, or a component")
    written: list[Any] = [sites] if isinstance(sites, str) else list(sites)
    if not written:
        raise InputError(f"{argument} is empty: name at least one, a component or L1H0 say")
    for one in written:
        if isinstance(one, str) and one in COMPONENTS:
            yield from (((site,), False) for site in sites_of_component(model, one))
        else:
            yield as_target(model, one), True


class _Place(NamedTuple):
    """Positions that are patched together: given by their numbers, by a mask, or all."""

    name: Any
    positions: tuple[int, ...] | None = None
    mask: Bool[Tensor, "batch pos"] | None = None


class _Patch(NamedTuple):
    target: Target
    place: _Place


class _PatchedRuns:
    """The passes of a batch: the base run, the other run, and one for each patch."""

    def __init__(self, model: HookedModel, pair: RunPair, patches: Sequence[_Patch], *, stacked: bool):
        self.model, self.pair, self.patches = model, pair, patches
        self.passes = EditedPasses(model, [patch.target for patch in patches], stacked=stacked)
        self.written = list(dict.fromkeys(site.hook_name for patch in patches for site in patch.target))

    def __call__(self, rows: slice) -> PassesOfBatch:
        base_inputs, other_inputs = self.pair.inputs(rows)
        base = self.passes.clean(base_inputs)
        with watching(self.model, self.passes.points):
            other, source = activations(self.model, other_inputs, self.written)
        plans = []
        for target, place in self.patches:
            mask = None if place.mask is None else place.mask[rows]
            nowhere = mask is not None and not mask.any()
            plans.append([] if nowhere else [_replacement(site, source[site.hook_name], mask) for site in target])
        return base, other, self.passes.edited(plans)


def _replacement(site: Site, source: Tensor, mask: Bool[Tensor, "batch pos"] | None) -> Intervention:
    return Intervention(site, Replace(source[site.index(source)]), mask)


def _places(prompts: Prompts, positions: Positions | None) -> list[_Place]:
    n_pos = prompts.targets.shape[1]
    if positions is None:
        return [_Place("all")]
    if isinstance(positions, Tensor):
        return [_Place("mask", mask=mask_of(prompts, positions))]
    if isinstance(positions, str):
        if positions == "each":
            return [_Place(position, (position,)) for position in range(n_pos)]
        return [_Place(name, mask=mask) for name, mask in _masks_of_label(prompts, positions)]
    if not isinstance(positions, Sequence):
        raise InputError(f"positions = {positions!r} is no list: give whole numbers, [0, -1] say, a mask or a label")
    if not len(positions):
        raise InputError("positions is empty: name at least one, or leave it out for all")
    if isinstance(positions[0], str):
        label, *values = positions
        return [_Place(f"{label} {' '.join(map(str, values))}", mask=mask_of(prompts, tuple(positions)))]
    for position in positions:
        if not isinstance(position, Integral) or isinstance(position, bool):
            raise InputError(f"positions holds {position!r}: give whole numbers, or a mask as a tensor [batch, pos]")
    return [_Place(int(position), (int(position),)) for position in positions]


def _masks_of_label(prompts: Prompts, label: str) -> Iterator[tuple[Any, Bool[Tensor, "batch pos"]]]:
    if label not in prompts.labels:
        known = ", ".join(prompts.labels) or "none"
        raise InputError(f"positions = {label!r} is neither 'each' nor a label of these prompts: choose {known}")
    names = prompts.label_names.get(label, ())
    for value in prompts.labels[label].unique().tolist():
        yield names[value] if 0 <= value < len(names) else value, mask_of(prompts, (label, value))


def _at(target: Target, place: _Place) -> Target:
    if place.name == "all":
        return target
    for site in target:
        if site.positions is not None:
            raise InputError(f"site {site} says positions itself: drop them, or positions=")
    return target if place.positions is None else tuple(replace(site, positions=place.positions) for site in target)


def _facts(patch: _Patch, positions: Positions | None) -> dict[str, Any]:
    """What tells a patch's rows from others'."""
    sites = patch.target
    named = [site.place if positions is not None else str(site) for site in sites]
    alone = len(sites) == 1
    return {
        "layer": first_layer(sites),
        "head": sites[0].head if alone else None,
        "component": "+".join(named),
        "pos": patch.place.name,
    }
