"""--set: names, values and refusals."""

import pytest

from interp.settings import parse_settings
from tasks.errors import InputError

SECTIONS = {"task": ["seq_len", "scored", "seed"], "model": ["d_model", "seed"], "train": ["lr", "freeze_until"]}


def test_a_bare_name_reaches_the_only_field_of_that_name():
    assert parse_settings(["seq_len=32", "d_model=8"], SECTIONS) == {
        "task": {"seq_len": 32},
        "model": {"d_model": 8},
        "train": {},
    }


def test_a_prefix_tells_fields_of_one_name_apart():
    found = parse_settings(["task.seed=1", "model.seed=2"], SECTIONS)
    assert (found["task"], found["model"]) == ({"seed": 1}, {"seed": 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("all", "all"),
        ("a=b", "a=b"),
        ("[0.9, 0.99]", (0.9, 0.99)),
        ("[[1, 0], [0, 1]]", ((1, 0), (0, 1))),
        ('{"blocks.*.W_K": 30}', {"blocks.*.W_K": 30}),
    ],
)
def test_values_are_read_as_json_or_python_or_text(text, value):
    assert parse_settings([f"lr={text}"], SECTIONS)["train"]["lr"] == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed=1"], "ambiguous: write task.seed or model.seed"),
        (["seqlen=1"], "did you mean seq_len"),
        (["train.seq_len=1"], "did you mean task.seq_len"),
        (["lr"], "has no value"),
        (["lr=1", "train.lr=2"], "set twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        parse_settings(settings, SECTIONS)
