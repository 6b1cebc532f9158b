"""What is read off files, where the files are ones of which it is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from objectives.runtimes import named
from studies.file_sizes import NETWORKS, candidates, fitted, told


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_a_layout_is_read_off_sizes_that_it_told(runtime: str) -> None:
    one = named(runtime)
    named_models = [(name, model) for name, model, _ in candidates(one, 12, seed=1)]
    models = [model for _, model in named_models]
    assert {name for name, _ in named_models} == set(NETWORKS)
    layout = replace(one.layout, graph=2345.0, integer_scale=7.0)
    sizes = told(layout, models)
    assert np.abs(told(one.layout, models) / sizes - 1).max() > 0.01
    assert told(fitted(one.layout, ["graph", "integer_scale"], models, sizes), models) == pytest.approx(sizes, rel=1e-4)
