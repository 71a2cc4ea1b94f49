"""A sweep over all heads beside TransformerLens' ``get_act_patch_attn_head_out_all_pos``, on the same weights.

    python benchmarks/bench_head_sweep.py

Both write every head's z of one set of prompts into the run on another, and take the loss of each patched run. The time
of TransformerLens over ours is split in two: what its forward pass costs beside ours, and what remains, which is due to
sharing (passes that begin where the edit is; the last attention-only layer by subtraction) less what our metrics,
receipts and bootstrap intervals cost. Its model is its trainable one, a native TransformerBridge. Printed are medians
of ratios, measured in turn on one thread: CPU time first, wall clock in brackets. Exits with 1 if a value differs by
more than 1e-4.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from side_by_side import in_turn, native_bridge

from analyses import patch_activations
from interp.conversion import from_transformer_lens
from tasks.prompts import Prompts

D_VOCAB = 65
SHAPES = (  # layers, heads, d_model, positions, prompts, the least ratio that is asked for
    (2, 4, 64, 64, 32, 3.0),
    (2, 4, 128, 64, 64, 3.0),  # the shape of bench_training
    (4, 8, 128, 64, 16, 2.5),
    (12, 12, 192, 32, 8, 2.0),
)


def patched_by_transformer_lens(bridge: torch.nn.Module, prompts: Prompts, other: Prompts) -> torch.Tensor:
    """The loss of every patched run, [layer, head], with TransformerLens' own means."""
    from transformer_lens import patching

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), prompts.targets[:, :-1].flatten())

    with torch.no_grad():
        names = [f"blocks.{layer}.attn.hook_z" for layer in range(bridge.cfg.n_layers)]
        _, cache = bridge.run_with_cache(other.inputs, names_filter=lambda name: name in names)
        return patching.get_act_patch_attn_head_out_all_pos(bridge, prompts.inputs, cache, loss)


def main() -> int:
    """Print the table and return 1 if the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    silence_progress_bars()
    print(f"torch {torch.__version__}, one thread, medians of {repeats} pairs: CPU time (wall clock)")
    print(
        f"{'layers x heads':>14} {'d_model':>7} {'T':>4} {'N':>3} {'theirs/ours':>15} {'asked':>6} {'forward':>14}",
        end="",
    )
    print(f" {'sharing':>14} {'largest difference':>19}")
    worst = 0.0
    for n_layers, n_heads, d_model, n_pos, n_prompts, asked in SHAPES:
        bridge = native_bridge(
            n_layers=n_layers, n_heads=n_heads, d_model=d_model, n_ctx=n_pos, d_vocab=D_VOCAB, attn_only=True
        )
        model = from_transformer_lens(bridge)
        generator = torch.Generator().manual_seed(0)
        prompts, other = (
            Prompts.from_tensors(torch.randint(D_VOCAB, (n_prompts, n_pos), generator=generator)) for _ in range(2)
        )
        ours = patch_activations(model, prompts, other, sites="z").frame["patched"].to_numpy()
        theirs = patched_by_transformer_lens(bridge, prompts, other).flatten().numpy()
        difference = float(abs(ours - theirs).max())
        worst = max(worst, difference)
        whole = in_turn(
            lambda: patched_by_transformer_lens(bridge, prompts, other),  # noqa: B023
            lambda: patch_activations(model, prompts, other, sites="z"),  # noqa: B023
            repeats,
        )
        forward = in_turn(lambda: bridge(prompts.inputs), lambda: model(prompts.inputs), 4 * repeats)  # noqa: B023
        sharing = whole / forward
        print(
            f"{n_layers:>9} x {n_heads:2} {d_model:7} {n_pos:4} {n_prompts:3} {whole!s:>15} {asked:6.1f} "
            f"{forward!s:>14} {sharing!s:>14} {difference:19.1e}"
        )
    return 0 if worst < 1e-4 else 1


def silence_progress_bars() -> None:
    """TransformerLens draws a bar per sweep, whose cost is not what is compared."""
    from functools import partial

    from transformer_lens import patching

    patching.tqdm = partial(patching.tqdm, disable=True)


if __name__ == "__main__":
    sys.exit(main())
