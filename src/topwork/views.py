"""Which views of an image does training see?

View 0 is the plain one, the pixels that prediction uses. Every other view is a random crop, flip and
change of colour, drawn from the image's content, the view's number and the seed: whoever asks for the
same view gets the same pixels, in any order, thread or process, now or after an interruption.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from topwork import images
from topwork.images import Source
from topwork.records import Augmentation, Preprocessing

TRIES = 10  # draws of a crop before the largest centred one within the proportions is taken, as torchvision does


def view(
    source: Source, number: int, preprocessing: Preprocessing, augmentation: Augmentation, *, digest: str, seed: int
) -> NDArray[np.uint8]:  # (crop_px, crop_px, 3) RGB
    """View `number` of one image; `digest` names its content (images.digest). Raises ImageError."""
    image = images.decode(source, preprocessing)
    return view_of(image, number, preprocessing, augmentation, digest=digest, seed=seed)


def view_of(
    image: Image.Image,
    number: int,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    digest: str,
    seed: int,
) -> NDArray[np.uint8]:  # (crop_px, crop_px, 3) RGB
    """The same of an image as images.decode gives it."""
    if number == 0:
        return images.frame(image, preprocessing)
    rng = np.random.default_rng([seed, number, int(digest[:15], 16)])
    return _augmented(image, preprocessing, augmentation, rng)


def _augmented(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Random resized crop, flip and colour by torchvision's own operations, with the parameters drawn here."""
    side = preprocessing.crop_px
    top, left, height, width = _crop(image.height, image.width, augmentation, rng)
    image = functional.resized_crop(
        image, top, left, height, width, [side, side], InterpolationMode(preprocessing.interpolation)
    )
    flipped = rng.random() < 0.5  # drawn whether it is used or not: the other draws stay the same
    if augmentation.flip and flipped:
        image = functional.horizontal_flip(image)
    image = image.convert("RGB")  # grey so far, where the file is
    if augmentation.colour:
        low, high = 1 - augmentation.colour, 1 + augmentation.colour
        image = functional.adjust_brightness(image, rng.uniform(low, high))
        image = functional.adjust_contrast(image, rng.uniform(low, high))
        image = functional.adjust_saturation(image, rng.uniform(low, high))
    return np.asarray(image)


def _crop(height: int, width: int, augmentation: Augmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop: its area a uniform share, the log of its proportions uniform."""
    stretch = math.log(augmentation.stretch)
    for _ in range(TRIES):
        area = height * width * rng.uniform(augmentation.least_area, 1)
        ratio = math.exp(rng.uniform(-stretch, stretch))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    h = min(height, round(width * augmentation.stretch))
    w = min(width, round(height * augmentation.stretch))
    return (height - h) // 2, (width - w) // 2, h, w
