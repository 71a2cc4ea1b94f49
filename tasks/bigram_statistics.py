"""Character statistics of a corpus: how often each token follows each, π_u and π_b."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tasks.errors import InputError

CSV_HEADER = ["first", "second", "count"]
LARGEST_TOTAL = 2**62
"""The alias tables work on counts times the vocabulary's size in int64: beyond this they would overflow."""


@dataclass(frozen=True, eq=False)
class BigramStatistics:
    """How often each token follows each in a corpus, and the two distributions π_u and π_b made of it.

    π_b(j|i) = counts[i, j] / Σ_j counts[i, j]. π_u(i) ∝ max(Σ_j counts[i, j], Σ_j counts[j, i]), the least number of
    times that token i must have occurred: the exact frequency in a text whose first and last characters differ,
    and short by one occurrence of one token where they are the same.
    A token that is only ever last has no successor: its row of π_b is π_u.

    Attributes:
        vocab: the tokens, sorted by code point; token i of a prompt stands for ``vocab[i]``.
        counts: int64 [vocab, vocab], first token × second token; read-only, like every array made of it
            (``torch.tensor(stats.bigram)`` copies).

    Raises:
        InputError: fewer than two tokens, a vocab that is unsorted or repeats a token, counts of another shape,
            negative counts, a token that never occurs, or counts too large.

    Source: Bietti et al. 2023 (arXiv 2306.00802), section 2: the in-context bigram task's π_u and π_b.

    >>> stats = BigramStatistics.from_text("abac")
    >>> stats.vocab, stats.counts.tolist()
    (('a', 'b', 'c'), [[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    >>> stats.unigram.tolist(), stats.bigram[0].tolist()
    ([0.5, 0.25, 0.25], [0.0, 0.5, 0.5])
    """

    vocab: tuple[str, ...]
    counts: Int[np.ndarray, "vocab vocab"]

    def __post_init__(self) -> None:
        size = len(self.vocab)
        if size < 2:
            raise InputError(f"the corpus has {size} distinct token(s): bigram statistics need at least 2")
        if list(self.vocab) != sorted(set(self.vocab)):
            raise InputError("vocab must list distinct tokens in the order of their code points: sort it")
        if self.counts.shape != (size, size):
            raise InputError(f"counts is {list(self.counts.shape)} but vocab has {size} tokens: give [{size}, {size}]")
        counts = np.array(self.counts, dtype=np.int64)
        if counts.min() < 0:
            raise InputError(f"counts holds {counts.min()}: a count is zero or positive")
        if float(counts.sum(dtype=np.float64)) * size > LARGEST_TOTAL:
            raise InputError(
                f"counts sum to {counts.sum(dtype=np.float64):.3g}, too large for {size} tokens: "
                f"scale them down to at most {LARGEST_TOTAL // size} in all"
            )
        unused = (counts.sum(axis=0) + counts.sum(axis=1)) == 0
        if unused.any():
            raise InputError(f"token {self.vocab[int(unused.argmax())]!r} of vocab never occurs: leave it out")
        object.__setattr__(self, "counts", _read_only(counts))

    @classmethod
    def default(cls) -> "BigramStatistics":
        """The King James Bible, verses joined by newlines: 63 characters, 4,137,848 pairs.

        >>> len(BigramStatistics.default().vocab)
        63
        """
        return _embedded_statistics()

    @classmethod
    def from_text(cls, text: str, *, source: str = "the text") -> "BigramStatistics":
        """Count the pairs of neighbouring characters (code points); ``source`` names the text in messages.

        Raises:
            InputError: fewer than two characters, one distinct character, or lone surrogates.

        >>> BigramStatistics.from_text("hello").vocab
        ('e', 'h', 'l', 'o')
        """
        if len(text) < 2 or len(set(text)) < 2:
            found = f"{len(text)} character(s), {len(set(text))} of them distinct"
            raise InputError(f"{source} has {found}: bigrams need at least 2 distinct characters, give a longer text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"{text[error.start]!r} at character {error.start}"
            raise InputError(f"{source} holds the lone surrogate {where}: decode the text properly first") from None
        return cls._from_pairs(Counter(pairwise(text)))

    @classmethod
    def from_file(cls, path: str | Path) -> "BigramStatistics":
        r"""Count the pairs of neighbouring characters of a UTF-8 text file.

        A byte-order mark is dropped and every line end counts as "\n", so that a text means the same
        whichever machine wrote it.

        Raises:
            InputError: a file that is missing, unreadable, not UTF-8, or has fewer than two distinct characters.
        """
        text = _decode(_read(path), source=str(path))
        return cls.from_text(text.replace("\r\n", "\n").replace("\r", "\n"), source=str(path))

    @classmethod
    def from_counts(cls, path: str | Path) -> "BigramStatistics":
        """Read a table of pair counts: a CSV file with the header first,second,count.

        Tokens are strings of one or more characters, quoted where CSV asks for it. A pair that is not listed, or
        listed with count 0, never occurs.

        Raises:
            InputError: a file that is missing, unreadable or not UTF-8, or a table that ``from_csv`` refuses.
        """
        return cls.from_csv(_read(path), source=str(path))

    @classmethod
    def from_csv(cls, data: bytes, *, source: str = "the table") -> "BigramStatistics":
        r"""The statistics that ``to_csv`` wrote; ``source`` names the table in messages.

        Raises:
            InputError: not UTF-8, a wrong header, a line without three fields, an empty token, a count that is no
                non-negative integer, a pair listed twice, or fewer than two tokens.

        >>> BigramStatistics.from_csv(b"first,second,count\r\na,b,2\r\nb,a,1\r\n").counts.tolist()
        [[0, 2], [1, 0]]
        """
        reader = csv.reader(io.StringIO(_decode(data, source), newline=""), strict=True)
        pairs: dict[tuple[str, str], int] = {}
        try:
            header = next(reader, None)
            if header != CSV_HEADER:
                found = "nothing" if header is None else ",".join(header)
                raise InputError(f"{source} starts with {found[:60]!r}: expected the header {','.join(CSV_HEADER)}")
            for line in reader:
                pair, count = _parse_line(line, f"{source}, line {reader.line_num}")
                if pair in pairs:
                    raise InputError(
                        f"{source}, line {reader.line_num}: the pair {pair} is listed twice, "
                        "give each pair once with its sum"
                    )
                pairs[pair] = count
        except csv.Error as error:
            raise InputError(f"{source}, line {reader.line_num}: {error}, write it as CSV") from None
        pairs = {pair: count for pair, count in pairs.items() if count}
        if len({token for pair in pairs for token in pair}) < 2:
            raise InputError(
                f"{source} counts {len(pairs)} pair(s) of fewer than 2 distinct tokens: nothing to draw from"
            )
        return cls._from_pairs(pairs)

    @classmethod
    def _from_pairs(cls, pairs: Mapping[tuple[str, str], int]) -> "BigramStatistics":
        vocab = tuple(sorted({token for pair in pairs for token in pair}))
        index = {token: i for i, token in enumerate(vocab)}
        counts = np.zeros((len(vocab), len(vocab)), dtype=np.int64)
        for (first, second), count in pairs.items():
            counts[index[first], index[second]] = count
        return cls(vocab, counts)

    @cached_property
    def unigram_counts(self) -> Int[np.ndarray, "vocab"]:
        """How often each token occurs at least: the numerators of π_u."""
        return _read_only(np.maximum(self.counts.sum(axis=1), self.counts.sum(axis=0)))

    @cached_property
    def successor_counts(self) -> Int[np.ndarray, "vocab vocab"]:
        """``counts`` with the row of a token that has no successor replaced: the numerators of π_b."""
        rows = self.counts.copy()
        rows[rows.sum(axis=1) == 0] = self.unigram_counts
        return _read_only(rows)

    @cached_property
    def unigram(self) -> Float[np.ndarray, "vocab"]:
        """π_u: how likely each token is by itself."""
        return _read_only(self.unigram_counts / self.unigram_counts.sum())

    @cached_property
    def bigram(self) -> Float[np.ndarray, "vocab vocab"]:
        """π_b: row i holds how likely each token is after token i."""
        return _read_only(self.successor_counts / self.successor_counts.sum(axis=1, keepdims=True))

    @cached_property
    def digest(self) -> str:
        """The sha256 of ``to_csv()``: equal statistics have equal digests."""
        return hashlib.sha256(self.to_csv()).hexdigest()

    def to_csv(self) -> bytes:
        r"""The table that ``from_csv`` reads back exactly: UTF-8, CRLF line ends, sorted, non-zero counts only.

        >>> BigramStatistics.from_text("a,a").to_csv()
        b'first,second,count\r\n",",a,1\r\na,",",1\r\n'
        """
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(CSV_HEADER)
        for i, j in np.argwhere(self.counts):
            writer.writerow([self.vocab[i], self.vocab[j], self.counts[i, j]])
        return buffer.getvalue().encode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BigramStatistics):
            return NotImplemented
        return self.vocab == other.vocab and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"BigramStatistics({len(self.vocab)} tokens, {self.counts.sum():,} pairs, sha256 {self.digest[:12]})"


@cache
def _embedded_statistics() -> BigramStatistics:
    table = resources.files("tasks") / "data" / "kjv_bigrams.csv"
    return BigramStatistics.from_csv(table.read_bytes(), source="the embedded table")


def _parse_line(line: list[str], where: str) -> tuple[tuple[str, str], int]:
    if len(line) != len(CSV_HEADER):
        raise InputError(f"{where}: {len(line)} field(s), expected {','.join(CSV_HEADER)}")
    first, second, count = line
    if not first or not second:
        raise InputError(f"{where}: an empty token in {','.join(line)!r}, give every token at least one character")
    if not re.fullmatch(r"[0-9]{1,18}", count):
        raise InputError(f"{where}: the count is {count[:40]!r}, expected a non-negative integer below 10^18")
    return (first, second), int(count)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of a readable file") from None


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 (byte {error.start}): convert it to UTF-8 first") from None


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
