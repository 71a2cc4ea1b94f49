"""Bietti et al. 2023, Birth of a Transformer: A Memory Viewpoint (arXiv 2306.00802)."""

from analyses.papers.bietti2023.layers import two_layers_are_needed
from analyses.papers.bietti2023.setting import about
from analyses.papers.reproduction import Paper

PAPER = Paper(
    key="bietti2023",
    title="Birth of a Transformer: A Memory Viewpoint, claim by claim",
    citation="Bietti, Cabannes, Bouchacourt, Jégou and Bottou, NeurIPS 2023, arXiv 2306.00802",
    claims=(two_layers_are_needed,),
    about=about,
)
