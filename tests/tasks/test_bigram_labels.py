"""Labels against a recount that walks through each prompt."""

import numpy as np
import pytest

from tasks.bigram_labels import choose_wrong_answers, find_absorbed, label_positions
from tasks.bigram_sampling import Walker
from tasks.bigram_statistics import BigramStatistics

STATS = BigramStatistics.from_text("abacadbbcdaabdcaacbda")


@pytest.fixture(scope="module")
def walks():
    """Sequences with three triggers among four tokens, so that loops of every length occur."""
    generator = np.random.default_rng(5)
    output_of = np.full((200, 4), -1)
    output_of[:, :3] = generator.integers(0, 4, (200, 3))
    walker = Walker.from_counts(STATS.unigram_counts, STATS.successor_counts)
    return walker.walk(output_of, 13, generator), output_of


def test_labels_are_those_of_a_recount(walks):
    tokens, output_of = walks
    labels = label_positions(tokens, output_of)
    for row in range(len(tokens)):
        seen = dict.fromkeys(range(4), 0)
        for pos in range(12):
            token, target = tokens[row, pos], tokens[row, pos + 1]
            trigger = token in (0, 1, 2)
            seen[token] += trigger
            expected = {
                "occurrence": seen[token],
                "trigger": trigger,
                "output": target if trigger else -1,
                "segment": 0 if not trigger else 1 if seen[token] == 1 else 2,
                "position": pos,
            }
            assert {name: labels[name][row, pos] for name in expected} == expected
            assert not trigger or target == output_of[row, token]


def test_absorbed_positions_are_those_on_a_closed_loop_of_triggers(walks):
    tokens, output_of = walks
    absorbed = label_positions(tokens, output_of)["absorbed"]
    lengths = set()
    for row in range(len(tokens)):
        # A trigger is on a loop if following the outputs leads back to it; a loop counts once the prompt has closed it.
        loops = {token: loop_of(token, output_of[row]) for token in range(4)}
        on_loop = [bool(loops[token]) for token in tokens[row]]
        start = next((pos for pos in range(13) if on_loop[pos]), 13)
        closed = start < 13 and start + len(loops[tokens[row, start]]) <= 12
        assert absorbed[row].tolist() == [closed and pos >= start for pos in range(12)]
        if closed:
            lengths.add(len(loops[tokens[row, start]]))
    assert lengths == {1, 2, 3}


def test_a_trigger_that_repeats_itself_is_absorbed_from_its_first_occurrence():
    tokens = np.array([[3, 1, 1, 1]])
    assert find_absorbed(tokens, np.array([[False, True, True]])).tolist() == [[False, True, True]]


def test_a_trigger_that_leads_into_a_loop_is_not_absorbed():
    tokens = np.array([[2, 0, 1, 0, 1]])
    assert find_absorbed(tokens, np.ones((1, 4), dtype=bool)).tolist() == [[False, True, True, True]]


def test_a_trigger_that_comes_again_after_another_token_is_not_absorbed():
    tokens = np.array([[0, 3, 0, 3, 0]])
    trigger = np.array([[True, False, True, False]])
    assert not find_absorbed(tokens, trigger).any()


def test_the_wrong_answer_at_a_trigger_is_the_output_of_another_trigger_of_the_prompt(walks):
    tokens, output_of = walks
    wrong = choose_wrong_answers(tokens, output_of, np.tile([0, 1, 2], (200, 1)), np.random.default_rng(0))
    n_with_choice = 0
    for row in range(200):
        occur = set(tokens[row, :-1].tolist())
        for pos in range(12):
            token, target = tokens[row, pos], tokens[row, pos + 1]
            assert wrong[row, pos] != target
            others = {output_of[row, other] for other in {0, 1, 2} & occur if other != token} - {target}
            if token in (0, 1, 2) and others:
                n_with_choice += 1
                assert wrong[row, pos] in others
    assert n_with_choice > 200


def test_off_triggers_every_token_but_the_target_is_an_equally_likely_wrong_answer():
    tokens = np.full((6000, 2), 3)
    wrong = choose_wrong_answers(tokens, np.full((6000, 4), -1), np.zeros((6000, 1), int), np.random.default_rng(0))
    assert np.bincount(wrong[:, 0], minlength=4) == pytest.approx([2000, 2000, 2000, 0], abs=6 * np.sqrt(2000))


def loop_of(token: int, output_of: np.ndarray) -> list[int]:
    """The triggers on the loop through ``token``, or nothing if there is none."""
    path = [token]
    while output_of[path[-1]] != -1 and output_of[path[-1]] not in path:
        path.append(int(output_of[path[-1]]))
    return path if output_of[path[-1]] == token else []
