"""How fast the bigram sampler is, against a loop that draws one token at a time, and that both draw the same law.

    python benchmarks/bench_sampler.py

Times whole ``Prompts``: tokens, labels and wrong answers (T = 256, batch 512, five fixed triggers), one thread, the
median of several runs. The loop draws the tokens only, one by one as the published code of Bietti et al. 2023 does,
from the same statistics. Exits with 1 if a chi-square test tells either sampler from the exact transition law.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).parents[1]))
from tasks.bigram import BigramICL
from tasks.bigram_statistics import BigramStatistics

SEQ_LEN, BATCH = 256, 512
LOOP_BATCH = 64
LEVEL = 1e-4


def main() -> int:
    """Print tokens/s and p-values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", metavar="FILE", help="a table first,second,count instead of the embedded one")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = arguments.counts
    stats = BigramStatistics.from_counts(counts) if counts else BigramStatistics.default()
    task = BigramICL(stats, n_triggers=5, seq_len=SEQ_LEN)
    print(f"{stats}; T = {SEQ_LEN}, {task.n_triggers} fixed triggers, whole prompts; median of {arguments.repeats}")

    wall, cpu = median_seconds(lambda i: task.sample(BATCH, seed=i), arguments.repeats)
    loop_wall, loop_cpu = median_seconds(lambda i: loop_over_tokens(task, LOOP_BATCH, seed=i), 3)
    for clock, fast, slow in (("second", wall, loop_wall), ("CPU second (equal on an idle machine)", cpu, loop_cpu)):
        fast, slow = BATCH * SEQ_LEN / fast, LOOP_BATCH * SEQ_LEN / slow
        print(
            f"tokens per {clock}: {fast / 1e6:.1f} million vectorised at batch {BATCH}, "
            f"{slow / 1e3:.1f} thousand in the loop (tokens only), ratio {fast / slow:.0f}"
        )

    prompts = task.sample(BATCH, seed=0)
    drawn = {
        "vectorised sampler": np.concatenate([prompts.inputs.numpy(), prompts.targets[:, -1:].numpy()], axis=1),
        "loop over tokens": loop_over_tokens(task, BATCH, seed=0),
    }
    p_values = {name: transition_p_value(tokens, task) for name, tokens in drawn.items()}
    for name, p_value in p_values.items():
        print(f"{name}: chi-square of the transitions off triggers against π_b, p = {p_value:.3f}")
    return 0 if min(p_values.values()) > LEVEL else 1


def loop_over_tokens(task: BigramICL, n: int, seed: int) -> np.ndarray:
    """[n, seq_len + 1] tokens, each drawn by itself."""
    generator = np.random.default_rng(seed)
    size, triggers = task.d_vocab, task.trigger_tokens
    assert triggers is not None
    tokens = np.empty((n, task.seq_len + 1), dtype=int)
    for row in range(n):
        outputs = {trigger: generator.choice(size, p=task.output_law[trigger]) for trigger in triggers}
        token = generator.choice(size, p=task.stats.unigram)
        for pos in range(task.seq_len + 1):
            tokens[row, pos] = token
            token = outputs[token] if token in outputs else generator.choice(size, p=task.stats.bigram[token])
    return tokens


def transition_p_value(tokens: np.ndarray, task: BigramICL) -> float:
    """Pearson's test of all transitions off triggers; in each row, values expected less than 5 times count as one."""
    statistic, degrees = 0.0, 0
    for token in set(range(task.d_vocab)) - set(task.trigger_tokens or ()):
        after = tokens[:, 1:][tokens[:, :-1] == token]
        counts, expected = np.bincount(after, minlength=task.d_vocab), task.stats.bigram[token] * len(after)
        if counts[expected == 0].any():
            return 0.0
        common = expected >= 5
        counts, expected = (np.append(part[common], part[~common].sum()) for part in (counts, expected))
        counts, expected = counts[expected > 0], expected[expected > 0]
        statistic += ((counts - expected) ** 2 / expected).sum() if len(expected) > 1 else 0.0
        degrees += max(len(expected) - 1, 0)
    return float(chi2.sf(statistic, degrees))


def median_seconds(run: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of one call; the first, which builds the tables, does not count."""
    run(0)
    wall, cpu = [], []
    for i in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        run(i + 1)
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return statistics.median(wall), statistics.median(cpu)


if __name__ == "__main__":
    sys.exit(main())
