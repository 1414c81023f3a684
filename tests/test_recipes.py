"""The recipes are those of the papers and the releases: each value once more, from its source."""

from __future__ import annotations

from typing import Any

import pytest

from network.methods import find_method

IRN = "IRN (Ahn et al., CVPR 2019); release jiwoon-ahn/irn, run_sample.py, step/train_irn.py"
EPS = "EPS (S. Lee et al., CVPR 2021), implementation details: VOC"
AMN = "AMN (M. Lee et al., CVPR 2022), implementation details; release run.py, step/train_amn.py"
TRANSCAM = "TransCAM (R. Li et al., JVCIR 2023), implementation details; release train_transcam.py"
BAO = "BAO, release train_bao.py: as TransCAM, from its weights"
SFC = "SFC (AAAI 2024), release run_sample.py and step/train_cam.py"
BES = "BES (Chen et al., ECCV 2020), release run_bes.py, step/train_boundary.py"
SBE = "SBE, release run_sbe.py: as BES"
SEAM = "SEAM's and PPC's release: DeepLab-v1 with a ResNet38 on pseudo masks"
DEEPLAB2 = "DeepLab-v2 in kazuto1011/deeplab-pytorch, configs/voc12.yaml"

_WALK = {"epochs": 3, "crop": 512, "long_side": (320, 640), "scale": (0.5, 1.5), "lr": 0.1}
_WALK |= {"weight_decay": 1e-4, "momentum": 0.0, "power": 0.9, "jitter": False}
_WALK |= {"backbone": "resnet50", "optimizer": "sgd", "scales": (1.0,)}
_EPS = {"steps": 20_000, "epochs": None, "batch_size": 8, "crop": 448, "lr": 0.01, "momentum": 0.0}
_EPS |= {"weight_decay": 5e-4, "power": 0.9, "rates": (1, 2, 10, 20), "backbone": "resnet38d"}
_EPS |= {"scales": (0.5, 1.0, 1.5, 2.0), "mirror": True, "optimizer": "sgd", "jitter": True}
_CONFORMER = {"batch_size": 8, "crop": 512, "long_side": (320, 640), "optimizer": "adamw"}
_CONFORMER |= {"lr": 5e-5, "weight_decay": 5e-4, "power": 0.0, "rates": (1, 1, 1, 1)}
_CONFORMER |= {"backbone": "conformer_s", "sides": (256, 512, 768), "jitter": True}

# method -> where its values come from, and the values
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "eps": (EPS, _EPS),
    "ppc": ("PPC (Du et al., CVPR 2022), with EPS for the host: as EPS", _EPS),
    "fbr": ("FBR (Yin et al., TCSVT 2024), section IV.A: as its host PPC", _EPS),
    "irn": (IRN, {**_WALK, "batch_size": 32}),
    "sfc_irn": ("SFC's release, which runs IRN on its maps: as IRN", {**_WALK, "batch_size": 32}),
    "bes": (BES, {**_WALK, "batch_size": 16}),
    "sbe": (SBE, {**_WALK, "batch_size": 16}),
    "amn": (
        AMN,
        {"epochs": 5, "batch_size": 16, "crop": 512, "long_side": (320, 640), "scale": (0.5, 1.5)}
        | {"optimizer": "adam", "lr": 5e-6, "rates": (1, 1, 20, 20), "weight_decay": 1e-4}
        | {"power": 0.0, "scales": (1.0, 0.5, 1.5, 2.0), "jitter": False, "backbone": "resnet50"},
    ),
    "sfc": (
        SFC,
        {"epochs": 6, "batch_size": 16, "crop": 512, "long_side": (320, 640), "lr": 0.1}
        | {"rates": (1, 1, 10, 10), "weight_decay": 1e-4, "power": 0.9, "jitter": False}
        | {"momentum": 0.0, "backbone": "resnet50", "scales": (1.0, 0.5, 1.5, 2.0)},
    ),
    "transcam": (TRANSCAM, {**_CONFORMER, "epochs": 20}),
    "bao": (BAO, {**_CONFORMER, "epochs": 10}),
    "deeplab1": (
        SEAM,
        {"steps": 20_000, "batch_size": 10, "crop": 448, "lr": 1e-3, "momentum": 0.9}
        | {"weight_decay": 5e-4, "scale": (0.5, 1.5), "power": 0.9, "backbone": "resnet38d"},
    ),
    "deeplab2": (
        DEEPLAB2,
        {"steps": 20_000, "batch_size": 10, "accumulate": 2, "crop": 321, "lr": 2.5e-4}
        | {"rates": (1, 1, 10, 20), "momentum": 0.9, "weight_decay": 5e-4, "power": 0.9}
        | {"scale": (0.5, 0.75, 1.0, 1.25, 1.5), "backbone": "resnet101"},
    ),
}
# method -> where its hyper-parameters come from, and the values
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "irn": (IRN, {"radius": 10, "walk_radius": 5, "beta": 10, "exponent": 8, "power": 1.0}),
    "amn": (AMN, {"smoothing": 0.4, "dropout": 0.1}),
    "bes": (BES, {"walk_radius": 5, "beta": 5.0}),
}
# method -> where its thresholds come from, and the values
POST: dict[str, tuple[str, dict[str, Any]]] = {
    "irn": (f"{IRN}: sem_seg_bg_thres", {"threshold": 0.25, "preset": None}),
    "bes": (f"{BES}: threshold of the walk", {"threshold": 0.25}),
    "sbe": (f"{SBE}: threshold of the walk", {"threshold": 0.21}),
    "amn": (f"{AMN}: conf_fg_thres, conf_bg_thres", {"seeds": (0.45, 0.15)}),
}


def differing(own: object, values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The names whose values are others, with ours and the source's."""
    pairs = {name: (getattr(own, name), value) for name, value in values.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_that_of_its_source(name: str) -> None:
    source, values = RECIPES[name]
    assert not differing(find_method(name).recipe, values), source


@pytest.mark.parametrize("name", OPTIONS)
def test_hyper_parameters_are_those_of_their_source(name: str) -> None:
    source, values = OPTIONS[name]
    assert not differing(find_method(name).Config(), values), source


@pytest.mark.parametrize("name", POST)
def test_thresholds_are_those_of_their_source(name: str) -> None:
    source, values = POST[name]
    assert not differing(find_method(name).recipe.post, values), source
