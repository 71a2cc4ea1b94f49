"""What a sweep's file stands for, and what is refused in it."""

from pathlib import Path

import pytest

from interp.sweeps.sweep_file import read_sweep
from tasks import InputError

HEAD = 'task = "bigram"\n'


def test_a_grid_is_every_combination_from_every_seed(sweep_file):
    trials = read_sweep(sweep_file())
    found = [(trial.varied["d_model"], trial.varied["lr"], trial.seed) for trial in trials]
    assert found == [(width, rate, seed) for width in (8, 16) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)]
    assert len({trial.key for trial in trials}) == 12


def test_a_trial_is_set_up_as_the_command_line_would(sweep_file):
    setup = read_sweep(sweep_file())[-1].set_up()
    assert (setup.model_config.d_model, setup.train_config.lr, setup.train_config.steps) == (16, 0.3, 4)
    assert (setup.train_config.init_seed, setup.train_config.train_seed, setup.train_config.eval_seed) == (3, 4, 5)
    assert setup.train_config.momentum == 0.9  # the preset's
    assert setup.task.n_ctx == 12


def test_a_list_is_its_entries_and_beside_a_grid_each_with_each(sweep_file):
    listed = HEAD + "[[trial]]\nlr = 0.1\nd_model = 8\n[[trial]]\nlr = 0.2\n"
    assert [trial.varied for trial in read_sweep(sweep_file(listed))] == [{"lr": 0.1, "d_model": 8}, {"lr": 0.2}]
    both = read_sweep(sweep_file(listed + "[grid]\nbatch_size = [4, 8]\n"))
    assert [trial.varied["batch_size"] for trial in both] == [4, 8, 4, 8]


def test_seeds_can_be_listed(sweep_file):
    assert [trial.seed for trial in read_sweep(sweep_file(HEAD + "seeds = [7, 3]\n"))] == [7, 3]


def test_any_value_can_vary_lists_and_tables_too(sweep_file):
    text = (
        HEAD
        + 'preset = "bietti-full"\n[grid]\nbetas = [[0.9, 0.99], [0.8, 0.9]]\n"task.outputs" = ["uniform", "bigram"]\n'
    )
    setups = [trial.set_up() for trial in read_sweep(sweep_file(text))]
    assert [setup.train_config.betas for setup in setups] == [(0.9, 0.99)] * 2 + [(0.8, 0.9)] * 2
    assert [setup.task.outputs for setup in setups] == ["uniform", "bigram"] * 2


def test_a_dotted_key_is_read_with_and_without_quotes(sweep_file):
    text = 'task = "sparse-regression"\n[settings]\nn_context = 8\nsparsity = 2\nd = 4\n[grid]\n'
    for key in ('"task.n_queries"', "task.n_queries"):
        trials = read_sweep(sweep_file(text + key + " = [1, 2]\n"))
        assert [trial.set_up().task.n_queries for trial in trials] == [1, 2]
        assert [trial.varied for trial in trials] == [{"task.n_queries": 1}, {"task.n_queries": 2}]


def test_a_fields_own_table_stays_one(sweep_file):
    text = HEAD + '[settings.freeze_until]\n"blocks.*.attn.W_K" = 30\n'
    assert read_sweep(sweep_file(text))[0].set_up().train_config.freeze_until == {"blocks.*.attn.W_K": 30}


EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.toml"))


