"""The in-context bigram task: characters of a corpus, with a few triggers whose successor each prompt draws anew."""

import difflib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer

from tasks.bigram_counterfactual import outputs_in_prompt, redraw_outputs
from tasks.bigram_labels import SEGMENTS, choose_wrong_answers, label_positions
from tasks.bigram_sampling import NOT_A_TRIGGER, AliasTable, Walker, draw_without_replacement, generator_of
from tasks.bigram_statistics import BigramStatistics
from tasks.errors import InputError
from tasks.field_checks import LARGEST_WHOLE
from tasks.prompts import Prompts, Seed

Triggers = Literal["frequent", "random"]
Outputs = Literal["uniform", "bigram"]
OutputSplit = Literal["all", "first", "rest"]
Scored = Literal["in_context", "triggers", "all"]

STATISTICS_FILE = "bigrams.csv"
BLOCK = 512
"""Sequences drawn side by side: enough to hide numpy's overhead, few enough to stay in the processor's cache."""
SAMPLE_STREAM, COUNTERFACTUAL_STREAM = 0, 1


@dataclass(frozen=True)
class BigramICL:
    """Sequences of a character bigram model in which a few trigger tokens have an output that holds in one prompt only.

    Each prompt has ``n_triggers`` triggers q_k and draws an output o_k for each. z_1 ~ π_u; then z_{t+1} = o_k if
    z_t = q_k, else z_{t+1} ~ π_b(.|z_t). After a trigger's first occurrence its successor can only be known from
    the context: predicting it takes an induction head.

    Attributes:
        stats: π_u and π_b; the embedded corpus by default.
        n_triggers: triggers per prompt, K.
        seq_len: positions of a prompt, T; T + 1 tokens are drawn, as the last position needs a target.
        triggers: "frequent": the same in every prompt, the most frequent tokens; "random": drawn per prompt from π_u
            without replacement.
        trigger_offset: how many of the most frequent tokens to skip; with frequent triggers only.
        outputs: "uniform": over the vocabulary (see ``output_split``); "bigram": from π_b(.|q_k).
        allow_repeats: whether o_k = q_k may be drawn. If it is, such a trigger repeats itself to the prompt's end.
        output_split: "first": outputs come from the first ``split_fraction`` of the vocabulary only; "rest": from the
            remainder; with uniform outputs only. Train on one and test on the other to see what generalises.
        split_fraction: where the vocabulary is split.
        scored: the positions where the model is judged. "in_context": a trigger's second and later occurrences;
            "triggers": all of its occurrences; "all": every position.

    Raises:
        InputError: a value out of range, an option that does not exist or has no effect with the others, more
            triggers than tokens, or a trigger that has no output left.

    Source: Bietti et al. 2023 (arXiv 2306.00802), section 2 and appendix; 75 % for the split.

    >>> task = BigramICL(n_triggers=2, seq_len=8)
    >>> [task.stats.vocab[token] for token in task.trigger_tokens]
    [' ', 'e']
    >>> task.sample(4, seed=1).inputs.shape
    torch.Size([4, 8])
    """

    stats: BigramStatistics = field(default_factory=BigramStatistics.default)
    _: KW_ONLY
    n_triggers: int = 5
    seq_len: int = 64
    triggers: Triggers = "frequent"
    trigger_offset: int = 0
    outputs: Outputs = "uniform"
    allow_repeats: bool = False
    output_split: OutputSplit = "all"
    split_fraction: float = 0.75
    scored: Scored = "in_context"

    name: ClassVar[str] = "bigram"

    def __post_init__(self) -> None:
        if not isinstance(self.stats, BigramStatistics):
            raise InputError(f"stats = {self.stats!r:.60}: expected BigramStatistics, such as from_text gives")
        _check_choice("triggers", self.triggers, Triggers)
        _check_choice("outputs", self.outputs, Outputs)
        _check_choice("output_split", self.output_split, OutputSplit)
        _check_choice("scored", self.scored, Scored)
        _check_integer("n_triggers", self.n_triggers, at_least=1)
        _check_integer("seq_len", self.seq_len, at_least=2)
        _check_integer("trigger_offset", self.trigger_offset, at_least=0)
        if not isinstance(self.allow_repeats, bool):
            raise InputError(f"allow_repeats = {self.allow_repeats!r}: expected True or False")
        self._check_triggers()
        self._check_split()
        self._check_outputs()

    def _check_triggers(self) -> None:
        if self.triggers == "random" and self.trigger_offset:
            raise InputError(
                f"trigger_offset = {self.trigger_offset} has no effect on random triggers: "
                "leave it 0, or choose triggers = 'frequent'"
            )
        left = self.d_vocab - self.trigger_offset
        if self.n_triggers > left:
            skipped = f" after skipping {self.trigger_offset}" if self.trigger_offset else ""
            raise InputError(
                f"n_triggers = {self.n_triggers} exceeds the vocabulary's {max(left, 0)} tokens{skipped}: ask for fewer"
            )

    def _check_split(self) -> None:
        if isinstance(self.split_fraction, bool) or not isinstance(self.split_fraction, int | float):
            raise InputError(f"split_fraction = {self.split_fraction!r}: expected a number between 0 and 1")
        if self.output_split == "all":
            if self.split_fraction != type(self).split_fraction:
                raise InputError(
                    f"split_fraction = {self.split_fraction} has no effect with output_split = 'all': "
                    "choose 'first' or 'rest', or leave it out"
                )
            return
        if self.outputs != "uniform":
            raise InputError(
                f"output_split = {self.output_split!r} needs uniform outputs, not outputs = {self.outputs!r}: "
                "choose outputs = 'uniform' or output_split = 'all'"
            )
        if not 0 < self.split_fraction < 1 or self._n_first == 0:
            raise InputError(
                f"split_fraction = {self.split_fraction} puts {self._n_first} of {self.d_vocab} tokens into "
                "the first part: choose a fraction between 0 and 1 that leaves tokens on both sides"
            )

    def _check_outputs(self) -> None:
        possible = np.arange(self.d_vocab) if self.trigger_tokens is None else np.array(self.trigger_tokens)
        stuck = possible[self._output_weights[possible].sum(axis=1) == 0]
        if stuck.size:
            raise InputError(
                f"the trigger {self.stats.vocab[stuck[0]]!r} has no output but itself "
                f"(outputs = {self.outputs!r}, output_split = {self.output_split!r}): set allow_repeats = True"
            )

    @property
    def n_ctx(self) -> int:
        """Positions of a prompt: ``seq_len``."""
        return self.seq_len

    @property
    def d_in(self) -> None:
        """None: the inputs are tokens."""
        return None

    @property
    def d_vocab(self) -> int:
        """Number of tokens: the characters of the corpus."""
        return len(self.stats.vocab)

    @cached_property
    def trigger_tokens(self) -> tuple[int, ...] | None:
        """The fixed triggers, most frequent first (ties: smaller token first), or None if each prompt draws its own."""
        if self.triggers == "random":
            return None
        by_frequency = np.argsort(-self.stats.unigram_counts, kind="stable")
        return tuple(by_frequency[self.trigger_offset : self.trigger_offset + self.n_triggers].tolist())

    @cached_property
    def output_law(self) -> Float[np.ndarray, "vocab vocab"]:
        """Row q: how likely each output is for the trigger q; a row of zeros where q could have no output."""
        totals = self._output_weights.sum(axis=1, keepdims=True)
        return self._output_weights / np.maximum(totals, 1)

    def sample(self, n: int, *, seed: Seed) -> Prompts:
        """Draw n prompts: inputs and targets [n, seq_len]; the same seed gives the same prompts.

        Labels, each [batch, pos]:

        - occurrence: 0 where z_t is no trigger, else 1, 2, …: how often this trigger has occurred so far.
        - trigger: whether z_t is a trigger.
        - output: the output of z_t where it is a trigger (then also the target), else -1.
        - segment: 0 "global" (no trigger), 1 "first" (occurrence 1), 2 "in_context" (occurrence ≥ 2).
        - absorbed: the prompt only goes round a loop of triggers any more, o_k = q_k included, so that no new token can
          come and copying is trivial; exactly: ``tasks.bigram_labels.find_absorbed``.
        - position: 0 … seq_len - 1.

        ``wrong`` is at a trigger the output of another trigger that occurs in the prompt (where none differs, and
        off triggers: a uniformly drawn token), never the target.

        Raises:
            InputError: n is no positive integer, or the seed no non-negative integer (or tuple of them).

        >>> prompts = BigramICL(seq_len=16).sample(4, seed=0)
        >>> prompts.inputs.shape, bool((prompts.wrong != prompts.targets).all())
        (torch.Size([4, 16]), True)
        """
        _check_integer("n", n, at_least=1)
        generator = generator_of(seed, SAMPLE_STREAM)
        parts = _Parts(n, self.seq_len)
        for start in range(0, n, BLOCK):
            block = min(BLOCK, n - start)
            triggers = self._draw_triggers(block, generator)
            outputs = self._output_tables.draw(triggers, generator.random(triggers.shape))
            output_of = np.full((block, self.d_vocab), NOT_A_TRIGGER)
            np.put_along_axis(output_of, triggers, outputs, axis=1)
            tokens = self._walker.walk(output_of, self.seq_len + 1, generator)
            wrong = choose_wrong_answers(tokens, output_of, triggers, generator)
            parts.fill(start, tokens, wrong, label_positions(tokens, output_of))
        labels = parts.labels
        return Prompts(
            inputs=parts.inputs,
            targets=parts.targets,
            scored=self._score(labels["occurrence"]),
            labels=labels,
            label_names={"segment": SEGMENTS},
            wrong=parts.wrong,
            vocab=self.stats.vocab,
            seed=seed,
        )

    def counterfactual(self, prompts: Prompts, *, seed: Seed) -> Prompts:
        """The same prompts with other trigger outputs: after every occurrence of q_k another token follows.

        Redrawn are only the outputs that are no triggers themselves, from the task's law of outputs, to other tokens
        that are no triggers; every other token stays, so both prompts have the same triggers at the same positions.
        An output stays where the law leaves no other choice. Random triggers: the prompt's triggers are those that
        occur in it.

        Labels are computed anew, and there is one more: ``off_support``, where the input was replaced and the kept
        transition out of it is impossible under π_b (a model may notice). Its mean over the replaced positions
        is the share to report. ``scored`` stays as it is in ``prompts``.

        Raises:
            InputError: the prompts do not come from this task's ``sample``, or the seed is no seed.

        >>> task = BigramICL(seq_len=32)
        >>> prompts = task.sample(8, seed=0)
        >>> other = task.counterfactual(prompts, seed=1)
        >>> bool((other.targets == prompts.targets)[~prompts.labels["trigger"]].float().mean() > 0.7)
        True
        """
        generator = generator_of(seed, COUNTERFACTUAL_STREAM)
        self._check_prompts(prompts)
        whole = torch.cat([prompts.inputs, prompts.targets[:, -1:]], dim=1).cpu().numpy()
        trigger = prompts.labels["trigger"].cpu().numpy()
        parts = _Parts(*prompts.inputs.shape)
        for start in range(0, len(prompts), BLOCK):
            chosen = slice(start, start + BLOCK)
            is_trigger = self._triggers_of(whole[chosen], trigger[chosen])
            tokens, output_of = redraw_outputs(whole[chosen], trigger[chosen], is_trigger, self.output_law, generator)
            triggers = np.argsort(~is_trigger, axis=1, kind="stable")[:, : self.n_triggers]
            wrong = choose_wrong_answers(tokens, output_of, triggers, generator)
            impossible = self.stats.successor_counts[tokens[:, :-1], tokens[:, 1:]] == 0
            replaced = tokens[:, :-1] != whole[chosen, :-1]
            labels = label_positions(tokens, output_of) | {"off_support": replaced & impossible}
            parts.fill(start, tokens, wrong, labels)
        here = prompts.to("cpu")
        return replace(
            here,
            inputs=parts.inputs,
            targets=parts.targets,
            labels={**here.labels, **parts.labels},
            wrong=parts.wrong,
            counterfactual=None,
            seed=seed,
        ).to(prompts.inputs.device)

    def config(self) -> dict[str, Any]:
        """Every field as a JSON value; of the statistics only their sha256, as ``files`` holds them.

        >>> BigramICL(seq_len=32).config()["seq_len"]
        32
        """
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "stats"}
        return values | {"stats_sha256": self.stats.digest}

    def at_step(self, step: int) -> "BigramICL":  # noqa: ARG002 — the protocol's name
        """The task itself: it has no curriculum."""
        return self

    def files(self) -> Mapping[str, bytes]:
        """The statistics as ``bigrams.csv``."""
        return {STATISTICS_FILE: self.stats.to_csv()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> "BigramICL":
        """The task that ``config()`` and ``files()`` described; without ``bigrams.csv``, on the embedded corpus.

        Raises:
            InputError: an unknown key or file, a value that BigramICL refuses, a table that BigramStatistics refuses,
                or statistics whose sha256 is not the configured one.

        >>> task = BigramICL(seq_len=32)
        >>> BigramICL.from_config(task.config(), task.files()) == task
        True
        """
        values = dict(config)
        digest = values.pop("stats_sha256", None)
        known = [item.name for item in fields(cls) if item.name != "stats"]
        for key in values:
            if key not in known:
                near = (difflib.get_close_matches(key, known, n=1, cutoff=0) or known)[0]
                raise InputError(f"{key} = {values[key]!r} is no field of the bigram task: did you mean {near}?")
        for file in files:
            if file != STATISTICS_FILE:
                raise InputError(f"the bigram task has no file {file!r}: expected {STATISTICS_FILE}")
        stats = BigramStatistics.default()
        if STATISTICS_FILE in files:
            stats = BigramStatistics.from_csv(files[STATISTICS_FILE], source=STATISTICS_FILE)
        if digest is not None and digest != stats.digest:
            where = STATISTICS_FILE if STATISTICS_FILE in files else "the embedded corpus"
            raise InputError(
                f"{where} has the sha256 {stats.digest[:12]}… but stats_sha256 is {str(digest)[:12]}…: "
                f"restore the {STATISTICS_FILE} that belongs to the configuration"
            )
        return cls(stats, **values)

    def _check_prompts(self, prompts: Prompts) -> None:
        if prompts.vocab != self.stats.vocab or "trigger" not in prompts.labels:
            raise InputError(
                "the prompts have another vocabulary, or no label 'trigger': "
                "counterfactual takes prompts that this task's sample drew"
            )
        if self.trigger_tokens is not None:
            fixed = torch.tensor(self.trigger_tokens, device=prompts.inputs.device)
            if not torch.equal(torch.isin(prompts.inputs, fixed), prompts.labels["trigger"]):
                raise InputError(
                    "the prompts' label 'trigger' marks other tokens than this task's triggers: "
                    "counterfactual takes prompts that this task's sample drew"
                )

    def _triggers_of(
        self, tokens: Integer[np.ndarray, "batch tokens"], trigger: Bool[np.ndarray, "batch pos"]
    ) -> Bool[np.ndarray, "batch vocab"]:
        if self.trigger_tokens is None:
            return outputs_in_prompt(tokens, trigger, self.d_vocab) != NOT_A_TRIGGER
        is_trigger = np.zeros((len(tokens), self.d_vocab), dtype=bool)
        is_trigger[:, self.trigger_tokens] = True
        return is_trigger

    def _draw_triggers(self, n: int, generator: np.random.Generator) -> Int[np.ndarray, "batch trigger"]:
        if self.trigger_tokens is not None:
            return np.tile(np.array(self.trigger_tokens), (n, 1))
        return draw_without_replacement(self.stats.unigram, n, self.n_triggers, generator)

    def _score(self, occurrence: Int[torch.Tensor, "batch pos"]) -> Bool[torch.Tensor, "batch pos"]:
        return occurrence >= {"in_context": 2, "triggers": 1, "all": 0}[self.scored]

    @cached_property
    def _n_first(self) -> int:
        return int(self.split_fraction * self.d_vocab)

    @cached_property
    def _output_weights(self) -> Integer[np.ndarray, "vocab vocab"]:
        if self.outputs == "bigram":
            weights = self.stats.successor_counts.copy()
        else:
            weights = np.ones((self.d_vocab, self.d_vocab), dtype=np.int64)
            if self.output_split == "first":
                weights[:, self._n_first :] = 0
            elif self.output_split == "rest":
                weights[:, : self._n_first] = 0
        if not self.allow_repeats:
            np.fill_diagonal(weights, 0)
        return weights

    @cached_property
    def _output_tables(self) -> AliasTable:
        # A row without weight belongs to no possible trigger (see _check_outputs); any filling will do.
        weights = self._output_weights.copy()
        weights[weights.sum(axis=1) == 0] = 1
        return AliasTable.from_weights(weights)

    @cached_property
    def _walker(self) -> Walker:
        return Walker.from_counts(self.stats.unigram_counts, self.stats.successor_counts)


class _Parts:
    """The arrays of n prompts, filled block by block; small integers become int64 here, and only here."""

    def __init__(self, n: int, seq_len: int) -> None:
        self.shape = (n, seq_len)
        self.inputs, self.targets, self.wrong = (self._empty(torch.int64) for _ in range(3))
        self.labels: dict[str, torch.Tensor] = {}

    def fill(self, start: int, tokens: np.ndarray, wrong: np.ndarray, labels: Mapping[str, np.ndarray]) -> None:
        for name, label in labels.items():
            if name not in self.labels:
                self.labels[name] = self._empty(torch.bool if label.dtype == bool else torch.int64)
        pairs = [(self.inputs, tokens[:, :-1]), (self.targets, tokens[:, 1:]), (self.wrong, wrong)]
        pairs += [(self.labels[name], label) for name, label in labels.items()]
        for whole, part in pairs:
            whole.numpy()[start : start + len(part)] = part

    def _empty(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(self.shape, dtype=dtype)


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} = {value!r} does not exist: choose one of {', '.join(map(repr, get_args(choices)))}")


def _check_integer(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < at_least:
        raise InputError(f"{name} = {value!r}: expected an integer, at least {at_least}")
    if value > LARGEST_WHOLE:
        raise InputError(f"{name} = {value!r}: expected an integer of at most {LARGEST_WHOLE}")
