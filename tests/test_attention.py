"""`cam --pooling attention`: BES's classifier; the plain one stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_cases import MIXED, gradients, make_batch, make_method
from runs import run, train_flags

from network.heads import attention_pool
from network.losses import classification
from tool.progress import Progress


def test_pooling_equals_its_definition() -> None:
    """GAP(f a), a = h w times the softmax of k f over the cells, for each channel by itself."""
    feature = 30 * torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = attention_pool(feature, sharpness=0.1)
    assert found.shape == (2, 3, 1, 1)
    for n in range(2):
        for d in range(3):
            weight = (0.1 * feature[n, d]).exp()
            attention = 20 * weight / weight.sum()
            assert found[n, d, 0, 0].item() == pytest.approx((feature[n, d] * attention).mean())
    assert (found > feature.mean(dim=(2, 3), keepdim=True)).all()
    plain = attention_pool(feature, sharpness=0.0)
    torch.testing.assert_close(plain, feature.mean(dim=(2, 3), keepdim=True))


def test_the_attention_is_a_constant() -> None:
    feature = torch.rand(1, 2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention_pool(feature, sharpness=2.0).sum(), feature)
    torch.testing.assert_close(
        gradient, (2 * feature.detach()).flatten(2).softmax(2).view(1, 2, 3, 3)
    )


def test_without_sharpness_it_is_the_plain_classifier() -> None:
    batch = make_batch(MIXED)
    plain, flat = make_method("cam"), make_method("cam", pooling="attention", sharpness=0.0)
    ours, theirs = (method(batch, Progress())["cls"] for method in (plain, flat))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    sharp = make_method("cam", pooling="attention", sharpness=5.0)(batch, Progress())["cls"]
    assert sharp.item() != pytest.approx(ours.item(), rel=1e-4)


@pytest.mark.parametrize("pretrained", [False, True])
def test_only_the_logits_change(pretrained: bool) -> None:
    batch = make_batch(MIXED)
    plain, method = (
        make_method("cam", pretrained=pretrained, pooling=name, sharpness=5.0).eval()
        for name in ("average", "attention")
    )
    with torch.no_grad():
        assert torch.equal(plain.score(batch), method.score(batch)), "CAMs have no attention"
        prob = method.classify(batch)
    assert not torch.allclose(prob, plain.classify(batch))
    loss = method(batch, Progress())["cls"]
    expected = classification(prob.logit(), batch["label"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    found = gradients(loss, method)
    assert set(found) == {n for n, p in method.named_parameters() if p.requires_grad}
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_an_impossible_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="there are average, attention"):
        make_method("cam", pooling="maximum")
    with pytest.raises(ValueError, match=r"sharpness -1\.0 is below 0"):
        make_method("cam", sharpness=-1.0)


def test_a_run_without_the_option_is_not_resumed(folder_root: Path, tmp_path: Path) -> None:
    """What an older version did need not be today's default: one line, and nothing is lost."""
    flags = train_flags(folder_root, tmp_path / "out", method="cam", steps=2)
    assert run("train_fbr.py", *flags).returncode == 0
    path = tmp_path / "out" / "checkpoint.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["method_config"] = {}
    torch.save(checkpoint, path)
    before = path.read_bytes()
    for more in ((), ("--pooling", "attention")):
        result = run("train_fbr.py", *flags, *more)
        assert result.returncode == 2
        assert "method_config" in result.stderr
        assert path.read_bytes() == before
