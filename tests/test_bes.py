"""BES and SBE: their losses against a plain reference, live gradients, unpadded inference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from method_cases import MIXED, gradients, make_batch, make_method
from torch import Tensor

from network.heads import BoundaryHead
from network.methods import Method, find_method
from network.methods.irn import Irn
from network.walk.random_walk import random_walk
from network.weights.initialise import initialise
from tool.crf.dense import PRESETS
from tool.crf.jobs import mask_task
from tool.crf.post import alpha_at
from tool.formats.boundary import BACKGROUND, CLASSES, FOREGROUND, OBJECT, SALIENT
from tool.formats.cam import Cam, cam_mask
from tool.formats.mask import UNKNOWN
from tool.progress import Progress

BOTH = ["bes", "sbe"]
KINDS = torch.tensor([BACKGROUND, OBJECT, CLASSES, SALIENT, FOREGROUND, UNKNOWN])


def labelled_batch(images: int = 4) -> dict:
    """A batch with every kind of label, in and out of salient regions."""
    batch = make_batch(MIXED[:images])
    side = batch["boundary"].shape[-1]
    generator = torch.Generator().manual_seed(0)
    cells = KINDS[torch.randint(0, len(KINDS), (images, side // 4, side // 4), generator=generator)]
    batch["boundary"] = cells.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    batch["saliency"][:, :, :, side // 2 :] = 0
    return batch


def plain_terms(name: str, method: Method, batch: dict) -> dict[str, float]:
    """The equations cell by cell, in float64."""
    size = tuple(side // 4 for side in batch["boundary"].shape[-2:])
    with torch.no_grad():
        logit = method.boundary(method.taps(batch["image"]), size)[:, 0].double()
    saliency = torch.nn.functional.interpolate(batch["saliency"], size=size, mode="bilinear")
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for n, y, x in np.ndindex(*logit.shape):
        p = min(max(1 / (1 + math.exp(-logit[n, y, x].item())), 1e-4), 1 - 1e-4)
        kind = int(batch["boundary"][n, 4 * y + 2, 4 * x + 2])
        part = {BACKGROUND: "ground_background", FOREGROUND: "ground_foreground"}.get(kind)
        if kind in ((OBJECT, CLASSES) if name == "bes" else (OBJECT, CLASSES, SALIENT)):
            part = "boundary"
            if name == "sbe":
                part += "_salient" if saliency[n, 0, y, x] > 0 else "_other"
        if part is not None:
            loss = -math.log(1 - p) if part.startswith("ground") else -math.sqrt(p) * math.log(p)
            sums[part] = sums.get(part, 0.0) + loss
            counts[part] = counts.get(part, 0) + 1
    return {part: sums[part] / (counts[part] + 1) for part in sums}


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_losses_equal_the_plain_ones(name: str, pretrained: bool) -> None:
    method, batch = make_method(name, pretrained=pretrained), labelled_batch()
    terms, parts = method(batch, Progress()), plain_terms(name, method, batch)
    for term in ("ground", "boundary"):
        expected = sum(value for part, value in parts.items() if part.startswith(term))
        assert terms[term].item() == pytest.approx(expected, rel=1e-4)
    assert len(parts) == (4 if name == "sbe" else 3)
    for part, value in method.metrics().items():
        assert value.item() == pytest.approx(parts[part], rel=1e-4)
    assert method.weights() == {"ground": 0.5 if name == "bes" else 1.0, "boundary": 1.0}


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_every_mean_has_a_live_gradient(name: str, pretrained: bool) -> None:
    """Also those that are summed to one term."""
    method, batch = make_method(name, pretrained=pretrained), labelled_batch()
    means: list[Tensor] = []
    mean = method.mean
    method.mean = lambda *given: means.append(mean(*given)) or means[-1]
    terms = method(batch, Progress())
    assert len(means) == (4 if name == "sbe" else 3)
    for value in (*means, *terms.values()):
        found = gradients(value, method)
        assert found.keys() == {n for n, _ in method.named_parameters() if "boundary." in n}
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert all(gradient.abs().max() > 0 for gradient in found.values())


@pytest.mark.parametrize("name", BOTH)
def test_the_root_is_a_constant(name: str) -> None:
    """d/dz of -c log sigmoid(z) is -c (1 - p), with c = sqrt(p), over the number of cells + 1."""
    method, batch = make_method(name), labelled_batch(1)
    batch["boundary"][:] = OBJECT
    logit = torch.linspace(-3, 3, 256).view(1, 1, 16, 16).requires_grad_()
    method.boundary.forward = lambda *_: logit
    method(batch, Progress())["boundary"].backward()
    p = logit.detach().sigmoid()
    count = torch.full_like(p, 257)
    if name == "sbe":
        count[..., :8] = count[..., 8:] = 129
    torch.testing.assert_close(logit.grad, -p.sqrt() * (1 - p) / count)


@pytest.mark.parametrize("saliency", [0.0, 1.0])
def test_saliency_of_one_kind_is_finite(saliency: float) -> None:
    """0 everywhere means that nothing is salient: the boundaries count all the same."""
    method, batch = make_method("sbe"), labelled_batch()
    batch["saliency"] = torch.full_like(batch["saliency"], saliency)
    terms = method(batch, Progress())
    sum(terms.values()).backward()
    parts = method.metrics()
    empty, full = ("salient", "other") if saliency == 0 else ("other", "salient")
    assert parts[f"boundary_{empty}"] == 0
    assert parts[f"boundary_{full}"] == terms["boundary"] > 0


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("value", KINDS.tolist())
def test_a_label_of_one_kind_is_finite(name: str, value: int) -> None:
    method, batch = make_method(name), labelled_batch(2)
    batch["boundary"] = torch.full_like(batch["boundary"], value)
    terms = method(batch, Progress())
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.boundary.parameters())
    assert (terms["ground"] > 0) == (value in (BACKGROUND, FOREGROUND))
    assert (terms["boundary"] > 0) == (value in type(method).kinds)


def test_labels_count_at_the_centres_of_cells() -> None:
    method, batch = make_method("sbe"), labelled_batch(2)
    before = method(batch, Progress())
    off = torch.ones(64, dtype=torch.bool)
    off[2::4] = False
    batch["boundary"][:, off] = OBJECT
    batch["boundary"][:, :, off] = OBJECT
    after = method(batch, Progress())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", BOTH)
def test_only_the_branch_of_the_boundaries_trains(name: str) -> None:
    method = make_method(name, pretrained=True)
    assert {n.split(".")[0] for n, _ in method.named_parameters()} == {"backbone", "boundary"}
    (group,) = method.param_groups(0.1, 1e-4)
    assert (group["lr"], group["weight_decay"]) == (0.1, 1e-4)
    trained = [p for p in method.parameters() if p.requires_grad]
    assert sorted(map(id, group["params"])) == sorted(map(id, trained))


@pytest.mark.parametrize("name", BOTH)
def test_inference_is_unpadded(name: str) -> None:
    """IRN's is not: the norms of the branch see the padding."""
    method, irn = make_method(name).eval(), make_method("irn").eval()
    irn.boundary = method.boundary
    irn.backbone = method.backbone
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 42, 51, generator=generator)
    with torch.no_grad():
        found = method.score({"image": image})
        taps = method.taps(image)
        assert torch.equal(found, method.boundary(taps, (11, 13)))
        assert not torch.allclose(found, irn.score({"image": image}), atol=1e-3)
        assert method.embed({"image": image}).shape[-2:] == taps[-1].shape[-2:]


