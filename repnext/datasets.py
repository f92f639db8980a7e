"""Labelled images: readers for the usual layouts, the shipped test images, and batches a model can eat.

Owns reading (idx files, torchvision's CIFAR layout, one folder per class), batched augmentation of raw
images, and the one way from raw bytes to model input: resize, scale to [0, 1], normalise.  Downloads nothing.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

Split = Literal["train", "test"]
Batch = tuple[Tensor, Tensor]  # (N, C, H, W) uint8, (N,) int64

FASHION_MNIST_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package dataset-fashion-mnist
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_MNIST_MEAN = 0.2860  # of the training split, pixels in [0, 1]
FASHION_MNIST_STD = 0.3530
NANO_SIZE = 64  # the 28x28 images are resized to this
SHIPPED_IMAGES = Path(__file__).parent / "data" / "fashion_mnist_test500.npz"

IDX_UNSIGNED_BYTE = 0x08


class DatasetError(ValueError):
    """A dataset is missing or not in the layout it should have.  The message says what to do."""


@dataclass(frozen=True)
class Normalization:
    """What happens to raw images before a model sees them."""

    size: tuple[int, int]  # (H, W)
    mean: tuple[float, ...]  # one per model input channel, for pixels in [0, 1]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """`(N, C, h, w)` uint8 to `(N, len(mean), H, W)` float32; one grey channel is repeated."""
        pixels = images.float() / 255
        if pixels.shape[-2:] != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (pixels - mean) / std


NANO_NORMALIZATION = Normalization((NANO_SIZE, NANO_SIZE), (FASHION_MNIST_MEAN,) * 3, (FASHION_MNIST_STD,) * 3)


class ImageSet(Dataset[Batch]):
    """Raw labelled images in memory: `images` `(N, C, H, W)` uint8, `labels` `(N,)` int64."""

    def __init__(self, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DatasetError(f"images must be (N, C, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
        if labels.shape != images.shape[:1]:
            raise DatasetError(f"{len(images)} images need as many labels, not {tuple(labels.shape)}")
        self.images = images
        self.labels = labels.long()
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def subset(self, count: int, seed: int = 0) -> ImageSet:
        """`count` images, the same number of each class, chosen by `seed`."""
        per_class, rest = divmod(count, len(self.classes))
        if rest:
            raise DatasetError(f"{count} images cannot be shared equally by {len(self.classes)} classes")
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in range(len(self.classes)):
            members = (self.labels == label).nonzero().flatten()
            if len(members) < per_class:
                raise DatasetError(f"class {self.classes[label]} has {len(members)} images, not {per_class}")
            chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
        index = torch.cat(chosen).sort().values
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def batches(self, batch_size: int, shuffle: bool = False) -> Iterator[Batch]:
        """Batches in order, or in a random order drawn from torch's global generator."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for index in order.split(batch_size):
            yield self.images[index], self.labels[index]

    def batch_count(self, batch_size: int) -> int:
        return math.ceil(len(self) / batch_size)


class FolderSet:
    """One folder of image files per class, read from disk as it is used.

    Training batches are random resized crops, the others the centre of the resized image; both give
    `(N, 3, size, size)` uint8.
    """

    def __init__(self, root: Path, size: int, train: bool, workers: int = 2) -> None:
        from torchvision import datasets, transforms

        if not root.is_dir():
            raise DatasetError(f"{root} is not a folder; give one that holds one folder of images per class")
        framing = (
            [transforms.RandomResizedCrop(size)] if train else [transforms.Resize(size), transforms.CenterCrop(size)]
        )
        try:
            self._images = datasets.ImageFolder(str(root), transforms.Compose([*framing, transforms.PILToTensor()]))
        except FileNotFoundError as error:
            raise DatasetError(f"{root} holds no images in one folder per class") from error
        self.classes = tuple(self._images.classes)
        self._workers = workers

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, batch_size: int, shuffle: bool = False) -> Iterator[Batch]:
        """Batches in order, or in a random order drawn from torch's global generator."""
        yield from DataLoader(self._images, batch_size, shuffle, num_workers=self._workers)

    def batch_count(self, batch_size: int) -> int:
        return math.ceil(len(self) / batch_size)


