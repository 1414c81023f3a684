"""Dense CRF over a photograph: named presets, unary energies, masks and confident seeds."""

from __future__ import annotations

import dataclasses

import numpy as np

from tool.cam import Cam


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """A fully connected CRF with a Gaussian and a bilateral kernel.

    Attributes:
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation of the appearance kernel in space, pixels.
        bilateral_srgb: the same in colour, units of 0..255.
        bilateral_compat: its weight.
        iterations: mean-field steps.

    Source: Krähenbühl & Koltun, Efficient Inference in Fully Connected CRFs (NIPS 2011).
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int

    def __call__(self, image: np.ndarray, unary: np.ndarray) -> np.ndarray:
        """The marginals after mean-field inference.

        Args:
            image: (H, W, 3) uint8, RGB.
            unary: (L, H, W) float32, energies (negative log scores); a lower one is likelier.

        Returns:
            (L, H, W) float32, summing to 1 over L.

        Raises:
            ValueError: sizes or types that do not fit.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"the image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
        if unary.ndim != 3 or unary.shape[1:] != image.shape[:2]:
            raise ValueError(f"energies {unary.shape} do not fit an image {image.shape}")
        labels, height, width = unary.shape
        field = _field(width, height, labels)
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


def _field(width: int, height: int, labels: int) -> object:
    """pydensecrf's field; imported here, so that nothing else needs the compiled package."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise ValueError("the CRF needs the package pydensecrf2 (requirements.txt)") from error
    return DenseCRF2D(width, height, labels)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A CRF as one of the field's codebases runs it (table: foundations.md, section 1.5).

    Attributes:
        crf: kernels and iterations.
        from_labels: the unary is a hard labelling held with `gt_prob`, else the scores themselves.
        gt_prob: confidence in a hard label.
    """

    crf: DenseCRF
    from_labels: bool
    gt_prob: float = 0.7


PRESETS: dict[str, Preset] = {
    "label50": Preset(DenseCRF(3, 3, 50, 5, 10, 10), True),
    "label20": Preset(DenseCRF(3, 3, 20, 5, 10, 10), True),
    "psa80": Preset(DenseCRF(3, 3, 80, 13, 10, 10), False),
    "aff80": Preset(DenseCRF(3, 3, 80, 13, 10, 10), True),
    "seam32": Preset(DenseCRF(3, 3, 32, 13, 10, 1), False),
    "dlv2": Preset(DenseCRF(1, 3, 67, 3, 4, 10), False),
    "mct83": Preset(DenseCRF(4, 3, 83, 5, 3, 10), False),
}


def preset_of(name: str, iterations: int | None = None) -> Preset:
    """The preset called `name`, with another number of iterations where one is given."""
    if name not in PRESETS:
        raise ValueError(f"no CRF preset {name!r}: there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if iterations is None:
        return preset
    return dataclasses.replace(preset, crf=dataclasses.replace(preset.crf, iterations=iterations))


def score_unary(score: np.ndarray) -> np.ndarray:
    """-log of scores (L, H, W) in [0, 1], clipped at 1e-5, as they are (fbr.md, section 6)."""
    return -np.log(np.clip(score, 1e-5, 1).astype(np.float32))


def label_unary(labels: np.ndarray, *, n_labels: int, gt_prob: float) -> np.ndarray:
    """Energies (n_labels, H, W) of a hard labelling (H, W) in 0..n_labels - 1.

    The given label has probability `gt_prob`, the others share the rest, so that the energy gap is
    ln(gt_prob (n - 1) / (1 - gt_prob)). With one label there is nothing to choose: all 0.
    """
    if n_labels == 1:
        return np.zeros((1, *labels.shape), np.float32)
    unary = np.full((n_labels, *labels.shape), -np.log((1 - gt_prob) / (n_labels - 1)), np.float32)
    np.put_along_axis(unary, labels[None].astype(np.int64), np.float32(-np.log(gt_prob)), axis=0)
    return unary


def with_background(cam: Cam, alpha: float) -> np.ndarray:
    """Scores (P+1, H, W) float32, background first: the CAM's own row, else (1 - max)^alpha."""
    if cam.has_background:
        return cam.cam
    ground = (1 - np.clip(cam.cam.max(0), 0, 1)) ** np.float32(alpha)
    return np.concatenate([ground[None], cam.cam])


def crf_mask(image: np.ndarray, cam: Cam, preset: Preset, *, alpha: float) -> np.ndarray:
    """The pseudo mask (H, W) uint8: argmax of the CRF over background and present classes.

    Args:
        image: (H, W, 3) uint8.
        cam: of the image's size. Without any foreground class the mask is background.
        preset: kernels, iterations and the kind of unary.
        alpha: of the background score; not used where the CAM has a background row.

    Source: fbr.md, section 6 (psa80, 5 iterations, alpha 8).
    """
    index = cam.foreground().class_index
    if not index.size:
        return np.zeros(image.shape[:2], np.uint8)
    _same_size(image, cam)
    score = with_background(cam, alpha)
    if preset.from_labels:
        unary = label_unary(score.argmax(0), n_labels=len(score), gt_prob=preset.gt_prob)
    else:
        unary = score_unary(score)
    return _values(index)[preset.crf(image, unary).argmax(0)]


def crf_seed(
    image: np.ndarray, cam: Cam, preset: Preset, *, fg: float, bg: float, n_labels: int
) -> np.ndarray:
    """A confident seed (H, W) uint8: foreground, 0 = background, 255 = unknown.

    Two labellings, argmax over the CAMs and a constant background of `fg` and of `bg`, each through
    the CRF. Foreground is what the first says; background is what both say; the rest is unknown.

    Args:
        image: (H, W, 3) uint8.
        cam: of the image's size. Where it has a background row, `fg` and `bg` multiply that row.
        preset: a labelling preset (`label50` in IRN).
        fg: background score of the strict foreground, at least `bg`.
        bg: background score of the strict background.
        n_labels: number of labels that sets the unary's strength: P + 1 in IRN, at least that.

    Source: IRN (CVPR 2019), as in foundations.md 1.6.
    """
    foreground = cam.foreground()
    if not foreground.class_index.size:
        return np.zeros(image.shape[:2], np.uint8)
    _same_size(image, cam)
    row = cam.cam[0] if cam.has_background else np.ones(cam.size, np.float32)
    labellings = []
    for level in (fg, bg):
        score = np.concatenate([(row * np.float32(level))[None], foreground.cam])
        unary = label_unary(score.argmax(0), n_labels=n_labels, gt_prob=preset.gt_prob)
        labellings.append(_values(foreground.class_index)[preset.crf(image, unary).argmax(0)])
    strict, loose = labellings
    return np.where((strict == 0) & (loose != 0), np.uint8(255), strict)


def _values(index: np.ndarray) -> np.ndarray:
    """Mask values by CRF label: background, then the present classes."""
    return np.concatenate([np.zeros(1, np.uint8), index])


def _same_size(image: np.ndarray, cam: Cam) -> None:
    if cam.size != image.shape[:2]:
        raise ValueError(f"a CAM of {cam.size} (H, W) for an image of {image.shape[:2]}")
