"""Keras's guide to transfer learning, on the PyTorch backend. What is done, and after which page, is in README.md."""

import math
import os

import points

os.environ["KERAS_BACKEND"] = "torch"
TASK = points.Task(["keras", "timm", "torch"])

import keras  # noqa: E402
import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from keras import layers  # noqa: E402

BATCH, FROZEN_EPOCHS, TUNED_EPOCHS = 32, 20, 10


class Map(torch.nn.Module):
    """timm's network up to its pooling."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.forward_features(x)


class Body(layers.TorchModuleWrapper):
    """Always in inference mode, as the guide calls its base with training=False. Channels last outside, as there."""

    def call(self, x):
        return super().call(x.permute(0, 3, 1, 2), training=False)

    def compute_output_shape(self, shape):
        return (shape[0], self.module.network.num_features, shape[1] // 32, shape[2] // 32)


class Rotation(layers.Layer):
    """`RandomRotation(0.1)`, reflected at the borders: what Keras's own layer gives, which on this backend and a CPU
    takes far longer than the network itself."""

    def call(self, x, training=False):
        if not training:
            return x
        angle = (2 * torch.rand(x.shape[0]) - 1) * 0.1 * 2 * math.pi
        zero, sin, cos = torch.zeros_like(angle), angle.sin(), angle.cos()
        turn = torch.stack([cos, -sin, zero, sin, cos, zero], 1).reshape(-1, 2, 3)
        pixels = x.permute(0, 3, 1, 2)
        grid = torch.nn.functional.affine_grid(turn, pixels.shape, align_corners=False)
        turned = torch.nn.functional.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        return turned.permute(0, 2, 3, 1)

    def compute_output_shape(self, shape):
        return shape


class Judged(keras.callbacks.Callback):
    """An answer after every epoch, at no charge."""

    def __init__(self, images, stage):
        super().__init__()
        self.images, self.stage = images, stage

    def on_epoch_end(self, epoch, logs=None):
        with TASK.free():
            answers = self.model.predict(self.images, batch_size=BATCH, verbose=0).argmax(1).tolist()
            TASK.point(answers, note=f"{self.stage}, epoch {epoch + 1}")


def read(files):
    """(n, size, size, 3), resized once and kept, as by the guide's `map(resize)` and `cache()`."""
    size = (TASK.size, TASK.size)
    load, array = keras.utils.load_img, keras.utils.img_to_array
    return np.stack([array(load(p, target_size=size, interpolation="bilinear")) for p in files])


def main():
    keras.utils.set_random_seed(TASK.seed)
    images, labels = read(TASK.train_files), np.array(TASK.train_labels)
    with TASK.free():
        test = read(TASK.test_files)
    network = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(TASK.weights)}
    )
    base = Body(Map(network))
    base.trainable = False
    inputs = keras.Input(shape=(TASK.size, TASK.size, 3))
    x = keras.Sequential([layers.RandomFlip("horizontal"), Rotation()])(inputs)
    x = layers.Rescaling(scale=1 / 127.5, offset=-1)(x)
    x = base(x)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    x = layers.Dropout(0.2)(x)
    model = keras.Model(inputs, layers.Dense(len(TASK.classes))(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for rate, epochs, stage in ((None, FROZEN_EPOCHS, "frozen"), (1e-5, TUNED_EPOCHS, "fine-tuning")):
        base.trainable = stage != "frozen"
        optimizer = keras.optimizers.Adam() if rate is None else keras.optimizers.Adam(rate)
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
        model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[Judged(test, stage)])


main()