LabelledImages = ImageSet | FolderSet


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an idx file (optionally gzipped), in its own shape."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        content = stream.read()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != IDX_UNSIGNED_BYTE:
        raise DatasetError(f"{path.name} is not an idx file of unsigned bytes")
    header = 4 + 4 * content[3]
    shape = [int(length) for length in np.frombuffer(content[4:header], dtype=">u4")]
    if len(content) - header != math.prod(shape):
        raise DatasetError(f"{path.name} announces {shape} bytes and holds {len(content) - header}")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())


def fashion_mnist(split: Split, directory: Path | None = None) -> ImageSet:
    """Fashion-MNIST's 60,000 training or 10,000 test images, `(N, 1, 28, 28)`.

    `directory` holds the four idx files, gzipped or not, where the Debian package puts them by default.
    """
    directory = directory or FASHION_MNIST_DIRECTORY
    prefix = "train" if split == "train" else "t10k"
    images = read_idx(_find(directory, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(directory, f"{prefix}-labels-idx1-ubyte"))
    return ImageSet(images.unsqueeze(1), labels, FASHION_MNIST_CLASSES)


def _find(directory: Path, stem: str) -> Path:
    for candidate in (directory / f"{stem}.gz", directory / stem):
        if candidate.is_file():
            return candidate
    raise DatasetError(
        f"{directory} holds no {stem}; install the Debian package dataset-fashion-mnist or pass the folder"
        " that holds the idx files"
    )


def cifar(split: Split, directory: Path, classes: Literal[10, 100] = 10) -> ImageSet:
    """CIFAR-10 or CIFAR-100, `(N, 3, 32, 32)`, from the folder torchvision would have downloaded into."""
    from torchvision import datasets

    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    try:
        source = kind(str(directory), train=split == "train", download=False)
    except RuntimeError as error:
        raise DatasetError(f"{directory} holds no intact CIFAR-{classes} in torchvision's layout") from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(source.targets), tuple(source.classes))


def augment(images: Tensor, *, shift: int = 2, flip: bool = True, erase: float = 0.1) -> Tensor:
    """Randomly shift, mirror and partly erase raw images, each on its own; shape and dtype are kept.

    Args:
        images: `(N, C, H, W)`.
        shift: at most so many pixels each way, zeros moving in.
        flip: mirror half of the images left to right.
        erase: share of the images that lose a rectangle of 1/8 to 3/8 of each side.
    """
    count, _, height, width = images.shape
    device = images.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    if shift:
        padded = functional.pad(images, (shift,) * 4)
        down, right = torch.randint(0, 2 * shift + 1, (2, count, 1), device=device)
        sample = torch.arange(count, device=device)[:, None, None]
        taken = padded.permute(0, 2, 3, 1)[sample, (rows + down)[:, :, None], (columns + right)[:, None, :]]
        images = taken.permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, device=device) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
    if erase:
        inside_rows, inside_columns = _random_interval(count, rows), _random_interval(count, columns)
        chosen = torch.rand(count, 1, 1, device=device) < erase
        hidden = inside_rows[:, :, None] & inside_columns[:, None, :] & chosen
        images = images.masked_fill(hidden[:, None], 0)
    return images


def _random_interval(count: int, positions: Tensor) -> Tensor:
    """`(count, len(positions))` bool: for each image, the positions inside a random interval."""
    length = len(positions)
    extent = torch.randint(max(1, length // 8), 3 * length // 8 + 1, (count, 1), device=positions.device)
    start = (torch.rand(count, 1, device=positions.device) * (length - extent + 1)).long()
    return (positions >= start) & (positions < start + extent)


def shipped_test_set() -> ImageSet:
    """The 500 Fashion-MNIST test images inside this package, 50 of each class, `(500, 1, 28, 28)` uint8."""
    with np.load(SHIPPED_IMAGES) as archive:
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
    return ImageSet(images.unsqueeze(1), labels, FASHION_MNIST_CLASSES)


def test_images() -> Batch:
    """Real labelled images as `repnext_nano` expects them.

    Returns `(500, 3, 64, 64)` float32, normalised, and `(500,)` int64 labels that index
    `FASHION_MNIST_CLASSES`.  None of them was trained on.
    """
    shipped = shipped_test_set()
    return NANO_NORMALIZATION(shipped.images), shipped.labels
