"""Bietti et al. 2023, Birth of a Transformer: A Memory Viewpoint (arXiv 2306.00802)."""

from analyses.papers.bietti2023.freezing import W_K2_is_easier_first, W_O2_comes_first
from analyses.papers.bietti2023.global_first import global_bigrams_come_first
from analyses.papers.bietti2023.gradient_theory import one_gradient_step_each
from analyses.papers.bietti2023.layers import two_layers_are_needed
from analyses.papers.bietti2023.memories import weights_become_memories
from analyses.papers.bietti2023.outputs import held_out_outputs_are_copied, uniform_outputs_generalise_better
from analyses.papers.bietti2023.positions import early_positions_come_first
from analyses.papers.bietti2023.setting import about
from analyses.papers.bietti2023.triggers import frequent_triggers_are_fastest
from analyses.papers.reproduction import Paper

PAPER = Paper(
    key="bietti2023",
    title="Birth of a Transformer: A Memory Viewpoint, claim by claim",
    citation="Bietti, Cabannes, Bouchacourt, Jégou and Bottou, NeurIPS 2023, arXiv 2306.00802",
    claims=(
        global_bigrams_come_first,
        two_layers_are_needed,
        weights_become_memories,
        W_O2_comes_first,
        W_K2_is_easier_first,
        early_positions_come_first,
        frequent_triggers_are_fastest,
        uniform_outputs_generalise_better,
        held_out_outputs_are_copied,
        one_gradient_step_each,
    ),
    about=about,
)
