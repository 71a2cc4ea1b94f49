"""The methods that are held against the truth, each as a function from a known circuit to what it found, by name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pandas as pd

from analyses.ablation import ablate_heads, ablate_mlps
from analyses.activation_patching import patch_activations
from analyses.attribution import attribute_heads
from analyses.circuit import Circuit
from analyses.circuit_evaluation import evaluate_circuit
from analyses.edge_attribution import attribute_edges
from analyses.interaction import ablate_pairs
from analyses.path_patching import patch_paths
from interp.constructions.known_circuit import KnownCircuit
from interp.constructions.plain_forward import PlainTransformer, edge_slopes, logit_difference

Found = Mapping[str, float]
Claim = Literal["exact", "quadrature", "first order"]
"""How near to the truth a method must come: 1e-5, that and its stated quadrature error, or only where it can."""
_CUT = "all edges from embed"
N_STEPS = 200
"""Midpoints of integrated gradients, from the prompts to the reference."""


@dataclass(frozen=True)
class Reading:
    """One method with its settings, and what it is held against."""

    name: str
    claim: Claim
    truth: Callable[[KnownCircuit], Found]
    measure: Callable[[KnownCircuit], Found]


def _estimand(name: str) -> Callable[[KnownCircuit], Found]:
    return lambda known: known.effects[name]


def _ablated(method: Any) -> Callable[[KnownCircuit], Found]:
    def measure(known: KnownCircuit) -> Found:
        how: dict[str, Any] = {"method": method, "metric": "logit_diff"}
        if method == "resample":
            how["reference"] = known.reference
        found = _by_component(ablate_heads(known.model, known.prompts, **how).frame, "delta")
        if any(known.model.cfg.has_mlp(layer) for layer in range(known.model.cfg.n_layers)):
            found |= _by_component(ablate_mlps(known.model, known.prompts, **how).frame, "delta")
        return found

    return measure


def _patched(direction: Any) -> Callable[[KnownCircuit], Found]:
    def measure(known: KnownCircuit) -> Found:
        sites = ["z", *(["mlp"] if _has_mlp(known) else [])]
        result = patch_activations(known.model, known.prompts, sites=sites, direction=direction, metric="logit_diff")
        return _by_component(result.frame, "delta")

    return measure


def _paths(known: KnownCircuit) -> Found:
    """Direct paths are edges; what the positions send does not differ between the two runs."""
    mlp = ["mlp"] if _has_mlp(known) else []
    frame = patch_paths(
        known.model, known.prompts, senders=["embed", "z", *mlp], receivers=["q", "k", "v", *mlp, "output"],
        metric="logit_diff",
    ).frame  # fmt: skip
    names = frame["sender"] + "->" + frame["receiver"]
    return dict(zip(names, frame["delta"].astype(float), strict=True))


def _attributed(method: Any) -> Callable[[KnownCircuit], Found]:
    def measure(known: KnownCircuit) -> Found:
        more: dict[str, Any] = {"n_steps": N_STEPS} if method == "integrated" else {}
        frame = attribute_heads(known.model, known.prompts, method=method, metric="logit_diff", **more).frame
        return _by_component(frame, "attribution")

    return measure


def _pairs(known: KnownCircuit) -> Found:
    frame = ablate_pairs(known.model, known.prompts, method="zero", metric="logit_diff").frame
    names = frame["first"] + "+" + frame["second"]
    return dict(zip(names, frame["interaction"].astype(float), strict=True))


def edges_by(method: Any, reference: Any) -> Callable[[KnownCircuit], Found]:
    """Scores of every edge by a method of ``attribute_edges``."""
    return lambda known: _edge_scores(known, method, reference)


@lru_cache(maxsize=32)  # several readings ask for the same scores
def _edge_scores(known: KnownCircuit, method: Any, reference: Any) -> Found:
    more: dict[str, Any] = {"n_steps": N_STEPS} if method.startswith("eap_ig") else {}
    frame = attribute_edges(
        known.model, known.prompts, method=method, reference=reference, metric="logit_diff", **more
    ).frame
    return dict(zip(names_of_edges(frame), frame["score"].astype(float), strict=True))


def names_of_edges(frame: pd.DataFrame) -> pd.Series:
    """``L0H0->L1H0.k`` for every row of a table of edges."""
    ending = frame["receiver_input"].map(lambda each: "" if each == "in" else f".{each}")
    return frame["sender"] + "->" + frame["receiver"] + ending


def _input_to_output(known: KnownCircuit) -> Found:
    """All that integrated gradients give to the edges from the input: a cut through which every path goes."""
    found = edges_by("eap_ig_inputs", "counterfactual")(known)
    return {_CUT: sum(score for edge, score in found.items() if edge.startswith("embed->"))}


def _out_of_layers(known: KnownCircuit) -> Found:
    """All that integrated gradients give to the edges that leave a layer's heads, which move together."""
    found = edges_by("eap_ig_activations", "zero")(known)
    return {
        f"all edges from L{layer}": sum(score for edge, score in found.items() if edge.startswith(f"L{layer}H"))
        for layer in range(known.model.cfg.n_layers)
    }


