"""`bao`: labels of the target network, what the online network learns on them, and its map."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from attentive import CLASSES, attentive
from method_cases import MIXED, gradients, make_batch, make_method
from runs import assert_refused, run, train_flags
from torch import Tensor

from network.backbones import AFFINITY
from network.losses import balanced_cross_entropy
from network.maps import image_cells
from network.methods import Method
from network.methods.bao import Bao
from network.spreading import label_cells, momentum_at
from network.weights.foreign_heads import our_names
from network.weights.initialise import initialise
from tool.formats.cam import load_cam
from tool.formats.checkpoint import load_checkpoint
from tool.progress import Progress

EVERYWHERE = torch.ones(1, 1, 1, 5, dtype=torch.bool)


def test_a_cell_is_foreground_if_it_reaches_more_than_half_of_the_maximum() -> None:
    best = 8.0
    half = (best + 1e-5) / 2  # as the maximum has 1e-5 added
    row = torch.tensor([best, half * 1.001, half, half * 0.999, -1.0])
    maps = torch.stack([0 * row, row])[None, :, None]  # (1, 2, 1, 5)
    found = label_cells(maps, torch.ones(1, 2), EVERYWHERE)
    assert found[0, 0].tolist() == [2, 2, 0, 0, 0], "half is background"


def test_each_class_is_measured_by_its_own_maximum_and_absent_ones_by_nothing() -> None:
    maps = torch.tensor([[10.0, 9, 1, 0, 0], [0, 0.9, 1, 0.4, 0], [99, 99, 99, 99, 99]])
    maps = maps[None, :, None]
    found = label_cells(maps, torch.tensor([[1.0, 1, 0]]), EVERYWHERE)
    assert found[0, 0].tolist() == [1, 1, 2, 0, 0]
    assert label_cells(maps, torch.zeros(1, 3), EVERYWHERE).unique().tolist() == [0]
    assert label_cells(-maps, torch.ones(1, 3), EVERYWHERE).unique().tolist() == [0]


def test_padding_has_no_label_and_is_no_maximum() -> None:
    inside = EVERYWHERE.clone()
    inside[..., 0] = False
    maps = torch.tensor([100.0, 4, 3, 1, 0])[None, None, None]
    found = label_cells(maps, torch.ones(1, 1), inside)
    assert found[0, 0].tolist() == [255, 1, 1, 0, 0]


def cell_losses(logit: Tensor, found: Tensor, smoothing: float) -> Tensor:
    """-sum_k t_k log softmax_k of each cell, t = 1 - eps on its label, eps / K elsewhere."""
    maps = logit.shape[1]
    target = torch.full_like(logit, smoothing / (maps - 1))
    target.scatter_(1, found[:, None], 1 - smoothing)
    return -(target * logit.log_softmax(dim=1)).sum(dim=1)


@pytest.mark.parametrize("weight", [0.5, 1.0, 7.0])
def test_weights_of_the_foreground_cells_cancel(weight: float) -> None:
    """So the release's weight of .5 in its first epoch does nothing, and there is none here."""
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 21, 4, 4, generator=generator)
    found = torch.randint(0, 3, (2, 4, 4), generator=generator)
    loss, mask = cell_losses(logit, found, 0.4), weight * (found > 0)
    ground = (found == 0).float()
    released = ((loss * mask).sum() / mask.sum() + (loss * ground).sum() / ground.sum()) / 2
    ours = balanced_cross_entropy(logit, found, smoothing=0.4)
    assert ours.item() == pytest.approx(released.item(), rel=1e-5)


def test_the_momentum_rises_by_a_cosine() -> None:
    assert momentum_at(0, 1322, first=0.9995) == pytest.approx(0.9995)
    assert momentum_at(661, 1322, first=0.9995) == pytest.approx(0.99975)
    assert momentum_at(1322, 1322, first=0.9995) == pytest.approx(1.0)
    moved = sum(1 - momentum_at(step, 1322, first=0.9995) for step in range(1322))
    assert 1 - math.exp(-moved) == pytest.approx(0.28, abs=0.005), "28 % of the way in an epoch"


def distance(method: Method) -> float:
    """How far the online network is from the target, over all trained parameters."""
    own = method.target.tensors()
    pairs = [(own[n], p) for n, p in method.named_parameters() if p.requires_grad]
    return max((one - other).abs().max().item() for one, other in pairs)


def moved(method: Method, by: float = 0.5) -> Method:
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(by)
    return method


