"""The contract, for every method there is: terms, gradients, state, scores, corner cases."""

from __future__ import annotations

import pytest
import torch
from method_cases import (
    METHODS,
    MIXED,
    ONE_CLASS,
    first_steps,
    gradients,
    make_batch,
    make_method,
    second_step,
)
from torch import Tensor

from network.methods import Method, build_method, find_method
from tool.progress import Progress

TERMS = [(name, term) for name in METHODS for term in make_method(name).weights()]
WITH_DEFAULT_MERGE = [name for name in METHODS if find_method(name).merge is Method.merge]
WITH_BANK = [name for name in METHODS if "bank" in dict(make_method(name).named_children())]


def test_the_four_methods_are_found_by_their_files() -> None:
    assert {"cam", "eps", "ppc", "fbr"} <= set(METHODS)
    assert "fbr" in WITH_BANK


@pytest.mark.parametrize("name", METHODS)
def test_terms_and_weights_have_the_same_names(name: str) -> None:
    method, terms = second_step(name)
    assert sorted(terms) == sorted(method.weights())
    assert all(isinstance(weight, float) for weight in method.weights().values())


@pytest.mark.parametrize(("name", "term"), TERMS)
def test_a_term_is_a_finite_scalar_that_moves_a_parameter(name: str, term: str) -> None:
    method, terms = second_step(name)
    value = terms[term]
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    found = gradients(value, method)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.abs().max() > 0 for gradient in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    """DDP waits for the gradient of each of them."""
    method, terms = second_step(name)
    total = sum(weight * terms[term] for term, weight in method.weights().items())
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert set(gradients(total, method)) == trainable


@pytest.mark.parametrize("name", METHODS)
def test_the_batch_is_left_as_it_was(name: str) -> None:
    method, batch = make_method(name), make_batch(MIXED)
    copies = {k: v.clone() for k, v in batch.items() if isinstance(v, Tensor)}
    keys = list(batch)
    sum(first_steps(method, batch, 1).values()).backward()
    assert list(batch) == keys
    assert all(torch.equal(batch[key], value) for key, value in copies.items())


CORNERS = {
    "no present class": [[0] * 5, [0] * 5],
    "one image": [[0, 1, 0, 1, 0]],
    "one image without class": [[0] * 5],
    "one class": ONE_CLASS,
    "every class": [[1] * 5, [1] * 5],
    "80 classes": [[k in (3, 79) for k in range(80)], [k in (0, 3) for k in range(80)]],
}


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", METHODS)
def test_corner_cases_are_finite(name: str, corner: str, pretrained: bool) -> None:
    label = CORNERS[corner]
    method = make_method(name, num_classes=len(label[0]), pretrained=pretrained)
    terms = first_steps(method, make_batch(label))
    total = sum(weight * terms[term] for term, weight in method.weights().items())
    total.backward()
    assert total.isfinite()
    for parameter in method.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert all(value.isfinite() for value in method.metrics().values())


