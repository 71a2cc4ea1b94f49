"""Training steps on real vectors: HookedTransformer beside TransformerLens' own trainable model.

    python benchmarks/bench_regression_training.py

Both hold the same weights (3 layers, 8 heads, attention only, bidirectional, 48 positions, learned positions), read the
same regression prompts (d = 16, batch 64) and take the same AdamW steps on the squared error of the query, in turn, so
that a machine whose speed drifts slows both alike. TransformerLens' model, a native TransformerBridge, reads tokens;
given real numbers it takes them for embeddings, so an nn.Linear in front of it reads the vectors in. Nothing runs in
it that it would not need: its token embedding is passed over.

Printed are medians over pairs, by the clock and in CPU time. Exits with 1 if outputs or gradients differ by more than
1e-5 of the largest, or outputs by more than 1e-3 after 20 steps.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from interp import HookedTransformer, HookedTransformerConfig
from tasks import SparseRegression

N_LAYERS, N_HEADS, BATCH, LR = 3, 8, 64, 1e-3
TASK = SparseRegression(d=16, n_context=47)
WIDTHS = (64, 128)
NORMS = (None, "LN")


class VectorBridge(nn.Module):
    """TransformerLens' native model behind a linear read-in."""

    def __init__(self, cfg: HookedTransformerConfig):
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources.native import boot

        super().__init__()
        assert cfg.d_in is not None
        assert cfg.d_head is not None
        self.read_in = nn.Linear(cfg.d_in, cfg.d_model)
        self.bridge = boot(
            TransformerBridgeConfig(
                d_model=cfg.d_model,
                d_head=cfg.d_head,
                n_layers=cfg.n_layers,
                n_heads=cfg.n_heads,
                n_ctx=cfg.n_ctx,
                d_vocab=1,
                d_vocab_out=cfg.n_outputs,
                attn_only=True,
                normalization_type=cfg.normalization_type,
                attention_dir=cfg.attention_dir,
                act_fn="relu",
            )
        )
        self.bridge.embed.weight.requires_grad_(False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Outputs [batch, pos, d_out]."""
        return self.bridge(self.read_in(vectors))


def ours(d_model: int, norm: str | None) -> HookedTransformer:
    """HookedTransformer of the benchmark's shape; like the other it has no trained bias behind the read-out."""
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=N_LAYERS,
            d_model=d_model,
            n_heads=N_HEADS,
            n_ctx=TASK.n_ctx,
            d_in=TASK.d_in,
            d_out=1,
            attn_only=True,
            normalization_type=norm,  # pyright: ignore[reportArgumentType]
            attention_dir="bidirectional",
            frozen=("unembed.b_U",),
        )
    )


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that is trained, by the name that ours has."""
    return {_shared_name(name): weight for name, weight in model.named_parameters() if weight.requires_grad}


def _shared_name(name: str) -> str:
    """``blocks.0.attn.W_Q`` for the bridge's ``bridge.blocks.0….attn….q….weight``, and so on; ours as it is."""
    words = [word for word in name.split(".") if word != "_original_component"]
    kind = {"weight": "w", "bias": "b"}.get(words[-1])
    if kind is None:
        return name
    if words[0] == "read_in":
        return "embed.W_E" if kind == "w" else "embed.b_E"
    part, *rest = words[1:-1]
    if part == "blocks" and rest[1] == "attn":
        return f"blocks.{rest[0]}.attn.{'W' if kind == 'w' else 'b'}_{rest[2].upper()}"
    whole = {"pos_embed": "pos_embed.W_pos", "unembed": "unembed.W_U"}
    return whole.get(part, ".".join([part, *rest, kind]))


def as_ours(name: str, theirs: Tensor, shape: torch.Size) -> Tensor:
    """A weight or gradient of the bridge's in the shape and orientation of ours."""
    kind = name.rpartition(".")[2]
    if kind in ("W_Q", "W_K", "W_V"):
        n_heads, d_model, d_head = shape
        return theirs.T.view(d_model, n_heads, d_head).transpose(0, 1)
    return (theirs.T if kind in ("W_O", "W_E", "W_U") else theirs).view(shape)


