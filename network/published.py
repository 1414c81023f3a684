"""`--weights imagenet`: the weights that torchvision and timm publish, in torch's hub cache."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

import huggingface_hub
import torch
import torchvision
from tqdm import tqdm

from network.backbones import Backbone, ResNet50Backbone, TimmBackbone
from tool.files import atomic_path
from tool.run_directory import file_hash

_SECONDS = 30  # without a byte
_CHUNK = 2**20
_NO_ANSWER = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


def published_file(backbone: Backbone) -> Path:
    """Return the file of the published ImageNet weights of `backbone`, fetched once.

    It lies in `TORCH_HOME/hub/checkpoints`, where torchvision keeps its files too. The part of its
    SHA-256 in a name of torchvision's is checked.

    Raises:
        ValueError: no published weights exist for it, or the file is another one.
        ConnectionError: it cannot be fetched; names the file and where to put it.
    """
    url, name = published_url(backbone)
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        _fetch(url, path)
    else:
        _check(file_hash(path), path, f"remove it, or fetch {url} anew")
    return path


def published_url(backbone: Backbone) -> tuple[str, str]:
    """Return the address of the published ImageNet weights of `backbone`, and the file's name.

    ResNet-50 has torchvision's IMAGENET1K_V1, which this field starts from. A timm model has those
    that timm loads by default; its address on the hub is preferred, as there the names are timm's.
    """
    if isinstance(backbone, ResNet50Backbone):
        url = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
        return url, PurePosixPath(urlsplit(url).path).name
    if isinstance(backbone, TimmBackbone):
        config = backbone.net.pretrained_cfg
        if config.get("hf_hub_id"):
            file = config.get("hf_hub_filename") or "model.safetensors"
            name = config["hf_hub_id"].replace("/", "--") + PurePosixPath(file).suffix
            return huggingface_hub.hf_hub_url(config["hf_hub_id"], file), name
        if config.get("url"):
            return config["url"], PurePosixPath(urlsplit(config["url"]).path).name
        raise ValueError(f"--weights imagenet: timm publishes no weights of {backbone.name}")
    if backbone.name == "resnet38d":
        raise ValueError(
            "--weights imagenet: neither torchvision nor timm has resnet38d: "
            "`python -m tool.download weights` fetches its weights, then --weights FILE"
        )
    raise ValueError(f"--weights imagenet: no published weights exist for {backbone.name}")


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, in one attempt, whole or not at all."""
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "torch.hub"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name, leave=False)
            with atomic_path(path) as temporary, open(temporary, "wb") as file, bar:
                for part in _parts(answer, length):
                    digest.update(part)
                    file.write(part)
                    bar.update(len(part))
                _check(digest.hexdigest(), path, f"it came from {url}")
    except _NO_ANSWER as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"--weights imagenet: {url} cannot be fetched ({reason}): put the file {path.name} "
            f"into {path.parent}"
        ) from error


def _parts(answer: BinaryIO, length: int) -> Iterator[bytes]:
    """Yield the response body in chunks. Raises HTTPException if it is cut off.

    An error of the network is an `OSError` too, and would be taken for one of the file.
    """
    got = 0
    try:
        while part := answer.read(_CHUNK):
            got += len(part)
            yield part
    except OSError as error:
        raise http.client.HTTPException(str(error) or type(error).__name__) from error
    if length and got != length:
        raise http.client.HTTPException(f"{got} of {length} bytes came")


def _check(digest: str, path: Path, remedy: str) -> None:
    """Compare a SHA-256 with the part of it in a name like `resnet50-0676ba61.pth`."""
    part = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if part and not digest.startswith(part[1]):
        raise ValueError(
            f"{path} has the SHA-256 {digest}, not the {part[1]} of its name: {remedy}"
        )
