"""What is known about each position of an in-context bigram sequence: its trigger, its loop, a wrong answer."""

import numpy as np
from jaxtyping import Bool, Integer

from tasks.bigram_sampling import NOT_A_TRIGGER, count_occurrences

SEGMENTS = ("global", "first", "in_context")
"""Names of the label ``segment``: no trigger; a trigger's first occurrence; a later one, whose output has been seen."""


def label_positions(
    tokens: Integer[np.ndarray, "batch tokens"], output_of: Integer[np.ndarray, "batch vocab"]
) -> dict[str, np.ndarray]:
    """The labels of every position but the last token's, each [batch, pos]; ``BigramICL.sample`` defines them.

    ``output_of[b, v]`` is the output of token v in sequence b, or -1 where v is no trigger there.

    >>> labels = label_positions(np.array([[0, 2, 0, 2]]), np.array([[2, -1, -1]]))
    >>> labels["occurrence"].tolist()
    [[1, 0, 2]]
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    running, _ = count_occurrences(inputs, output_of.shape[1])
    trigger = _at_tokens(output_of != NOT_A_TRIGGER, inputs)
    occurrence = running * trigger
    return {
        "occurrence": occurrence,
        "trigger": trigger,
        "output": np.where(trigger, targets, NOT_A_TRIGGER),
        "segment": np.minimum(occurrence, SEGMENTS.index("in_context")),
        "absorbed": find_absorbed(tokens, trigger),
        "position": np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape),
    }


def find_absorbed(
    tokens: Integer[np.ndarray, "batch tokens"], trigger: Bool[np.ndarray, "batch pos"]
) -> Bool[np.ndarray, "batch pos"]:
    """Where a sequence only goes round a loop of triggers any more, so that no new token can come.

    A loop is closed by the prompt itself: from its first position on every input is a trigger, and the token there
    comes again (as an input or as the last target). A trigger that is its own output is a loop of one; there the
    target equals the input. Positions that lead into a loop are not absorbed.

    >>> tokens = np.array([[4, 0, 1, 0, 1]])       # 0 gives 1, 1 gives 0; 4 is no trigger
    >>> find_absorbed(tokens, np.array([[False, True, True, True]])).tolist()
    [[False, True, True, True]]
    """
    absorbed = np.zeros(trigger.shape, dtype=bool)
    rows = np.flatnonzero(trigger[:, -1])  # A loop never ends: only these sequences can be in one.
    if not rows.size:
        return absorbed
    ends_in_triggers = np.logical_and.accumulate(trigger[rows, ::-1], axis=1)[:, ::-1]
    running, total = count_occurrences(tokens[rows], int(tokens.max()) + 1)
    comes_again = running[:, :-1] < _at_tokens(total, tokens[rows, :-1])
    absorbed[rows] = np.logical_or.accumulate(ends_in_triggers & comes_again, axis=1)
    return absorbed


def choose_wrong_answers(
    tokens: Integer[np.ndarray, "batch tokens"],
    output_of: Integer[np.ndarray, "batch vocab"],
    triggers: Integer[np.ndarray, "batch trigger"],
    generator: np.random.Generator,
) -> Integer[np.ndarray, "batch pos"]:
    """An answer other than the target at each position.

    At a trigger: the output of another trigger that occurs in the same prompt (the next one in ``triggers`` whose
    output differs). Where there is none, and off triggers: any token but the target, all equally likely.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    n_sequences, size = output_of.shape
    wrong = targets + generator.integers(1, size, size=targets.shape, dtype=np.int32)
    wrong -= size * (wrong >= size)

    occurs = np.zeros(output_of.shape, dtype=bool)
    occurs[np.arange(n_sequences)[:, None], inputs] = True
    outputs = np.take_along_axis(np.where(occurs, output_of, NOT_A_TRIGGER), triggers, axis=1)
    other = np.full(outputs.shape, NOT_A_TRIGGER)
    for shift in range(1, triggers.shape[1]):
        candidate = np.roll(outputs, -shift, axis=1)
        np.copyto(other, candidate, where=(other == NOT_A_TRIGGER) & (candidate != outputs))
    other_of = np.full(output_of.shape, NOT_A_TRIGGER)
    np.put_along_axis(other_of, triggers, np.where(outputs == NOT_A_TRIGGER, NOT_A_TRIGGER, other), axis=1)
    other_here = _at_tokens(other_of, inputs)
    return np.where(other_here == NOT_A_TRIGGER, wrong, other_here)


def _at_tokens(table: np.ndarray, tokens: Integer[np.ndarray, "batch pos"]) -> np.ndarray:
    """The entry of ``table`` [batch, vocab] for the token at each position: [batch, pos]."""
    n_sequences, size = table.shape
    return table.ravel().take(tokens + np.arange(n_sequences)[:, None] * size)