def test_the_target_is_shared_in_the_first_epoch_and_then_follows() -> None:
    method = make_method("bao", pretrained=True, target_momentum=0.5)
    for step in range(3):
        moved(method)
        assert distance(method) == pytest.approx(0.5, rel=1e-5)
        method.after_step(Progress(step=step, steps=9, steps_per_epoch=3))
        assert distance(method) == 0, "the first epoch"
    left = 0.0
    for step in range(3, 9):
        moved(method)
        method.after_step(Progress(step=step, steps=9, steps_per_epoch=3))
        momentum = 1 - 0.5 * (1 + math.cos(math.pi * (step % 3) / 3)) / 2
        left = (left + 0.5) * momentum
        assert distance(method) == pytest.approx(left, rel=1e-4)
        if step in (3, 6):
            assert momentum == 0.5, "it starts anew with each epoch"


def test_the_target_begins_with_the_weights_that_were_loaded() -> None:
    method = moved(make_method("bao", pretrained=True))
    method.before_losses(make_batch(MIXED), Progress(step=0))
    assert distance(method) == 0
    moved(method).before_losses(make_batch(MIXED), Progress(step=1))
    assert distance(method) > 0, "a resumed run keeps its target"


def reference_terms(method: Bao, batch: dict) -> dict[str, Tensor]:
    """Both terms as the equations say, image by image and class by class."""
    image, label = batch["image"], batch["label"]
    online = method.backbone(image, ("high", AFFINITY, "token"))
    own = attentive(Bao)
    own.load_state_dict(method.target.tensors(), strict=False)
    target = own.backbone(image, ("high", AFFINITY))
    losses: tuple[list, list] = ([], [])
    logit = []
    for n in range(len(image)):
        raw = own.head(target["high"][n : n + 1])[0, 1:].flatten(1)  # (K, p)
        spread = torch.stack([(target[AFFINITY][n] @ row) for row in raw])
        q = spread.clamp(min=0) * label[n][:, None]
        q = q / (q.amax(dim=1, keepdim=True) + 1e-5)
        ground = 1 - q.amax(dim=0)
        found = torch.cat([ground[None], q]).argmax(dim=0)
        embedded = label[n] @ method.condition.embed.weight.T + method.condition.embed.bias
        feature = online["high"][n] * embedded[:, None, None]
        maps = method.activation(feature[None])[0].flatten(1)
        am = torch.stack([online[AFFINITY][n] @ row for row in maps])  # (K+1, p)
        loss = cell_losses(am[None], found[None], 0.4)[0]
        inside = image_cells(batch["valid"], online["high"].shape[-2:])[n].flatten()
        for part, chosen in zip(losses, (found == 0, found > 0), strict=True):
            part.append(loss[chosen & inside])
        map_logit = method.head(online["high"][n : n + 1]).mean(dim=(2, 3))
        logit.append((map_logit + method.token_head(online["token"][n : n + 1]))[0, 1:])
    halves = [torch.cat(part).mean() for part in losses]
    return {
        "cls": F.multilabel_soft_margin_loss(torch.stack(logit), label),
        "pcl": (halves[0] + halves[1]) / 2,
    }


def test_the_losses_are_those_of_the_equations() -> None:
    method, batch = attentive(Bao).train(), make_batch(MIXED)
    batch["valid"][:, :, :, 48:] = False
    batch["image"] = batch["image"] * batch["valid"]
    method.target.take(method)
    moved(method, 0.02)  # the two networks differ
    found, expected = method.losses(batch, Progress(step=1)), reference_terms(method, batch)
    weights = method.weights()
    assert weights == {"cls": 1.0, "pcl": 1.0}
    assert 0 < method.metrics()["foreground"] < 1
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
        theirs = gradients(value, method)
        for parameter, gradient in gradients(found[name], method).items():
            limit = 1e-3 * theirs[parameter].abs().max() + 1e-6
            assert (gradient - theirs[parameter]).abs().max() <= limit, (name, parameter)


def test_the_cells_teach_the_attention_and_the_classification_does_not() -> None:
    method = attentive(Bao).train()
    affinity, taps = [], method.taps

    def kept(*args: object, **kwargs: object) -> dict[str, Tensor]:
        found = taps(*args, **kwargs)
        affinity.append(found[AFFINITY])
        return found

    method.taps = kept
    terms = method(make_batch(MIXED), Progress())
    assert not affinity[0].requires_grad, "the target's"
    (of_cells,) = torch.autograd.grad(terms["pcl"], affinity[1], retain_graph=True)
    assert of_cells.abs().max() > 0
    (of_class,) = torch.autograd.grad(
        terms["cls"], affinity[1], allow_unused=True, retain_graph=True
    )
    assert of_class is None
    reached = gradients(terms["pcl"], method)
    for name in ("backbone.query.weight", "condition.embed.weight", "activation.weight"):
        assert reached[name].abs().max() > 0, name
    assert "head.weight" not in reached, "the labels are constants"


