import pytest
import torch

from analyses.separate_prompts import refuse_same_prompts
from tasks.errors import InputError
from tasks.prompts import Prompts

TOKENS = torch.arange(12).reshape(6, 2)


def test_other_prompts_pass():
    refuse_same_prompts(Prompts.from_tensors(TOKENS[:3]), Prompts.from_tensors(TOKENS[3:]), "fit")
    refuse_same_prompts(Prompts.from_tensors(TOKENS, seed=1), Prompts.from_tensors(TOKENS + 1, seed=2), "fit")


def test_equal_prompts_of_different_seeds_are_chance_and_pass():
    refuse_same_prompts(Prompts.from_tensors(TOKENS, seed=1), Prompts.from_tensors(TOKENS, seed=2), "fit")


@pytest.mark.parametrize("seeds", [(None, None), (None, 1), (1, None)])
def test_a_shared_prompt_is_refused_where_a_seed_is_unknown(seeds):
    first, second = Prompts.from_tensors(TOKENS[:4], seed=seeds[0]), Prompts.from_tensors(TOKENS[2:], seed=seeds[1])
    with pytest.raises(InputError, match="2 of the 4 prompts of fit are also judged on: give fit other prompts"):
        refuse_same_prompts(first, second, "fit")


def test_one_object_one_seed_and_no_prompts_are_refused():
    prompts = Prompts.from_tensors(TOKENS, seed=(3, 1))
    with pytest.raises(InputError, match="fit are the prompts that are judged on"):
        refuse_same_prompts(prompts, prompts, "fit")
    with pytest.raises(InputError, match=r"fit and prompts were drawn with the same seed, \(3, 1\): use another"):
        refuse_same_prompts(prompts[:2], prompts[2:], "fit")
    with pytest.raises(InputError, match="fit holds 0 prompts"):
        refuse_same_prompts(prompts[:0], prompts, "fit")
