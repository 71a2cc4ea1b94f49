import math

import pytest
import torch

from analyses.metrics import Metric, as_metrics, groups
from tasks.errors import InputError
from tasks.prompts import Prompts

LOGITS = torch.tensor([[[0.0, math.log(3.0)], [5.0, 0.0], [0.0, 0.0]]])
PROMPTS = Prompts.from_tensors(
    torch.tensor([[0, 1, 1]]),
    targets=torch.tensor([[1, 1, 0]]),
    scored=torch.tensor([[True, True, False]]),
    wrong=torch.tensor([[0, 0, 1]]),
)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("loss", -math.log(0.75) + math.log(1 + math.exp(5))),
        ("accuracy", 1.0),
        ("logit_diff", math.log(3) - 5),
        ("prob", 0.75 + 1 / (1 + math.exp(5))),
        ("kl", (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) + 0.0),
    ],
)
def test_a_metric_worked_out_by_hand(name, total):
    clean = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [9.0, 0.0]]])
    sums, counts = Metric.of(name).measure(LOGITS, PROMPTS, clean)
    assert sums.item() == pytest.approx(total, abs=1e-5)
    assert counts.item() == 2


@pytest.mark.parametrize("name", ["loss", "logit_diff", "prob", "kl"])
def test_an_infinity_where_nobody_scores_does_not_spread(name):
    outputs = LOGITS.clone()
    outputs[0, 2] = torch.tensor([-math.inf, 0.0])
    sums, _ = Metric.of(name).measure(outputs, PROMPTS, LOGITS)
    assert sums.isfinite().all()
    assert sums.item() == pytest.approx(Metric.of(name).measure(LOGITS, PROMPTS, LOGITS)[0].item())


@pytest.mark.parametrize("name", ["accuracy", "logit_diff", "prob", "kl"])
def test_metrics_of_tokens_are_refused_for_real_valued_targets(name):
    prompts = Prompts.from_tensors(torch.zeros(2, 3, 4), targets=torch.zeros(2, 3), wrong=torch.ones(2, 3))
    outputs = torch.zeros(2, 3, 1)
    assert Metric.of("loss").measure(outputs, prompts, outputs)[0].tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="needs token targets"):
        Metric.of(name).measure(outputs, prompts, outputs)


def test_a_metric_knows_which_way_is_worse():
    falls = ("accuracy", "logit_diff", "prob")
    assert {name: Metric.of(name).worse for name in falls} == dict.fromkeys(falls, -1)
    rises = ("loss", "excess_risk", "kl", lambda outputs, prompts: outputs[:, 0, 0])  # noqa: ARG005
    assert [Metric.of(one).worse for one in rises] == [1, 1, 1, 1]


def test_several_metrics_keep_their_order():
    assert [metric.name for metric in as_metrics(["kl", "loss"])] == ["kl", "loss"]
    assert [metric.name for metric in as_metrics("prob")] == ["prob"]


def test_values_of_a_label_are_said_in_words_where_there_are_any():
    labels = torch.tensor([[0, 1, 2], [2, 2, -1]])
    prompts = Prompts.from_tensors(
        torch.zeros(2, 3, dtype=torch.long),
        targets=torch.zeros(2, 3, dtype=torch.long),
        labels={"kind": labels, "bare": labels},
        label_names={"kind": ("zero", "one")},
    )
    assert [group.value for group in groups(prompts, "bare")] == [-1, 0, 1, 2]
    assert [group.value for group in groups(prompts, "kind")] == [-1, "zero", "one", 2]
    masks = {group.value: group.of(prompts).scored for group in groups(prompts, "kind")}
    assert torch.equal(masks["one"], labels == 1)
    assert sum(int(mask.sum()) for mask in masks.values()) == 6