@pytest.mark.parametrize("label", [[[0] * 5, [0] * 5], MIXED])
def test_one_kind_of_cells_alone_is_finite(label: list[list[int]]) -> None:
    """Without a class there is no foreground; with maps that are flat, no background."""
    method, batch = attentive(Bao).train(), make_batch(label)
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.fill_(1.0)
    method.target.take(method)
    terms = method(batch, Progress())
    sum(terms.values()).backward()
    share = method.metrics()["foreground"]
    assert share == 0 if not any(map(any, label)) else share > 0.9
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_the_map_is_the_background_of_am_with_the_classes_of_m() -> None:
    method, batch = attentive(Bao).eval(), make_batch(MIXED)
    image, label = batch["image"], batch["label"][:2]
    with torch.no_grad():
        found = method.score({"image": image, "label": label})  # two images and their mirrors
        repeated = label.repeat_interleave(2, dim=0)
        taps = method.backbone(image, ("high", AFFINITY))
        embedded = F.linear(repeated, method.condition.embed.weight, method.condition.embed.bias)
        conditioned = method.activation(taps["high"] * embedded[:, :, None, None])[:, 0]
        ground = torch.einsum("nij,nj->ni", taps[AFFINITY], conditioned.flatten(1))
        maps = method.head(taps["high"])[:, 1:].flatten(2)
        classes = torch.einsum("nij,nkj->nki", taps[AFFINITY], maps)
    expected = torch.cat([ground[:, None], classes], dim=1)
    assert found.shape == (4, CLASSES + 1, 8, 8)
    assert torch.allclose(found.flatten(2), expected, atol=1e-4)
    assert found.min() < 0


def test_scales_are_summed_raw_and_the_background_is_stretched_like_a_class() -> None:
    method, size = make_method("bao"), (12, 20)
    one, two = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 6, 8)
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    found = method.merge([one, two], {"size": size, "label": label})["cam"]
    up = [F.interpolate(score, size, mode="bilinear", align_corners=False) for score in (one, two)]
    total = sum(maps[0] + maps[1].flip(-1) for maps in up).clamp(min=0)
    for row, present in enumerate([1, *label[0].tolist()]):
        low, high = total[row].min(), total[row].max()
        expected = present * (total[row] - low) / (high - low + 1e-5)
        assert torch.allclose(found[row], expected, atol=1e-5)


def trained_a_little(**config: object) -> Method:
    """Online and target network differ."""
    method = make_method("bao", pretrained=True, **config)
    method.before_losses(make_batch(MIXED), Progress())
    return moved(method, 0.01).eval()


def test_the_target_infers_if_it_is_chosen() -> None:
    online, target = trained_a_little(), trained_a_little(network="target")
    batch = make_batch(MIXED[:2])
    given = {"image": batch["image"], "label": batch["label"][:1]}
    values = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    alone = make_method("bao", pretrained=True).eval()
    alone.load_state_dict(target.target.tensors(), strict=False)
    with torch.no_grad():
        assert torch.equal(target.score(given), alone.score(given))
        assert torch.equal(target.embed(given), alone.embed(given))
        assert not torch.equal(target.score(given), online.score(given))
    assert all(torch.equal(tensor, values[n]) for n, tensor in target.state_dict().items())


def test_the_two_networks_share_one_forward_pass_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from tool.infer.multiscale import score_and_embed

    for network in ("online", "target"):
        method, batch = trained_a_little(network=network), make_batch(MIXED[:2])
        passes, forward = [], method.backbone.forward
        monkeypatch.setattr(
            method.backbone, "forward", lambda *a, f=forward, p=passes: p.append(a) or f(*a)
        )
        with torch.no_grad():
            score, feature = score_and_embed(
                method, {"image": batch["image"], "label": batch["label"][:1]}
            )
        assert len(passes) == 1
        assert score.shape[-2:] == feature.shape[-2:]


def test_the_published_tensors_fit() -> None:
    own = attentive(Bao).state_dict()
    published = {
        "label_enc.weight": torch.rand(6, CLASSES),
        "label_enc.bias": torch.rand(6),
        "classifier_x.weight": torch.rand(CLASSES + 1, 6, 3, 3),
        "classifier_x.bias": torch.rand(CLASSES + 1),
    }
    for name, tensor in our_names(published).items():
        assert own[name].shape == tensor.shape
    assert {n for n in own if n.startswith(("condition", "activation"))} == set(
        our_names(published)
    )


