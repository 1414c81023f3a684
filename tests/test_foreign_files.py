"""Weights of others: wrapped, behind prefixes, beside scores and arguments; nothing runs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import timm
import torch
from pickled import Calls
from torch import Tensor

from network.backbones import Backbone, build_backbone
from network.methods import build_method
from network.weights.initialise import initialise
from network.weights.pretrained import load_pretrained
from tool.formats.checkpoint import load_tensors

SLIM = "resnet38d_slim"


def numbered(shift: float = 0.0) -> dict[str, Tensor]:
    """The slim network's tensors under the field's names, each filled with its own number."""
    state = build_backbone(SLIM).net.state_dict()
    names = [n for n in state if not n.endswith("num_batches_tracked")]
    return {n: torch.full_like(state[n], 1 + shift + i) for i, n in enumerate(names)}


def numbered_module() -> torch.nn.Module:
    net = build_backbone(SLIM).net
    net.load_state_dict(numbered(), strict=False)
    return net


def behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(content: object, path: Path, **options: object) -> tuple[Backbone, str]:
    """A slim backbone filled from `content`, and what was said; frozen as a pretrained one is."""
    torch.save(content, path, **options)
    backbone = build_backbone(SLIM)
    backbone.freeze()
    return backbone, load_pretrained(backbone, str(path))


def first_value(backbone: Backbone) -> float:
    return backbone.net.conv1a.weight.flatten()[0].item()


CONTAINERS = ["state_dict", "model", "net", "network", "model_state_dict", "ema", "teacher"]
CONTAINERS += ["student", "module", "a name of tomorrow"]
PREFIXES = ["module.", "backbone.", "model.", "_orig_mod.", "encoder_q.", "encoder.", "net."]
PREFIXES += ["network.", "module._orig_mod.model.backbone.", "backbone.net.", "0."]


@pytest.mark.parametrize(
    ("container", "prefix"),
    [(c, PREFIXES[i % len(PREFIXES)]) for i, c in enumerate(CONTAINERS)]
    + [(None, prefix) for prefix in PREFIXES],
)
def test_wrapped_weights_fill_every_tensor(container, prefix: str, tmp_path: Path) -> None:
    tensors = numbered()
    content = behind(prefix, tensors | {"fc.weight": torch.ones(3)})
    content = {"epoch": 3, container: content} if container else content
    backbone, line = loaded(content, tmp_path / "w.pth")
    assert line == f"{len(tensors)} of {len(tensors)} tensors of {SLIM} from w.pth"
    state = backbone.net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_nested_containers_and_timms_flat_names(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", pretrained=False).state_dict()
    torch.save({"ckpt": {"model": {"net": behind("module.", whole)}}}, tmp_path / "w.pth")
    backbone = build_backbone("timm:convnext_atto")
    load_pretrained(backbone, str(tmp_path / "w.pth"))
    filled = backbone.net.state_dict()["stages_0.blocks.0.conv_dw.weight"]
    assert torch.equal(filled, whole["stages.0.blocks.0.conv_dw.weight"])


@pytest.mark.parametrize(
    ("content", "taken", "said"),
    [
        (lambda a, b: {"model": a, "ema": b}, 101, "'ema' (also in it: 'model')"),
        (lambda a, b: {"teacher": a, "student": b}, 1, "'teacher' (also in it: 'student')"),
        (lambda a, b: {"model": a, "model_ema": b}, 101, "'model_ema' (also"),
        (lambda a, b: {"net_a": a, "net_b": b}, 1, "'net_a' (also in it: 'net_b')"),
        (
            lambda a, b: {"m": behind("encoder_q.", a) | behind("encoder_k.", b)},
            1,
            "'m', prefix 'encoder_q.' (also in it: 'm', prefix 'encoder_k.')",
        ),
        (lambda a, b: {"ema": dict(list(a.items())[:-1]), "model": b}, 101, ""),  # most fit
    ],
)
def test_of_several_places_one_is_taken_and_named(
    content: Callable, taken: float, said: str, tmp_path: Path
) -> None:
    backbone, line = loaded(content(numbered(), numbered(100)), tmp_path / "w.pth")
    assert first_value(backbone) == taken
    assert said in line
    assert ("also in it" in line) == bool(said)


def test_too_few_says_what_is_there_and_how_many_are_needed(tmp_path: Path) -> None:
    few = dict(list(numbered().items())[:5])
    for content, words in (
        ({"net": behind("trunk.", few), "epoch": 3}, ("'net'", "'epoch'", "trunk.conv1a.weight")),
        (behind("trunk.", few), ("trunk.conv1a.weight", "and 2 more")),
        ({}, ("nothing",)),
    ):
        found = 5 if content else 0
        with pytest.raises(ValueError, match=rf"w\.pth: only {found} of the 191 .*172 are n") as e:
            loaded(content, tmp_path / "w.pth")
        assert all(word in str(e.value) for word in words), str(e.value)


def test_init_finds_a_wrapped_backbone_and_the_heads_beside_it(tmp_path: Path) -> None:
    config = {"method": "fbr", "backbone": SLIM, "output_stride": 8, "num_classes": 3}
    config |= {"pretrained": True, "method_config": {}}
    theirs = build_method(config | {"seed": 1})
    torch.save({"net": behind("module.", theirs.state_dict())}, tmp_path / "ours.pth")
    method = build_method(config)
    line = initialise(method, tmp_path / "ours.pth")
    assert "classifier 1 of 1" in line
    assert torch.equal(method.classifier.weight, theirs.classifier.weight)
    assert torch.equal(method.backbone.net.bn7.weight, theirs.backbone.net.bn7.weight)


EXTRAS = {
    "best_score": np.float64(0.7),
    "history": np.arange(3.0),
    "names": np.array(["a", "b"]),
    "args": argparse.Namespace(lr=0.1, out=PurePosixPath("x"), best=np.float32(1)),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("extra", list(EXTRAS))
def test_scores_and_arguments_beside_the_weights_are_skipped(
    extra: str, zipped: bool, tmp_path: Path
) -> None:
    content = {extra: EXTRAS[extra], "model": numbered()}
    backbone, line = loaded(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert line.startswith("191 of 191")
    assert first_value(backbone) == 1
    assert type(load_tensors(tmp_path / "w.pth")[extra]).__name__ == "Skipped"
    assert not [g for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        lambda trace: Calls(os.mkdir, trace),
        lambda trace: Calls(os.system, f"mkdir {trace}"),
        lambda trace: Calls(eval, f"__import__('os').mkdir({trace!r})"),
        lambda trace: Calls(functools.partial, os.mkdir, trace),
        lambda trace: Calls(np.save, trace, np.ones(2)),  # a function of NumPy that writes
        lambda trace: Calls(np.memmap, trace, "u1", "w+", 0, (4,)),
        lambda trace: argparse.Namespace(inner=Calls(os.mkdir, trace)),
    ],
)
def test_nothing_beside_the_weights_runs(call: Callable, zipped: bool, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pth"
    content = {"model": numbered(), "x": call(str(trace)), "best_score": np.float64(1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with contextlib.suppress(ValueError):  # or it is skipped
        load_pretrained(build_backbone(SLIM), str(path))
    assert not list(tmp_path.glob("trace*"))


@pytest.mark.parametrize("name", ["w.pth", "a \"b\" $HOME `id` 'c' \\n.pth"])
@pytest.mark.parametrize(
    "content",
    [
        {"model": numbered(), "schedule": functools.partial(max, 3), "s": np.float64(1)},
        {"a name of tomorrow": {"deeper": numbered()}, "schedule": functools.partial(max, 3)},
        {"other": {"x": torch.ones(2)}, "net": numbered_module()},
    ],
)
def test_what_is_refused_is_named_and_the_command_helps(
    name: str, content: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    module = r"network\.backbones\.resnet38d\.ResNet38d"
    words = rf"pth: refused: it carries a (functools\.partial|{module})"
    with pytest.raises(ValueError, match=words) as e:
        loaded(content, path)
    assert "\n" not in str(e.value)
    assert weights_saved_anew(str(e.value), tmp_path, monkeypatch) == 1


def weights_saved_anew(message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Run the command in a message as a shell splits it; the first value of what it saved."""
    words = shlex.split(message.partition("anew: ")[2])
    assert words[:2] == ["python", "-c"]
    monkeypatch.chdir(folder)
    exec(words[2], {})
    backbone = build_backbone(SLIM)
    load_pretrained(backbone, str(folder / "weights.pth"))
    return first_value(backbone)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_late_pickle_protocol_is_read_or_named(
    protocol: int, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "w.pth", {"net": {"deeper": numbered()}, "epoch": 3}
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    if protocol == 3:
        assert first_value(loaded(content, path, **options)[0]) == 1
        return
    with pytest.raises(ValueError, match=rf"w\.pth: refused: .*pickle protocol {protocol}") as e:
        loaded(content, path, **options)
    assert weights_saved_anew(str(e.value), tmp_path, monkeypatch) == 1
