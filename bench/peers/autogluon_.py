"""AutoGluon MultiModal. What is done, and after which page, is in README.md."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import points
import timm
import torch
from autogluon.multimodal import MultiModalPredictor

TASK = points.Task(["autogluon.multimodal", "timm", "torch"])

NETWORK = "tf_efficientnet_lite0"
MARGIN = 0.2  # of the time: its own limit ends the training, and averaging the best checkpoints comes after


def checkpoint(folder):
    """A local folder of weights as AutoGluon reads one: the network without its classifier, and its configuration."""
    folder.mkdir()
    tensors = torch.load(TASK.weights, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.startswith("classifier.")}, folder / "pytorch_model.bin")
    network = timm.create_model(NETWORK, pretrained=False)
    config = {"architecture": NETWORK, "num_features": network.num_features, "pretrained_cfg": network.default_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def main():
    with TemporaryDirectory() as scratch:
        predictor = MultiModalPredictor(
            label="label", problem_type="multiclass" if len(TASK.classes) > 2 else "binary",
            path=str(Path(scratch) / "run"), verbosity=1,
            presets="medium_quality" if TASK.mode == "best" else None,
        )  # fmt: skip
        table = pd.DataFrame({"image": map(str, TASK.train_files), "label": TASK.train_labels})
        limit = None if TASK.deadline == float("inf") else TASK.left() - MARGIN * TASK.deadline
        predictor.fit(
            table, seed=TASK.seed, time_limit=limit,
            hyperparameters={
                "model.names": ["timm_image"],
                "model.timm_image.checkpoint_name": checkpoint(Path(scratch) / "weights"),
                "model.timm_image.image_size": TASK.size,
                "env.num_gpus": 0,
            },
        )  # fmt: skip
        with TASK.free():
            answers = predictor.predict(pd.DataFrame({"image": map(str, TASK.test_files)}), as_pandas=False)
            TASK.point(answers.tolist(), note="fitted")


if __name__ == "__main__":
    main()
