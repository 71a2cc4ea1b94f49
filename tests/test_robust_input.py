"""Whatever is typed or found on disk: it works, or it is refused in one line, and nothing is written over.

Inputs are generated from fixed seeds (``derandomize``); the slow variants generate more of them: 2,000 in all.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp import HookedTransformer, HookedTransformerConfig, Run, TrainConfig, cli, train
from tasks import BigramICL, BigramStatistics, SparseRegression
from tasks.errors import InputError

pytestmark = pytest.mark.refusal  # wrong types must reach our own messages

TASK = BigramICL(BigramStatistics.from_text("the cat sat on the mat that the rat ate"), n_triggers=2, seq_len=8)
MODEL = HookedTransformerConfig(n_layers=1, d_model=4, n_ctx=8, d_vocab=TASK.d_vocab, attn_only=True)
TRAINING = TrainConfig(steps=2, batch_size=2, eval_prompts=2, log_every=1, checkpoint_every=1)

HOSTILE = ["", "0", "-1", "nan", "1e309", "99999999999", "1" * 400, "null", "true", "[]", "{}", "[1, 2]", '"x"', "\x00"]
HOSTILE += ["../..", "é", "*", '["*"]', '{"*": 9}', '{"*": [3, 1]}', "--", "-x", "=", "a=b", "\ud800", "%s{0}"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([2**31, 2**63, 10**30, -(10**30)]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["*", "L0H0", "relu", "LN", "causal", "sgd", "cosine", "random", "query", "signs"]),
    st.lists(st.integers(-1, 3), max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["*", "embed.W_E", "x"]), st.integers(-1, 5), max_size=2),
    st.builds(object),
)


def checked(check: Callable[..., None], n: int, **strategies) -> None:
    """Run a check on n generated inputs, the same ones every time."""
    patient = settings(
        max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    patient(given(**strategies)(check))()


def works_or_is_refused(action: Callable[[], object]) -> None:
    said = None
    try:
        action()
    except InputError as error:
        said = str(error)
    assert said is None or said.strip()
    assert "\n" not in (said or "")


def some_and_many(some: int, many: int):
    return pytest.mark.parametrize("n", [some, pytest.param(many, marks=pytest.mark.slow)])


def changes(cls, without: tuple[str, ...] = ()):
    """A few fields of a class with values of any kind."""
    names = [field.name for field in fields(cls) if field.init and field.name not in without]
    return st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=4)


@some_and_many(60, 400)
def test_any_training_config_works_or_is_refused(n):
    checked(
        lambda given: works_or_is_refused(lambda: TrainConfig(**given).refuse_contradictions()),
        n,
        given=changes(TrainConfig),
    )


@some_and_many(60, 400)
def test_any_architecture_works_or_is_refused(n):
    sound = {"n_layers": 1, "d_model": 4, "n_ctx": 3, "d_vocab": 5}
    given = changes(HookedTransformerConfig)
    checked(lambda given: works_or_is_refused(lambda: HookedTransformerConfig(**sound | given)), n, given=given)


@some_and_many(60, 300)
def test_any_task_works_or_is_refused(n):
    checked(lambda given: works_or_is_refused(lambda: SparseRegression(**given)), n, given=changes(SparseRegression))
    bigram = changes(BigramICL, without=("stats",))
    checked(lambda given: works_or_is_refused(lambda: BigramICL(TASK.stats, **given)), n, given=bigram)


ROWS = ["first,second,count", "a,b,2", "b,a,1", "a,b", 'a,"b', "a,b,x", "a,b,-1", ",,", "é,a,3", "\ud800", ""]
ROWS += ["a,b,99999999999999999999"]
TABLES = st.lists(st.sampled_from(ROWS), max_size=6).map(lambda rows: "\r\n".join(rows).encode(errors="surrogatepass"))


@some_and_many(60, 200)
def test_any_table_of_counts_works_or_is_refused(n):
    def check(data: bytes) -> None:
        works_or_is_refused(lambda: BigramStatistics.from_csv(data))

    checked(check, n, data=st.one_of(st.binary(max_size=40), TABLES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return train(TASK, MODEL, TRAINING, out=tmp_path_factory.mktemp("robust") / "run", progress=False).path


def read_everything(folder: Path) -> None:
    run = Run.load(folder)
    works_or_is_refused(lambda: run.history)
    works_or_is_refused(run.verify)
    works_or_is_refused(lambda: run.receipts)
    for step in run.steps:
        works_or_is_refused(lambda step=step: run.at(step))


@some_and_many(25, 300)
def test_a_run_with_any_damage_is_read_or_refused_and_going_on_harms_no_file(n, finished, tmp_path):
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    keys = [("train", "lr"), ("train", "steps"), ("model", "d_model"), ("task", "name"), ("task", "files"), ("format",)]

    def check(name: str, start: int, data: bytes, cut: bool, key: tuple[str, ...], value: object) -> None:
        folder = shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=False)
        try:
            content = (folder / name).read_bytes()
            start = start % (len(content) + 1)
            (folder / name).write_bytes(content[:start] + data + (b"" if cut else content[start + len(data) :]))
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                if isinstance(value, int | str | float | None):
                    (config if len(key) == 1 else config[key[0]])[key[-1]] = value
                    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            before = snapshot(folder)
            works_or_is_refused(lambda: read_everything(folder))
            assert snapshot(folder) == before
            works_or_is_refused(lambda: train(TASK, MODEL, TRAINING, out=folder, progress=False))
            after = snapshot(folder)
            assert {path: after.get(path) for path in before} == before
        finally:
            shutil.rmtree(folder)

    checked(
        check,
        n,
        name=st.sampled_from(files),
        start=st.integers(0, 10_000),
        data=st.binary(max_size=8),
        cut=st.booleans(),
        key=st.sampled_from(keys),
        value=st.one_of(st.just(object()), VALUES),
    )


# Command lines


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SMALL = ["--preset", "bietti-full", "--set", "d_model=4", "--set", "seq_len=8", "--set", "batch_size=2"]
SMALL += ["--set", "eval_prompts=2"]
SPEC = '[[ablation]]\nname = "one"\nsites = ["L0H0"]\nmethod = "zero"\nover = "batch"\n'


@pytest.fixture(scope="module")
def desk(tmp_path_factory, finished) -> Path:
    """A folder with what a user might have: a run, a text, counts, notes, a task of their own."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(finished, desk / "run")
    (desk / "notes").mkdir()
    (desk / "notes" / "thesis.txt").write_text("mine")
    (desk / "text.txt").write_text("abracadabra " * 4)
    (desk / "bad.csv").write_text("first,second\na,b\n")
    (desk / "spec.toml").write_text(SPEC)
    (desk / "own.py").write_text("1 / 0")
    return desk


