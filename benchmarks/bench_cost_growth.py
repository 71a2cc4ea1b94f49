"""How the cost of a sweep over all heads grows with layers, heads, positions and prompts.

    python benchmarks/bench_cost_growth.py [--figure docs/images/cost_growth.svg]

Attention-only models; each size is doubled from a base of 4 layers, 4 heads, 64 positions and 32 prompts, one at a
time (d_model 64). Costs are CPU seconds on one thread, as medians, and plain forward passes on the same prompts; a
loop over heads takes one pass per head, and one clean. Exits with 1 if an effect differs from one hooked pass by more
than 1e-5 (checked at the base).
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from side_by_side import in_turn

from analyses import ablate_heads
from interp import HookedTransformer, HookedTransformerConfig
from tasks.prompts import Prompts

D_VOCAB = 65
BASE = {"layers": 4, "heads": 4, "positions": 64, "prompts": 32}
SIZES = {"layers": (2, 4, 8), "heads": (2, 4, 8), "positions": (32, 64, 128), "prompts": (16, 32, 64)}


def made(layers: int, heads: int, positions: int, prompts: int) -> tuple[HookedTransformer, Prompts]:
    """A random model of this size, with prompts."""
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=layers, n_heads=heads, d_model=64, n_ctx=positions, d_vocab=D_VOCAB, attn_only=True
        )
    )
    tokens = torch.randint(D_VOCAB, (prompts, positions), generator=torch.Generator().manual_seed(0))
    return model, Prompts.from_tensors(tokens)


def difference_from_hooked_passes(model: HookedTransformer, prompts: Prompts) -> float:
    """The largest difference of any head's effect from that of one hooked pass."""
    worst = 0.0
    with torch.no_grad():
        before, counts = prompts.loss(model(prompts.inputs))
        for row in ablate_heads(model, prompts, method="zero").frame.itertuples():

            def zeroed(z, hook, head=row.head):  # noqa: ARG001 — TransformerLens' call
                z = z.clone()
                z[:, :, head] = 0
                return z

            hooks = [(f"blocks.{row.layer}.attn.hook_z", zeroed)]
            after, _ = prompts.loss(model.run_with_hooks(prompts.inputs, fwd_hooks=hooks))
            worst = max(worst, abs(float((after - before).sum() / counts.sum()) - row.delta))
    return worst


def measured(repeats: int) -> pd.DataFrame:
    """One row per size that is varied, and value."""
    rows = []
    for what, values in SIZES.items():
        for value in values:
            size = BASE | {what: value}
            model, prompts = made(**size)
            ratio = in_turn(
                lambda: ablate_heads(model, prompts, method="zero"),  # noqa: B023
                lambda: [model(prompts.inputs) for _ in range(4)],  # noqa: B023
                repeats,
            )
            seconds, passes = ratio.cpu * ratio.cpu_seconds, 4 * ratio.cpu
            loop = size["layers"] * size["heads"] + 1
            rows.append({"grows": what, "to": value, "seconds": seconds, "passes": passes, "loop": loop})
            print(f"{what:>10} {value:4}  {seconds:7.3f} s  {passes:6.1f} forward passes, a loop {loop:4}", flush=True)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """The costs as one panel per size that grows, as SVG without any library that draws."""
    width, height, margin = 230, 190, 44
    parts = []
    top = table["seconds"].max() * 1.15
    for index, (what, rows) in enumerate(table.groupby("grows", sort=False)):
        left = index * width + margin
        xs = [left + (width - margin - 14) * k / (len(rows) - 1) for k in range(len(rows))]
        ys = [height - 34 - (height - 60) * seconds / top for seconds in rows["seconds"]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>')
        for x, y, value, seconds in zip(xs, ys, rows["to"], rows["seconds"], strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f5fa8"/>')
            parts.append(f'<text x="{x:.1f}" y="{height - 18}" text-anchor="middle">{value}</text>')
            parts.append(f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" fill="#555">{seconds:.2g}</text>')
        parts.append(f'<text x="{(xs[0] + xs[-1]) / 2:.1f}" y="{height - 3}" text-anchor="middle">{what}</text>')
        parts.append(f'<line x1="{left - 8}" x2="{xs[-1]}" y1="{height - 34}" y2="{height - 34}" stroke="#999"/>')
    title = '<text x="10" y="14">CPU seconds of a sweep over all heads, one thread</text>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(SIZES) * width} {height}" '
    path.write_text(
        head + 'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f"{title}{''.join(parts)}</svg>\n",
        encoding="utf-8",
    )


def main() -> int:
    """Print the table, draw it if asked to, and return 1 if the sweep is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worst = difference_from_hooked_passes(*made(**BASE))
    print(f"torch {torch.__version__}, one thread, medians of {arguments.repeats}; largest difference {worst:.1e}")
    table = measured(arguments.repeats)
    if arguments.figure is not None:
        draw(table, arguments.figure)
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
