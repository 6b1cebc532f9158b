"""Compare the outputs of two versions of a network."""

from __future__ import annotations

import copy

from torch import Tensor, nn

CUT_TOLERANCE = 1e-3  # relative to the largest output; only the rounding may differ


def difference(got: list[Tensor], expected: list[Tensor]) -> str | None:
    """Return in what the outputs differ by more than rounding, or None; outputs that are not finite do not count."""
    reason = shape_difference(got, expected)
    if reason:
        return reason
    for ours, theirs in zip(got, expected, strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
        if bool(theirs.isfinite().all()) and not error < CUT_TOLERANCE:
            return f"the output is wrong by {error:.1%}"
    return None


def shape_difference(got: list[Tensor], expected: list[Tensor]) -> str | None:
    """Return in what the shapes of the outputs differ, or None."""
    wrong = (f"the output has the shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
             for ours, theirs in zip(got, expected, strict=True) if ours.shape != theirs.shape)  # fmt: skip
    return next(wrong, None)


def light_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    """Return a copy with new modules that share the tensors of the model; none of these is changed in place."""
    shared: dict[int, Tensor] = {id(buffer): buffer.to(device or buffer.device) for buffer in model.buffers()}
    for p in model.parameters():
        shared[id(p)] = nn.Parameter(p.detach().to(device), requires_grad=False) if device else p
    return copy.deepcopy(model, shared)
