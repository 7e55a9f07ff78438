"""timm's training script, from timm's own pieces. What is done, and after which page, is in README.md.

The script itself, train.py, is in timm's repository but not in its package.
"""

from types import SimpleNamespace

import points
import torch
from timm import create_model, utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

TASK = points.Task(["timm", "torch"])

SCRIPT = SimpleNamespace(  # the script's defaults
    epochs=300, batch=128, opt="sgd", lr=0.1 * 128 / 256, momentum=0.9, decay=2e-5, layer_decay=None, clip=None,
    warmup_epochs=5, warmup_lr=1e-5, scale=(0.08, 1.0), jitter=0.4, on_updates=False,
)  # fmt: skip
SMALL = SimpleNamespace(
    # The options that timm's cards state for fine-tuning (AdamW, layer decay, clipping, warm-up from 0, a rate per
    # update), with what they do not state for a few hundred images chosen by us: batch, rate, epochs, gentler crops.
    epochs=12, batch=32, opt="adamw", lr=1e-3, momentum=0.9, decay=0.01, layer_decay=0.8, clip=1.0,
    warmup_epochs=1, warmup_lr=0.0, scale=(0.35, 1.0), jitter=0.4, on_updates=True,
)  # fmt: skip
WORKERS, SMOOTHING = 4, 0.1


def main():
    o = SMALL if TASK.mode == "best" else SCRIPT
    utils.random_seed(TASK.seed, 0)
    device = torch.device("cpu")
    model = create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=len(TASK.classes), drop_rate=0.0,
        pretrained_cfg_overlay={"file": str(TASK.weights)},
    )  # fmt: skip
    config = resolve_data_config({"input_size": (3, TASK.size, TASK.size)}, model=model)
    common = {
        "input_size": config["input_size"], "mean": config["mean"], "std": config["std"], "use_prefetcher": True,
        "device": device,
    }  # fmt: skip
    train = create_loader(
        create_dataset("", root=str(TASK.train.parent), split=TASK.train.name, is_training=True),
        batch_size=min(o.batch, len(TASK.train_files)), is_training=True, scale=o.scale, ratio=(3 / 4, 4 / 3),
        hflip=0.5, color_jitter=o.jitter, interpolation="random", num_workers=WORKERS, pin_memory=False, **common,
    )  # fmt: skip
    test_set = create_dataset("", root=str(TASK.test.parent), split=TASK.test.name, is_training=False)
    test = create_loader(
        test_set, batch_size=32, is_training=False, interpolation=config["interpolation"],
        crop_pct=config["crop_pct"], num_workers=0, pin_memory=False, **common,
    )  # fmt: skip
    optimizer = create_optimizer_v2(
        model, opt=o.opt, lr=o.lr, weight_decay=o.decay, momentum=o.momentum, layer_decay=o.layer_decay
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=o.epochs, warmup_epochs=o.warmup_epochs, warmup_lr=o.warmup_lr,
        min_lr=0, step_on_epochs=not o.on_updates, updates_per_epoch=len(train),
    )  # fmt: skip
    loss = LabelSmoothingCrossEntropy(SMOOTHING)
    updates = 0
    for epoch in range(epochs):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            if o.clip is not None:
                utils.dispatch_clip_grad(model.parameters(), value=o.clip, mode="norm")
            optimizer.step()
            updates += 1
            scheduler.step_update(num_updates=updates)
        scheduler.step(epoch + 1)
        with TASK.free():
            model.eval()
            with torch.no_grad():
                answers = torch.cat([model(images).argmax(1) for images, _ in test]).tolist()
            TASK.point(answers, note=f"epoch {epoch + 1} of {epochs}")


main()
