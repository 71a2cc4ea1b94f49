"""Chen, Zhao and Zou 2024, How Transformers Utilize Multi-Head Attention in In-Context Learning (arXiv 2408.04532)."""

from analyses.papers.chen2024.head_roles import heads_have_roles
from analyses.papers.chen2024.layers_as_steps import layers_are_steps
from analyses.papers.chen2024.more_heads import more_heads_are_better
from analyses.papers.chen2024.preprocessed_features import first_layer_preprocesses
from analyses.papers.chen2024.preprocessing_wins import preprocessing_wins_everywhere, preprocessing_wins_on_average
from analyses.papers.chen2024.pruning_heads import later_heads_can_be_pruned
from analyses.papers.chen2024.setting import about
from analyses.papers.reproduction import Paper

PAPER = Paper(
    key="chen2024",
    title="How Transformers Utilize Multi-Head Attention in In-Context Learning, claim by claim",
    citation="Chen, Zhao and Zou, NeurIPS 2024, arXiv 2408.04532",
    claims=(
        more_heads_are_better,
        heads_have_roles,
        later_heads_can_be_pruned,
        layers_are_steps,
        first_layer_preprocesses,
        preprocessing_wins_on_average,
        preprocessing_wins_everywhere,
    ),
    about=about,
)
