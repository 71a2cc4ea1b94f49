"""What edge attribution costs, in forward passes; and beside TransformerLens' per-pair edge attribution.

    python benchmarks/bench_edges.py

2 layers of 4 heads, attention only, d_model 128; TransformerLens' edges need a model whose bridge splits the inputs of
heads: a random GPT-2 of this size, on which both are compared. Costs are CPU time on one thread over that of a plain
forward pass on the same prompts, measured in turn (wall clock in brackets), the table with its bootstrap intervals
included: a pass as ``model(inputs)`` runs it, ready for gradients as one of the two that "eap" makes, and one under
``torch.no_grad()``. Exits with 1 if scores in head space differ from TransformerLens' by more than 1e-5.
"""

import argparse
import itertools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import gpt2_bridge, in_turn, native_bridge

from analyses import attribute_edges
from interp.conversion import from_transformer_lens
from tasks.prompts import Prompts

D_VOCAB, N_POS, N_PROMPTS, ASKED = 65, 64, 64, 4.5


def by_transformer_lens(bridge: torch.nn.Module, prompts: Prompts, other: Prompts) -> dict[tuple[str, str], float]:
    """Its scores by (sender, receiver), summed over positions; gradients at ``prompts``, moving toward ``other``."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    calls = itertools.count()

    def loss(logits: torch.Tensor) -> torch.Tensor:
        pair = next(calls) // 2  # it runs every pair twice
        return F.cross_entropy(logits[0, :-1], prompts.targets[pair, :-1])

    with torch.enable_grad():
        found = attribution_patch(bridge, other.inputs, prompts.inputs, loss, EdgeAttributionConfig(granularity="edge"))
    scores: dict[tuple[str, str], float] = {}
    for (writer, reader), score in found.edge_scores.items():
        sender = {"embed": "embed", "mlp_out": f"L{writer.layer}.mlp"}.get(
            writer.kind, f"L{writer.layer}H{writer.head}"
        )
        receiver = {"logits": "output", "mlp_in": f"L{reader.layer}.mlp"}.get(
            reader.kind, f"L{reader.layer}H{reader.head}.{reader.kind[0]}"
        )
        scores[sender, receiver] = scores.get((sender, receiver), 0.0) + score
    return scores


def main() -> int:
    """Print the figures and return 1 if the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    bridge = native_bridge(n_layers=2, n_heads=4, d_model=128, n_ctx=N_POS, d_vocab=D_VOCAB, attn_only=True)
    model = from_transformer_lens(bridge)
    generator = torch.Generator().manual_seed(0)
    prompts, other = (
        Prompts.from_tensors(torch.randint(D_VOCAB, (N_PROMPTS, N_POS), generator=generator)) for _ in range(2)
    )
    few, others = prompts[:8], other[:8]
    gpt2 = gpt2_bridge(n_layer=2, n_head=4, n_embd=128, n_positions=N_POS, vocab_size=D_VOCAB)
    same = from_transformer_lens(gpt2)
    ours = attribute_edges(same, few, others)
    receivers = [
        f"{r}.{i}" if i != "in" else r
        for r, i in zip(ours.frame["receiver"], ours.frame["receiver_input"], strict=True)
    ]
    mine = dict(zip(zip(ours.frame["sender"], receivers, strict=True), ours.frame["score"], strict=True))
    theirs = by_transformer_lens(gpt2, few, others)
    difference = max(abs(mine[edge] - score) for edge, score in theirs.items())
    print(
        f"torch {torch.__version__}, one thread, 2 layers x 4 heads, d_model 128, {N_POS} positions, "
        f"medians of {repeats} pairs"
    )
    print(f"largest difference from TransformerLens' score of any of {len(theirs)} edges: {difference:.1e}")

    def recording_forward() -> None:
        with torch.enable_grad():
            model(prompts.inputs)

    def plain_forward() -> None:
        model(prompts.inputs)

    for method, asked in (
        ("eap", f"at most {ASKED}"),
        ("eap_ig_inputs", ""),
        ("eap_ig_activations", ""),
        ("exact", ""),
    ):
        how = {"method": method} | ({"n_steps": 8} if "ig" in method else {})
        often = repeats if method == "eap" else 2

        def score(how: dict[str, Any] = how) -> None:
            attribute_edges(model, prompts, other, **how)

        recorded, bare = (in_turn(score, forward, often) for forward in (recording_forward, plain_forward))
        print(f"{method:20} {N_PROMPTS} pairs: {recorded!s:>16} forward passes, {bare!s:>16} without gradients {asked}")
    pairs = in_turn(lambda: by_transformer_lens(gpt2, few, others), lambda: attribute_edges(same, few, others), 2)
    print(f"8 pairs on the GPT-2: TransformerLens' time / ours (eap) {pairs}")
    return 0 if difference < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
