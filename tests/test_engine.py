"""The loop: keyed by step, one writer, complete or resumable, never silently wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from tool.formats.checkpoint import load_checkpoint, save_checkpoint
from tool.progress import Progress
from tool.train.engine import Settings, check_finite, fit, set_rates, split, total_loss
from tool.train.history import Clock, History
from tool.train.log import RunLog


class Line(nn.Module):
    """Learns y = 2 x; `broken_at` makes one step's loss infinite."""

    def __init__(self, broken_at: int | None = None) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))
        self.broken_at = broken_at
        self.ended: list[int] = []

    def forward(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        error = (self.slope * batch["image"].mean((1, 2, 3)) - batch["label"][:, 0]).square().mean()
        if progress.step == self.broken_at:
            error = error * math.inf
        return {"fit": error, "size": self.slope.abs()}

    def weights(self) -> dict[str, float]:
        return {"fit": 1.0, "size": 0.0}

    def before_losses(self, batch: dict, progress: Progress) -> dict:
        return batch

    def after_step(self, progress: Progress) -> None:
        self.ended.append(progress.step)

    def metrics(self) -> dict[str, Tensor]:
        return {}


def batches(count: int, size: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for step in range(count):
        image = torch.rand(size, 3, 2, 2, generator=generator)
        label = 2 * image.mean((1, 2, 3))[:, None]
        ids = [f"image {step}.{i}" for i in range(size)]
        made.append({"image": image, "label": label, "image_id": ids})
    return made


def train(
    method: Line,
    *,
    steps: int = 6,
    saved: list | None = None,
    log: object = None,
    **settings: float | None,
) -> int | None:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return fit(
        method,
        optimizer,
        batches(steps),
        start=Progress(steps=steps),
        settings=Settings(steps=steps, batch_size=4, **settings),
        device=torch.device("cpu"),
        transform=lambda batch: batch,
        log=log,
        save=(saved if saved is not None else []).append,
    )


def test_a_loss_of_another_rank_that_is_not_finite_ends_this_one(monkeypatch) -> None:
    history = History()
    history.add(3, {"cls": torch.tensor(1.0)}, ["a"])
    other = torch.full((1, 1, 1), torch.inf)
    monkeypatch.setattr("tool.parallel.dist.gather", lambda rows: torch.cat([rows, other]))
    with pytest.raises(FloatingPointError, match="the loss is not finite on another rank"):
        history.fetch()


def test_fit_learns_and_saves_at_the_stated_steps() -> None:
    method, saved = Line(), []
    assert train(method, saved=saved, save_every=4) is None
    assert saved == [4, 6]
    assert method.ended == list(range(6))
    assert abs(method.slope.item() - 2) < 1


def test_accumulation_gives_the_same_update_as_the_whole_batch() -> None:
    whole, parts = Line(), Line()
    train(whole)
    train(parts, accumulate=2)
    assert whole.slope.item() == pytest.approx(parts.slope.item(), rel=1e-5)


def test_a_long_gradient_is_scaled_down_to_the_limit() -> None:
    plain, short, loose = Line(), Line(), Line()
    train(plain, steps=1)
    train(short, steps=1, clip=0.01)
    train(loose, steps=1, clip=1000.0)
    assert plain.slope.item() == loose.slope.item() > 0
    assert short.slope.item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_everything() -> None:
    saved: list[int] = []
    with pytest.raises(FloatingPointError) as caught:
        train(Line(broken_at=3), saved=saved, save_every=2, log_every=100)
    message = str(caught.value)
    for word in ("step 3", "fit inf", "size", "image 3.0", "image 3.3"):
        assert word in message
    assert saved == [2], "the checkpoint before the bad step stays, none comes after it"


def test_weights_that_diverge_in_the_last_step_are_not_saved() -> None:
    """The losses of all steps were finite: no later one shows it."""
    method, saved, steps = Line(), [], []

    def spoil(gradient: Tensor) -> Tensor:
        steps.append(1)
        return gradient * math.inf if len(steps) == 6 else gradient

    method.slope.register_hook(spoil)
    with pytest.raises(FloatingPointError, match="step 6: the weights are not finite"):
        train(method, saved=saved, save_every=4)
    assert saved == [4]


def test_a_state_of_the_optimizer_that_is_not_finite_is_not_saved() -> None:
    method = Line()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5, momentum=0.9)
    method.slope.grad = torch.ones(())
    optimizer.step()
    check_finite(method, optimizer, 1)
    optimizer.state[method.slope]["momentum_buffer"].fill_(math.nan)
    with pytest.raises(FloatingPointError, match="--lr"):
        check_finite(method, optimizer, 1)


def test_terms_and_weights_must_name_the_same() -> None:
    one = torch.ones(())
    with pytest.raises(ValueError, match="extra"):
        total_loss({"fit": one, "extra": one}, {"fit": 1.0})
    with pytest.raises(ValueError, match="missing"):
        total_loss({"fit": one}, {"fit": 1.0, "missing": 1.0})
    assert total_loss({"a": one, "b": 2 * one}, {"a": 1.0, "b": 0.5}).item() == 2


def test_the_rates_are_a_function_of_the_step_alone() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.param_groups[0]["initial_lr"] = 2.0
    settings = Settings(steps=100, batch_size=1, warmup=10)
    for step, rise in ((0, 0.1), (9, 1.0), (50, 1.0), (99, 1.0), (4, 0.5), (50, 1.0)):
        factor = set_rates(optimizer, Progress(step=step, steps=100), settings)
        assert factor == pytest.approx(rise * (1 - step / 100) ** 0.9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * factor)


def test_split_keeps_order_and_every_field() -> None:
    batch = batches(1)[0]
    first, second = split(batch, 2)
    assert first["image_id"] + second["image_id"] == batch["image_id"]
    assert torch.equal(torch.cat([first["image"], second["image"]]), batch["image"])


def test_history_means_over_the_steps_since_the_last_fetch() -> None:
    history = History()
    history.add(0, {"loss": torch.tensor(1.0)}, ["a"])
    history.add(1, {"loss": torch.tensor(3.0)}, ["b"])
    assert history.fetch() == {"loss": 2.0}
    assert history.fetch() == {}


def test_the_log_drops_rows_that_the_checkpoint_does_not_hold(tmp_path) -> None:
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    log = RunLog(tmp_path, start_step=0, **statistics)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": {"loss": float(step)}})
    log.close()
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    log = RunLog(tmp_path, start_step=2, **statistics)
    log.scalars(3, {"loss": {"loss": 30.0}})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch) -> None:
    path = tmp_path / "checkpoint.pth"
    content = {"method": "m", "config": {}, "model": {"w": torch.ones(2)}, "step": 1}
    save_checkpoint(path, content)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, content | {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


class Rows:
    """A log that remembers its rows."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []

    def scalars(self, step: int, values: dict[str, dict[str, float]]) -> None:
        self.rows.append((step, values))


@pytest.mark.parametrize(
    ("every", "steps", "wanted"), [(2, 5, [2, 4, 5]), (3, 6, [3, 6]), (9, 4, [4])]
)
def test_the_log_has_a_row_each_interval_and_one_of_the_last_step(every, steps, wanted) -> None:
    log = Rows()
    train(Line(), steps=steps, log=log, log_every=every)
    assert [step for step, _ in log.rows] == wanted
    losses = [values["loss"]["loss"] for _, values in log.rows]
    assert losses == sorted(losses, reverse=True), "means of what came since the last row"


def test_the_speed_is_of_the_images_since_the_last_call(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tool.train.history.time.perf_counter", lambda: now[0])
    pace = Clock(batch_size=8, step=10)
    now[0] += 4
    assert pace.rate(15) == 5 * 8 / 4
    now[0] += 2
    assert pace.rate(16) == 8 / 2
    now[0] += 1
    assert pace.rate(17) == 8
