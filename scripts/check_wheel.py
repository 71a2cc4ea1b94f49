"""See that a wheel holds the three packages and their data, and works from an empty folder: check_wheel.py WHEEL."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {"interp", "tasks", "analyses"}
DATA = (
    "tasks/data/kjv_bigrams.csv",
    "analyses/report/templates/page.html.j2",
    "analyses/report/templates/page.js",
    "analyses/report/templates/style.css",
    "interp/shipped/bietti-full-2x4/checkpoints/step-000600.safetensors",
    "interp/shipped/sparse-regression-small/checkpoints/step-030000.safetensors",
    "interp/shipped/chen2024/chen-8-linear-4/checkpoints/step-003000.safetensors",
)
TRIAL = """
import analyses, interp, tasks
from tasks import BigramICL
assert all(package.__file__.startswith({target!r}) for package in (analyses, interp, tasks)), tasks.__file__
assert BigramICL(seq_len=8).sample(2, seed=0).inputs.shape == (2, 8)
from interp import Run
from interp.cli import main
assert Run.shipped("bietti-full-2x4").model.cfg.n_heads == 4
assert Run.shipped("sparse-regression-small").model.cfg.d_in == 17
assert Run.shipped("chen2024/chen-8-linear-4").model.cfg.n_heads == 8
"""


def main(wheel: Path) -> None:
    """Exit with a message if the wheel is not whole."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != PACKAGES:
        sys.exit(f"{wheel.name} holds {sorted(tops)}, not {sorted(PACKAGES)}")
    missing = [name for name in DATA if name not in names]
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        target, empty = Path(folder, "installed"), Path(folder, "empty")
        empty.mkdir()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
        subprocess.run(pip, check=True)
        trial = TRIAL.format(target=str(target))
        environment = os.environ | {"PYTHONPATH": str(target)}
        subprocess.run([sys.executable, "-c", trial], cwd=empty, env=environment, check=True)
    print(f"{wheel.name}: {len(names)} files, works from an empty folder")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
