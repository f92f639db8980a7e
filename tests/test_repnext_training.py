"""Datasets in the layouts people have, augmentation, and the training loop on a handful of real images."""

from __future__ import annotations

import csv
import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from repnext import training
from repnext.datasets import (
    FASHION_MNIST_CLASSES,
    FASHION_MNIST_DIRECTORY,
    NANO_NORMALIZATION,
    DatasetError,
    FolderSet,
    ImageSet,
    Normalization,
    augment,
    cifar,
    fashion_mnist,
    read_idx,
    shipped_test_set,
)
from repnext.training import TrainingConfig, evaluate, open_dataset, save_log, save_weights, train

WEIGHTS = Path(training.__file__).parent / "weights"


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(root: Path, count: int = 20) -> None:
    """The shipped images in the layout of the real dataset, as both splits."""
    small = shipped_test_set().subset(count)
    for prefix, suffix in (("train", ".gz"), ("t10k", "")):
        write_idx(root / f"{prefix}-images-idx3-ubyte{suffix}", small.images[:, 0].numpy())
        write_idx(root / f"{prefix}-labels-idx1-ubyte{suffix}", small.labels.numpy())


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_from_a_given_folder(tmp_path: Path, split: str) -> None:
    write_fashion_mnist(tmp_path)
    read = fashion_mnist(split, tmp_path)  # type: ignore[arg-type]
    assert torch.equal(read.images, shipped_test_set().subset(20).images)
    assert read.labels.tolist() == shipped_test_set().subset(20).labels.tolist()
    assert read.classes == FASHION_MNIST_CLASSES


def test_missing_fashion_mnist_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="dataset-fashion-mnist"):
        fashion_mnist("train", tmp_path)


def test_idx_files_that_are_not(tmp_path: Path) -> None:
    file = tmp_path / "images"
    file.write_bytes(b"\x89PNG....")
    with pytest.raises(DatasetError, match="not an idx file"):
        read_idx(file)
    write_idx(file, np.zeros((2, 3)))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DatasetError, match="holds 5"):
        read_idx(file)


def test_shipped_images_are_test_images() -> None:
    if not FASHION_MNIST_DIRECTORY.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    original, shipped = fashion_mnist("test").subset(500), shipped_test_set()
    assert torch.equal(original.images, shipped.images)
    assert torch.equal(original.labels, shipped.labels)


def test_cifar_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 9]}))
    meta = {"label_names": [f"class {index}" for index in range(10)]}
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps(meta))
    with pytest.raises(DatasetError, match="no intact CIFAR-10"):
        cifar("train", tmp_path, 10)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    assert len(cifar("train", tmp_path, 10)) == 20
    test = cifar("test", tmp_path, 10)
    assert torch.equal(test.images.flatten(1), torch.from_numpy(pixels))
    assert test.labels.tolist() == [0, 1, 2, 9]


def test_folders_of_images(tmp_path: Path) -> None:
    shades = {"dark": 20, "light": 220}
    for name, shade in shades.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (40, 50), (shade,) * 3).save(tmp_path / "train" / name / f"{index}.png")
    for train_split in (True, False):
        read = FolderSet(tmp_path / "train", size=32, train=train_split, workers=0)
        images, labels = next(read.batches(6))
        assert read.classes == ("dark", "light")
        assert (len(read), read.batch_count(4)) == (6, 2)
        assert images.shape == (6, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert images[:, 0, 0, 0].tolist() == [20] * 3 + [220] * 3
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(open_dataset("folder", "train", tmp_path, 32)) == 6
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset("folder", "test", tmp_path, 32)
    (tmp_path / "val").mkdir()
    with pytest.raises(DatasetError, match="no images in one folder per class"):
        open_dataset("folder", "test", tmp_path, 32)


def test_datasets_that_do_not_exist() -> None:
    with pytest.raises(DatasetError, match="needs --data"):
        open_dataset("cifar10", "train", None, 32)
    with pytest.raises(DatasetError, match="no dataset is called 'mnist'"):
        open_dataset("mnist", "train", Path(), 32)


def test_image_sets_check_their_shapes() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DatasetError, match="uint8"):
        ImageSet(images.float(), torch.zeros(2), ("a",))
    with pytest.raises(DatasetError, match="as many labels"):
        ImageSet(images, torch.zeros(3), ("a",))


