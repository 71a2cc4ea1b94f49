"""The command line: exit codes, one line for wrong input, nothing written over, resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interp import Run, cli

TINY = ["--preset", "bietti-full", "--set", "d_model=8", "--set", "seq_len=12", "--set", "batch_size=4"]
TINY += ["--set", "eval_prompts=8", "--set", "log_every=5", "--set", "checkpoint_every=5", "--steps", "15"]


@pytest.fixture
def interp(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def interp(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return interp


def in_a_process(*arguments, cwd, before="") -> subprocess.CompletedProcess:
    script = f"import sys\n{before}\nfrom interp.cli import main\nmain()"
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_training_ends_with_0_and_says_where_and_how_good(interp, tmp_path):
    code, out, _ = interp("train", "bigram", *TINY, "--out", "run")
    assert code == 0
    assert out.startswith("run: 15 steps, loss ")
    run = Run.load(tmp_path / "run")
    assert run.steps == [0, 5, 10, 15]
    assert (run.config.d_model, run.task.n_ctx, run.train_config.batch_size) == (8, 12, 4)
    assert run.train_config.lr == 1e-3  # the preset's, which nobody set


def test_a_seed_derives_all_three(interp, tmp_path):
    assert interp("train", "bigram", *TINY, "--seed", 5, "--out", "run")[0] == 0
    config = Run.load(tmp_path / "run").train_config
    assert (config.init_seed, config.train_seed, config.eval_seed) == (15, 16, 17)
    assert Run.load(tmp_path / "run").config.seed == 15


def test_ones_own_corpus_is_read(interp, tmp_path):
    (tmp_path / "text.txt").write_text("abracadabra " * 5)
    (tmp_path / "counts.csv").write_text("first,second,count\na,b,3\nb,a,2\nb,c,1\nc,a,1\n")
    small = ["--set", "n_triggers=2"]
    assert interp("train", "bigram", *TINY, *small, "--text", "text.txt", "--out", "one")[0] == 0
    assert interp("train", "bigram", *TINY, *small, "--counts", "counts.csv", "--out", "two")[0] == 0
    assert Run.load(tmp_path / "one").task.stats.vocab == (" ", "a", "b", "c", "d", "r")
    assert Run.load(tmp_path / "two").task.stats.vocab == ("a", "b", "c")


def test_the_recall_of_the_memories_is_logged_for_the_simplified_model(interp, tmp_path):
    settings = ["--set", "d_model=8", "--set", "seq_len=12", "--set", "eval_prompts=8", "--steps", "2"]
    for preset in ("bietti-simplified", "bietti-simplified-ff"):
        assert interp("train", "bigram", "--preset", preset, *settings, "--out", preset)[0] == 0
    plain, memory = (set(Run.load(tmp_path / name).history) for name in ("bietti-simplified", "bietti-simplified-ff"))
    assert {"recall_W_O2", "recall_W_K1", "recall_W_K2"} < plain
    assert memory - plain == {"kl_W_F"}


OWN_TASK = """
from dataclasses import dataclass
from typing import ClassVar
from tasks import BigramICL

@dataclass(frozen=True)
class Mine(BigramICL):
    name: ClassVar[str] = "mine"

class NoTask:
    pass