@pytest.mark.parametrize("published", [True, False])
def test_it_starts_from_transcam(tmp_path: Path, published: bool) -> None:
    """From a published file, whose head of K + 1 rows is no sign of pixel truth, and from ours."""
    theirs = make_method("transcam", pretrained=True)
    state = {n.removeprefix("backbone."): tensor for n, tensor in theirs.state_dict().items()}
    content: dict[str, object] = {
        "model": {n.replace("head.", "conv_cls_head."): tensor for n, tensor in state.items()}
    }
    if not published:
        config = {"method": "transcam", "backbone": "resnet38d_slim", "method_config": {}}
        content = {"method": "transcam", "config": config, "model": theirs.state_dict()}
    torch.save(content, tmp_path / "w.pth")
    method = make_method("bao", pretrained=True)
    line = initialise(method, tmp_path / "w.pth")
    total = len(method.backbone.state_dict())
    assert f"backbone {total} of {total}, head 2 of 2, condition 0 of 2, activation 0 of 2" in line
    own = method.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"smoothing": 1.0}, "smoothing"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"target_momentum": 1.5}, "target_momentum"),
        ({"network": "teacher"}, "there are online, target"),
        ({"head_init": "zeros"}, "there are kaiming, xavier"),
    ],
)
def test_impossible_options_are_refused(option: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_method("bao", **option)


def flags_of(root: Path, out: Path) -> list[object]:
    return [*train_flags(root, out, method="bao", steps=4), "--target-momentum", 0.5]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("bao") / "run"
    done = run("train_fbr.py", *flags_of(folder_root, out))
    assert done.returncode == 0, done.stderr
    return out


class Killed(Exception):
    """The end of a process between two steps."""


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_run_ends_with_the_same_bytes(
    whole: Path, folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed in the first epoch and in the second: both networks come back."""
    flags = flags_of(folder_root, tmp_path)
    follow = Bao.after_step

    def die(method: Bao, progress: Progress) -> None:
        if progress.step == at:
            raise Killed
        follow(method, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Bao, "after_step", die)
        with pytest.raises(Killed):
            run("train_fbr.py", *flags)
    assert load_checkpoint(tmp_path / "checkpoint.pth")["step"] == at
    done = run("train_fbr.py", *flags)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoint.pth").read_bytes() == (whole / "checkpoint.pth").read_bytes()


def test_masks_need_no_threshold_and_the_target_is_another_map(
    whole: Path, folder_root: Path, tmp_path: Path
) -> None:
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--device", "cpu"]
    infer = ["--checkpoint", whole / "checkpoint.pth", *data, "--sides", 48, "--num-workers", 0]
    for name in ("online", "target"):
        done = run("infer_cam.py", *infer, "--out", tmp_path / name, "--set", f"network={name}")
        assert done.returncode == 0, done.stderr
    rows = [load_cam(tmp_path / name / "a1.npy") for name in ("online", "target")]
    assert all(one.class_index[0] == 0 for one in rows)
    assert (rows[0].cam != rows[1].cam).any()
    masks = [tmp_path / f"mask-{level}" for level in (0.1, 0.9)]
    for folder, level in zip(masks, (0.1, 0.9), strict=True):
        post = ["--cam-dir", tmp_path / "online", *data[:6], "--out", folder]
        done = run("crf_postprocess.py", *post, "--threshold", level)
        assert done.returncode == 0, done.stderr
    for path in masks[0].glob("*.png"):
        assert path.read_bytes() == (masks[1] / path.name).read_bytes(), "no threshold counts"
    words = "--threshold has no effect: the maps of this method have a background row"
    for more in ([], ["--threshold", 0.4]):
        done = run("infer_cam.py", *infer, "--argmax", tmp_path / f"argmax{len(more)}", *more)
        assert (words in done.stderr) == bool(more)


def test_an_export_has_no_target_and_says_so(
    whole: Path, folder_root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    done = run("network/export.py", whole / "checkpoint.pth", "--out", file)
    assert done.returncode == 0, done.stderr
    assert "target" in done.stdout
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--device", "cpu"]
    infer = ["--checkpoint", file, *data, "--sides", 48, "--num-workers", 0]
    done = run("infer_cam.py", *infer, "--out", tmp_path / "online")
    assert done.returncode == 0, done.stderr
    result = run("infer_cam.py", *infer, "--out", tmp_path / "target", "--set", "network=target")
    assert_refused(result, "has no target network", "checkpoint.pth")
    assert not list((tmp_path / "target").glob("*.npy"))