def test_subsets_are_balanced_and_seeded() -> None:
    whole = shipped_test_set()
    part = whole.subset(30, seed=1)
    assert part.labels.bincount().tolist() == [3] * 10
    assert torch.equal(part.images, whole.subset(30, seed=1).images)
    assert not torch.equal(part.images, whole.subset(30, seed=2).images)
    with pytest.raises(DatasetError, match="shared equally"):
        whole.subset(31)
    with pytest.raises(DatasetError, match="has 50 images, not 60"):
        whole.subset(600)


def test_batches_cover_everything_once() -> None:
    torch.manual_seed(0)
    whole = shipped_test_set()
    ordered = torch.cat([labels for _, labels in whole.batches(64)])
    shuffled = torch.cat([labels for _, labels in whole.batches(64, shuffle=True)])
    assert torch.equal(ordered, whole.labels)
    assert not torch.equal(shuffled, ordered)
    assert torch.equal(shuffled.sort().values, ordered.sort().values)
    assert whole.batch_count(64) == 8
    assert whole[3][1] == whole.labels[3]


# Preparing ------------------------------------------------------------------------------------------------


def test_normalization_of_constant_images() -> None:
    prepare = Normalization((6, 10), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    white = prepare(torch.full((2, 1, 3, 5), 255, dtype=torch.uint8))
    assert white.shape == (2, 3, 6, 10)
    torch.testing.assert_close(white[0, :, 2, 2], torch.tensor([1.0, 3.0, 1.0]))


def test_images_of_the_right_size_are_not_resampled() -> None:
    images = torch.randint(0, 256, (1, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(Normalization((5, 5), (0.0,), (1.0,))(images), images.float() / 255)


def test_augmentation_switched_off_is_the_identity() -> None:
    images = shipped_test_set().images[:8]
    assert torch.equal(augment(images, shift=0, flip=False, erase=0), images)


def test_shift_moves_each_image_by_itself() -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 2, 9, 11, dtype=torch.uint8)
    images[:, :, 4, 5] = 255
    moved = augment(images, shift=2, flip=False, erase=0)
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert moved.dtype == torch.uint8
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert len(places) > 15
    assert all(abs(row - 4) <= 2 and abs(column - 5) <= 2 for row, column in places)


def test_flip_mirrors_about_half() -> None:
    torch.manual_seed(0)
    images = torch.arange(6, dtype=torch.uint8).expand(200, 1, 4, 6)
    flipped = augment(images, shift=0, flip=True, erase=0)[:, 0, 0, 0] == 5
    assert 70 < flipped.sum() < 130


def test_erasing_hides_a_rectangle() -> None:
    torch.manual_seed(0)
    images = torch.full((200, 1, 16, 24), 9, dtype=torch.uint8)
    erased = augment(images, shift=0, flip=False, erase=0.5)[:, 0] == 0
    hit = erased.flatten(1).any(1)
    assert 70 < hit.sum() < 130
    for hidden in erased[hit]:
        rows, columns = hidden.any(1).sum(), hidden.any(0).sum()
        assert hidden.sum() == rows * columns
        assert 2 <= rows <= 6
        assert 3 <= columns <= 9


# Training -------------------------------------------------------------------------------------------------


def quick(**changes: object) -> TrainingConfig:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 50, "warmup_epochs": 0, "learning_rate": 2e-3}
    return TrainingConfig(**(settings | changes))


def test_training_reduces_the_loss() -> None:
    images = shipped_test_set().subset(200)
    result = train(quick(epochs=4, batch_size=20, augmentation={"erase": 0.0}), images, images)
    losses = [record.train_loss for record in result.records]
    assert losses[0] < 2.6
    assert losses[-1] < 0.75 * losses[0]
    assert result.records[-1].test_accuracy > 0.3
    assert not result.model.training


def test_one_epoch_lowers_the_loss_of_the_same_batch() -> None:
    images = shipped_test_set().subset(100)
    inputs = NANO_NORMALIZATION(images.images)
    torch.manual_seed(0)
    fresh = timm.create_model("repnext_nano").train()
    trained = train(quick(epochs=1, batch_size=20), images, images).model.train()

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(inputs), images.labels).item()

    assert loss(trained) < loss(fresh)