BASES = [
    ["train", "bigram", *SMALL, "--steps", "1", "--out", "new"],
    ["train", "bigram", *SMALL, "--steps", "1", "--out", "notes"],
    ["train", "bigram", *SMALL, "--steps", "1", "--out", "run"],
    ["train", "bigram", *SMALL, "--steps", "1", "--counts", "bad.csv", "--out", "new"],
    ["train", "sparse-regression", "--set", "n_layers=none", "--steps", "1", "--out", "new"],
    ["train", "own.py:Task", "--out", "new"],
    ["report", "notes"],
    ["report", "run", "--prompts", "0"],
    ["report", "run", "text.txt"],
    ["ablate", "run", "--spec", "spec.toml"],
    ["ablate", "run", "--spec", "text.txt"],
    ["--nothing"],
]
SETTABLE = (TrainConfig, HookedTransformerConfig, BigramICL)
KEYS = sorted({field.name for cls in SETTABLE for field in fields(cls)} - {"steps", "d_model"})
"""All that ``--set`` reaches, and some that it does not. Long or wide trainings would work, and take their time."""

MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("drop"), st.integers(0, 20)),
        st.tuples(st.just("put"), st.integers(0, 20), st.sampled_from([*HOSTILE, "run", "notes", "text.txt"])),
        st.tuples(
            st.just("set"), st.sampled_from([*KEYS, "", "foo", "train.", "model.seed"]), st.sampled_from(HOSTILE)
        ),
    ),
    min_size=1,
    max_size=2,
)


def mutated(base: list[str], mutations: list[tuple]) -> list[str]:
    arguments = list(base)
    for kind, *rest in mutations:
        if kind == "drop":
            del arguments[rest[0] % len(arguments)]
            arguments = arguments or ["train"]
        elif kind == "put":
            # Never where a number of steps stands: what is wrong there is a test of its own, and a large one is right.
            place = rest[0] % len(arguments)
            if place == 0 or arguments[place - 1] != "--steps":
                arguments[place] = rest[1]
        else:
            arguments += ["--set", f"{rest[0]}={rest[1]}"]
    is_long = arguments[:1] == ["demo"] or (arguments[:1] == ["train"] and "--steps" not in arguments)
    return [*arguments, "--steps", "1"] if is_long else arguments


def ends_well(code: int, error: str, arguments: list[str]) -> None:
    assert code in (0, 2), (code, error, arguments)
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if not line.startswith("step ")]
    if code == 2:
        assert len(lines) == 1, (error, arguments)
        assert 10 < len(lines[0]) < 1200, (error, arguments)


