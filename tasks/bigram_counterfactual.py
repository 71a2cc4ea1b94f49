"""Redraws the outputs of a prompt's triggers and leaves every other token where it is."""

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from tasks.bigram_sampling import NOT_A_TRIGGER


def redraw_outputs(
    tokens: Integer[np.ndarray, "batch tokens"],
    trigger: Bool[np.ndarray, "batch pos"],
    is_trigger: Bool[np.ndarray, "batch vocab"],
    output_law: Float[np.ndarray, "vocab vocab"],
    generator: np.random.Generator,
) -> tuple[Int[np.ndarray, "batch tokens"], Int[np.ndarray, "batch vocab"]]:
    """The same sequences with other outputs, and the table of each trigger's output (-1: no trigger that occurs).

    Only outputs that are no triggers are redrawn, from ``output_law`` restricted to tokens that are no triggers and
    not the old output: so every trigger stays where it is and no new one appears. Where the law leaves nothing to
    choose from, the output stays.

    >>> law = np.full((4, 4), 0.25)
    >>> is_trigger = np.array([[True, False, False, False]])
    >>> tokens, trigger = np.array([[0, 2, 1, 0, 2]]), np.array([[True, False, False, True]])
    >>> tokens, output_of = redraw_outputs(tokens, trigger, is_trigger, law, np.random.default_rng(0))
    >>> output_of.tolist(), tokens.tolist()
    ([[3, -1, -1, -1]], [[0, 3, 1, 0, 3]])
    """
    output_of = outputs_in_prompt(tokens, trigger, size=is_trigger.shape[1])
    row, token = np.nonzero(output_of != NOT_A_TRIGGER)
    old = output_of[row, token]
    free = ~is_trigger[row, old]
    row, token, old = row[free], token[free], old[free]

    weights = output_law[token] * ~is_trigger[row]
    weights[np.arange(len(old)), old] = 0
    cumulative = weights.cumsum(axis=1)
    aim = generator.random(len(old)) * cumulative[:, -1]
    new = (cumulative > aim[:, None]).argmax(axis=1)
    output_of[row, token] = np.where(cumulative[:, -1] > 0, new, old)

    outputs_here = np.take_along_axis(output_of, tokens[:, :-1], axis=1)
    changed = tokens.copy()
    changed[:, 1:] = np.where(trigger, outputs_here, tokens[:, 1:])
    return changed, output_of


def outputs_in_prompt(
    tokens: Integer[np.ndarray, "batch tokens"], trigger: Bool[np.ndarray, "batch pos"], size: int
) -> Int[np.ndarray, "batch vocab"]:
    """What follows each trigger that occurs in the sequence, -1 for every other token.

    >>> outputs_in_prompt(np.array([[0, 2, 1]]), np.array([[True, False]]), size=3).tolist()
    [[2, -1, -1]]
    """
    output_of = np.full((len(tokens), size), NOT_A_TRIGGER)
    row, pos = np.nonzero(trigger)
    output_of[row, tokens[row, pos]] = tokens[row, pos + 1]
    return output_of
