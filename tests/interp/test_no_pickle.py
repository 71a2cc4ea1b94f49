"""Nothing of ours reads or writes pickles, by whatever name."""

import ast
from pathlib import Path

import pytest

PACKAGES = [Path(__file__).parents[2] / name for name in ("interp", "tasks", "analyses")]
FILES = [path for package in PACKAGES for path in package.rglob("*.py")]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "np.load", "np.save", "numpy.load", "numpy.save"}


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Attribute) and (
            ast.unparse(node) in FORBIDDEN_CALLS or node.attr in ("to_pickle", "read_pickle")
        ):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source", ["import pickle", "from joblib import dump", "torch.save(x, y)", "frame.to_pickle(p)"]
)
def test_the_search_finds_what_it_looks_for(source):
    assert len(offences(source)) == 1


def test_no_file_of_ours_uses_pickle():
    assert len(FILES) > 20
    assert {path.name: found for path in FILES if (found := offences(path.read_text(encoding="utf-8")))} == {}
