"""Dense CRF over a photograph: kernels, named presets, unary energies, backends."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tool.parallel.device import local_cuda


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """A fully connected CRF with a Gaussian and a bilateral kernel.

    Attributes:
        gaussian_sxy: Standard deviation of the smoothness kernel, in pixels.
        gaussian_compat: Weight of the smoothness kernel.
        bilateral_sxy: Standard deviation of the appearance kernel in space, in pixels.
        bilateral_srgb: Standard deviation of the appearance kernel in colour, in units of 0..255.
        bilateral_compat: Weight of the appearance kernel.
        iterations: Number of mean-field steps.

    Source: Krähenbühl & Koltun, Efficient Inference in Fully Connected CRFs (NIPS 2011).
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int

    def __call__(
        self, image: np.ndarray, unary: np.ndarray, *, backend: str = "auto"
    ) -> np.ndarray:
        """Compute the marginals by mean-field inference.

        Args:
            image: (H, W, 3) uint8, RGB.
            unary: (L, H, W) float32 energies, that is negative log scores. A label of lower energy
                is likelier.
            backend: "auto", "torch" or "pydensecrf", see `pick_backend`. The backends agree to
                float tolerance.

        Returns:
            (L, H, W) float32, summing to 1 over L.

        Raises:
            ValueError: Sizes or types do not fit, or the backend is not installed.
        """
        _check_sizes(image, unary)
        backend, device = pick_backend(backend)
        if backend == "torch":
            return self.batch([image], [unary], device=device)[0]
        labels, height, width = unary.shape
        field = _field(width, height, labels)
        # pydensecrf refuses arrays that are read-only or not contiguous.
        field.setUnaryEnergy(np.require(unary, np.float32, ("C", "W")).reshape(labels, -1))
        field.addPairwiseGaussian(sxy=self.gaussian_sxy, compat=self.gaussian_compat)
        field.addPairwiseBilateral(
            sxy=self.bilateral_sxy,
            srgb=self.bilateral_srgb,
            rgbim=np.require(image, requirements=("C", "W")),
            compat=self.bilateral_compat,
        )
        marginals = np.asarray(field.inference(self.iterations), np.float32)
        return marginals.reshape(labels, height, width)

    def batch(
        self, images: Sequence[np.ndarray], unaries: Sequence[np.ndarray], *, device: str
    ) -> list[np.ndarray]:
        """Compute the marginals of several images of one size at once, in torch.

        Args:
            images: B images (H, W, 3) uint8, RGB, at least one.
            unaries: B arrays of energies (L, H, W) float32; L may differ between images.
            device: The torch device that computes.

        Returns:
            B arrays of marginals (L, H, W) float32, each summing to 1 over its L.

        Raises:
            ValueError: Sizes or types do not fit.
        """
        import torch

        from tool.crf.mean_field import mean_field

        for image, unary in zip(images, unaries, strict=True):
            _check_sizes(image, unary)
        # Pad all images to one number of labels. Infinite energies exclude the labels that an image
        # does not have.
        most = max(len(unary) for unary in unaries)
        energy = np.full((len(unaries), most, *unaries[0].shape[1:]), np.inf, np.float32)
        for row, unary in zip(energy, unaries, strict=True):
            row[: len(unary)] = unary  # (L, H, W)
        prob = mean_field(
            torch.from_numpy(np.stack(images)).to(device),
            torch.from_numpy(energy).to(device),
            gaussian=(self.gaussian_sxy, self.gaussian_compat),
            bilateral=(self.bilateral_sxy, self.bilateral_srgb, self.bilateral_compat),
            iterations=self.iterations,
        )
        return [p[: len(u)] for p, u in zip(prob.cpu().numpy(), unaries, strict=True)]


