"""Train the runs that come with the package, and keep of each what reading it needs: make_shipped_runs.py [NAME].

    python scripts/make_shipped_runs.py bietti-full-2x4

Each is trained by the command named here; its folder under interp/shipped keeps config, history and the last weights.
Optimiser states and earlier checkpoints are left out, so a shipped run can be read but not continued.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "interp" / "shipped"
COMMANDS = {
    "bietti-full-2x4": (
        "interp train bigram --preset bietti-full --steps 600 --set n_heads=4 --set d_model=64 --set seq_len=64 "
        "--set scored=all --set lr=0.003 --set schedule=cosine --set warmup_steps=50 --set log_every=20 "
        "--set checkpoint_every=600"
    ),
    "sparse-regression-small": (
        "interp train sparse-regression --preset sparse-regression-small --set weights=signs --set task.n_queries=16"
    ),
}


def main(names: list[str]) -> None:
    """Make the named runs, or all."""
    for name in names or list(COMMANDS):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / name
            program = [sys.executable, "-c", "from interp.cli import main; main()"]
            subprocess.run([*program, *COMMANDS[name].split()[1:], "--out", str(made)], check=True)
            keep(made, SHIPPED / name)
        size = sum(path.stat().st_size for path in (SHIPPED / name).rglob("*") if path.is_file())
        print(f"{name}: {size / 1e6:.2f} MB")


def keep(made: Path, shipped: Path) -> None:
    """Copy all but optimiser states and all checkpoints but the last."""
    last = max((made / "checkpoints").glob("step-*.safetensors"))
    shutil.rmtree(shipped, ignore_errors=True)
    shutil.copytree(made, shipped, ignore=shutil.ignore_patterns("checkpoints"))
    (shipped / "checkpoints").mkdir()
    shutil.copy(last, shipped / "checkpoints")


if __name__ == "__main__":
    main(sys.argv[1:])
