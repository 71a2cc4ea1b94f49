"""Exact draws of in-context bigram sequences, one numpy operation for the whole batch.

Every probability here is a ratio of integer counts, so the alias tables are built without rounding: a transition that
never occurs in the corpus is never drawn.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from tasks.errors import InputError
from tasks.prompts import Seed

NOT_A_TRIGGER = -1
"""What a table of outputs holds at tokens that are no triggers."""


@dataclass(frozen=True, eq=False)
class AliasTable:
    """Walker's alias method for several discrete distributions: one uniform number makes one draw.

    Row r is cut into ``vocab`` cells of equal probability; cell c belongs to the value c up to ``threshold[r, c] - c``
    of its width and to ``alias[r, c]`` beyond. A uniform number u gives x = u · vocab, the cell c = ⌊x⌋, and the value
    c if x < threshold[r, c], else alias[r, c].

    Source: Walker 1977; built as in Vose 1991, in integers.

    >>> table = AliasTable.from_weights(np.array([[1, 3]]))
    >>> table.draw(np.array([0, 0]), np.array([0.2, 0.3])).tolist()
    [0, 1]
    """

    threshold: Float[np.ndarray, "row vocab"]
    alias: Int[np.ndarray, "row vocab"]

    @classmethod
    def from_weights(cls, weights: Integer[np.ndarray, "row vocab"]) -> "AliasTable":
        """Tables of the distributions proportional to the rows; all rows are built side by side.

        ``weights`` are non-negative integers, each row with a positive sum, and sum · vocab below 2^63.
        """
        rows, size = weights.shape
        every = np.arange(rows)
        left = weights.astype(np.int64) * size
        full = weights.sum(axis=1, dtype=np.int64)
        keep = np.full((rows, size), full[:, None])
        alias = np.tile(np.arange(size, dtype=np.intp), (rows, 1))
        # Two stacks per row: values that do not fill their cell, and values that have more than their cell.
        order = np.argsort(left >= full[:, None], axis=1, kind="stable")
        n_poor = (left < full[:, None]).sum(axis=1)
        n_rich = size - n_poor
        poor, rich = order.copy(), order[:, ::-1].copy()
        while True:
            busy = every[(n_poor > 0) & (n_rich > 0)]
            if not busy.size:
                break
            n_poor[busy] -= 1
            taker, giver = poor[busy, n_poor[busy]], rich[busy, n_rich[busy] - 1]
            keep[busy, taker] = left[busy, taker]
            alias[busy, taker] = giver
            left[busy, giver] -= full[busy] - left[busy, taker]
            impoverished = busy[left[busy, giver] < full[busy]]
            n_rich[impoverished] -= 1
            poor[impoverished, n_poor[impoverished]] = rich[impoverished, n_rich[impoverished]]
            n_poor[impoverished] += 1
        return cls(np.arange(size) + keep / full[:, None], alias)

    def draw(
        self, row: Integer[np.ndarray, "*shape"], uniform: Float[np.ndarray, "*shape"]
    ) -> Integer[np.ndarray, "*shape"]:
        """One value per uniform number in [0, 1), from the distribution that ``row`` names."""
        scaled = uniform * self.alias.shape[1]
        cell = scaled.astype(np.intp)
        return np.where(scaled < self.threshold[row, cell], cell, self.alias[row, cell])


@dataclass(frozen=True, eq=False)
class Walker:
    """Draws sequences: z_1 ~ π_u; z_{t+1} is the output of z_t if z_t is a trigger, else ~ π_b(.|z_t).

    One alias table serves every step: rows 0 … vocab-1 are π_b, the next vocab rows always give the token 0 …
    vocab-1 (the outputs of triggers), and the last row is π_u. So a trigger is merely a token whose row is another.

    Source: Bietti et al. 2023 (arXiv 2306.00802), section 2.
    """

    threshold: Float[np.ndarray, "cells"]
    alias: Int[np.ndarray, "cells"]

    @classmethod
    def from_counts(
        cls, unigram_counts: Integer[np.ndarray, "vocab"], successor_counts: Integer[np.ndarray, "vocab vocab"]
    ) -> "Walker":
        """The walker of a corpus; see ``BigramStatistics`` for the two arguments."""
        size = len(unigram_counts)
        certain = np.eye(size, dtype=np.int64)
        table = AliasTable.from_weights(np.concatenate([successor_counts, certain, unigram_counts[None]]))
        return cls(table.threshold.ravel(), table.alias.ravel())

    def walk(
        self, output_of: Integer[np.ndarray, "batch vocab"], n_tokens: int, generator: np.random.Generator
    ) -> Int[np.ndarray, "batch tokens"]:
        """Draw ``n_tokens`` tokens per sequence.

        ``output_of[b, v]`` is the output of token v in sequence b, or -1 where v is no trigger there.
        """
        n_sequences, size = output_of.shape
        scaled = generator.random((n_tokens, n_sequences)) * size
        cell = scaled.astype(np.intp)
        # Everything below is an index into flat arrays; with mode="clip" take writes into `out` without a copy.
        first_cell_of = np.where(output_of == NOT_A_TRIGGER, np.arange(size), size + output_of) * size
        first_cell_of = first_cell_of.astype(np.intp).ravel()
        start_of = np.arange(n_sequences) * size
        tokens = np.empty((n_tokens, n_sequences), dtype=np.intp)
        threshold = np.empty(n_sequences)
        index = np.empty(n_sequences, dtype=np.intp)
        first_cell = np.full(n_sequences, 2 * size * size)
        for step in range(n_tokens):
            token = tokens[step]
            np.add(first_cell, cell[step], out=index)
            self.threshold.take(index, out=threshold, mode="clip")
            self.alias.take(index, out=token, mode="clip")
            np.copyto(token, cell[step], where=scaled[step] < threshold)
            np.add(start_of, token, out=index)
            first_cell_of.take(index, out=first_cell, mode="clip")
        return np.ascontiguousarray(tokens.T)


def draw_without_replacement(
    weights: Float[np.ndarray, "vocab"], n_sequences: int, n_drawn: int, generator: np.random.Generator
) -> Int[np.ndarray, "batch drawn"]:
    """Distinct tokens per sequence, drawn one after the other with probability proportional to ``weights``.

    An exponential clock of rate w_v runs for each token, and the first clocks to ring are the draws: the same law as
    drawing, striking out and drawing again (Efraimidis and Spirakis 2006).

    >>> draw_without_replacement(np.array([0.5, 0.5]), 1, 2, np.random.default_rng(0)).sum().item()
    1
    """
    rings = generator.standard_exponential((n_sequences, len(weights))) / weights
    first = np.argpartition(rings, n_drawn - 1, axis=1)[:, :n_drawn]
    return np.take_along_axis(first, np.argsort(np.take_along_axis(rings, first, axis=1), axis=1), axis=1)


def inclusion_probabilities(weights: Float[np.ndarray, "vocab"], n_drawn: int) -> Float[np.ndarray, "vocab"]:
    """How likely each token is among the first ``n_drawn`` of ``draw_without_replacement``; they sum to ``n_drawn``.

    Token i's clock rings at time s with density w_i exp(-w_i s), and i is drawn if fewer than ``n_drawn`` others rang
    before: r_i = ∫ w_i exp(-w_i s) P(N_i(s) < n_drawn) ds, where N_i(s) is a sum of independent Bernoulli variables of
    probabilities 1 - exp(-w_j s), j ≠ i. The integral is a trapezoid sum in log s, exact to about 1e-9.

    >>> inclusion_probabilities(np.array([0.5, 0.3, 0.2]), 1).round(6).tolist()
    [0.5, 0.3, 0.2]
    """
    log_times = np.linspace(np.log(1e-10 / weights.max()), np.log(40 / weights.min()), INTEGRATION_POINTS)
    times = np.exp(log_times)
    silent = np.exp(-times[:, None] * weights)
    # before[:, i] and after[:, i]: how many of the tokens below, and above, i have rung; 0 … n_drawn - 1 of them.
    before = _count_rung(silent, n_drawn)
    after = _count_rung(silent[:, ::-1], n_drawn)[:, ::-1]
    fewer = (before * after.cumsum(axis=2)[:, :, ::-1]).sum(axis=2)
    return np.trapezoid(times[:, None] * weights * silent * fewer, log_times, axis=0)


INTEGRATION_POINTS = 400


def _count_rung(silent: Float[np.ndarray, "time vocab"], n_counts: int) -> Float[np.ndarray, "time vocab count"]:
    """The distribution, cut off at ``n_counts``, of how many of the tokens before each one have rung."""
    counts = np.zeros((*silent.shape, n_counts))
    counts[:, 0, 0] = 1
    for token in range(silent.shape[1] - 1):
        quiet = silent[:, token, None]
        counts[:, token + 1] = counts[:, token] * quiet
        counts[:, token + 1, 1:] += counts[:, token, :-1] * (1 - quiet)
    return counts


def count_occurrences(
    tokens: Integer[np.ndarray, "batch pos"], size: int
) -> tuple[Int[np.ndarray, "batch pos"], Int[np.ndarray, "batch vocab"]]:
    """The running count of every position's token (1 at its first occurrence), and the counts at the end.

    >>> running, total = count_occurrences(np.array([[1, 0, 1]]), size=2)
    >>> running.tolist(), total.tolist()
    ([[1, 1, 2]], [[1, 2]])
    """
    n_sequences, n_positions = tokens.shape
    index = np.add(tokens.T, np.arange(n_sequences) * size, order="C")  # one row per step of the loop below
    running = np.empty((n_positions, n_sequences), dtype=np.int32)
    total = np.zeros(n_sequences * size, dtype=np.int32)
    for here, count in zip(index, running, strict=True):
        total.take(here, out=count, mode="clip")
        count += 1
        total[here] = count
    return np.ascontiguousarray(running.T), total.reshape(n_sequences, size)


def generator_of(seed: Seed, stream: int) -> np.random.Generator:
    """The generator of a seed; ``stream`` keeps different uses of one seed independent.

    Raises:
        InputError: the seed is no non-negative integer and no non-empty tuple of them.
    """
    parts = seed if isinstance(seed, tuple) else (seed,)
    whole = all(isinstance(part, int | np.integer) and not isinstance(part, bool) and part >= 0 for part in parts)
    if not parts or not whole:
        raise InputError(f"seed = {seed!r}: expected a non-negative integer or a tuple of them")
    entropy = [int(part) for part in parts] if isinstance(seed, tuple) else int(parts[0])
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(stream,)))