def _check_sizes(image: np.ndarray, unary: np.ndarray) -> None:
    """Raise `ValueError` unless the image is 8-bit RGB and the energies have its size."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if unary.ndim != 3 or unary.shape[1:] != image.shape[:2]:
        raise ValueError(f"energies {unary.shape} do not fit an image {image.shape}")


BACKENDS = ("auto", "torch", "pydensecrf")


def pick_backend(name: str) -> tuple[str, str]:
    """Return which library computes the CRF, and on which device.

    `auto` means torch if there is a GPU, else pydensecrf if it is installed, else torch. Torch is
    imported only if the system has a driver for a GPU.

    Args:
        name: One of `BACKENDS`.

    Returns:
        `torch` or `pydensecrf`, and `cpu` or this rank's GPU.

    Raises:
        ValueError: `name` is `pydensecrf`, which is not installed.
    """
    installed = importlib.util.find_spec("pydensecrf") is not None
    if name == "pydensecrf" and not installed:
        raise ValueError("--backend pydensecrf: pip install pydensecrf2, or --backend torch")
    gpu = name != "pydensecrf" and _has_gpu()
    if name == "pydensecrf" or (name == "auto" and installed and not gpu):
        return "pydensecrf", "cpu"
    return "torch", local_cuda() if gpu else "cpu"


def _has_gpu() -> bool:
    """Return whether torch sees a GPU.

    Torch is not imported if the system has no driver for one.
    """
    if not (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()):
        return False
    import torch

    return torch.cuda.is_available()


def _field(width: int, height: int, labels: int) -> object:
    """Return an empty field of pydensecrf.

    The compiled package is imported here, so that nothing else needs it.
    """
    from pydensecrf.densecrf import DenseCRF2D

    return DenseCRF2D(width, height, labels)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A CRF with the settings of one of the field's codebases.

    Attributes:
        crf: Kernels and iterations.
        from_labels: Whether the energies come from a hard labelling with confidence `gt_prob`.
            Otherwise they come from the scores themselves.
        gt_prob: Confidence in a hard label, in (0, 1).
    """

    crf: DenseCRF
    from_labels: bool
    gt_prob: float = 0.7


PRESETS: dict[str, Preset] = {
    "label50": Preset(DenseCRF(3, 3, 50, 5, 10, 10), True),
    "label20": Preset(DenseCRF(3, 3, 20, 5, 10, 10), True),
    "fbr80": Preset(DenseCRF(3, 3, 80, 13, 10, 5), False),
    "psa80": Preset(DenseCRF(3, 3, 80, 13, 10, 10), False),
    "aff80": Preset(DenseCRF(3, 3, 80, 13, 10, 10), True),
    "seam32": Preset(DenseCRF(3, 3, 32, 13, 10, 1), False),
    "dlv2": Preset(DenseCRF(1, 3, 67, 3, 4, 10), False),
    "mct83": Preset(DenseCRF(4, 3, 83, 5, 3, 10), False),
}


def preset_of(name: str, iterations: int | None = None) -> Preset:
    """Return the preset called `name`.

    Args:
        name: A key of `PRESETS`.
        iterations: Number of mean-field steps; None for the preset's own.

    Raises:
        ValueError: There is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no CRF preset {name!r}: there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if iterations is None:
        return preset
    return dataclasses.replace(preset, crf=dataclasses.replace(preset.crf, iterations=iterations))


def score_unary(score: np.ndarray) -> np.ndarray:
    """Return the energies -log(score) of scores, which are clipped to [1e-5, 1] first.

    The scores are not normalised over the labels.

    Args:
        score: (L, H, W).

    Returns:
        (L, H, W) float32, in [0, 11.52].

    Source: FBR (TCSVT 2024), inference.
    """
    return -np.log(np.clip(score, 1e-5, 1).astype(np.float32))


def label_unary(labels: np.ndarray, *, n_labels: int, gt_prob: float) -> np.ndarray:
    """Return the energies (n_labels, H, W) float32 of a hard labelling.

    The given label has probability `gt_prob`, and the others share the rest equally. With n labels
    the energy gap is ln(gt_prob (n - 1) / (1 - gt_prob)). If there is only one label, all energies
    are 0.

    Args:
        labels: (H, W) in 0..n_labels - 1.
        n_labels: The number of labels of the CRF.
        gt_prob: The confidence in the given label, in (0, 1).
    """
    if n_labels == 1:
        return np.zeros((1, *labels.shape), np.float32)
    # Give every label the energy of the others, then overwrite that of the given label.
    unary = np.full((n_labels, *labels.shape), -np.log((1 - gt_prob) / (n_labels - 1)), np.float32)
    np.put_along_axis(unary, labels[None].astype(np.int64), np.float32(-np.log(gt_prob)), axis=0)
    return unary
