"""How long does a page take to be drawn, and how large is it?

A run of 10,000 images in 50 classes is made up (its record is that of a small fit), with real JPEG files made on the
fly. Its page is drawn with the files where they lay, without them, and with photographs of 12 megapixels in their
place. Bound: 30 s, 5 MB.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from common import arguments, finish

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

SIDE_PX = 256  # of the files, as the labelled sets have them
CAMERA_PX = (4000, 3000)


def small_record(home: Path):
    """Of a fit on a handful of pictures."""
    from made_runs import photo
    from topwork import workflow

    rng = np.random.default_rng(0)
    for k in range(3):
        for i in range(8):
            photo(home / "photos" / f"class {k}" / f"{i}.jpg", k, rng, 48)
    return workflow.fit(
        home / "photos", size=64, strategy="head", out=home / "run", cache=home / "cache", pictures=False
    ).record


def drawn(run: Path) -> dict[str, float]:
    """Seconds, bytes and pictures of the page."""
    from topwork import report

    start = time.perf_counter()
    page = report.write(run)
    seconds = time.perf_counter() - start
    text = page.read_text()
    facts = json.loads(text.split('id="facts">')[1].split("</script>")[0])
    return {"seconds": round(seconds, 2), "bytes": len(text.encode()), "pictures": len(facts["thumbs"])}


def camera(root: Path) -> None:
    """A photograph as a telephone takes it, in the place of every file."""
    rng = np.random.default_rng(0)
    width, height = CAMERA_PX
    y, x = np.mgrid[:height, :width] / height
    picture = 120 + 60 * np.sin(20 * x)[..., None] * np.sin(15 * y)[..., None] + rng.normal(0, 8, (height, width, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "camera.jpg", quality=90)
    for path in root.rglob("photo-*.jpg"):
        path.unlink()
        path.symlink_to(root / "camera.jpg")


def main() -> None:
    options = arguments(__doc__, images=10_000, classes=50)
    n = options.images // 5 if options.quick else options.images
    from made_runs import make, names

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        record = small_record(home)
        run = make(record, home / "made", classes=names(options.classes, 30), images=n, size_px=SIDE_PX)
        figures = {"files as they lay": drawn(run)}
        camera(home / "made" / "images")
        figures["photographs of 12 megapixels"] = drawn(run)
        shutil.rmtree(home / "made" / "images")
        figures["without files"] = drawn(run)
    for name, found in figures.items():
        print(f"{n:,} images, {name}: {found['seconds']} s, {found['bytes']:,} bytes, {found['pictures']} pictures")
    finish({"images": n, **figures})


if __name__ == "__main__":
    main()
