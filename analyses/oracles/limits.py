"""What a method cannot see on a known circuit, and why. Where nothing is written here, it must find the truth."""

from collections.abc import Mapping

_SATURATED = "softmax is saturated at the clean run, so its slope there is 0 however much a missing key changes"
_STEPS_IN = "the slope at the clean run does not know that the backup steps in on the way to zero"
_SHUTS = "the ReLU shuts on the way, so its slope at the clean run promises more than it gives"
_TOGETHER = "it averages slopes where all edges move together; here one alone shuts the ReLU"
_HALVED = "a sender moves all that reads it together, so edges that are needed alike share what each alone would cost"
_CURVED = "components overlap, so no slope at one run is that of the whole way"
_ONE_BY_ONE = "it takes away one edge at a time: while L0H0 is whole the backup does nothing, so its edges go first"

APPROXIMATE: Mapping[tuple[str, str], str] = {
    ("attribute_heads, gradient: as an ablation", "backup head"): _STEPS_IN,
    ("attribute_heads, gradient: as an ablation", "two paths"): _SHUTS,
    ("attribute_heads, gradient: as an ablation", "induction"): _SATURATED,
    ("attribute_heads, gradient: as an ablation", "induction with crosstalk"): _CURVED,
    ("attribute_edges, eap, zero: as a patch", "copy with a decoy"): _SATURATED,
    ("attribute_edges, eap, zero: as a patch", "backup head"): _STEPS_IN,
    ("attribute_edges, eap, zero: as a patch", "two paths"): _SHUTS,
    ("attribute_edges, eap, zero: as a patch", "induction"): _SATURATED,
    ("attribute_edges, eap, zero: as a patch", "induction with crosstalk"): _CURVED,
    ("attribute_edges, eap, counterfactual: as a patch", "two paths"): _SHUTS,
    ("attribute_edges, eap, counterfactual: as a patch", "induction with crosstalk"): _CURVED,
    ("attribute_edges, eap_ig_activations, zero: as a patch", "copy with a decoy"): _HALVED,
    ("attribute_edges, eap_ig_activations, zero: as a patch", "backup head"): _HALVED,
    ("attribute_edges, eap_ig_activations, zero: as a patch", "two paths"): _TOGETHER,
    ("attribute_edges, eap_ig_activations, zero: as a patch", "induction"): _HALVED,
    ("attribute_edges, eap_ig_activations, zero: as a patch", "induction with crosstalk"): _CURVED,
    ("attribute_edges, eap_ig_activations, counterfactual: as a patch", "two paths"): _TOGETHER,
    ("attribute_edges, eap_ig_activations, counterfactual: as a patch", "induction with crosstalk"): _CURVED,
    ("attribute_edges, eap_ig_inputs, counterfactual: as a patch", "two paths"): _TOGETHER,
    ("attribute_edges, eap_ig_inputs, counterfactual: as a patch", "induction with crosstalk"): _CURVED,
}
"""By method and circuit: where a first-order score is not the effect, and why."""

_ALONE = "L0H0 is still there when L1H0 is edited alone, so L1H0 has nothing to do"
_FLAG_STAYS = "what it writes at L0H0 keeps the flag that silences the backup"
BLIND_TO_BACKUPS: Mapping[str, str] = {
    "ablate, zero": _ALONE,
    "ablate, mean": _ALONE,
    "ablate, resample": _ALONE,
    "ablate, counterfactual": _ALONE,
    "patch_activations, noising": _ALONE,
    "patch_activations, denoising": _FLAG_STAYS,
    "patch_paths, direct": _FLAG_STAYS,
    "attribute_heads, direct": "it reads what L1H0 adds in the clean run, which is nothing",
    "attribute_heads, integrated": "a layer moves by itself, and L0H0 is whole while L1H0 moves",
    "attribute_heads, gradient: as a derivative": _ALONE,
    "attribute_heads, gradient: as an ablation": _ALONE,
    "attribute_edges, eap, zero: as a derivative": _SATURATED,
    "attribute_edges, eap, zero: as a patch": _SATURATED,
    "attribute_edges, exact, counterfactual": _FLAG_STAYS,
    "attribute_edges, eap, counterfactual: as a derivative": _FLAG_STAYS,
    "attribute_edges, eap, counterfactual: as a patch": _FLAG_STAYS,
    "attribute_edges, eap_ig_inputs, counterfactual: as a patch": _FLAG_STAYS,
    "attribute_edges, eap_ig_activations, counterfactual: as a patch": _FLAG_STAYS,
}
"""By method: why a head that acts only where another is missing gets no credit."""

UNRECOVERED: Mapping[tuple[str, str], str] = {
    ("acdc, zero", "backup head"): _ONE_BY_ONE,
    ("greedy, zero", "backup head"): "edges that change nothing by themselves rank with those that are not wired",
    ("exact scores, zero", "backup head"): "the backup's own output is missed by nobody while L0H0 is whole",
    (
        "brute force on nodes, zero",
        "backup head",
    ): "either head is enough: the smallest circuits are two, a head each",
    ("eap scores, zero", "backup head"): _SATURATED,
    ("eap scores, zero", "induction"): _SATURATED,
}
"""By method and circuit: why not exactly the true edges are found."""
