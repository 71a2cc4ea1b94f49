import pytest
import torch

from interp.position_masks import mask_of
from tasks.errors import InputError
from tasks.prompts import Prompts

TOKENS = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])


@pytest.fixture
def prompts():
    labels = {"kind": TOKENS, "first": TOKENS == 0, "vector": torch.zeros(2, 4, 3)}
    return Prompts.from_tensors(TOKENS, labels=labels, label_names={"kind": ("zero", "one", "two", "three")})


@pytest.mark.parametrize(
    ("where", "tokens"),
    [
        ("first", {0}),
        (("first", False), {1, 2}),
        (("kind", 1), {1}),
        (("kind", "one"), {1}),
        (("kind", "zero", 2), {0, 2}),
    ],
    ids=str,
)
def test_a_label_stands_for_the_positions_that_have_its_value(prompts, where, tokens):
    expected = torch.tensor([[token in tokens for token in row] for row in TOKENS.tolist()])
    assert torch.equal(mask_of(prompts, where), expected)


def test_a_mask_stands_for_itself(prompts):
    mask = TOKENS == 2
    assert torch.equal(mask_of(prompts, mask), mask)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("segment", "'segment' is no label of these prompts: choose kind, first, vector"),
        ("kind", "label 'kind' is not true or false: say which values"),
        (("kind", "ten"), "'ten' is no value of label 'kind': choose zero, one, two, three"),
        (("kind", "one", "three"), "label 'kind' is 'three' at no position"),
        (("kind", 7), "label 'kind' is 7 at no position"),
        ("vector", r"label 'vector' is \[2, 4, 3\]"),
        (TOKENS == 9, "the mask holds at none of the 8 positions"),
        ((TOKENS == 1)[:1], r"the mask is torch.bool \[1, 4\]: give booleans \[2, 4\]"),
    ],
    ids=str,
)
def test_what_stands_for_no_position_is_refused(prompts, where, message):
    with pytest.raises(InputError, match=message):
        mask_of(prompts, where)


@pytest.mark.refusal
def test_a_mask_of_numbers_is_refused(prompts):
    with pytest.raises(InputError, match=r"the mask is torch\.int64"):
        mask_of(prompts, TOKENS)


@pytest.mark.parametrize("nothing", [(), ""])
def test_naming_nothing_is_refused(nothing):
    prompts = Prompts.from_tensors(torch.tensor([[3, 1, 2]]), labels={"kind": torch.tensor([[1, 1, 0]])})
    assert mask_of(prompts, ("kind", 1)).tolist() == [[True, True, False]]
    with pytest.raises(InputError, match=r"where = .* names nothing: give a label"):
        mask_of(prompts, nothing)