def bridge_like(model: HookedTransformer) -> VectorBridge:
    """TransformerLens' model with the same weights."""
    bridge = VectorBridge(model.cfg)
    theirs, own = trained_weights(bridge), trained_weights(model)
    if theirs.keys() != own.keys():
        raise RuntimeError(f"the models do not have the same parameters: {theirs.keys() ^ own.keys()}")
    with torch.no_grad():
        for name, weight in theirs.items():
            # A view of theirs in our shape, so that writing to it writes to theirs.
            as_ours(name, weight, own[name].shape).copy_(own[name])
    return bridge


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error at the query."""
    return (model(inputs)[:, -1, 0] - targets[:, -1]).square().mean()


def step_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """One training step on these prompts."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model, inputs, targets).backward()
        optimizer.step()

    return step


def gradient_difference(model: HookedTransformer, bridge: VectorBridge, inputs: Tensor, targets: Tensor) -> float:
    """The largest difference of outputs or of gradients, each relative to its model's largest."""
    with torch.no_grad():
        differences = [float((model(inputs) - bridge(inputs)).abs().max() / model(inputs).abs().max())]
    for net in (model, bridge):
        net.zero_grad()
        loss_of(net, inputs, targets).backward()
    own, theirs = ({name: weight.grad for name, weight in trained_weights(net).items()} for net in (model, bridge))
    largest = max(float(grad.abs().max()) for grad in own.values() if grad is not None)
    for name, grad in own.items():
        other = theirs[name]
        assert grad is not None
        assert other is not None
        differences.append(float((as_ours(name, other, grad.shape) - grad).abs().max()) / largest)
    return max(differences)


def paired_times(first: Callable[[], None], second: Callable[[], None], repeats: int) -> list[tuple[float, ...]]:
    """Per pair of calls in turn: seconds by the clock of the first and second, CPU seconds of the first and second."""
    times = []
    for _ in range(repeats + 5):
        clock, cpu = [], []
        for run in (first, second):
            clock_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            clock.append(time.perf_counter() - clock_start)
            cpu.append(time.process_time() - cpu_start)
        times.append((*clock, *cpu))
    return times[5:]


def main() -> int:
    """Print the table and return 1 if the models disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        from transformer_lens.model_bridge.sources import native  # noqa: F401
    except ImportError:
        print("this TransformerLens has no trainable TransformerBridge: install transformer-lens 4 to compare")
        return 0
    prompts = TASK.sample(BATCH, seed=0)
    inputs, targets = prompts.inputs, prompts.targets
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), batch {BATCH}, medians of {arguments.repeats} pairs"
    )
    print(f"{'d_model':>7} {'norm':>5} {'ours: steps/s':>14} {'per CPU second':>15} {'their time/ours':>16} {'CPU':>6}")
    at_first = after = 0.0
    for d_model in WIDTHS:
        for norm in NORMS:
            model = ours(d_model, norm)
            bridge = bridge_like(model)
            at_first = max(at_first, gradient_difference(model, bridge, inputs, targets))
            steps = step_of(model, inputs, targets), step_of(bridge, inputs, targets)
            for _ in range(20):
                for step in steps:
                    step()
            with torch.no_grad():
                outputs = model(inputs)
                after = max(after, float((outputs - bridge(inputs)).abs().max() / outputs.abs().max()))
            times = paired_times(*steps, arguments.repeats)
            speed, cpu_speed = (1 / statistics.median(pair[k] for pair in times) for k in (0, 2))
            ratio, cpu_ratio = (statistics.median(pair[k + 1] / pair[k] for pair in times) for k in (0, 2))
            print(f"{d_model:7} {norm or '-':>5} {speed:14.0f} {cpu_speed:15.0f} {ratio:15.2f}x {cpu_ratio:5.2f}x")
    print(
        f"largest relative difference of outputs or gradients: {at_first:.1e}; of outputs after 20 steps: {after:.1e}"
    )
    return 0 if at_first < 1e-5 and after < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
