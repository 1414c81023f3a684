"""Entry points of torch.hub: `torch.hub.load(FOLDER, "predictor", source="local", ...)`."""

import sys
from pathlib import Path

dependencies = ["torch", "torchvision", "timm", "safetensors", "numpy", "PIL", "cv2"]


def predictor(checkpoint, **options):
    """Return a `network.predict.predictor.Predictor`.

    Args:
        checkpoint: The `checkpoint.pth` of a run, or what `network.export` wrote.
        options: `device`, `gate` and `max_side`, as `network.predict.predictor.load` takes them.
    """
    # torch.hub takes its entry of the path away afterwards. Later imports and processes need one.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from network.predict.predictor import load

    return load(checkpoint, **options)
