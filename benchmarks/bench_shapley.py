"""Exact Shapley values of 8 heads (all 256 sets of them ablated) in the time of how many of 256 plain forward passes.

    python benchmarks/bench_shapley.py

2 layers of 4 heads; CPU time on one thread over that of 256 plain passes on the same prompts (measured on 32 of them),
in turn, wall clock in brackets. Sets that change layer 0 alike share that layer; in the last attention-only layer the
outputs of every set are sums of what its heads change. Everything is in the time: metrics, receipts, intervals. Exits
with 1 if the value of any set differs from one hooked pass for it by more than 1e-5.
"""

import argparse
import sys

import torch
from side_by_side import in_turn

from analyses import attribute_heads
from analyses.metrics import Group, Metric
from analyses.sweep import sweep
from interp import HookedTransformer, HookedTransformerConfig
from interp.edits import Zero
from interp.sites import Site
from tasks.prompts import Prompts

D_VOCAB, N_POS, N_PROMPTS, ASKED = 65, 64, 32, 0.60
KINDS = {"attention only": {"attn_only": True}, "with MLPs and LayerNorm": {"normalization_type": "LN"}}


def largest_difference(model: HookedTransformer, prompts: Prompts) -> float:
    """Of the mean loss with each set of heads ablated, from one hooked pass for each."""
    heads = [Site(layer, "z", head) for layer in range(2) for head in range(4)]
    subsets = [[heads[k] for k in range(8) if chosen >> k & 1] for chosen in range(1, 256)]

    def edit_of(_rows: slice) -> Zero:
        return Zero()

    plans = [dict.fromkeys(subset, edit_of) for subset in subsets]
    found = sweep(
        model, prompts, plans, [Metric.of("loss")], [Group("all", None)], batch_size=512, confidence=0.95, seed=0
    )
    before, counts = prompts.loss(model(prompts.inputs))
    worst = 0.0
    for subset, difference in zip(subsets, found.differences, strict=True):

        def zeroed(z, hook, subset=subset):
            z = z.clone()
            z[:, :, [site.head for site in subset if site.hook_name == hook.name]] = 0
            return z

        hooks = [(name, zeroed) for name in {site.hook_name for site in subset}]
        after, _ = prompts.loss(model.run_with_hooks(prompts.inputs, fwd_hooks=hooks))
        expected = float((after - before).sum() / counts.sum())
        worst = max(worst, abs(float(difference.sum()) / int(counts.sum()) - expected))
    return worst


def main() -> int:
    """Print the table and return 1 if a value is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {N_PROMPTS} prompts of {N_POS} tokens, medians of {repeats} pairs")
    worst = 0.0
    for kind, architecture in KINDS.items():
        model = HookedTransformer(
            HookedTransformerConfig(n_layers=2, n_heads=4, d_model=64, n_ctx=N_POS, d_vocab=D_VOCAB, **architecture)
        )
        tokens = torch.randint(D_VOCAB, (N_PROMPTS, N_POS), generator=torch.Generator().manual_seed(0))
        prompts = Prompts.from_tensors(tokens)
        with torch.no_grad():
            difference = largest_difference(model, prompts)
        worst = max(worst, difference)
        in_32 = in_turn(
            lambda: attribute_heads(model, prompts, method="shapley", metric="loss"),  # noqa: B023
            lambda: [model(prompts.inputs) for _ in range(32)],  # noqa: B023
            repeats,
        )
        print(
            f"{kind:24} {in_32.cpu / 8:.0%} ({in_32.wall / 8:.0%}) of 256 plain passes, asked for is at most "
            f"{ASKED:.0%}; largest difference {difference:.1e}"
        )
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
