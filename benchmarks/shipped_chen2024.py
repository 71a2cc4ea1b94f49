"""The checkpoints in interp/shipped/chen2024, made again: 1, 2, 4 and 8 heads from 5 seeds each.

    python benchmarks/shipped_chen2024.py --out DIR [--workers N] [--to interp/shipped/chen2024]

Trains them all in DIR (about 75 s of one core each; called again it goes on where it stopped), compares each with the
shipped one and prints how far the weights are apart: 0 on the processor they were made on. With ``--to`` what ships
of each run is written there: config.json, history.csv and the last checkpoint with its checksum.
"""

import argparse
import json
from pathlib import Path

from analyses.papers.chen2024.checkpoints import checkpoint_name, digest_of
from analyses.papers.chen2024.setting import HEADS, SEEDS, training
from analyses.papers.workers import do_jobs
from interp import Run
from interp.atomic_files import write_atomically
from interp.checkpoints import MANIFEST_FILE, weights_path
from tasks.errors import InputError


def main() -> None:
    """Train, compare, and ship if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--to", type=Path, default=None)
    chosen = parser.parse_args()
    jobs = {checkpoint_name(n_heads, seed): training(n_heads, seed) for seed in SEEDS for n_heads in HEADS}
    do_jobs(list(jobs.values()), chosen.out, workers=chosen.workers)
    for name, job in jobs.items():
        run = job.outcome(chosen.out / job.key)
        print(f"{name}: {beside_shipped(run, name)}")
        if chosen.to is not None:
            ship(run, chosen.to / Path(name).name)


def beside_shipped(run: Run, name: str) -> str:
    """How far the run's weights are from the shipped ones."""
    try:
        shipped = Run.shipped(name).model.state_dict()
    except InputError:
        return "none is shipped"
    trained = run.model.state_dict()
    apart = max(float((shipped[key] - trained[key]).abs().max()) for key in shipped)
    return "bit for bit as shipped" if apart == 0 else f"up to {apart:.2g} per weight from the shipped ones"


def ship(run: Run, folder: Path) -> None:
    """Write what ships of a run: how it came to be, its history and its last checkpoint, without optimiser state."""
    last = weights_path(run.path, run.steps[-1])
    there = weights_path(folder, run.steps[-1])
    there.parent.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "history.csv"):
        write_atomically(folder / name, (run.path / name).read_bytes())
    manifest = json.dumps({"format": 1, "sha256": {last.name: digest_of(run)}}, indent=2).encode()
    write_atomically(there.parent / MANIFEST_FILE, manifest)
    write_atomically(there, last.read_bytes())


if __name__ == "__main__":
    main()
