import pytest
import torch

from interp.edits import Add, Clamp, ProjectOut, Replace, Scale, Zero
from tasks.errors import InputError


@pytest.fixture
def activation():
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_zero_scale_and_clamp_are_what_they_say(activation):
    assert torch.equal(Zero()(activation), torch.zeros(3, 5, 4))
    assert torch.equal(Scale(-2.0)(activation), activation * -2)
    clamped = Clamp(-0.5, 1.0)(activation)
    for before, after in zip(activation.flatten().tolist(), clamped.flatten().tolist(), strict=True):
        assert after == min(max(before, -0.5), 1.0)
    assert torch.equal(Clamp(high=0.0)(activation), -(-activation).relu())


@pytest.mark.parametrize("shape", [(4,), (5, 4), (3, 5, 4)], ids=["d", "pos d", "batch pos d"])
def test_values_are_added_where_they_belong(activation, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    added = Add(values)(activation)
    for b in range(3):
        for t in range(5):
            row = values if len(shape) == 1 else values[t] if len(shape) == 2 else values[b, t]
            assert torch.equal(added[b, t], activation[b, t] + row)


def test_a_projected_direction_is_gone_and_the_rest_is_there(activation):
    direction = torch.tensor([1.0, -2.0, 0.5, 3.0])
    projected = ProjectOut(direction)(activation)
    torch.testing.assert_close(projected @ direction, torch.zeros(3, 5), atol=1e-5, rtol=0)
    removed = activation - projected
    others = torch.linalg.svd(direction[None]).Vh[1:]  # a basis of what is orthogonal to it
    torch.testing.assert_close(removed @ others.T, torch.zeros(3, 5, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(ProjectOut(10 * direction)(activation), projected)


@pytest.mark.parametrize("edit", [Replace, Add])
@pytest.mark.parametrize("shape", [(), (3,), (1, 4), (3, 4), (3, 1, 4), (1, 5, 4), (1, 3, 5, 4)], ids=str)
def test_values_of_another_shape_are_refused_even_if_they_broadcast(activation, edit, shape):
    assert edit(torch.zeros(4))(activation).shape == activation.shape
    with pytest.raises(InputError, match=r"has shape \[.*\], the activation \[3, 5, 4\]: give \[d\]"):
        edit(torch.zeros(shape))(activation)


@pytest.mark.parametrize("other", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
def test_values_of_another_dtype_or_device_are_refused(activation, other):
    with pytest.raises(InputError, match=r"what is added is .*, the activation torch\.float32 on cpu: use \.to"):
        Add(torch.zeros(4, **other))(activation)
    with pytest.raises(InputError, match="the direction is torch"):
        ProjectOut(torch.ones(4, dtype=torch.float64))(activation)


def test_a_direction_of_another_width_is_refused(activation):
    with pytest.raises(InputError, match=r"the direction has shape \[3\], the activation \[3, 5, 4\]"):
        ProjectOut(torch.ones(3))(activation)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(float("nan")), "factor = nan is not finite"),
        (lambda: Scale(float("inf")), "factor = inf is not finite"),
        (lambda: ProjectOut(torch.zeros(4)), r"direction has the norm 0\.0"),
        (lambda: ProjectOut(torch.tensor([1.0, torch.nan])), "direction has the norm nan"),
        (lambda: Clamp(), r"Clamp\(\) bounds nothing"),
        (lambda: Clamp(1.0, 0.0), r"low = 1\.0 exceeds high = 0\.0"),
        (lambda: Clamp(low=float("nan")), "low = nan is not a number"),
    ],
    ids=["nan factor", "infinite factor", "no direction", "nan direction", "no bound", "bounds crossed", "nan bound"],
)
def test_an_edit_that_cannot_be_made_is_refused_when_it_is_written(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.refusal
def test_a_direction_that_is_no_vector_is_refused():
    with pytest.raises(InputError, match=r"direction has shape \[1, 4\]: give one vector"):
        ProjectOut(torch.ones(1, 4))
