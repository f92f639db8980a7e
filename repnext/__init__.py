"""RepNeXt as ordinary multi-branch modules, registered with timm.

Importing this package makes `timm.create_model("repnext_m1")` work.  `repnext_nano` comes with weights
trained on Fashion-MNIST and with real test images::

    model = timm.create_model("repnext_nano", pretrained=True).eval()
    images, labels = repnext.test_images()

No module here fuses itself; that is the business of a compiler.
"""

try:
    import timm  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "timm":
        raise
    said = 'repnext needs timm, which is not installed; pip install "repfx[models]".'
    raise ModuleNotFoundError(said, name=error.name) from error

from repnext.datasets import FASHION_MNIST_CLASSES, test_images
from repnext.model import RepNext
from repnext.variants import (
    repnext_m0,
    repnext_m0e,
    repnext_m1,
    repnext_m1e,
    repnext_m2,
    repnext_m2e,
    repnext_m3,
    repnext_m4,
    repnext_m5,
    repnext_nano,
)

__all__ = [
    "FASHION_MNIST_CLASSES",
    "RepNext",
    "repnext_m0",
    "repnext_m0e",
    "repnext_m1",
    "repnext_m1e",
    "repnext_m2",
    "repnext_m2e",
    "repnext_m3",
    "repnext_m4",
    "repnext_m5",
    "repnext_nano",
    "test_images",
]
