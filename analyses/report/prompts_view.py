"""A few prompts, token by token, with what the model guessed."""

from collections.abc import Sequence

import torch

from analyses.figures import component_colour
from analyses.report.contents import Guess, PatternsOf
from analyses.report.visible import visible
from interp import HookedTransformer
from tasks.prompts import Prompts

_LONGEST_LABEL = 8


def guesses_of(model: HookedTransformer, prompts: Prompts) -> list[list[Guess]]:
    """For every prompt its tokens, each with the guess that the model made before it saw it."""
    if prompts.targets.is_floating_point():
        return []
    with torch.no_grad():
        probabilities = model(prompts.inputs).softmax(dim=-1)
    best, guess = probabilities.max(dim=-1)
    of_target = probabilities.gather(-1, prompts.targets[..., None]).squeeze(-1)
    names = token_names(prompts, model.cfg.d_vocab_out or 0)
    shown = []
    for row in range(len(prompts)):
        tokens = [
            Guess(
                visible(names[int(prompts.inputs[row, 0])]), "unscored", "", "the first token: nothing comes before it"
            )
        ]
        for pos in range(prompts.targets.shape[1]):
            before, target = (visible(names[int(part[row, pos])]) for part in (prompts.inputs, prompts.targets))
            right = bool(guess[row, pos] == prompts.targets[row, pos])
            segment = _segment(prompts, row, pos)
            where = f" ({segment})" if segment else ""
            about = f"after {before}{where}: {target} follows, to which the model gave {of_target[row, pos]:.1%}"
            if not right:
                about += f"; it guessed {visible(names[int(guess[row, pos])])} ({best[row, pos]:.1%})"
            scored = bool(prompts.scored[row, pos])
            kind = ("right" if right else "wrong") if scored else "unscored"
            tokens.append(Guess(target, kind, segment, about))
        shown.append(tokens)
    return shown


def patterns_of(
    model: HookedTransformer, prompts: Prompts, *, positions: int, heads: Sequence[tuple[int, int]]
) -> list[PatternsOf]:
    """The attention patterns of these heads on the first positions of each prompt."""
    points = {layer: f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.inputs, names_filter=list(points.values()))
    named = tuple((f"L{layer}H{head}", component_colour(layer, head)) for layer, head in heads)
    names = None if prompts.inputs.is_floating_point() else token_names(prompts, model.cfg.d_vocab or 0)
    shown = []
    for row in range(len(prompts)):
        patterns = [cache[points[layer]][row, head, :positions, :positions] for layer, head in heads]
        if names is None:
            tokens = tuple(str(pos) for pos in range(patterns[0].shape[-1]))
        else:
            tokens = tuple(_short(visible(names[token])) for token in prompts.inputs[row, :positions].tolist())
        shown.append(PatternsOf(tokens, named, torch.stack(patterns), model.cfg.attention_dir == "causal"))
    return shown


def token_names(prompts: Prompts, size: int) -> tuple[str, ...]:
    """What each token stands for, or its number."""
    return prompts.vocab if prompts.vocab is not None else tuple(str(token) for token in range(size))


def _short(token: str) -> str:
    """A token that fits beside a picture."""
    return token if len(token) <= _LONGEST_LABEL else f"{token[: _LONGEST_LABEL - 1]}…"


def _segment(prompts: Prompts, row: int, pos: int) -> str:
    if "segment" not in prompts.labels:
        return ""
    value = int(prompts.labels["segment"][row, pos])
    names = prompts.label_names.get("segment", ())
    return (names[value] if value < len(names) else str(value)).replace("_", " ")
