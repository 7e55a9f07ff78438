"""PyTorch's transfer-learning tutorial, both of its ways. What is done, and after which page, is in README.md."""

import points
import timm
import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

TASK = points.Task(["torchvision", "timm", "torch"])

EPOCHS, BATCH, WORKERS = 25, 4, 4
HALF = [0.5, 0.5, 0.5]  # this network's; the tutorial's are those of its own


def main():
    torch.manual_seed(TASK.seed)
    tail = [transforms.ToTensor(), transforms.Normalize(HALF, HALF)]
    seen = transforms.Compose([transforms.RandomResizedCrop(TASK.size), transforms.RandomHorizontalFlip(), *tail])
    judged = transforms.Compose(
        [transforms.Resize(round(TASK.size * 256 / 224)), transforms.CenterCrop(TASK.size), *tail]
    )
    train = DataLoader(datasets.ImageFolder(str(TASK.train), seen), batch_size=BATCH, shuffle=True, num_workers=WORKERS)
    test = DataLoader(datasets.ImageFolder(str(TASK.test), judged), batch_size=32)
    model = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay={"file": str(TASK.weights)}
    )
    frozen = TASK.mode == "frozen"
    for parameter in model.parameters():
        parameter.requires_grad = not frozen
    model.classifier = nn.Linear(model.classifier.in_features, len(TASK.classes))
    trained = model.classifier.parameters() if frozen else model.parameters()
    optimizer = optim.SGD(trained, lr=0.001, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(EPOCHS):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        with TASK.free():
            model.eval()
            with torch.no_grad():
                answers = torch.cat([model(images).argmax(1) for images, _ in test]).tolist()
            TASK.point(answers, note=f"epoch {epoch + 1} of {EPOCHS}")


main()
