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
    map_channels,
    of_inference,
    second_step,
)
from torch import Tensor

from network.contrast.nroi import NROIBank
from network.methods import Method, build_method, find_method
from tool.infer.multiscale import infer_images, score_and_embed
from tool.progress import Progress

TERMS = [(name, term) for name in METHODS for term in make_method(name).weights()]
WITH_DEFAULT_MERGE = [name for name in METHODS if find_method(name).merge is Method.merge]
WITH_BANK = [
    name for name in METHODS if isinstance(getattr(make_method(name), "bank", None), NROIBank)
]


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
    batch = method.before_losses(batch, Progress())
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
    batch = method.before_losses(batch, Progress())
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
    copies = 2 if method.recipe.mirror else 1
    image, beside = batch["image"][:copies], of_inference(method, batch)
    with torch.no_grad():
        one = method.score({"image": image, **beside})
        torch.manual_seed(1)
        assert torch.equal(method.score({"image": image, **beside}), one)
    assert one.shape[0] == copies
    if name in WITH_DEFAULT_MERGE:
        assert one.min() >= 0
        assert one.shape[1] == map_channels(method)
    with torch.no_grad():
        alone = method.score({"image": image[:1], **beside})
    assert torch.allclose(alone, one[:1], atol=1e-5), "without mirrors"
    several = torch.cat([image.flip(0), image])
    flipped = {key: torch.cat([batch[key][1:2], value]) for key, value in beside.items()}
    with torch.no_grad():
        two = method.score({"image": several, **flipped})
    assert torch.allclose(two[copies:], one, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_score_and_embedding_come_from_one_forward_pass(name: str, monkeypatch) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED[:2])
    passes, forward = [], method.backbone.forward
    monkeypatch.setattr(method.backbone, "forward", lambda *a: passes.append(a) or forward(*a))
    given = {"image": batch["image"], **of_inference(method, batch)}
    with torch.no_grad():
        _, shared = score_and_embed(method, given)
    assert len(passes) == 1
    with torch.no_grad():
        alone = method.embed(given)
    assert len(passes) == 2, "outside nothing is kept"
    if alone is not None:
        assert alone.ndim == 4
        assert len(alone) == 2
        assert torch.equal(shared, alone)


@pytest.mark.parametrize("name", METHODS)
def test_only_a_conditioned_method_reads_the_label_in_score(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED[:2])
    copies = 2 if method.recipe.mirror else 1
    scores = []
    for label in (batch["label"][:1], 1 - batch["label"][:1]):
        beside = of_inference(method, batch) | ({"label": label} if method.conditioned else {})
        if not method.conditioned:
            beside.pop("label", None)
        with torch.no_grad():
            scores.append(method.score({"image": batch["image"][:copies], **beside}))
    assert torch.equal(*scores) is not method.conditioned


@pytest.mark.parametrize("name", METHODS)
def test_class_probabilities(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED)
    with torch.no_grad():
        found = method.classify({"image": batch["image"]})
    if found is not None:
        assert found.shape == (4, 5)
        assert 0 <= found.min() <= found.max() <= 1
    else:
        assert name not in ("cam", "eps", "ppc", "fbr")


@pytest.mark.parametrize("name", METHODS)
def test_two_images_at_two_scales_become_the_maps_of_the_method(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED[:2])
    sizes = ((48, 64), (24, 32))
    seen, merge = [], method.merge
    method.merge = lambda scores, given: seen.append(given) or merge(scores, given)
    fields = {
        "label": batch["label"],
        "seed": batch["seed"][:, :48],
        "cam": batch["cam"][:, :, :12],
    }
    samples = [
        {
            "image_id": f"{i}",
            "size": sizes[0],
            "images": [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes],
            **{key: fields[key][i] for key in method.infer_inputs if key != "image"},
        }
        for i in range(2)
    ]
    device = torch.device("cpu")
    found = infer_images(method, samples, device=device, mirror=method.recipe.mirror)
    assert [given["sizes"] for given in seen] == 2 * [list(sizes)]
    for maps in found:
        assert set(maps) == set(method.maps)
        for values in maps.values():
            assert values.shape == (map_channels(method), *sizes[0])
            assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize("name", METHODS)
def test_merged_maps_have_the_image_size_present_classes_and_the_unit_range(name: str) -> None:
    method, batch = make_method(name), make_batch(MIXED[:2])
    copies = 2 if method.recipe.mirror else 1
    image = {"image": batch["image"][:copies], **of_inference(method, batch)}
    with torch.no_grad():
        channels = method.score(image).shape[1]
    scores = [torch.rand(copies, channels, side, side + 2) for side in (6, 9)]
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    fields = {"seed": torch.randint(0, 2, (1, 12, 20)), "cam": torch.rand(1, 5, 3, 5)}
    for present in (label, 0 * label) if "label" in method.infer_inputs else (torch.ones(1, 5),):
        given = {"label": present, **fields}
        given = {key: given[key] for key in method.infer_inputs if key != "image"}
        given |= {"size": (12, 20), "sizes": [(48, 80)] * 2}
        merged = method.merge(scores, given)
        alone = method.merge([score[:1] for score in scores], given)
        assert set(merged) == set(alone) == set(method.maps)
        for values in (*merged.values(), *alone.values()):
            assert values.shape == (map_channels(method), 12, 20)
            assert 0 <= values.min() <= values.max() <= 1
            foreground = values[1:] if method.has_background else values
            assert (foreground.amax(dim=(1, 2)) > 0).tolist() == present[0].bool().tolist()


@pytest.mark.parametrize("name", WITH_DEFAULT_MERGE)
def test_merging_masks_by_the_label_and_undoes_the_mirror(name: str) -> None:
    method = make_method(name)
    channels, background = map_channels(method), method.has_background
    score = torch.rand(1, channels, 6, 8)
    pair = torch.cat([score, score.flip(-1)])
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    cam = method.merge([pair, pair], {"size": (12, 20), "label": label})["cam"]
    assert cam.shape == (channels, 12, 20)
    up = torch.nn.functional.interpolate(score, size=(12, 20), mode="bilinear")[0]
    kept = [True] * background + label[0].bool().tolist()
    for k in range(channels):
        if kept[k]:
            expected = up[k] if background else up[k] / up[k].max()
            assert torch.allclose(cam[k], expected, atol=1e-4)
        else:
            assert cam[k].abs().max() == 0
    alone = method.merge([score, score], {"size": (12, 20), "label": label})["cam"]
    assert torch.allclose(alone, cam, atol=1e-5), "without mirrors"
    every = method.merge([pair], {"size": (12, 20)})["cam"]
    assert (every.amax(dim=(1, 2)) > 0).all(), "without a label"
    nothing = method.merge([pair], {"size": (12, 20), "label": 0 * label})["cam"]
    assert nothing.shape == (channels, 12, 20)
    assert nothing[background:].abs().max() == 0


@pytest.mark.parametrize("name", METHODS)
def test_pictures_are_maps_in_range(name: str) -> None:
    method, batch = make_method(name).eval(), make_batch(MIXED)
    with torch.no_grad():
        maps = method.pictures(batch)
    assert maps
    for values in maps.values():
        assert values.ndim == 3
        assert 0 <= values.min() <= values.max() <= 1
        if len(values) == 5 and "label" in method.inputs:
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
