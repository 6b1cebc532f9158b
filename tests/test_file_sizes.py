"""The fit of a file layout, on sizes that a known layout gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from objectives.runtimes import named
from studies.file_sizes import MEASURED_NETWORKS, File, candidates, fitted, predicted_sizes, uncalibrated


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch"])
def test_the_fit_recovers_the_layout_that_gave_the_sizes(runtime: str) -> None:
    known = named(runtime)
    layout = replace(known.layout, convolution=345.0, integer_scale=7.0, linear_factor=55.0)
    size = uncalibrated(layout)
    networks = candidates(known, 12, seed=1)
    files = [File(name, model, size(model), teacher, size(teacher)) for name, model, teacher, _ in networks]
    assert {file.network for file in files} == set(MEASURED_NETWORKS)
    sizes = np.array([file.size for file in files])
    assert predicted_sizes(layout, files) == pytest.approx(sizes)
    assert np.abs(predicted_sizes(known.layout, files) / sizes - 1).max() > 0.01
    again = fitted(known.layout, ["convolution", "integer_scale", "linear_factor"], files)
    assert predicted_sizes(again, files) == pytest.approx(sizes, rel=1e-3)
