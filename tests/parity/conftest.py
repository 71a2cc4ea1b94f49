"""Whatever compares with TransformerLens' own classes: which of them exist is decided by version."""

from importlib.metadata import version

import pytest

TRANSFORMER_LENS_3 = int(version("transformer-lens").partition(".")[0]) < 4
DEPRECATED_THERE = "ignore:HookedTransformer is deprecated:DeprecationWarning"


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/parity/" not in item.path.as_posix():
            continue
        item.add_marker(pytest.mark.parity)
        item.add_marker(pytest.mark.filterwarnings(DEPRECATED_THERE))
        if item.get_closest_marker("transformer_lens_3") and not TRANSFORMER_LENS_3:
            item.add_marker(pytest.mark.skip(reason="TransformerLens 4 has no HookedTransformer: run make parity"))
        if item.get_closest_marker("transformer_lens_4") and TRANSFORMER_LENS_3:
            item.add_marker(pytest.mark.skip(reason="needs the TransformerBridge of TransformerLens 4"))
