"""A training step and a forward pass of HookedTransformer beside bare PyTorch and TransformerLens' trainable model.

    python benchmarks/bench_training.py

All three hold the same weights (2 layers, d_model 128, attention only), see the same tokens and take the same SGD
steps, in turn, so that a machine whose speed drifts slows all alike. Printed are medians of the ratios, pair by pair.
Exits with 1 if their logits differ by more than 1e-4, before training or after it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp import HookedTransformer, HookedTransformerConfig

N_LAYERS, D_MODEL, D_VOCAB, BATCH, LR = 2, 128, 65, 64, 0.05
SHAPES = ((1, 64), (8, 64), (8, 256))


class Bare(nn.Module):
    """The same model as one would write it without hooks: fused projections, PyTorch's attention."""

    def __init__(self, n_heads: int, n_ctx: int):
        super().__init__()
        self.n_heads = n_heads
        self.tokens = nn.Embedding(D_VOCAB, D_MODEL)
        self.positions = nn.Embedding(n_ctx, D_MODEL)
        self.qkv = nn.ModuleList(nn.Linear(D_MODEL, 3 * D_MODEL) for _ in range(N_LAYERS))
        self.out = nn.ModuleList(nn.Linear(D_MODEL, D_MODEL) for _ in range(N_LAYERS))
        self.head = nn.Linear(D_MODEL, D_VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        resid = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for qkv, out in zip(self.qkv, self.out, strict=True):
            split = qkv(resid).unflatten(-1, (3, self.n_heads, D_MODEL // self.n_heads))
            q, k, v = (part.transpose(1, 2) for part in split.unbind(2))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            resid = resid + out(z.transpose(1, 2).flatten(2))
        return self.head(resid)


def ours(n_heads: int, n_ctx: int) -> HookedTransformer:
    """HookedTransformer of the benchmark's shape; like the others it has no trained unembedding bias."""
    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=N_LAYERS,
            d_model=D_MODEL,
            n_heads=n_heads,
            n_ctx=n_ctx,
            d_vocab=D_VOCAB,
            attn_only=True,
            frozen=("unembed.b_U",),
        )
    )


def bare_like(model: HookedTransformer) -> Bare:
    """Bare PyTorch with the same weights."""
    bare = Bare(model.cfg.n_heads, model.cfg.n_ctx)
    with torch.no_grad():
        bare.tokens.weight.copy_(model.W_E)
        bare.positions.weight.copy_(model.W_pos)
        bare.head.weight.copy_(model.W_U.T)
        for layer, block in enumerate(model.blocks):
            parts = [getattr(block.attn, name).movedim(0, 1).flatten(1).T for name in ("W_Q", "W_K", "W_V")]
            bare.qkv[layer].weight.copy_(torch.cat(parts))
            bare.qkv[layer].bias.zero_()
            bare.out[layer].weight.copy_(block.attn.W_O.flatten(0, 1).T)
            bare.out[layer].bias.zero_()
    return bare


def bridge_like(model: HookedTransformer) -> nn.Module | None:
    """TransformerLens' trainable model with the same weights, or None where this version has none."""
    try:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources.native import boot
    except ImportError:
        return None
    cfg = model.cfg
    native = boot(
        TransformerBridgeConfig(
            d_model=cfg.d_model,
            d_head=cfg.d_head,
            n_layers=cfg.n_layers,
            n_heads=cfg.n_heads,
            n_ctx=cfg.n_ctx,
            d_vocab=D_VOCAB,
            attn_only=True,
            normalization_type=None,
            act_fn="relu",
        )
    )
    inner = native.original_model
    with torch.no_grad():
        for weight in inner.parameters():
            weight.zero_()
        weights = dict(inner.named_parameters())
        bare = bare_like(model)
        for name, weight in weights.items():
            weight.copy_(_counterpart(name, bare))
    return native


def _counterpart(name: str, bare: Bare) -> Tensor:
    """The bare model's tensor for a parameter of TransformerLens' native model, by its last words."""
    if "tok_embed" in name:
        return bare.tokens.weight
    if ".pos." in f".{name}":
        return bare.positions.weight
    if "head" in name:
        return bare.head.weight
    words = name.split(".")
    layer = next(int(word) for word in words if word.isdigit())
    kind = next(word for word in reversed(words) if word in ("q", "k", "v", "o"))
    linear = bare.out[layer] if kind == "o" else bare.qkv[layer]
    tensor = linear.weight if words[-1] == "weight" else linear.bias
    return tensor if kind == "o" else tensor.chunk(3)["qkv".index(kind)]


def step_of(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """One training step on these tokens."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def forward_of(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """One forward pass without gradients."""

    def forward() -> None:
        with torch.no_grad():
            model(tokens)

    return forward


def hooked_forward_of(model: HookedTransformer, tokens: Tensor) -> Callable[[], None]:
    """One forward pass with a hook that edits nothing at every hook_z."""
    hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: z) for layer in range(N_LAYERS)]  # noqa: ARG005

    def forward() -> None:
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=hooks)

    return forward


def ratios(slow: Callable[[], None], fast: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Medians of the time of ``slow`` over that of ``fast``, measured in turn, and of the time of ``fast``."""
    times: list[tuple[float, float]] = []
    for _ in range(repeats + 3):
        pair = []
        for run in (slow, fast):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]))
    counted = times[3:]
    return statistics.median(a / b for a, b in counted), statistics.median(b for _, b in counted)


def main() -> int:
    """Print the table and return 1 if the models disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, medians of {repeats} pairs")
    print(f"{'heads':>5} {'T':>4} {'what':28} {'ours':>11} {'PyTorch/ours':>13} {'TransformerLens/ours':>21}")
    worst = 0.0
    for n_heads, n_ctx in SHAPES:
        model = ours(n_heads, n_ctx)
        others = {"bare": bare_like(model), "bridge": bridge_like(model)}
        tokens = torch.randint(D_VOCAB, (BATCH, n_ctx), generator=torch.Generator().manual_seed(0))
        worst = max(worst, disagreement(model, others, tokens))
        for what, make in (("forward", forward_of), ("training step", step_of)):
            own = make(model, tokens)
            found = [ratios(make(other, tokens), own, repeats) for other in others.values() if other is not None]
            cells = [f"{ratio:.2f}x" for ratio, _ in found] + ["not there"] * (2 - len(found))
            speed = BATCH * n_ctx / found[0][1]
            print(f"{n_heads:5} {n_ctx:4} {what:28} {speed / 1e6:7.2f} M/s {cells[0]:>13} {cells[1]:>21}")
        fresh = ours(n_heads, n_ctx)
        cost, _ = ratios(hooked_forward_of(fresh, tokens), forward_of(fresh, tokens), repeats)
        print(f"{n_heads:5} {n_ctx:4} hooks at hook_z cost {cost:.2f}x of a forward without")
        trained = ours(n_heads, n_ctx)
        pairs = {"bare": bare_like(trained), "bridge": bridge_like(trained)}
        for net in (trained, *pairs.values()):
            if net is not None:
                step = step_of(net, tokens)
                for _ in range(5):
                    step()
        worst = max(worst, disagreement(trained, pairs, tokens))
    print(f"largest difference of logits, before training and after 5 steps: {worst:.1e}")
    return 0 if worst < 1e-4 else 1


def disagreement(model: nn.Module, others: dict[str, nn.Module | None], tokens: Tensor) -> float:
    """The largest difference of any logit from the model's."""
    with torch.no_grad():
        logits = model(tokens)
        return max(float((other(tokens) - logits).abs().max()) for other in others.values() if other is not None)


if __name__ == "__main__":
    sys.exit(main())
