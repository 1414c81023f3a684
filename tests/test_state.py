"""What is weights and what is state: exports and `--init` take the one and not the other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from method_cases import METHODS, MIXED, make_batch, make_method
from torch import Tensor, nn

from network.backbones.cpu.folding import FROZEN, Folded
from network.contrast.nroi import NROIBank
from network.methods import Method
from network.weights.initialise import initialise
from tool.progress import Progress
from tool.train.run_directory import check_sizes, state_names, weight_names

NORMS = (nn.BatchNorm2d, *FROZEN, Folded)


def take_two_steps(method: Method) -> None:
    optimizer = torch.optim.SGD(method.param_groups(0.01, 0.0))
    for step in range(2):
        progress = Progress(step=step, steps=10, seed=1)
        optimizer.zero_grad()
        batch = method.before_losses(make_batch(MIXED), progress)
        sum(method(batch, progress).values()).backward()
        optimizer.step()
        method.after_step(progress)


def taught_by_norms(method: nn.Module) -> set[str]:
    """The names of the buffers of norms."""
    modules = [(n, m) for n, m in method.named_modules() if isinstance(m, NORMS)]
    return {f"{n}.{b}" for n, m in modules for b, _ in m.named_buffers(recurse=False)}


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_what_training_changes_is_trained_or_a_norms_or_declared(
    name: str, pretrained: bool
) -> None:
    """A method that keeps a bank or a teacher and does not declare it fails here."""
    method = make_method(name, pretrained=pretrained).train()
    state, norms = set(state_names(method)), taught_by_norms(method)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    before = {n: t.clone() for n, t in method.state_dict().items()}
    take_two_steps(method)
    changed = {n for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert changed - trained - (set() if pretrained else norms) <= state
    assert set(before) - {n for n, _ in method.named_parameters()} - norms <= state
    assert not state & (trained | norms)
    assert sorted([*state, *weight_names(method)]) == sorted(before)
    assert {n for n in before if n.startswith("bank.")} <= state


def test_a_tensor_of_another_shape_is_named_and_one_that_is_lacking_is_not(tmp_path: Path) -> None:
    method = make_method("cam")
    state = method.state_dict()
    check_sizes(method, state, tmp_path)
    name = "classifier.weight"
    check_sizes(method, {key: value for key, value in state.items() if key != name}, tmp_path)
    with pytest.raises(ValueError, match=f"1 tensors differ, first '?{name}"):
        check_sizes(method, state | {name: state[name][:-1]}, tmp_path)


def test_frozen_scale_and_shift_are_weights() -> None:
    method = make_method("fbr", pretrained=True)
    frozen = {"backbone.net.bn7.weight", "backbone.net.b3.bn_branch2a.bias"}
    assert not frozen & {name for name, _ in method.named_parameters()}
    assert frozen <= set(weight_names(method))


class Teacher(nn.Module):
    """A slow copy of a network, whatever is in it."""

    is_state = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)


def test_all_inside_a_declared_module_is_state() -> None:
    root = nn.Module()
    root.student = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    root.teacher = Teacher(root.student)
    root.teachers = nn.Linear(1, 1)  # begins alike
    root.holder = nn.ModuleList([NROIBank(2, 3)])
    state = state_names(root)
    assert {n.split(".")[0] for n in state} == {"teacher", "holder"}
    assert len([n for n in state if n.startswith("teacher.")]) == len(root.student.state_dict())
    assert {n.split(".")[0] for n in weight_names(root)} == {"student", "teachers"}


def randomise_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, those of norms drawn anew: no scale is 1, no shift is 0."""
    generator = torch.Generator().manual_seed(5)
    return {
        n: torch.rand(t.shape, generator=generator) * 0.5 + 0.75
        if t.ndim == 1 and t.is_floating_point()
        else t
        for n, t in tensors.items()
    }


def test_init_counts_and_takes_scale_and_shift(tmp_path: Path) -> None:
    theirs = make_method("cam", pretrained=True)
    theirs.load_state_dict(randomise_norms(theirs.state_dict()))
    torch.save({"model": theirs.state_dict()}, tmp_path / "w.pth")
    method = make_method("cam", pretrained=True)
    total = len(method.backbone.state_dict())
    line = initialise(method, tmp_path / "w.pth")
    assert f"backbone {total} of {total}, classifier 1 of 1" in line
    own = method.state_dict()
    assert all(torch.equal(own[n], t) for n, t in theirs.state_dict().items())
