"""Take a model apart: ablations, attributions, attention scores, associative memories, comparisons, reports."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.ablation import ablate, ablate_heads, ablate_layers, ablate_mlps
    from analyses.activation_patching import patch_activations
    from analyses.algorithm_distance import measure_algorithm_distances
    from analyses.attention_patterns import score_attention_patterns
    from analyses.attribution import attribute_heads
    from analyses.bayes_gap import gap_closed
    from analyses.circuit import Circuit
    from analyses.circuit_discovery import discover_circuit
    from analyses.circuit_evaluation import evaluate_circuit
    from analyses.circuit_roc import edge_roc
    from analyses.comparison import compare_predictors
    from analyses.composition import score_composition
    from analyses.coordinate_map import map_coordinates
    from analyses.crosstalk import crosstalk_against_width
    from analyses.dynamics import analyse_checkpoints
    from analyses.edge_attribution import attribute_edges
    from analyses.gradient_memory import gradient_recall
    from analyses.head_assessment import assess_heads, effective_heads
    from analyses.head_weights import head_circuit
    from analyses.interaction import ablate_pairs
    from analyses.layer_algorithms import measure_layer_distances
    from analyses.memory import memory_recall
    from analyses.memory_heads import circuit_recall
    from analyses.memory_readouts import recall_readouts
    from analyses.papers.reproduction import reproduce
    from analyses.path_patching import patch_paths
    from analyses.preprocessing_probe import probe_preprocessing
    from analyses.probes import probe_layers
    from analyses.pruning import prune_heads
    from analyses.report import write_report
    from analyses.report.ablation_report import write_ablation_report
    from analyses.report.comparison_report import write_comparison
    from analyses.report.seeds_report import write_seeds_report
    from analyses.seed_dynamics import analyse_seeds, seed_histories
    from analyses.spectra import weight_spectra

_HOMES = {
    "Circuit": "circuit",
    "ablate": "ablation",
    "ablate_heads": "ablation",
    "ablate_layers": "ablation",
    "ablate_mlps": "ablation",
    "ablate_pairs": "interaction",
    "analyse_checkpoints": "dynamics",
    "analyse_seeds": "seed_dynamics",
    "assess_heads": "head_assessment",
    "attribute_edges": "edge_attribution",
    "attribute_heads": "attribution",
    "circuit_recall": "memory_heads",
    "compare_predictors": "comparison",
    "crosstalk_against_width": "crosstalk",
    "discover_circuit": "circuit_discovery",
    "edge_roc": "circuit_roc",
    "effective_heads": "head_assessment",
    "evaluate_circuit": "circuit_evaluation",
    "gap_closed": "bayes_gap",
    "gradient_recall": "gradient_memory",
    "head_circuit": "head_weights",
    "map_coordinates": "coordinate_map",
    "measure_algorithm_distances": "algorithm_distance",
    "measure_layer_distances": "layer_algorithms",
    "memory_recall": "memory",
    "patch_activations": "activation_patching",
    "patch_paths": "path_patching",
    "probe_layers": "probes",
    "probe_preprocessing": "preprocessing_probe",
    "prune_heads": "pruning",
    "recall_readouts": "memory_readouts",
    "reproduce": "papers.reproduction",
    "score_attention_patterns": "attention_patterns",
    "score_composition": "composition",
    "seed_histories": "seed_dynamics",
    "weight_spectra": "spectra",
    "write_ablation_report": "report.ablation_report",
    "write_comparison": "report.comparison_report",
    "write_report": "report",
    "write_seeds_report": "report.seeds_report",
}

__all__ = [
    "Circuit",
    "ablate",
    "ablate_heads",
    "ablate_layers",
    "ablate_mlps",
    "ablate_pairs",
    "analyse_checkpoints",
    "analyse_seeds",
    "assess_heads",
    "attribute_edges",
    "attribute_heads",
    "circuit_recall",
    "compare_predictors",
    "crosstalk_against_width",
    "discover_circuit",
    "edge_roc",
    "effective_heads",
    "evaluate_circuit",
    "gap_closed",
    "gradient_recall",
    "head_circuit",
    "map_coordinates",
    "measure_algorithm_distances",
    "measure_layer_distances",
    "memory_recall",
    "patch_activations",
    "patch_paths",
    "probe_layers",
    "probe_preprocessing",
    "prune_heads",
    "recall_readouts",
    "reproduce",
    "score_attention_patterns",
    "score_composition",
    "seed_histories",
    "weight_spectra",
    "write_ablation_report",
    "write_comparison",
    "write_report",
    "write_seeds_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import analyses`` costs nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"analyses.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'analyses' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
