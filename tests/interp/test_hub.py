"""Saving, loading and sharing models, without the network: the hub is a folder."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from analyses import ablate_heads, attribute_heads
from interp import HookedTransformer, HookedTransformerConfig, InputError
from tasks.prompts import Prompts


@pytest.fixture
def model():
    cfg = {"n_layers": 2, "d_model": 8, "n_heads": 2, "n_ctx": 6, "d_vocab": 7, "normalization_type": "LN", "seed": 3}
    return HookedTransformer(HookedTransformerConfig(**cfg))


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that is a folder per repository."""
    root = tmp_path / "hub"

    def download(repo_id, filename, **options):
        path = root / repo_id / filename
        if not path.exists():
            raise LocalEntryNotFoundError(f"{filename} is not there")
        return str(path)

    def create_repo(self, repo_id, **options):
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **options):
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
        return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("interp.hub.hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return root


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def reweigh(path, change):
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path)


def test_a_loaded_model_is_the_saved_one(model, saved):
    again = HookedTransformer.from_pretrained(saved)
    assert same(again, model)
    assert again.cfg == model.cfg


def test_a_folder_holds_no_pickle(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_precision_is_kept(model, tmp_path):
    model.double().save_pretrained(tmp_path)
    assert HookedTransformer.from_pretrained(tmp_path).unembed.W_U.dtype == torch.float64


def test_a_model_without_biases_and_with_frozen_parts_comes_back(tmp_path):
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=4, d_vocab=5, use_biases=False, identity_queries=True, mlp_type="linear",
        mlp_layers=(1,), frozen=("embed.W_E",),
    )  # fmt: skip
    model = HookedTransformer(cfg)
    model.save_pretrained(tmp_path)
    again = HookedTransformer.from_pretrained(str(tmp_path))
    assert same(again, model)
    assert not again.embed.W_E.requires_grad


def test_the_analyses_of_a_loaded_model_are_the_same_in_a_new_process(model, saved, tmp_path):
    script = (
        "import sys, torch\n"
        "from analyses import ablate_heads, attribute_heads\n"
        "from interp import HookedTransformer\n"
        "from tasks.prompts import Prompts\n"
        "model = HookedTransformer.from_pretrained(sys.argv[1])\n"
        "prompts = Prompts.from_tensors(torch.randint(7, (20, 6), generator=torch.Generator().manual_seed(0)))\n"
        "torch.set_num_threads(1)\n"
        "ablate_heads(model, prompts).frame.to_csv(sys.argv[2] + '/ablation')\n"
        "attribute_heads(model, prompts).frame.to_csv(sys.argv[2] + '/attribution')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(saved), str(tmp_path)], check=True)
    prompts = Prompts.from_tensors(torch.randint(7, (20, 6), generator=torch.Generator().manual_seed(0)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {"ablation": ablate_heads(model, prompts), "attribution": attribute_heads(model, prompts)}
    finally:
        torch.set_num_threads(threads)
    for name, result in expected.items():  # CSV holds the shortest digits that give each float back
        assert (tmp_path / name).read_text() == result.frame.to_csv()


def test_saving_twice_writes_over_the_first(model, saved):
    other = HookedTransformer(HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=3, d_vocab=5))
    other.save_pretrained(saved)
    assert same(HookedTransformer.from_pretrained(saved), other)


def test_a_run_folder_is_never_written_to(model, tmp_path):
    for name in ("checkpoints", "task"):
        run = tmp_path / name
        (run / name).mkdir(parents=True)
        (run / "config.json").write_text('{"task": {}, "train": {}}')
        with pytest.raises(InputError, match=f"holds other files .{name}"):
            model.save_pretrained(run)
        assert (run / "config.json").read_text() == '{"task": {}, "train": {}}'
    (run / "task").rmdir()
    with pytest.raises(InputError, match=r"its config\.json would be lost"):
        model.save_pretrained(run)
    assert (run / "config.json").exists()


@pytest.mark.parametrize("name", ["notes.txt", "README.md"])
def test_a_folder_with_other_files_is_never_written_to(model, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds other files .{name}"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_no_folder(model, saved):
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(saved / "config.json")
    with pytest.raises(InputError, match="is no folder"):
        HookedTransformer.from_pretrained(saved / "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["model"].update(n_head=2), "n_head"),
        (lambda record: record["model"].pop("n_layers"), "n_layers is missing"),
        (lambda record: record["model"].update(act_fn="tanh"), "act_fn = 'tanh' is no"),
        (lambda record: record.update(extra=1), "holds extra, format, model"),
        (lambda record: record.pop("format"), "does not describe a saved HookedTransformer"),
        (lambda record: record.update(task={}, train={}), "is a run: use Run.load"),
    ],
)
def test_a_changed_config_is_refused(saved, change, message):
    rewrite(saved / "config.json", change)
    with pytest.raises(InputError, match=message):
        HookedTransformer.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("blocks.1.attn.W_K"), r"lacks blocks\.1\.attn\.W_K"),
        (lambda weights: weights.update(other=torch.zeros(2)), "has other, which the model does not have"),
        (lambda weights: weights.update({"unembed.b_U": torch.zeros(3)}), r"unembed\.b_U has shape \[3\]"),
        (lambda weights: weights.update({"unembed.b_U": torch.zeros(7, dtype=torch.float64)}), "one floating type"),
        (lambda weights: weights.clear(), "holds nothing"),
    ],
)
def test_changed_weights_are_refused_by_name(saved, change, message):
    reweigh(saved / "model.safetensors", change)
    with pytest.raises(InputError, match=message):
        HookedTransformer.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_refused(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes()[:40])
    with pytest.raises(InputError, match=f"{name} (is damaged|cannot be read)"):
        HookedTransformer.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name} does not exist"):
        HookedTransformer.from_pretrained(saved)


def test_a_pickle_is_never_opened(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
        HookedTransformer.from_pretrained(saved)


def test_a_model_pushed_to_the_hub_comes_back_from_there(model, hub):
    assert model.push_to_hub("someone/circuit") == "https://huggingface.co/someone/circuit/commit/1"
    assert sorted(path.name for path in (hub / "someone" / "circuit").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert same(HookedTransformer.from_pretrained("someone/circuit"), model)


def test_a_repository_that_does_not_exist_is_refused(hub):
    with pytest.raises(InputError, match="someone/else is no folder here, and the hub gives no model of that name"):
        HookedTransformer.from_pretrained("someone/else")
    with pytest.raises(InputError, match="is no folder"):
        HookedTransformer.from_pretrained("/no/such/folder")


def test_a_model_of_another_library_is_refused(hub):
    (hub / "someone" / "gpt2").mkdir(parents=True)
    (hub / "someone" / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 12}))
    (hub / "someone" / "gpt2" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="does not describe a saved HookedTransformer"):
        HookedTransformer.from_pretrained("someone/gpt2")


def test_config_json_holds_every_field(model, saved):
    record = json.loads((saved / "config.json").read_text())
    assert record["model"] == json.loads(json.dumps(asdict(model.cfg)))
