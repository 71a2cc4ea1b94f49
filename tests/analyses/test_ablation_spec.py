import pytest

from analyses.ablation_spec import read_ablation_spec
from tasks import InputError


def spec_file(tmp_path, text: str):
    path = tmp_path / "ablations.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_set_takes_its_fields_from_the_file_and_the_rest_by_default(tmp_path):
    path = spec_file(tmp_path, 'seed = 3\n[[ablation]]\nname = "a"\nsites = ["L0H0", "L1.mlp"]\nmetric = "accuracy"\n')
    spec = read_ablation_spec(path)
    assert (spec.seed, spec.n_prompts) == (3, 512)
    (one,) = spec.ablation
    assert (one.name, one.sites, one.metric, one.method, one.by) == (
        "a",
        ("L0H0", "L1.mlp"),
        ("accuracy",),
        "mean",
        None,
    )


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed = ", "is no TOML file"),
        ("", r"has no \[\[ablation\]\]"),
        ("sed = 1", "no 'sed': did you mean seed"),
        ('[ablation]\nname = "a"', r"write \[\[ablation\]\]"),
        ('[[ablation]]\nname = "a"\nsites = []', "has no sites"),
        ('[[ablation]]\nname = "a"', "ablation 1: sites is missing in an ablation"),
        ('[[ablation]]\nname = " "\nsites = ["L0H0"]', "name is empty"),
        ('[[ablation]]\nname = "a"\nsites = ["L0H0"]\nmethod = "meen"', "method = 'meen'"),
        ('[[ablation]]\nname = "a"\nsites = ["L0H0"]\nmetric = ["los"]', "'los'"),
        ('[[ablation]]\nname = "a"\nsites = ["L0H0"]\nmethod = "zero"\nreference_seed = 1', "drop reference_seed"),
        ('[[ablation]]\nname = "a"\nsite = ["L0H0"]', "did you mean sites"),
        ('n_prompts = 1\n[[ablation]]\nname = "a"\nsites = ["L0H0"]', "need 2 to 100000"),
        ('n_prompts = 1000000000000\n[[ablation]]\nname = "a"\nsites = ["L0H0"]', "need 2 to 100000"),
        ('[[ablation]]\nname = "a"\nsites = ["L0H0"]\n[[ablation]]\nname = "a"\nsites = ["L0H0"]', "two ablations"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_line(tmp_path, text, complaint):
    path = spec_file(tmp_path, text)
    with pytest.raises(InputError, match=complaint) as refusal:
        read_ablation_spec(path)
    assert "\n" not in str(refusal.value)
    assert "ablations.toml" in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_ablation_spec(tmp_path / "none.toml")
