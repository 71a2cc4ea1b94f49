import subprocess
import sys
import textwrap

import pytest
import torch

from analyses import ablate, ablate_heads, memory_budget, patch_activations
from analyses.memory_budget import batch_size_within, in_bytes, peak_bytes
from interp import HookedTransformer, HookedTransformerConfig
from tasks.errors import InputError
from tasks.prompts import Prompts


@pytest.fixture
def model():
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 6, "n_heads": 2, "d_vocab": 7}
    return HookedTransformer(HookedTransformerConfig(**sizes, normalization_type="LN", act_fn="gelu"))


@pytest.fixture
def prompts():
    generator = torch.Generator().manual_seed(0)
    tokens, others = (torch.randint(7, (12, 6), generator=generator) for _ in range(2))
    return Prompts.from_tensors(tokens, counterfactual=Prompts.from_tensors(others))


def test_what_is_alive_at_once_is_counted():
    """Worked out by hand: 1,000 floats, then 3,000 more, of which 1,000 are freed before 2,000 more are made."""
    given = torch.zeros(500)

    def run():
        first = torch.zeros(1000)  # 4,000 bytes
        second = torch.zeros(3000)  # 16,000
        view, other_view = first[:10], given.view(2, 250)  # nothing
        second.add_(1.0)  # nothing
        del first, view, other_view  # 12,000
        return second, torch.zeros(2000)  # 20,000

    assert peak_bytes(run) == 20_000
    assert peak_bytes(lambda: torch.zeros(1000)) == 4_000


def test_the_batch_is_as_large_as_fits(monkeypatch):
    monkeypatch.setattr(memory_budget, "_FOR_INTERVALS", 1000)
    monkeypatch.setattr(memory_budget, "_ALLOCATOR", 1.0)

    def probe():
        torch.zeros(2, 100)  # 400 bytes for each of two prompts

    assert batch_size_within(5000, 512, 100, probe) == 10
    assert batch_size_within(5000, 7, 100, probe) == 7
    assert batch_size_within(5000, 512, 100, probe, kept_per_prompt=20.0) == 5
    assert batch_size_within(1400, 512, 100, probe) == 1
    with pytest.raises(InputError, match="memory_budget = 1300 does not hold one prompt"):
        batch_size_within(1300, 512, 100, probe)


@pytest.mark.parametrize("method", ["zero", "mean", "resample", "counterfactual"])
def test_a_budget_changes_how_many_prompts_run_at_a_time_and_no_number(method, model, prompts, monkeypatch):
    sizes = []

    def seen(outputs, batch):
        sizes.append(len(batch))
        return outputs.sum(dim=(1, 2))

    free = ablate(model, prompts, ["L0H0", "L1H1", "L0.mlp"], method=method, metric=seen).frame
    assert set(sizes) == {12}
    monkeypatch.setattr(memory_budget, "_FOR_INTERVALS", 0)
    sizes.clear()
    budget = 30_000
    held = ablate(
        model, prompts, ["L0H0", "L1H1", "L0.mlp"], method=method, metric=seen, memory_budget=budget, seed=0
    ).frame
    assert max(sizes[8:]) < 12  # the first 4 calls, and those of clean passes among them, are of the two probed
    for column in ("delta", "ci_low", "ci_high"):
        assert held[column].to_numpy() == pytest.approx(free[column].to_numpy(), abs=1e-6)


def test_patches_take_a_budget_too(model, prompts, monkeypatch):
    free = patch_activations(model, prompts, sites=["z", "resid_pre"], positions="each").frame
    monkeypatch.setattr(memory_budget, "_FOR_INTERVALS", 0)
    held = patch_activations(model, prompts, sites=["z", "resid_pre"], positions="each", memory_budget="20KB").frame
    assert held["delta"].to_numpy() == pytest.approx(free["delta"].to_numpy(), abs=1e-6)
    with pytest.raises(InputError, match="does not hold one prompt"):
        patch_activations(model, prompts, sites="z", memory_budget="1KB")


def test_a_budget_too_small_for_one_prompt_is_refused_with_what_is_needed(model, prompts):
    with pytest.raises(InputError, match=r"memory_budget = '1MB' does not hold one prompt: .*give at least 131MB"):
        ablate_heads(model, prompts, memory_budget="1MB")
    assert len(ablate_heads(model, prompts, memory_budget="140MB").frame) == 4


@pytest.mark.parametrize("wrong", ["2 parrots", "", "-1GB", 0, -5, float("inf"), float("nan"), "GB"])
def test_what_is_no_amount_of_memory_is_refused(wrong, model, prompts):
    with pytest.raises(InputError, match="is no amount of memory: write '2GB'"):
        ablate_heads(model, prompts, memory_budget=wrong)
    assert in_bytes("2gb") == 2e9


GPT2 = """
import sys
import torch
from analyses import ablate
from interp import HookedTransformer, HookedTransformerConfig
from tasks.prompts import Prompts

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

torch.set_num_threads(2)
model = HookedTransformer(HookedTransformerConfig(
    n_layers=12, n_heads=12, d_model=768, d_mlp=3072, n_ctx=128, d_vocab=50257,
    normalization_type="LN", act_fn="gelu_new"))
n_prompts, budget = int(sys.argv[1]), float(sys.argv[2])
prompts = Prompts.from_tensors(torch.randint(50257, (n_prompts, 128), generator=torch.Generator().manual_seed(0)))
with torch.no_grad():
    model(prompts.inputs[:1, :8])
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the peak counts from here
heads = [f"L{layer}H{layer}" for layer in range(12)]
frame = ablate(model, prompts, heads, method=sys.argv[3], memory_budget=budget).frame
print(resident("VmHWM") - before, len(frame), frame["n_prompts"].min())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["zero", "resample"])
def test_a_sweep_over_gpt2_stays_within_its_budget(method):
    """32 prompts of 128 positions on a GPT-2 with random weights; a head of every layer, since each keeps its own."""
    budget = 1.5e9
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GPT2), "32", str(budget), method],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    grown, n_rows, n_prompts = map(int, ran.stdout.split())
    assert (n_rows, n_prompts) == (12, 32)
    assert 0.2 * budget < grown < budget
