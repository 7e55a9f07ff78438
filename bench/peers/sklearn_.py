"""scikit-learn's logistic regression on the last layer's features. What is done is in README.md."""

import points
import timm
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

TASK = points.Task(["scikit-learn", "timm", "torch"])


def main():
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(TASK.weights)}
    ).eval()
    config = timm.data.resolve_data_config({"input_size": (3, TASK.size, TASK.size)}, model=model)
    view = timm.data.create_transform(**config)

    def features(folder):
        loader = DataLoader(ImageFolder(str(folder), view), batch_size=32, num_workers=2)
        with torch.no_grad():
            return torch.cat([model(images) for images, _ in loader]).numpy()

    x = features(TASK.train)
    if TASK.mode == "best":
        regression = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(
                Cs=10, cv=min(5, *(TASK.train_labels.count(i) for i in range(len(TASK.classes)))), max_iter=1000,
                l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False, random_state=TASK.seed,
            ),
        )  # fmt: skip
    else:
        regression = LogisticRegression(max_iter=1000)
    regression.fit(x, TASK.train_labels)
    with TASK.free():
        TASK.point(regression.predict(features(TASK.test)).tolist(), note="fitted")


main()