def test_the_seed_decides_the_run() -> None:
    images = shipped_test_set().subset(40)

    def weights(seed: int) -> Tensor:
        model = train(quick(epochs=1, batch_size=20, seed=seed), images, images).model
        return model.get_parameter("stem.stem.0.conv.weight")

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_learning_rate_warms_up_and_falls() -> None:
    images = shipped_test_set().subset(20)
    result = train(quick(epochs=3, batch_size=10, warmup_epochs=1), images, images)
    rates = [record.learning_rate for record in result.records]
    assert rates[0] < 2e-3
    assert rates[-1] < rates[1] <= 2e-3


def test_every_epoch_can_be_saved() -> None:
    images = shipped_test_set().subset(20)
    seen: list[int] = []
    train(
        quick(epochs=2, batch_size=10),
        images,
        images,
        after_epoch=lambda so_far: seen.append(len(so_far.records)),
    )
    assert seen == [1, 2]


def test_evaluation_counts_the_last_short_batch() -> None:
    images = shipped_test_set()
    model = timm.create_model("repnext_nano", pretrained=True)
    assert evaluate(model, images, NANO_NORMALIZATION, 128) == evaluate(model, images, NANO_NORMALIZATION, 500)


def test_command_writes_weights_and_log(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    application = Typer()
    application.command()(training.main)
    output = tmp_path / "new" / "nano.safetensors"
    arguments = ["--output", str(output), "--data", str(tmp_path), "--epochs", "1", "--batch-size", "10"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert "epoch   1" in result.output
    loaded = timm.create_model("repnext_nano")
    loaded.load_state_dict(load_file(output), strict=True)
    lines = list(csv.DictReader((output.parent / "nano_training.csv").read_text().splitlines()))
    assert [line["epoch"] for line in lines] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "no dataset is called"),
        (["--model", "repnext_m9"], "timm knows no model 'repnext_m9'"),
    ],
)
def test_command_explains_a_mistake(tmp_path: Path, arguments: list[str], message: str) -> None:
    application = Typer()
    application.command()(training.main)
    result = CliRunner().invoke(
        application, ["--output", str(tmp_path / "x.safetensors"), "--data", str(tmp_path), *arguments]
    )
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


# What ships -----------------------------------------------------------------------------------------------


def test_packaged_log_and_weights_belong_together() -> None:
    lines = list(csv.DictReader((WEIGHTS / "repnext_nano_training.csv").read_text().splitlines()))
    assert [int(line["epoch"]) for line in lines] == list(range(1, len(lines) + 1))
    assert float(lines[-1]["train_loss"]) < float(lines[0]["train_loss"])
    assert float(lines[-1]["test_accuracy"]) >= 0.90
    shipped = evaluate(timm.create_model("repnext_nano", pretrained=True), shipped_test_set(), NANO_NORMALIZATION)
    assert abs(shipped - float(lines[-1]["test_accuracy"])) < 0.03  # 500 of the 10,000 images


def test_packaged_weights_are_small_float32() -> None:
    file = WEIGHTS / "repnext_nano.safetensors"
    assert file.stat().st_size < 4_000_000
    kinds = {value.dtype for value in load_file(file).values()}
    assert kinds == {torch.float32, torch.int64}


@pytest.mark.slow
def test_packaged_weights_reach_the_logged_accuracy() -> None:
    if not FASHION_MNIST_DIRECTORY.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    logged = list(csv.DictReader((WEIGHTS / "repnext_nano_training.csv").read_text().splitlines()))[-1]
    model = timm.create_model("repnext_nano", pretrained=True)
    accuracy = evaluate(model, fashion_mnist("test"), NANO_NORMALIZATION)
    assert accuracy == pytest.approx(float(logged["test_accuracy"]), abs=5e-4)


def test_logs_round_for_reading(tmp_path: Path) -> None:
    record = training.EpochRecord(1, 0.00123456, 0.987654, 0.91234, 12.3456)
    save_log((record,), tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_text().splitlines()[1] == "1,1.235e-03,0.9877,0.9123,12.3"


def test_saved_weights_load_strictly(tmp_path: Path) -> None:
    model = timm.create_model("repnext_nano").to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "w.safetensors")
    other = timm.create_model("repnext_nano")
    other.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
