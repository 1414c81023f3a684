"""`--weights imagenet`: download of the weights that torchvision and timm publish."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from network.backbones import Backbone
from tool.bar import Bar
from tool.files import atomic_path, file_hash

_SECONDS = 30  # a download that receives no byte for so long is given up
_CHUNK = 2**20
_NO_ANSWER = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)


def published_file(backbone: Backbone) -> Path:
    """Return the file of the published ImageNet weights of `backbone`; download it if missing.

    The file lies in `TORCH_HOME/hub/checkpoints`, where torchvision keeps its files, too. If its
    name contains a part of its SHA-256, as torchvision's do, the hash is checked.

    Raises:
        ValueError: No weights are published for the backbone, or the file's SHA-256 is wrong.
        ConnectionError: The file cannot be downloaded; names the file and where to put it.
    """
    url, name = backbone.published()
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        _fetch(url, path)
    else:
        _check(file_hash(path), path, f"remove it, or fetch {url} anew")
    return path


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path` in one attempt, completely or not at all."""
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "torch.hub"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            bar = Bar(length or None, path.name, unit="B", unit_scale=True, leave=False)
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
    """Yield the response body in chunks.

    Args:
        answer: The response.
        length: Number of bytes that the response announces; 0 if it announces none.

    Raises:
        HTTPException: The body is cut off, or the network fails. The network's `OSError` is
            converted, because it would be taken for an error of the file that is written.
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
    """Compare a SHA-256 with the part of it in a name like `resnet50-0676ba61.pth`.

    A name without such a part passes.

    Args:
        digest: SHA-256 of the file, in hexadecimal digits.
        path: The file.
        remedy: What the user should do, for the message.

    Raises:
        ValueError: They differ; names the file and the remedy.
    """
    part = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if part and not digest.startswith(part[1]):
        raise ValueError(
            f"{path} has the SHA-256 {digest}, not the {part[1]} of its name: {remedy}"
        )