@pytest.mark.parametrize("name", BOTH)
def test_merging_is_the_walk_with_the_papers_parameters(name: str) -> None:
    method = make_method(name)
    generator = torch.Generator().manual_seed(0)
    logit = 4 * torch.randn(1, 1, 9, 12, generator=generator)
    other = 4 * torch.randn(1, 1, 9, 12, generator=generator)
    earlier = torch.rand(1, 5, 9, 12, generator=generator)
    label = torch.tensor([[0.0, 1, 0, 1, 0]])
    given = {"size": (9, 12), "sizes": [(36, 48)], "label": label, "cam": earlier}
    cam = method.merge([torch.cat([logit, other.flip(-1)])], given)["cam"]
    edge = ((logit + other) / 2).sigmoid()[0, 0]
    walked = random_walk(earlier[0, [1, 3]], edge, radius=5, beta=5.0, steps=256)
    torch.testing.assert_close(cam[[1, 3]], walked / walked.max(), atol=1e-5, rtol=1e-4)
    assert cam[[0, 2, 4]].abs().max() == 0


def test_released_names_of_the_boundary_network(tmp_path: Path) -> None:
    """`fc_edge{1..5}.{0,1}` and `fc_edge6`, as the release calls them."""
    method = make_method("sbe", pretrained=True)
    head = BoundaryHead(tuple(method.backbone.taps.values()))
    ours = {n: torch.rand_like(t) for n, t in head.state_dict().items()}
    theirs = {
        f"fc_edge{branch}.{part}": ours[f"branches.{branch - 1}.{part}"]
        for branch in range(1, 6)
        for part in ("0.weight", "1.weight", "1.bias")
    }
    theirs |= {f"fc_edge6.{part}": ours[f"fuse.{part}"] for part in ("weight", "bias")}
    assert set(find_method("sbe").released) == set(theirs)
    net = {f"resnet.{n}": t for n, t in method.backbone.net.state_dict().items()}
    torch.save(net | theirs, tmp_path / "bes.pth")
    line = initialise(method, tmp_path / "bes.pth")
    assert "boundary 17 of 17" in line
    assert all(torch.equal(t, ours[n]) for n, t in method.boundary.state_dict().items())


def test_sbe_is_bes_and_bes_has_irns_branch() -> None:
    assert issubclass(find_method("sbe"), find_method("bes"))
    assert issubclass(find_method("bes"), Irn)
    for name, threshold in (("bes", 0.25), ("sbe", 0.21)):
        method = find_method(name)
        assert method.recipe.post.threshold == threshold
        assert method.recipe.post.preset == "label20"
        assert "label" not in method.inputs, "training reads no labels"
    with pytest.raises(ValueError, match=r"salient_above 1\.0"):
        make_method("sbe", salient_above=1.0)
    with pytest.raises(ValueError, match="no hyper-parameter pad"):
        make_method("bes", pad=512)


@pytest.mark.parametrize("threshold", [0.0, 0.21, 0.25, 0.5, 0.7, 1.0])
def test_the_crf_starts_from_the_argmax_of_a_constant_background(threshold: float) -> None:
    rng = np.random.default_rng(0)
    cam = Cam(np.array([2, 5, 80], np.uint8), rng.random((3, 30, 40), np.float32) ** 2)
    task = mask_task(
        np.zeros((30, 40, 3), np.uint8), cam, PRESETS["label20"], alpha=alpha_at(threshold)
    )
    (unary,) = task.unaries
    assert len(unary) == 4, "as many labels as classes of the image, and the background"
    np.testing.assert_array_equal(task.finish([unary.argmin(0)]), cam_mask(cam, threshold))
