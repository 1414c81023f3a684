"""A second set of values: it starts equal, follows, and the network computes with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from network.shadow import Shadow
from tool.train.run_directory import state_names, weight_names


class Network(nn.Module):
    """A trained layer, a norm, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.net[2].requires_grad_(False)

    def compute(self, image: Tensor) -> Tensor:
        return self.net(image)


@pytest.fixture
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(network: Network) -> Network:
    """The network with other values."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    return network


def test_it_starts_with_the_values_of_the_network_and_keeps_them(network: Network) -> None:
    before, shadow = values(network), Shadow(network)
    changed(network)
    assert shadow.tensors().keys() == before.keys()
    assert all(torch.equal(shadow.tensors()[name], value) for name, value in before.items())
    assert int(shadow.times) == 0, "nothing was written"
    shadow.take(network)
    after = values(network)
    assert all(torch.equal(shadow.tensors()[name], value) for name, value in after.items())
    assert int(shadow.times) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0])
def test_it_follows_what_trains(network: Network, momentum: float) -> None:
    shadow, before = Shadow(network), values(network)
    now = values(changed(network))
    shadow.follow(network, momentum=momentum)
    for name, value in shadow.tensors().items():
        trained = name.startswith(("net.0", "net.1")) and name.endswith(("weight", "bias"))
        share = momentum if trained else 1
        expected = share * before[name] + (1 - share) * now[name]
        assert torch.allclose(value.double(), expected.double()), name


@pytest.mark.parametrize("training", [True, False])
def test_the_network_computes_with_its_values_and_is_left_as_it_was(
    network: Network, training: bool
) -> None:
    network.train(training)
    shadow, image = Shadow(network), torch.rand(2, 3, 4, 4)
    alone = Network().train(training)
    alone.load_state_dict(network.state_dict())
    before = values(changed(network))
    found = shadow.run(network, network.compute, image)
    assert torch.equal(found, alone.compute(image))
    assert not torch.equal(found, network.compute(image))
    for name, value in before.items():
        if not training or ("running" not in name and "tracked" not in name):
            assert torch.equal(network.state_dict()[name], value), name
    own = shadow.tensors()
    assert all(torch.equal(own[n], t) for n, t in alone.state_dict().items()), "its own statistics"
    moved = not torch.equal(own["net.1.running_mean"], torch.zeros(4))
    assert moved == training


def test_the_norms_of_the_network_do_not_see_what_the_shadow_computes(network: Network) -> None:
    shadow, before = Shadow(network), values(network.train())
    shadow.run(network, network.compute, torch.rand(2, 3, 4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(network).items())


def test_it_is_state_and_takes_no_gradient(network: Network) -> None:
    network.shadow = Shadow(network)
    assert not list(network.shadow.parameters())
    assert (
        len([n for n in state_names(network) if n.startswith("shadow.")])
        == 10
        == len(state_names(network))
    )
    assert {n.split(".")[0] for n in weight_names(network)} == {"net"}
    assert set(network.shadow.tensors()) == set(weight_names(network))
    network.shadow.run(network, network.compute, torch.rand(1, 3, 2, 2))
    assert network.net[0].weight.grad is None


def test_it_is_saved_and_loaded_with_the_network(network: Network) -> None:
    network.shadow = Shadow(network)
    state = values(changed(network))
    other = Network()
    other.shadow = Shadow(other)
    other.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in values(other).items())
