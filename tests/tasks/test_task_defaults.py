from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tasks import InputError, Prompts, Task, TaskDefaults


@dataclass(frozen=True)
class Counting(TaskDefaults):
    """Counts upwards."""

    name: ClassVar[str] = "counting"
    d_vocab: ClassVar[int] = 7
    seq_len: int = 5

    @property
    def n_ctx(self) -> int:
        return self.seq_len

    def sample(self, n: int, *, seed) -> Prompts:
        return Prompts.from_tensors(torch.arange(self.seq_len).repeat(n, 1), seed=seed)


def test_a_dataclass_with_a_vocabulary_and_a_sample_is_a_task():
    assert isinstance(Counting(), Task)


def test_a_config_says_every_field_and_makes_the_same_task_again():
    task = Counting(seq_len=6)
    assert task.config() == {"seq_len": 6}
    assert Counting.from_config(task.config(), task.files()) == task


def test_there_is_no_curriculum():
    task = Counting()
    assert task.at_step(10) is task


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(InputError, match=r"'counting' has no field 'length'.*seq_len"):
        Counting.from_config({"length": 6}, {})


def test_a_file_is_refused():
    with pytest.raises(InputError, match=r"no use for the file 'corpus.csv'"):
        Counting.from_config({}, {"corpus.csv": b""})


def test_a_counterfactual_that_nobody_defined_is_refused():
    with pytest.raises(InputError, match=r"'counting' defines no counterfactual"):
        Counting().counterfactual(Counting().sample(2, seed=0), seed=0)