@pytest.mark.parametrize("name", ["laptop", "gpu-box", "ray-cluster"])
def test_every_trial_of_the_examples_can_be_made(name):
    trials = read_sweep(next(path for path in EXAMPLES if path.stem == name))
    assert len(trials) == {"laptop": 12, "gpu-box": 96, "ray-cluster": 288}[name]
    for trial in trials[:: len(trials) // 6]:
        setup = trial.set_up()
        assert setup.model_config.n_ctx >= setup.task.n_ctx


def test_a_trials_name_depends_on_what_it_is_and_not_on_the_rest_of_the_file(sweep_file):
    keys = {trial.label: trial.key for trial in read_sweep(sweep_file())}
    more = {
        trial.label: trial.key
        for trial in read_sweep(sweep_file(**{"[8, 16]": "[16, 8, 32]", "seeds = 2": "seeds = 3"}))
    }
    assert len(more) == 27
    assert all(more[label] == key for label, key in keys.items())
    other = {trial.key for trial in read_sweep(sweep_file(**{"steps = 4": "steps = 5"}))}
    assert not other & set(keys.values())


def test_a_corpus_is_seen_from_the_file_and_its_content_counts(sweep_file, tmp_path):
    (tmp_path / "corpus.txt").write_text("abracadabra " * 5)
    text = 'task = "bigram"\ntext = "corpus.txt"\n[settings]\nn_triggers = 2\n'
    one = read_sweep(sweep_file(text))[0]
    assert one.set_up().task.stats.vocab == (" ", "a", "b", "c", "d", "r")
    (tmp_path / "corpus.txt").write_text("simsalabim " * 5)
    assert read_sweep(sweep_file(text))[0].key != one.key


def test_a_combination_that_cannot_be_among_others_that_can_is_a_trial(sweep_file):
    assert len(read_sweep(sweep_file(HEAD + "[grid]\nlr = [-1.0, 0.1]\n"))) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task = ", "is no TOML file"),
        ('preset = "bietti-full"\n', "SweepFile.task is missing"),
        ('task = "bigrams"\n', "there is no task 'bigrams'"),
        (HEAD + 'preset = "bietti"\n', "the list of presets has no 'bietti'"),
        (HEAD + "grids = 1\n", "the file has no 'grids': did you mean grid"),
        (HEAD + "[grid]\nd_modle = [1]\n", "d_modle: a run has no 'd_modle': did you mean d_model"),
        (HEAD + "[settings]\nd_modle = 1\n", "did you mean d_model"),
        (HEAD + "[grid]\nlr = 0.1\n", r"grid.lr = 0.1 is no list: write \[0.1\]"),
        (HEAD + "[grid]\nlr = []\n", "grid.lr is empty"),
        (HEAD + "[settings]\nlr = 0.1\n[grid]\nlr = [0.2]\n", "train.lr is set twice"),
        (HEAD + "[grid]\nlr = [0.2]\n[[trial]]\nlr = 0.1\n", r"lr stands both in \[grid\] and in \[\[trial\]\]"),
        (HEAD + "[trial]\nlr = 0.1\n", r"write \[\[trial\]\]"),
        (HEAD + "[grid]\nlr = [0.1, 0.1]\n", "lr = 0.1, seed = 0 is there twice"),
        (HEAD + "seeds = 0\n", "seeds = 0: give how many"),
        (HEAD + "seeds = true\n", "seeds = True"),
        (HEAD + "seeds = [1, 1]\n", "each once"),
        (HEAD + "seeds = [-1]\n", "seed = -1"),
        (HEAD + "[grid]\nlr = [-1.0, -2.0]\n", "lr = -1.0: expected a number above 0"),
        (HEAD + "[resources]\ncpus = 0\n", "cpus = 0"),
        (HEAD + "[resources]\ngpus = 1.5\n", "gpus = 1.5"),
        (HEAD + "[resources]\nram = 1\n", "Resources has no 'ram'"),
        (HEAD + "resources = 3\n", r"write \[resources\]"),
        (HEAD + "[grid]\nlr = 3\nseeds = 1\n", "is no list"),
        (HEAD + "settings = 3\n", "settings"),
        (HEAD + "grid = 3\n", "grid"),
        (HEAD + "trial = 3\n", "trial"),
        (HEAD + "[grid]\nlr = [" + "1, " * 400 + "]\nsteps = [" + "1, " * 400 + "]\n", "more than 100000 combinations"),
        (
            HEAD + "[grid]\n" + "".join(f"{key} = {[*range(400)]}\n" for key in ("lr", "steps", "d_model", "seq_len")),
            "100000",
        ),
        (HEAD + "seeds = 99999999999\n", "more than 100000 combinations and seeds"),
        (HEAD + 'seeds = "2"\n', "seeds = '2': give how many, or a list of whole numbers"),
        (HEAD + "seeds = [1.5]\n", r"seeds = \[1.5\]: give how many"),
        (HEAD + "[resources]\ngpus = nan\n", "gpus = nan"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_file(sweep_file, text, says):
    path = sweep_file(text)
    with pytest.raises(InputError, match=says) as refused:
        read_sweep(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")
