"""Corpus statistics: counts against a recount, exact round-trips, and a refusal for each bad input."""

import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=40).filter(lambda t: len(set(t)) > 1)


@given(texts)
def test_counts_are_those_of_a_recount(text):
    stats = BigramStatistics.from_text(text)
    pairs = Counter(text[i : i + 2] for i in range(len(text) - 1))
    assert stats.vocab == tuple(sorted(set(text)))
    for i, first in enumerate(stats.vocab):
        for j, second in enumerate(stats.vocab):
            assert stats.counts[i, j] == pairs[first + second]


@given(texts)
def test_the_table_survives_a_round_trip_byte_for_byte(text):
    stats = BigramStatistics.from_text(text)
    again = BigramStatistics.from_csv(stats.to_csv())
    assert again == stats
    assert again.to_csv() == stats.to_csv()
    assert again.digest == stats.digest


@given(texts)
def test_rows_are_distributions_and_only_seen_pairs_are_possible(text):
    stats = BigramStatistics.from_text(text)
    assert stats.unigram.sum() == pytest.approx(1)
    assert stats.bigram.sum(axis=1) == pytest.approx(np.ones(len(stats.vocab)))
    has_successor = stats.counts.sum(axis=1) > 0
    assert ((stats.bigram > 0) == (stats.counts > 0))[has_successor].all()


@given(texts.filter(lambda t: t[0] != t[-1]))
def test_the_unigram_is_the_character_frequency(text):
    stats = BigramStatistics.from_text(text)
    assert stats.unigram == pytest.approx(np.array([text.count(token) for token in stats.vocab]) / len(text))


def test_the_unigram_misses_one_character_where_a_text_ends_as_it_begins():
    assert BigramStatistics.from_text("abaca").unigram.tolist() == [0.5, 0.25, 0.25]


def test_a_token_that_is_only_ever_last_is_followed_by_the_unigram():
    stats = BigramStatistics.from_text("abac")
    assert stats.bigram[2].tolist() == stats.unigram.tolist() == [0.5, 0.25, 0.25]


def test_statistics_cannot_be_changed_in_place():
    stats = BigramStatistics.from_text("abac")
    for array in (stats.counts, stats.unigram, stats.bigram):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_statistics_are_equal_by_content():
    assert BigramStatistics.from_text("abab") == BigramStatistics.from_text("abab")
    assert hash(BigramStatistics.from_text("abab")) == hash(BigramStatistics.from_text("abab"))
    assert BigramStatistics.from_text("abab") != BigramStatistics.from_text("ababab")
    assert BigramStatistics.from_text("abab") != BigramStatistics.from_text("acac")


def test_the_embedded_table_is_the_king_james_text():
    stats = BigramStatistics.default()
    assert stats.counts.sum() == 4_137_848
    assert len(stats.vocab) == 63
    assert stats.vocab[:3] == ("\n", " ", "!")
    assert stats.counts[:, 0].sum() == 31_101  # verses but one
    assert stats.digest == "a03b8c858c29ce6be4992aef3bd382e2fa859bbf49e3fbf5ec5745124fb25fca"


def test_a_table_with_crlf_and_quoted_newlines_commas_and_quotes_is_read(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_bytes(b'first,second,count\r\n"\n",a,3\r\na,"\n",2\r\n",","""",1\r\n"""",a,0\r\n')
    stats = BigramStatistics.from_counts(path)
    assert stats.vocab == ("\n", '"', ",", "a")
    assert stats.counts.tolist() == [[0, 0, 0, 3], [0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0]]


def test_a_table_with_lf_line_ends_and_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_bytes(b"\xef\xbb\xbffirst,second,count\na,b,1\nb,a,1\n")
    assert BigramStatistics.from_counts(path).counts.tolist() == [[0, 1], [1, 0]]


def test_the_csv_module_reads_what_is_written(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_bytes(BigramStatistics.from_text('a"b,c\nd\re"').to_csv())
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["first", "second", "count"]
    assert {(first, second) for first, second, _ in lines[1:]} == set(zip('a"b,c\nd\re', '"b,c\nd\re"', strict=True))


def test_a_file_means_the_same_whatever_its_line_ends(tmp_path):
    for name, data in [("unix", b"ab\nba"), ("windows", b"\xef\xbb\xbfab\r\nba"), ("old", b"ab\rba")]:
        (tmp_path / name).write_bytes(data)
        assert BigramStatistics.from_file(tmp_path / name) == BigramStatistics.from_text("ab\nba")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "0 character"), ("a", "1 character"), ("aaaa", "1 of them distinct"), ("a\ud800b", "lone surrogate")],
)
def test_a_text_without_bigrams_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        BigramStatistics.from_text(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'nothing': expected the header first,second,count"),
        (b"a,b,1\r\nb,a,1\r\n", "'a,b,1': expected the header"),
        (b"first,second,count\r\n", "0 pair"),
        (b"first,second,count\r\na,b,0\r\n", "0 pair"),
        (b"first,second,count\r\na,a,4\r\n", "fewer than 2 distinct tokens"),
        (b"first,second,count\r\na,b,-1\r\n", "line 2: the count is '-1', expected a non-negative integer"),
        (b"first,second,count\r\na,b,1.5\r\n", "line 2: the count is '1.5'"),
        (b"first,second,count\r\na,b,many\r\n", "line 2: the count is 'many'"),
        (b"first,second,count\r\na,b,\xc2\xb2\r\n", "the count is '²'"),
        (b"first,second,count\r\na,b,1\r\nb,a,2\r\na,b,1\r\n", "line 4: the pair .* is listed twice"),
        (b"first,second,count\r\na,b\r\n", "line 2: 2 field"),
        (b"first,second,count\r\na,b,1\r\n\r\n", "line 3: 0 field"),
        (b"first,second,count\r\n,b,1\r\n", "line 2: an empty token"),
        (b'first,second,count\r\n"a,b,1\r\n', "unexpected end of data"),
        (b"first,second,count\r\n" + b"".join(b"a,%c,999999999999999999\r\n" % c for c in b"abcde"), "too large"),
        (b"first,second,count\r\n\xff,b,1\r\n", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_with_one_line(data, message, tmp_path):
    path = tmp_path / "counts.csv"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        BigramStatistics.from_counts(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or "counts sum to" in str(caught.value)


@pytest.mark.parametrize("read", [BigramStatistics.from_file, BigramStatistics.from_counts])
def test_a_file_that_cannot_be_read_is_refused(read, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "latin1").write_bytes("é è".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read(tmp_path / "latin1")


@pytest.mark.parametrize(
    ("vocab", "counts", "message"),
    [
        (("a",), [[1]], "at least 2"),
        (("b", "a"), [[0, 1], [1, 0]], "code points"),
        (("a", "a"), [[0, 1], [1, 0]], "distinct"),
        (("a", "b", "c"), [[0, 1], [1, 0]], r"counts is \[2, 2\]"),
        (("a", "b"), [[0, -1], [1, 0]], "counts holds -1"),
        (("a", "b", "c"), [[0, 1, 0], [1, 0, 0], [0, 0, 0]], "token 'c' of vocab never occurs"),
    ],
)
def test_bad_statistics_are_refused(vocab, counts, message):
    with pytest.raises(InputError, match=message):
        BigramStatistics(vocab, np.array(counts))