@pytest.mark.parametrize("name", METHODS)
def test_an_image_of_zeros_is_finite(name: str) -> None:
    method, batch = make_method(name, pretrained=True), make_batch(MIXED)
    batch["image"] *= 0
    terms = first_steps(method, batch)
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_autocast_is_finite_and_near(name: str) -> None:
    method, batch = make_method(name, pretrained=True), make_batch(MIXED[:1])
    with torch.autocast("cpu", torch.bfloat16):
        terms = method(batch, Progress())
    sum(terms.values()).backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    exact = method(batch, Progress())
    for term in ("cls", "sal", "pixel"):
        if term in terms:
            assert terms[term].item() == pytest.approx(exact[term].item(), rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_determined_by_its_key(name: str) -> None:
    batch, values = make_batch(MIXED), []
    for ambient in (0, 1):
        torch.manual_seed(ambient)
        values.append(first_steps(make_method(name), batch))
    assert all(torch.equal(values[0][term], values[1][term]) for term in values[0])
    method = make_method(name, pretrained=True)
    if not any(getattr(module, "probability", 0) for module in method.modules()):
        return  # irn's backbone is in eval, its heads have no dropout
    main = next(iter(method.weights()))
    one, other = (method(batch, Progress(step=step))[main] for step in (0, 1))
    assert one != other  # dropout


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_reaches_every_module_and_scores_are_deterministic(name: str) -> None:
    method = make_method(name)
    assert all(module.training for module in method.modules())
    method.eval()
    assert not any(module.training for module in method.modules())
    batch = make_batch(MIXED[:2])
    pair = {"image": batch["image"], "label": batch["label"][:1]}
    with torch.no_grad():
        one = method.score(pair)
        torch.manual_seed(1)
        assert torch.equal(method.score(pair), one)
    assert one.shape[0] == 2
    assert name not in WITH_DEFAULT_MERGE or (one.min() >= 0 and one.shape[1] == 5)
    several = torch.cat([pair["image"].flip(0), pair["image"]])
    labels = batch["label"].flip(0)
    with torch.no_grad():
        two = method.score({"image": several, "label": labels})
    assert torch.allclose(two[2:], one, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_merged_maps_have_the_image_size_present_classes_and_the_unit_range(name: str) -> None:
    method = make_method(name)
    image = {"image": make_batch(MIXED[:2])["image"], "label": torch.ones(1, 5)}
    with torch.no_grad():
        channels = method.score(image).shape[1]
    scores = [torch.rand(2, channels, side, side + 2) for side in (6, 9)]
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    seed = torch.randint(0, 2, (1, 12, 20))
    for present in (label, 0 * label):
        batch = {"size": (12, 20), "label": present, "seed": seed, "cam": torch.rand(1, 5, 3, 5)}
        cam = method.merge(scores, batch)["cam"]
        assert cam.shape == (5, 12, 20)
        assert 0 <= cam.min() <= cam.max() <= 1
        assert (cam.amax(dim=(1, 2)) > 0).tolist() == present[0].bool().tolist()


@pytest.mark.parametrize("name", WITH_DEFAULT_MERGE)
def test_merging_masks_by_the_label_and_undoes_the_mirror(name: str) -> None:
    method = make_method(name)
    score = torch.rand(1, 5, 6, 8)
    pair = torch.cat([score, score.flip(-1)])
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    cam = method.merge([pair, pair], {"size": (12, 20), "label": label})["cam"]
    assert cam.shape == (5, 12, 20)
    up = torch.nn.functional.interpolate(score, size=(12, 20), mode="bilinear")[0]
    for k in range(5):
        if label[0, k]:
            assert torch.allclose(cam[k], up[k] / up[k].max(), atol=1e-4)
        else:
            assert cam[k].abs().max() == 0
    nothing = method.merge([pair], {"size": (12, 20), "label": 0 * label})["cam"]
    assert nothing.shape == (5, 12, 20)
    assert nothing.abs().max() == 0


@pytest.mark.parametrize("name", METHODS)
def test_pictures_are_maps_in_range(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED)
    with torch.no_grad():
        maps = method.pictures(batch)
    assert maps
    for values in maps.values():
        assert values.ndim == 3
        assert 0 <= values.min() <= values.max() <= 1
        if len(values) == 5:
            assert values[batch["label"][0] == 0].abs().max() == 0


@pytest.mark.parametrize("name", WITH_BANK)
def test_the_bank_is_in_the_state_and_comes_back(name: str) -> None:
    method, batch = make_method(name), make_batch(MIXED)
    assert int(method.bank.filled) == 0
    first_steps(method, batch, 1)
    assert int(method.bank.filled) > 0
    state = {n: t.clone() for n, t in method.state_dict().items()}
    assert {"bank.storage", "bank.written"} <= set(state)
    other = make_method(name)
    other.load_state_dict(state)
    step = Progress(step=1, seed=1)
    one, two = (m(batch, step) for m in (method, other))
    assert all(torch.equal(one[term], two[term]) for term in one)


def test_rates_and_decay_of_the_parameter_groups() -> None:
    method = make_method("fbr", pretrained=True)
    backbone = {id(p) for p in method.backbone.parameters()}
    seen = []
    for group in method.param_groups(0.01, 5e-4):
        for parameter in group["params"]:
            seen.append(id(parameter))
            bias, new = parameter.ndim <= 1, id(parameter) not in backbone
            assert group["lr"] == pytest.approx(0.01 * (10 if new else 1) * (2 if bias else 1))
            assert group["weight_decay"] == (0 if bias else 5e-4)
    assert sorted(seen) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    scratch = make_method("fbr").param_groups(0.01, 5e-4)
    assert {group["lr"] for group in scratch} == {0.1, 0.2}


def test_an_unknown_method_or_hyper_parameter_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'grad'.*cam.*eps.*fbr"):
        find_method("grad")
    with pytest.raises(ValueError, match=r"no hyper-parameter nonsense: it has .*tau"):
        make_method("eps", nonsense=1)
    with pytest.raises(ValueError, match="unknown backbone"):
        build_method({"method": "cam", "backbone": "x", "output_stride": 8, "method_config": {}})
