"""A second set of values for the tensors of a network, such as those of an EMA.

It holds numbers and no modules. The network itself computes with them. So there is no second copy
of its layers, and what is made of them later (folded norms, a compiled backbone) holds for both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

Result = TypeVar("Result")
_DOT = "/"  # in place of the dots of a name, which the name of a buffer cannot have


class Shadow(nn.Module):
    """The tensors of a network with values of their own.

    Args:
        network: Gives the names, the shapes and the first values.
    """

    times: Tensor  # (), int64: how often the values were written
    is_state = True  # state of a run, not weights: exports and `--init` leave it out

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, tensor in network.state_dict().items():
            self.register_buffer(name.replace(".", _DOT), tensor.detach().clone())
        self.register_buffer("times", torch.zeros((), dtype=torch.int64))

    def tensors(self) -> dict[str, Tensor]:
        """Return the values by the names that they have in the network."""
        found = {name.replace(_DOT, "."): value for name, value in self.named_buffers()}
        del found["times"]
        return found

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        """Take over all values of the network."""
        theirs = network.state_dict()
        for name, own in self.tensors().items():
            own.copy_(theirs[name])
        self.times.add_(1)

    @torch.no_grad()
    def follow(self, network: nn.Module, *, momentum: float) -> None:
        """Move by 1 - `momentum` towards what trains of the network.

        All else stays as it is: what does not train is equal in both, and the running statistics of
        norms are the shadow's own.

        Args:
            network: The network.
            momentum: In [0, 1].
        """
        own = self.tensors()
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                own[name].lerp_(parameter, 1 - momentum)
        self.times.add_(1)

    def run(self, network: nn.Module, function: Callable[..., Result], *args: Any) -> Result:
        """Return what a function computes while the network has the values of the shadow.

        Args:
            network: The network.
            function: A method of the network, or one that calls it.
            args: Of the function.
        """
        values = {f"network.{name}": value for name, value in self.tensors().items()}
        return functional_call(_Call(network), values, (function, *args))


class _Call(nn.Module):
    """A module that calls any function, which `functional_call` needs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Result], *args: Any) -> Result:
        return function(*args)
