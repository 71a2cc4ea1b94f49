"""Two ways to do the same thing, timed in turn; and models of TransformerLens 4 to compare with."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Ratio:
    """How many times longer the one took than the other: medians over pairs of runs."""

    cpu: float
    wall: float
    cpu_seconds: float
    """Of the other, per run."""

    def __truediv__(self, other: "Ratio") -> "Ratio":
        return Ratio(self.cpu / other.cpu, self.wall / other.wall, self.cpu_seconds)

    def __str__(self) -> str:
        return f"{self.cpu:.2f} ({self.wall:.2f})"


def in_turn(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> Ratio:
    """The time of ``slow`` over that of ``fast``, measured in turn, so that a machine whose speed drifts slows both.

    NumPy gets one thread: its second one spins after each product, in the CPU time of whichever side comes next.
    """
    pairs: list[list[tuple[float, float]]] = []
    with torch.no_grad(), threadpool_limits(1, user_api="blas"):
        for _ in range(repeats + 1):
            pair = []
            for run in (slow, fast):
                cpu, wall = time.process_time(), time.perf_counter()
                run()
                pair.append((time.process_time() - cpu, time.perf_counter() - wall))
            pairs.append(pair)
    counted = pairs[1:]
    cpu, wall = (statistics.median(one[k] / other[k] for one, other in counted) for k in (0, 1))
    return Ratio(cpu, wall, statistics.median(other[0] for _, other in counted))


def native_bridge(**config: Any) -> Any:
    """TransformerLens 4's trainable model without LayerNorm, which ``from_transformer_lens`` reads."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    made = {"d_head": config["d_model"] // config["n_heads"], "normalization_type": None, "act_fn": "relu", "seed": 0}
    bridge = boot_native(TransformerBridgeConfig(architecture="TransformerLensNative", **made | config))
    with torch.no_grad():  # its biases start at zero, which would hide one that is lost
        for weight in bridge.original_model.parameters():
            if weight.ndim == 1:
                weight.normal_(0.0, 0.1)
    return bridge.eval()


def gpt2_bridge(**config: Any) -> Any:
    """TransformerLens 4's bridge to a GPT-2 with random weights, shifts and gains included."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf_config = GPT2Config(bos_token_id=0, eos_token_id=0, **config)
    module = GPT2LMHeadModel(hf_config).eval()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape))
    return build_bridge_from_module(module, "GPT2LMHeadModel", hf_config=hf_config)