def _layers_gone(known: KnownCircuit) -> Found:
    """What zeroing all heads of a layer changes."""
    plain, cfg = PlainTransformer(known.model), known.model.cfg
    after = {}
    for layer in range(cfg.n_layers):
        gone = {f"L{layer}H{head}": 0.0 for head in range(cfg.n_heads)}
        logits, _ = plain(known.prompts.inputs.numpy(), written=gone)
        after[f"all edges from L{layer}"] = logit_difference(logits, known.prompts) - known.baseline
    return after


def _way(known: KnownCircuit) -> Found:
    """The counterfactuals' logit difference less the prompts'."""
    plain = PlainTransformer(known.model)
    assert known.prompts.counterfactual is not None
    ends = (known.prompts.inputs, known.prompts.counterfactual.inputs)
    here, there = (logit_difference(plain(inputs.numpy())[0], known.prompts) for inputs in ends)
    return {_CUT: there - here}


def _slopes(reference: Any) -> Callable[[KnownCircuit], Found]:
    return lambda known: edge_slopes(known.model, known.prompts, reference)


def _has_mlp(known: KnownCircuit) -> bool:
    return any(known.model.cfg.has_mlp(layer) for layer in range(known.model.cfg.n_layers))


def _by_component(frame: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(zip(frame["component"], frame[column].astype(float), strict=True))


def _evaluated(known: KnownCircuit) -> Found:
    circuit = Circuit.of(known.model, sorted(known.true_edges))
    result = evaluate_circuit(known.model, circuit, known.prompts, minimality="edges", n_random=0, **_EVALUATION)
    left_out = dict(zip(result.minimality["part"].map(str), result.minimality["change"].astype(float), strict=True))
    return {_FAITHFULNESS: float(result.frame["faithfulness"].iloc[0])} | left_out


def _kept(known: KnownCircuit, edges: Collection[str], gone: Collection[str] = ()) -> float:
    """The logit difference where only these edges carry anything, and some heads write nothing."""
    plain = PlainTransformer(known.model)
    cut = dict.fromkeys((edge for edge in plain.edges() if edge not in edges), 0.0)
    logits, _ = plain(known.prompts.inputs.numpy(), edges=cut, written=dict.fromkeys(gone, 0.0))
    return logit_difference(logits, known.prompts)


def _truly_evaluated(known: KnownCircuit) -> Found:
    whole = _kept(known, known.true_edges)
    left_out = {edge: _kept(known, known.true_edges - {edge}) - whole for edge in known.true_edges}
    return {_FAITHFULNESS: whole / known.baseline} | left_out


def _primary(known: KnownCircuit) -> set[str]:
    """The true edges that touch no backup."""
    return {edge for edge in known.true_edges if not any(head in edge for head in known.backups)}


def _completed(known: KnownCircuit) -> Found:
    """What leaving heads out does to the circuit without its backup, less what it does to the model."""
    if not known.backups:
        return {}
    circuit = Circuit.of(known.model, sorted(_primary(known)))
    frame = evaluate_circuit(known.model, circuit, known.prompts, n_random=5, **_EVALUATION).completeness
    beyond = " and ".join(known.backups)
    rows = frame[frame["without"] != ""].drop_duplicates("without")
    names = [f"{gone} gone, {beyond} missed" for gone in rows["without"]]
    return dict(zip(names, rows["difference"].astype(float), strict=True))


def _truly_completed(known: KnownCircuit) -> Found:
    if not known.backups:
        return {}
    plain, gone = PlainTransformer(known.model), ["L0H0"]
    model = _kept(known, set(plain.edges()), gone)
    beyond = " and ".join(known.backups)
    return {f"L0H0 gone, {beyond} missed": _kept(known, _primary(known), gone) - model}


_FAITHFULNESS = "faithfulness of the true edges"
_EVALUATION: dict[str, Any] = {"references": ["zero"], "metric": "logit_diff", "progress": False}
_EVALUATED = (_truly_evaluated, _evaluated)
_COMPLETED = (_truly_completed, _completed)

READINGS = (
    *(
        Reading(f"ablate, {one}", "exact", _estimand(one), _ablated(one))
        for one in ("zero", "mean", "resample", "counterfactual")
    ),
    Reading("ablate_pairs, zero", "exact", _estimand("pairs"), _pairs),
    Reading("patch_activations, noising", "exact", _estimand("counterfactual"), _patched("noising")),
    Reading("patch_activations, denoising", "exact", _estimand("restored"), _patched("denoising")),
    Reading("patch_paths, direct", "exact", _estimand("edges, counterfactual"), _paths),
    Reading("attribute_heads, direct", "exact", _estimand("direct"), _attributed("direct")),
    Reading("attribute_heads, shapley", "exact", _estimand("shapley"), _attributed("shapley")),
    Reading("attribute_heads, integrated", "quadrature", _estimand("integrated"), _attributed("integrated")),
    Reading("attribute_heads, gradient: as a derivative", "exact", _estimand("gradient"), _attributed("gradient")),
    Reading("attribute_heads, gradient: as an ablation", "first order", _estimand("zero"), _attributed("gradient")),
    *(
        reading
        for reference in ("zero", "counterfactual")
        for reading in (
            Reading(
                f"attribute_edges, exact, {reference}", "exact", _estimand(f"edges, {reference}"),
                edges_by("exact", reference),
            ),
            Reading(
                f"attribute_edges, eap, {reference}: as a derivative", "exact", _slopes(reference),
                edges_by("eap", reference),
            ),
            Reading(
                f"attribute_edges, eap, {reference}: as a patch", "first order", _estimand(f"edges, {reference}"),
                edges_by("eap", reference),
            ),
        )
    ),
    Reading(
        "attribute_edges, eap_ig_inputs, counterfactual: as a patch", "first order", _estimand("edges, counterfactual"),
        edges_by("eap_ig_inputs", "counterfactual"),
    ),
    *(
        Reading(
            f"attribute_edges, eap_ig_activations, {reference}: as a patch", "first order",
            _estimand(f"edges, {reference}"), edges_by("eap_ig_activations", reference),
        )
        for reference in ("zero", "counterfactual")
    ),
    Reading("attribute_edges, eap_ig_inputs: complete over the input", "quadrature", _way, _input_to_output),
    Reading(
        "attribute_edges, eap_ig_activations: complete over each layer", "quadrature", _layers_gone, _out_of_layers
    ),
    Reading("evaluate_circuit, zero: faithfulness and edges left out", "exact", *_EVALUATED),
    Reading("evaluate_circuit, zero: what a backup adds", "exact", *_COMPLETED),
)  # fmt: skip
"""Every method, with what it is held against."""
