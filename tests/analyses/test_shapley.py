from itertools import permutations

import numpy as np
import pytest

from analyses.shapley import contributions_in_orders, drawn_orders, shapley_values, subsets_of_orders


def random_game(n_players, seed=0):
    values = np.random.default_rng(seed).normal(size=(2**n_players, 3))
    values[0] = 0
    return values


def by_definition(values, n_players):
    """The mean contribution over every order of arrival, one after the other."""
    shares = np.zeros((n_players, *values.shape[1:]))
    orders = list(permutations(range(n_players)))
    for order in orders:
        present = 0
        for player in order:
            shares[player] += values[present + 2**player] - values[present]
            present += 2**player
    return shares / len(orders)


def test_two_players_share_what_they_only_gain_together():
    # a glove game: a left and a right glove are worth 1 together; and 10 more for whoever has player 1's coat
    assert shapley_values(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0.5, 0.5]
    assert shapley_values(np.array([0.0, 0.0, 10.0, 11.0])).tolist() == [0.5, 10.5]


def test_three_players_of_which_two_hold_the_same_glove():
    """The textbook's glove game: one left glove (player 0), two right ones: 2/3, 1/6, 1/6."""
    values = np.array([float(bool(s & 1) and bool(s & 6)) for s in range(8)])
    np.testing.assert_allclose(shapley_values(values), [2 / 3, 1 / 6, 1 / 6])


@pytest.mark.parametrize("n_players", [1, 2, 3, 4])
def test_values_are_the_mean_over_all_orders(n_players):
    values = random_game(n_players)
    np.testing.assert_allclose(shapley_values(values), by_definition(values, n_players), atol=1e-12)


@pytest.mark.parametrize("n_players", range(1, 9))
def test_the_shares_sum_to_the_whole(n_players):
    values = random_game(n_players)
    np.testing.assert_allclose(shapley_values(values).sum(axis=0), values[-1] - values[0], atol=1e-12)


@pytest.mark.parametrize("n_players", range(2, 9))
def test_players_that_add_alike_get_alike_and_one_that_adds_nothing_gets_nothing(n_players):
    values = random_game(n_players)
    alike, dummy = values.copy(), values.copy()
    for subset in range(2**n_players):
        first, second = subset & 1, subset >> 1 & 1
        if first and not second:  # the value depends on how many of the two are in, not on which
            alike[subset] = alike[subset ^ 3]
        if first:
            dummy[subset] = dummy[subset ^ 1]
    shares = shapley_values(alike)
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-12)
    assert np.abs(shapley_values(values)[0] - shapley_values(values)[1]).max() > 0.01
    assert (shapley_values(dummy)[0] == 0).all()


def test_values_of_two_games_add():
    one, other = random_game(5, 1), random_game(5, 2)
    np.testing.assert_allclose(
        shapley_values(one + 2 * other), shapley_values(one) + 2 * shapley_values(other), atol=1e-12
    )


@pytest.mark.parametrize("n_players", [2, 3, 4])
def test_all_orders_together_give_the_exact_values(n_players):
    values = random_game(n_players)
    orders = np.array(list(permutations(range(n_players))))
    subsets = subsets_of_orders(orders)
    added = contributions_in_orders(values[subsets], subsets, orders)
    np.testing.assert_allclose(added.mean(axis=0), shapley_values(values), atol=1e-12)


def test_every_drawn_order_shares_the_whole_and_asks_only_for_subsets_that_it_meets():
    values = random_game(7)
    orders = drawn_orders(7, 5, seed=0)
    assert (np.sort(orders, axis=1) == np.arange(7)).all()
    assert len({tuple(order) for order in orders.tolist()}) == 5
    subsets = subsets_of_orders(orders)
    assert subsets[0] == 0
    assert len(set(subsets)) == len(subsets) <= 1 + 5 * 7
    added = contributions_in_orders(values[subsets], subsets, orders)
    np.testing.assert_allclose(added.sum(axis=1), np.tile(values[-1] - values[0], (5, 1)), atol=1e-12)


def test_drawn_orders_approach_the_exact_values():
    values = random_game(6)
    orders = drawn_orders(6, 4000, seed=1)
    subsets = subsets_of_orders(orders)
    added = contributions_in_orders(values[subsets], subsets, orders)
    error = added.std(axis=0) / np.sqrt(len(orders))
    assert (np.abs(added.mean(axis=0) - shapley_values(values)) < 4 * error).all()
    assert error.max() < 0.05
