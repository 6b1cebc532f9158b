"""Modules in place of layers and norms, which have the attributes that a forward pass may read of what they replace."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn


class _Form(NamedTuple):
    """Shape and type of a tensor."""

    shape: torch.Size
    dtype: torch.dtype


class StandIn(nn.Module):
    """A module in place of another one, with its attributes: `in_features`, `stride`, `weight.dtype`, `weight.shape`.

    A forward pass that reads the values of a weight gets zeros, so such a layer must not be replaced
    (`spaces.dependency.checks` finds out).
    """

    def stand_for(self, replaced: nn.Module, bias_of: str = "") -> Self:
        """Take over the attributes of the module that is replaced; return this module.

        Parameters
        ----------
        replaced
            The module that is replaced.
        bias_of
            Name of the submodule that now has its bias.
        """
        attributes: dict[str, Any] = dict(getattr(replaced, "_stands_for", {}))
        attributes |= {name: value for name, value in vars(replaced).items() if not name.startswith("_")}
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(replaced, name, None)
            if isinstance(value, Tensor):
                attributes[name] = _Form(value.shape, value.dtype)
            elif hasattr(replaced, name):
                attributes[name] = None
        attributes.pop("training", None)
        self.__dict__["_stands_for"], self.__dict__["_bias_of"] = attributes, bias_of
        return self

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the signature of torch
        """Return an attribute of this module, else of the module that it replaces."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            attributes = self.__dict__.get("_stands_for", {})
            if name not in attributes:
                raise
        if name == "bias" and self.__dict__["_bias_of"]:
            return self.get_submodule(self.__dict__["_bias_of"]).bias
        value = attributes[name]
        return self._like(value) if isinstance(value, _Form) else value

    def _like(self, form: _Form, filled: float = 0.0) -> Tensor:
        """Return a tensor of this form that takes no memory, on the device of the module."""
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        return torch.full((), filled, dtype=form.dtype, device=device).expand(form.shape)


class WithoutNorm(StandIn, nn.Sequential):
    """What is left of a norm that is folded or left out: its activation, or nothing.

    Parameters
    ----------
    norm
        The norm; those of timm have an activation as their child.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(*norm.children())
        self.stand_for(norm)
