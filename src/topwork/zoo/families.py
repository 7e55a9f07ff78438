"""Which family is a network of, and from which year? The only written table of networks here.

It is for reading alone: nothing is decided by it. The year is that of the paper's first version.
"""

from __future__ import annotations

import re

FAMILIES: dict[str, tuple[str, int]] = {
    # prefix of the name: family, year
    "alexnet": ("AlexNet", 2012),  # Krizhevsky et al., NIPS 2012
    "convmixer": ("ConvMixer", 2022),  # arXiv 2201.09792
    "convnext": ("ConvNeXt", 2022),  # arXiv 2201.03545
    "convnextv2": ("ConvNeXt V2", 2023),  # arXiv 2301.00808
    "cspdarknet": ("CSPNet", 2019),  # arXiv 1911.11929
    "cspresne": ("CSPNet", 2019),
    "darknet": ("Darknet", 2018),  # arXiv 1804.02767 (YOLOv3)
    "densenet": ("DenseNet", 2016),  # arXiv 1608.06993
    "dla": ("DLA", 2017),  # arXiv 1707.06484
    "dm_nfnet": ("NFNet", 2021),  # arXiv 2102.06171
    "dpn": ("DPN", 2017),  # arXiv 1707.01629
    "ecanfnet": ("NFNet", 2021),
    "eca_nfnet": ("NFNet", 2021),
    "ecaresne": ("ECA-Net", 2019),  # arXiv 1910.03151
    "edgenext": ("EdgeNeXt", 2022),  # arXiv 2206.10589
    "efficientnet": ("EfficientNet", 2019),  # arXiv 1905.11946
    "efficientnet_lite": ("EfficientNet-Lite", 2020),  # TensorFlow's blog, March 2020
    "efficientnet_v2": ("EfficientNetV2", 2021),  # arXiv 2104.00298
    "efficientnetv2": ("EfficientNetV2", 2021),
    "ese_vovnet": ("VoVNet V2", 2019),  # arXiv 1911.06667
    "fasternet": ("FasterNet", 2023),  # arXiv 2303.03667
    "fbnetc": ("FBNet", 2018),  # arXiv 1812.03443
    "fbnetv3": ("FBNetV3", 2020),  # arXiv 2006.02049
    "gernet": ("GENet", 2020),  # arXiv 2006.14090
    "ghostnet": ("GhostNet", 2019),  # arXiv 1911.11907
    "ghostnetv2": ("GhostNetV2", 2022),  # arXiv 2211.12905
    "googlenet": ("GoogLeNet", 2014),  # arXiv 1409.4842
    "hardcorenas": ("HardCoRe-NAS", 2021),  # arXiv 2102.11646
    "hrnet": ("HRNet", 2019),  # arXiv 1902.09212
    "inception_next": ("InceptionNeXt", 2023),  # arXiv 2303.16900
    "inception_resnet": ("Inception-ResNet", 2016),  # arXiv 1602.07261
    "inception_v3": ("Inception v3", 2015),  # arXiv 1512.00567
    "inception_v4": ("Inception v4", 2016),  # arXiv 1602.07261
    "lcnet": ("PP-LCNet", 2021),  # arXiv 2109.15099
    "mixnet": ("MixNet", 2019),  # arXiv 1907.09595
    "mnasnet": ("MNASNet", 2018),  # arXiv 1807.11626
    "mobilenet_v2": ("MobileNet V2", 2018),  # arXiv 1801.04381
    "mobilenet_v3": ("MobileNet V3", 2019),  # arXiv 1905.02244
    "mobilenetv1": ("MobileNet V1", 2017),  # arXiv 1704.04861
    "mobilenetv2": ("MobileNet V2", 2018),
    "mobilenetv3": ("MobileNet V3", 2019),
    "mobilenetv4": ("MobileNet V4", 2024),  # arXiv 2404.10518
    "mobileone": ("MobileOne", 2022),  # arXiv 2206.04040
    "nasnet": ("NASNet", 2017),  # arXiv 1707.07012
    "nf_": ("NF-Net", 2021),  # arXiv 2101.08692
    "nfnet": ("NFNet", 2021),
    "pnasnet": ("PNASNet", 2017),  # arXiv 1712.00559
    "rdnet": ("RDNet", 2024),  # arXiv 2403.19588
    "regnet": ("RegNet", 2020),  # arXiv 2003.13678
    "repghostnet": ("RepGhostNet", 2022),  # arXiv 2211.06088
    "repvgg": ("RepVGG", 2021),  # arXiv 2101.03697
    "repvit": ("RepViT", 2023),  # arXiv 2307.09283
    "res2ne": ("Res2Net", 2019),  # arXiv 1904.01169
    "resnest": ("ResNeSt", 2020),  # arXiv 2004.08955
    "resnet": ("ResNet", 2015),  # arXiv 1512.03385
    "resnetrs": ("ResNet-RS", 2021),  # arXiv 2103.07579
    "resnetv2": ("ResNet V2", 2016),  # arXiv 1603.05027
    "resnext": ("ResNeXt", 2016),  # arXiv 1611.05431
    "rexnet": ("ReXNet", 2020),  # arXiv 2007.00992
    "selecsls": ("SelecSLS", 2019),  # arXiv 1907.00837
    "semnasnet": ("MNASNet", 2018),
    "senet": ("SENet", 2017),  # arXiv 1709.01507
    "seresne": ("SENet", 2017),
    "shufflenet_v2": ("ShuffleNet V2", 2018),  # arXiv 1807.11164
    "skresne": ("SKNet", 2019),  # arXiv 1903.06586
    "spnasnet": ("Single-Path NAS", 2019),  # arXiv 1904.02877
    "squeezenet": ("SqueezeNet", 2016),  # arXiv 1602.07360
    "starnet": ("StarNet", 2024),  # arXiv 2403.19967
    "tinynet": ("TinyNet", 2020),  # arXiv 2010.14819
    "tresnet": ("TResNet", 2020),  # arXiv 2003.13630
    "vgg": ("VGG", 2014),  # arXiv 1409.1556
    "vovnet": ("VoVNet", 2019),  # arXiv 1904.09730
    "wide_resnet": ("Wide ResNet", 2016),  # arXiv 1605.07146
    "xception": ("Xception", 2016),  # arXiv 1610.02357
}
"""The longest prefix that fits a name is its own."""


def family(name: str) -> tuple[str, int | None]:
    """(family, year) of a network; for one that the table lacks, its name up to a digit or `_`, and no year."""
    network = name.removeprefix("timm:").removeprefix("tf_").removeprefix("legacy_")
    prefix = max((p for p in FAMILIES if network.startswith(p)), key=len, default=None)
    if prefix is not None:
        return FAMILIES[prefix]
    return re.split(r"[\d_.]", network, maxsplit=1)[0] or network, None