"""


def test_a_task_of_ones_own_is_trained_from_its_file(interp, tmp_path):
    (tmp_path / "own.py").write_text(OWN_TASK)
    assert interp("train", "own.py:Mine", *TINY, "--out", "run")[0] == 0
    code, *said = interp("report", "run")
    assert code == 2
    assert "--task file.py:Class" in "".join(map(str, said))
    assert interp("report", "run", "--task", "own.py:Mine", "--prompts", "64")[0] == 0
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"]["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        ([], "Missing command"),
        (["train", "bigram"], "Missing option '--out'"),
        (["train", "bigram", "--out", "run", "--steps", "many"], "--steps"),
        (["train", "bigram", "--out", "run", "--steps", "0"], "steps = 0"),
        (["train", "bigram", "--out", "run", "--seed", "-1"], "seed = -1"),
        (["train", "bigram", "--out", "run", "--device", "gpu7"], "device = 'gpu7' cannot be used here"),
        (["train", "bigrm", "--out", "run"], "there is no task 'bigrm'"),
        (["train", "bigram", "--out", "run", "--preset", "bieti-full"], "did you mean bietti-full"),
        (["train", "bigram", "--out", "run", "--set", "seq_len"], "has no value"),
        (["train", "bigram", "--out", "run", "--set", "seqlen=3"], "did you mean seq_len"),
        (["train", "bigram", "--out", "run", "--set", "stats=3"], "has no 'stats'"),
        pytest.param(
            ["train", "bigram", "--out", "run", "--set", "seq_len=short"],
            "seq_len = 'short'",
            marks=pytest.mark.refusal,
        ),
        (["train", "bigram", "--out", "run", "--set", "model.seed=3"], "did you mean"),
        (["train", "bigram", "--out", "run", "--set", "d_model=8", "--set", "d_model=8"], "set twice"),
        (["train", "bigram", "--out", "run", "--steps", "3", "--set", "steps=4"], "--steps and --set steps"),
        (["train", "bigram", "--out", "run", "--text", "no.txt"], "no.txt does not exist"),
        (["train", "bigram", "--out", "run", "--text", "a", "--counts", "b"], "two corpora"),
        (["train", "no.py:Task", "--out", "run"], "no.py does not exist"),
        (["train", "own.py:Other", "--out", "run"], "has no class 'Other'"),
        (["train", "own.py:NoTask", "--out", "run"], "is no task: it lacks name"),
        (["train", "broken.py:Task", "--out", "run"], "broken.py cannot be loaded (ZeroDivisionError"),
        (["report", "nowhere"], "config.json does not exist"),
    ],
)
def test_wrong_input_ends_with_2_and_one_line_and_no_folder(interp, tmp_path, arguments, message):
    (tmp_path / "own.py").write_text(OWN_TASK)
    (tmp_path / "broken.py").write_text("1 / 0")
    code, out, error = interp(*arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("interp-error-*"))


def test_another_training_in_the_same_folder_ends_with_2_and_changes_nothing(interp, tmp_path):
    assert interp("train", "bigram", *TINY, "--out", "run")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    code, _, error = interp("train", "bigram", *TINY, "--set", "lr=0.5", "--out", "run")
    assert code == 2
    assert "train.lr = 0.001 there and 0.5 here" in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_diverged_training_ends_with_2_and_says_what_to_do(interp):
    settings = ["--set", "optimizer=sgd", "--set", "lr=1e30"]
    code, _, error = interp("train", "bigram", *TINY, *settings, "--out", "run")
    assert code == 2
    assert "is not finite" in error
    assert "grad_clip" in error


def test_a_bug_of_ours_ends_with_1_and_one_line_that_names_the_saved_traceback(interp, tmp_path, monkeypatch):
    def planted(*_arguments, **_options):
        raise RuntimeError("planted\nbug")

    monkeypatch.setattr("interp.training.train", planted)
    for _ in range(2):
        code, _, error = interp("train", "bigram", *TINY, "--out", "run")
        assert code == 1
        assert error.startswith("internal error: RuntimeError: planted bug")
        assert error.count("\n") == 1
    first, second = tmp_path.glob("interp-error-*.txt")
    assert str(first) in error or str(second) in error
    assert "in planted\n" in first.read_text()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(interp, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt("stopped after step 3 of 9: the same call continues")

    monkeypatch.setattr("interp.training.train", interrupted)
    code, _, error = interp("train", "bigram", *TINY, "--out", "run")
    assert (code, error) == (130, "stopped after step 3 of 9: the same call continues\n")


def test_regression_is_trained_pruned_retrained_and_compared(interp, tmp_path):
    small = ["sparse-regression", "--set", "d=4", "--set", "sparsity=1", "--set", "n_context=6", "--set", "d_model=8"]
    small += ["--set", "eval_prompts=8", "--set", "batch_size=4", "--steps", "4"]
    code, out, _ = interp("train", *small, "--out", "whole")
    assert code == 0
    assert "excess_risk" in out
    assert Run.load(tmp_path / "whole").config.attn_fn == "linear"  # the default preset of vectors
    pruned = ["--set", 'absent_heads=["L1H[1-7]"]', "--initial", "whole", "--out", "pruned"]
    assert interp("train", *small, *pruned)[0] == 0
    start = Run.load(tmp_path / "pruned").at(0)
    assert torch.equal(start.W_E, Run.load(tmp_path / "whole").model.W_E)
    assert interp("report", "whole", "pruned", "--prompts", "40", "--out", "both")[0] == 0
    facts = json.loads((tmp_path / "both" / "report.json").read_text(encoding="utf-8"))
    assert facts["settings"]["whole"]["report"]["n_prompts"] == 40
    assert "excess_risk" in (tmp_path / "both" / "tables" / "performance.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (OSError(36, "File name too long", "runs/" + "a" * 300), "too long for this file system"),
    ],
)
def test_sizes_and_names_beyond_the_machine_are_the_users(interp, monkeypatch, tmp_path, error, message):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("interp.training.train", fail)
    code, _, said = interp("train", "bigram", *TINY, "--out", "run")
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # no traceback is kept of what is no defect


def test_an_initial_run_that_does_not_exist_is_refused(interp, tmp_path):
    code, _, error = interp("train", "bigram", *TINY, "--initial", "nowhere", "--out", "run")
    assert code == 2
    assert "give the folder of a run" in error
    assert not (tmp_path / "run").exists()


def test_a_report_is_never_written_over(interp, tmp_path):
    assert interp("train", "bigram", *TINY, "--out", "run")[0] == 0
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "report.html").write_text("mine")
    code, _, error = interp("report", "run")
    assert code == 2
    assert "holds a report already" in error
    assert (tmp_path / "run" / "report" / "report.html").read_text() == "mine"


def test_the_demo_trains_reports_once_and_says_where(interp, tmp_path, monkeypatch):
    reported = []

    def write_report(run, out, n_prompts):
        reported.append(run.path)
        out.mkdir()
        (out / "report.html").write_text("a page")
        return out / "report.html"

    monkeypatch.setattr("analyses.write_report", write_report, raising=False)
    for _ in range(2):
        code, out, _ = interp("demo", "--steps", 1, "--out", "run")
        assert (code, out.splitlines()[-1]) == (0, "report: run/report/report.html")
    assert reported == [Path("run")]
    run = Run.load(tmp_path / "run")
    assert run.task.scored == "all"
    assert run.config.mlp_type == "linear"


def test_help_and_version_end_with_0(interp):
    code, out, _ = interp("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "train", "report"))
    code, out, _ = interp("--version")
    assert code == 0
    assert out.startswith("interp ")


def test_help_imports_nothing_heavy(tmp_path):
    heavy = "{'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)"
    watch = f"import atexit\natexit.register(lambda: print('HEAVY', sorted({heavy})))"
    done = in_a_process("--help", cwd=tmp_path, before=watch)
    assert done.returncode == 0
    assert "HEAVY []" in done.stdout


def test_the_process_ends_with_the_exit_code_and_no_traceback(tmp_path):
    done = in_a_process("train", "bigrm", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no task 'bigrm'")
    assert done.stderr.count("\n") == 1


def test_a_killed_process_loses_nothing_but_time(interp, tmp_path):
    assert interp("train", "bigram", *TINY, "--out", "whole")[0] == 0
    # The process dies with the weights of step 10 half written, its state complete.
    kill = (
        "import os, pathlib, torch\n"
        "torch.set_num_threads(1)\n"
        "rename = pathlib.Path.replace\n"
        "def dying(self, other):\n"
        "    if other.name == 'step-000010.safetensors':\n"
        "        self.write_bytes(self.read_bytes()[:100])\n"
        f"        os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "    return rename(self, other)\n"
        "pathlib.Path.replace = dying"
    )
    done = in_a_process("train", "bigram", *TINY, "--out", "killed", cwd=tmp_path, before=kill)
    assert done.returncode == -signal.SIGKILL
    assert Run.load(tmp_path / "killed").steps == [0, 5]
    assert interp("train", "bigram", *TINY, "--out", "killed")[0] == 0
    whole, killed = Run.load(tmp_path / "whole"), Run.load(tmp_path / "killed")
    weights = zip(whole.model.state_dict().values(), killed.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)
    assert killed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["nosuch", "--out", "new"], "there is no paper 'nosuch' to reproduce: choose from"),
        (["chen2024", "--scale", "huge", "--out", "new"], "scale = 'huge' is unknown: choose from quick, full"),
        (["chen2024", "--workers", "0", "--out", "new"], "'--workers': Input should be greater than or equal to 1"),
        (["chen2024", "--out", "file"], "file is a file: give a folder"),
        (["chen2024"], "Missing option '--out'"),
    ],
)
@pytest.mark.refusal
def test_a_reproduction_that_cannot_be_is_one_line_and_leaves_nothing(interp, tmp_path, wrong, said):
    (tmp_path / "file").write_text("")
    code, _, err = interp("reproduce", *wrong)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