@some_and_many(60, 400)
def test_any_command_line_ends_with_0_or_2_and_one_line_and_writes_nothing_over(n, desk, monkeypatch):
    monkeypatch.chdir(desk)
    before = snapshot(desk)

    def check(base: list[str], mutations: list[tuple]) -> None:
        arguments = mutated(base, mutations)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(arguments)
        ends_well(code, err.getvalue(), arguments)
        after = snapshot(desk)
        assert {path: after.get(path) for path in before} == before, arguments
        for path in after.keys() - before.keys():
            (desk / path).unlink()
        for folder in sorted((path for path in desk.iterdir() if path.is_dir()), key=str):
            if folder.name not in ("run", "notes"):
                shutil.rmtree(folder)

    checked(check, n, base=st.sampled_from(BASES), mutations=MUTATIONS)


@pytest.mark.slow
def test_30_bad_commands_as_processes_end_with_2_and_one_line_and_write_nothing_over(desk):
    keys, values = ("lr", "n_heads", "triggers", "device", "freeze_until"), ("nan", "[]", "x")
    bad = [["--set", f"{key}={value}"] for key in keys for value in values]
    bad += [["--set", "foo=1"], ["--set", "batch_size=99999999999"], ["--steps", "many"], ["--seed", "-1"]]
    bad += [
        ["--preset", "x"],
        ["--text", "no.txt"],
        ["--counts", "bad.csv"],
        ["--initial", "notes"],
        ["--device", "gpu"],
    ]
    commands = [["train", "bigram", *SMALL, "--steps", "1", "--out", "new", *more] for more in bad]
    commands += [["report", "notes"], ["report", "nowhere"], ["ablate", "run", "--spec", "spec.toml"], ["trian"], []]
    commands += [["train", "bigram", *SMALL, "--steps", "1", "--out", "notes"]]
    assert len(commands) == 30
    before = snapshot(desk)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    for arguments in commands:
        done = subprocess.run(
            [sys.executable, "-c", "from interp.cli import main; main()", *arguments],
            cwd=desk,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, (arguments, done.stderr)
        assert (done.stderr.count("\n"), "Traceback" in done.stderr) == (1, False), (arguments, done.stderr)
        assert snapshot(desk) == before, arguments


# The leftovers of wrong types, each beside what works


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda folder: train(TASK, None, out=folder), "config = None: give a preset's name"),
        (lambda folder: train(None, MODEL, out=folder), "NoneType is no task"),
        (lambda folder: train(TASK, MODEL, 3, out=folder), "train_config = 3: give a TrainConfig"),
        (lambda _folder: train(TASK, MODEL, TRAINING, out=None), "out = None: give the path"),
        (lambda _folder: train(TASK, MODEL, TRAINING, out=""), "out = '': give the path"),
        (lambda folder: train(TASK, MODEL, TRAINING, out=folder, initial=3), "initial = 3: give a HookedTransformer"),
        (lambda folder: train(TASK, MODEL, TRAINING, out=folder, interventions=["L0H0"]), "'L0H0' is no"),
        (lambda folder: train(TASK, MODEL, TRAINING, out=folder, readouts={"x": 3}), "the readout 'x'"),
        (lambda _folder: Run.load(None), "path = None: give the path"),
        (lambda _folder: Run.load(3), "path = 3: give the path"),
        (lambda _folder: Run.shipped(None), "there is no shipped run None"),
        (lambda _folder: HookedTransformer.from_pretrained(None), "None names no model"),
        (
            lambda _folder: HookedTransformerConfig(**{**vars_of(MODEL), "absent_heads": ("*",)}),
            "leaves no head at all",
        ),
        (lambda _folder: TrainConfig(batch_size=10**13), "batch_size = 10000000000000"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_and_make_no_folder(action, message, tmp_path):
    with pytest.raises(InputError) as error:
        action(tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def vars_of(config: HookedTransformerConfig) -> dict:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def test_a_mistyped_folder_beside_others_is_refused_without_asking_the_hub(tmp_path, monkeypatch):
    def asked(*_arguments, **_options):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("interp.hub.hf_hub_download", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    HookedTransformer(MODEL).save_pretrained("models/mine")
    assert HookedTransformer.from_pretrained("models/mine").cfg.d_model == 4
    for name in ("models/mien", "./mine", "~/models", "mine/", "a/b/c", str(tmp_path / "none")):
        with pytest.raises(InputError, match="is no folder"):
            HookedTransformer.from_pretrained(name)


def test_an_unknown_setting_is_answered_with_a_handful_of_names(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    assert cli.run(["train", "bigram", "--set", "foo=1", "--out", "new"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --set foo: a run has no 'foo': choose from ")
    assert said.rstrip().endswith("in all)")
    assert len(said) < 400
