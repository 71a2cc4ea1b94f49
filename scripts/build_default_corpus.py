"""Rebuild the embedded character statistics from the King James Bible.

Needs the ``bible`` command (Debian packages bible-kjv and bible-kjv-text). Writes counts only, never the text.

    python scripts/build_default_corpus.py            # writes tasks/data/kjv_bigrams.csv
    python scripts/build_default_corpus.py --check    # rebuilds, compares, exits with 1 if they differ
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tasks.bigram_statistics import BigramStatistics

TABLE = Path(__file__).parents[1] / "tasks" / "data" / "kjv_bigrams.csv"
WHOLE_BIBLE = "Gen1:1-Rev22:21"
REFERENCE = re.compile(r"^[A-Za-z0-9]+:[0-9]+ ")
"""How the command begins every verse, e.g. "Ge1:1 "."""


def main() -> int:
    """Write the table, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the embedded table, write nothing")
    check = parser.parse_args().check

    table = BigramStatistics.from_text(read_verses()).to_csv()
    if not check:
        TABLE.write_bytes(table)
        print(f"{TABLE}: {len(table)} bytes")
        return 0
    same = TABLE.exists() and TABLE.read_bytes() == table
    print(f"{TABLE}: {'up to date' if same else 'differs from a rebuild'}")
    return 0 if same else 1


def read_verses() -> str:
    """The whole text, one verse a line, without the references."""
    command = shutil.which("bible")
    if command is None:
        sys.exit("the command `bible` is missing: install the Debian packages bible-kjv and bible-kjv-text")
    printed = subprocess.run([command, "-f", WHOLE_BIBLE], capture_output=True, check=True).stdout.decode("ascii")
    verses, references = zip(*(REFERENCE.subn("", line) for line in printed.splitlines()), strict=True)
    if set(references) != {1}:
        sys.exit(f"{references.count(0)} lines begin without a reference: the command prints another format")
    return "\n".join(verses)


if __name__ == "__main__":
    sys.exit(main())
