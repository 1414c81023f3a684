"""Two processes with half of the images each take the step of one process with all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from method_cases import METHODS, MIXED, make_batch, make_method
from torch import Tensor, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from tool import dist
from tool.progress import Progress

WORLD = 2


def two_steps(name: str, rank: int, world_size: int) -> dict[str, Any]:
    """The terms, metrics, gradients and bank of the second step (the first one fills the bank)."""
    method = make_method(name, pretrained=True)  # frozen norms; from scratch they see one rank only
    model = DistributedDataParallel(method, broadcast_buffers=False) if world_size > 1 else method
    share = len(MIXED) // world_size
    batch = {k: v[rank * share : (rank + 1) * share] for k, v in make_batch(MIXED).items()}
    for step in range(2):
        method.zero_grad()
        progress = Progress(step=step, steps=9, seed=3, rank=rank, world_size=world_size)
        terms = model(batch, progress)
        sum(weight * terms[term] for term, weight in method.weights().items()).backward()
        method.after_step(progress)
    values = {k: v.detach() for k, v in {**terms, **method.metrics()}.items()}
    return {
        "values": {k: dist.gather(v[None]).mean() for k, v in values.items()},
        "gradients": {n: p.grad for n, p in method.named_parameters() if p.grad is not None},
        "buffers": {n: b for n, b in method.named_buffers() if n.startswith("bank.")},
    }


def work(rank: int, folder: str) -> None:
    """One process: every method, results of rank 0 into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    results = {name: two_steps(name, rank, WORLD) for name in METHODS}
    agreed = dist.agree(rank == 1)  # one says yes: both stop
    assert agreed
    assert not dist.agree(False)
    if dist.is_main():
        torch.save(results, f"{folder}/results.pth")
    dist.stop()


@pytest.fixture(scope="module")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=WORLD)
    return torch.load(folder / "results.pth", weights_only=True)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        bound = 1e-3 * value.abs().max().item() + 1e-7
        assert torch.allclose(value.double(), theirs[name].double(), rtol=0, atol=bound), name


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", METHODS)
def test_ranks_change_nothing(name: str, shared_results: dict[str, dict[str, Any]]) -> None:
    alone = two_steps(name, 0, 1)
    for part in ("values", "gradients", "buffers"):
        assert_equal(alone[part], shared_results[name][part])
    assert alone["gradients"]


def test_a_global_mean_of_nothing_is_zero_and_attached() -> None:
    total = torch.zeros((), requires_grad=True)
    mean = dist.global_mean(total, torch.tensor(0))
    mean.backward()
    assert mean == 0
    assert dist.global_mean(torch.tensor(6.0), torch.tensor(4)) == 1.5
