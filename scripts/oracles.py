"""Run every method on every circuit whose truth is known and print how far each is off: oracles.py [--out DIR].

The exit code is 1 if an exact method is further than 1e-5 from the truth, a decoy gets credit, the true edges are not
found where they can be, or a method accepts a truth that was planted.
"""

import argparse
import sys
import time
from collections.abc import Callable

import pandas as pd
import torch

from analyses.oracles import every_circuit, run_oracles


def main() -> int:
    """Print the tables; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="Every method on circuits whose truth is known: a table of errors.")
    parser.add_argument("--out", help="a folder to write the tables to, as CSV")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    circuits = every_circuit()
    result = run_oracles(circuits)
    for known in circuits:
        print(f"\n{known.name}: {known.about}")
        of_it = result.worst[result.worst["construction"] == known.name]
        _print(of_it, ["method", "quantity", "truth", "found", "error", "tolerance", "verdict", "why"])
        if not result.recovery.empty:
            _print(result.recovery[result.recovery["construction"] == known.name], _OF_EDGES)
    print("\nHeads that do not matter (decoy), and heads that act only where another is missing (backup)")
    for (circuit, head, role), of_head in result.credits.groupby(["construction", "head", "role"], sort=False):
        print(f"{circuit}, {head}, {role}:")
        for (verdict, why), methods in of_head.groupby(["verdict", "why"], sort=False):
            because = f", as {why}" if why else ""
            print(f"    {verdict}{because}: {'; '.join(methods['method'])}")
    refused = int(result.control["refused"].sum())
    print(f"\ncontrol: {refused} of {len(result.control)} methods and circuits refuse a truth that was planted")
    counts = result.worst["verdict"].value_counts().to_dict()
    print(f"verdicts: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.out:
        print(f"tables in {result.save(arguments.out)}")
    for failure in result.failures:
        print(f"WRONG: {failure}", file=sys.stderr)
    return 1 if result.failures else 0


_OF_EDGES = ["method", "of", "n", "n_true", "n_found", "missed", "extra", "auroc", "threshold", "verdict", "why"]
_FORMATS = {
    **dict.fromkeys(("truth", "found"), "{:.5f}".format),
    **dict.fromkeys(("error", "tolerance"), "{:.0e}".format),
    **dict.fromkeys(("credit", "auroc"), "{:.3f}".format),
    "threshold": "{:.2g}".format,
}
_NUMBERS = {*_FORMATS, "n", "n_true", "n_found", "missed", "extra"}


def _print(table: pd.DataFrame, columns: list[str]) -> None:
    shown = pd.DataFrame({name: _written(table[name], _FORMATS.get(name)) for name in columns})
    widths = {name: max(len(name), *map(len, shown[name])) for name in columns}
    for row in (columns, *shown.to_numpy().tolist()):
        cells = [
            text.rjust(widths[name]) if name in _NUMBERS else text.ljust(widths[name])
            for name, text in zip(columns, row, strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())


def _written(column: pd.Series, form: Callable[[float], str] | None) -> list[str]:
    return ["" if pd.isna(value) else form(value) if form else str(value) for value in column]


if __name__ == "__main__":
    sys.exit(main())
