"""Sweeps so small that writing their files takes longer than training them."""

from pathlib import Path

import pytest

TEXT = """
task = "bigram"
preset = "bietti-simplified"
seeds = 2

[settings]
steps = 4
seq_len = 12
batch_size = 4
eval_prompts = 8
checkpoint_every = 2
log_every = 2

[grid]
d_model = [8, 16]
lr = [0.1, 0.2, 0.3]
"""


@pytest.fixture
def sweep_file(tmp_path):
    """Write a sweep's file, with parts of the usual one replaced: its path."""

    def sweep_file(text: str = TEXT, **replaced: str) -> Path:
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return path

    return sweep_file
