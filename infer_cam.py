"""Stage 2: a checkpoint -> one CAM file per image. Restarted, it skips the images that are done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data.catalog import add_dataset_flags, catalog_from
from data.dataset import InferDataset
from data.loader import infer_loader
from data.usable import add_skip_flag, ids_from
from network.methods import method_names
from network.restore import restore
from tool import dist
from tool.cam import is_whole, save_cam
from tool.files import claim, locked
from tool.msf import infer_image, present_rows
from tool.options import Parser, run_stage
from tool.run_directory import file_hash
from tool.writer import BackgroundWriter


def main(argv: Sequence[str] | None = None) -> None:
    """Write the CAMs of a list."""
    args = parse(argv)
    device = dist.pick_device(args.device)
    dist.start(device)
    if not dist.is_main():
        run(args, device)
        return
    with locked(args.out):
        run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> None:
    """Infer this rank's share of the images that are not done."""
    catalog = catalog_from(args)
    method, _ = restore(
        args.checkpoint,
        method=args.method,
        backbone=args.backbone,
        class_names=catalog.class_names,
    )
    method.to(device, memory_format=torch.channels_last).eval()
    scales = tuple(args.scales or method.recipe.scales)
    if dist.is_main():
        claim(args.out, {"checkpoint_sha256": file_hash(args.checkpoint), "scales": list(scales)})
    ids = ids_from(args, catalog)
    dataset = InferDataset(
        catalog,
        ids,
        scales=scales,
        mean=method.backbone.mean,
        std=method.backbone.std,
        inputs=method.infer_inputs,
    )
    mine = range(dist.rank(), len(ids), dist.world_size())
    left = [index for index in mine if not is_whole(cam_path(args.out, ids[index]))]
    print(f"{len(mine) - len(left)} of {len(mine)} CAMs are there, {len(left)} to go", flush=True)
    loader = infer_loader(dataset, indices=left, num_workers=args.num_workers)
    with BackgroundWriter() as writer:
        for sample in tqdm(loader, total=len(left), disable=not dist.is_main(), mininterval=1.0):
            maps = infer_image(method, sample, device=device, amp=args.amp)
            for name, values in maps.items():
                cam = present_rows(
                    values, sample.get("label"), has_background=method.has_background
                )
                writer.submit(save_cam, cam_path(args.out, sample["image_id"], name), cam)
    dist.stop()


def cam_path(out: Path, image_id: str, name: str = "cam") -> Path:
    """`OUT/ID.npy`; maps beside the CAM have a folder of their own."""
    return (out if name == "cam" else out / name) / f"{image_id}.npy"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="infer_cam.py", description=__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        required=True,
        help="checkpoint.pth of train_fbr.py, .safetensors of tool.export, or a .pth of the "
        "released code, which needs --method and --backbone",
    )
    add("--method", choices=method_names(), help="refuse a checkpoint of another method")
    add("--backbone", help="refuse a checkpoint of another backbone")
    add_dataset_flags(parser, list_name="train")
    add_skip_flag(parser)
    add("--out", type=Path, required=True, help="folder for the .npy files")
    add("--scales", type=float, nargs="+", default=None, help="default: the method's recipe")
    add("--num-workers", type=int, default=2, help="processes that decode ahead")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    add("--amp", action="store_true", help="bf16 autocast")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_stage(main)
