"""What is read off files, where the files are ones of which it is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from objectives.runtimes import named
from studies.file_sizes import NETWORKS, File, alone, candidates, fitted, told


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_a_layout_is_read_off_sizes_that_it_told(runtime: str) -> None:
    one = named(runtime)
    layout = replace(one.layout, convolution=345.0, integer_scale=7.0, linear_factor=55.0)
    size = alone(layout)
    found = candidates(one, 12, seed=1)
    files = [File(name, model, size(model), teacher, size(teacher)) for name, model, teacher, _ in found]
    assert {file.network for file in files} == set(NETWORKS)
    sizes = np.array([file.size for file in files])
    assert told(layout, files) == pytest.approx(sizes)
    assert np.abs(told(one.layout, files) / sizes - 1).max() > 0.01
    again = fitted(one.layout, ["convolution", "integer_scale", "linear_factor"], files)
    assert told(again, files) == pytest.approx(sizes, rel=1e-3)
