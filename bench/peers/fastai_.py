"""fastai: `vision_learner(...).fine_tune`. What is done, and after which page, is in README.md."""

import points
from fastai.callback.core import Callback
from fastai.callback.schedule import *  # noqa: F403 (adds fine_tune and lr_find to the learner)
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner

TASK = points.Task(["fastai", "timm", "torch"])

PRESIZED = 460 / 224  # the vision tutorial's: decoded to 460 px for a crop of 224 px


class Judged(Callback):
    """fastai validates after every epoch: that is when it is judged, at no charge."""

    def before_fit(self):
        self.run = not hasattr(self.learn, "lr_finder")  # it ends every validation before it began

    def before_validate(self):
        TASK.pause()
        self.answers = []

    def after_pred(self):
        if not self.training:
            self.answers += self.pred.argmax(1).tolist()

    def after_validate(self):
        names = [self.dls.vocab[i] for i in self.answers]
        TASK.point(
            dict(zip(self.dls.valid_ds.items, (TASK.classes.index(c) for c in names), strict=True)),
            note=f"epoch {self.epoch + 1} of {self.n_epoch}",
        )
        TASK.go_on()


def main():
    set_seed(TASK.seed)
    best = TASK.mode == "best"
    views = (
        {"item_tfms": Resize(round(PRESIZED * TASK.size)), "batch_tfms": aug_transforms(size=TASK.size)}
        if best
        else {"item_tfms": Resize(TASK.size)}
    )
    dls = ImageDataLoaders.from_folder(
        TASK.train.parent, train=TASK.train.name, valid=TASK.test.name, seed=TASK.seed, **views
    )
    learn = vision_learner(
        dls, "tf_efficientnet_lite0", pretrained_cfg_overlay={"file": str(TASK.weights)}, cbs=Judged()
    )
    with learn.no_bar(), learn.no_logging():
        if best:
            learn.fine_tune(10, base_lr=learn.lr_find(show_plot=False).valley)
        else:
            learn.fine_tune(4)


main()
