"""A plain training loop: AdamW, one cosine, label smoothing.  `python -m repnext.training --help`.

Owns the order of one run: seed, model, epochs of forward-loss-backward-step, test accuracy after each, the
weights and a log at the end.  Runs on the CPU or on one CUDA device, in float32.  It does not distribute,
resume, distil, or look for hyperparameters.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

import repnext.variants  # noqa: F401  registers the models
from repnext.datasets import (
    DatasetError,
    FolderSet,
    LabelledImages,
    Normalization,
    Split,
    augment,
    cifar,
    fashion_mnist,
)


class UnknownModelError(ValueError):
    """timm has no model of the given name."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run, beside the data.  The defaults trained `repnext_nano`."""

    model: str = "repnext_nano"
    epochs: int = 6
    batch_size: int = 128
    learning_rate: float = 3e-3  # at the top of the cosine
    weight_decay: float = 0.05  # not on biases and batch norms
    warmup_epochs: int = 1
    label_smoothing: float = 0.05
    seed: int = 0
    device: str = "cpu"
    augmentation: dict[str, Any] = field(default_factory=dict)  # keyword arguments of `datasets.augment`


@dataclass(frozen=True)
class EpochRecord:
    """One line of the log."""

    epoch: int  # from 1
    learning_rate: float  # at the epoch's end
    train_loss: float  # mean over the epoch, augmented and smoothed
    test_accuracy: float  # share of the test images classified correctly after the epoch
    seconds: float  # wall time of the epoch, its evaluation included


@dataclass(frozen=True)
class TrainingResult:
    """A run so far."""

    model: nn.Module  # in eval mode, on the configured device
    records: tuple[EpochRecord, ...]


def train(
    config: TrainingConfig,
    training: LabelledImages,
    test: LabelledImages,
    console: Console | None = None,
    after_epoch: Callable[[TrainingResult], None] | None = None,
) -> TrainingResult:
    """Train a fresh `config.model` with as many classes as `training` has.

    `console` shows progress; without one the run is silent.  `after_epoch` is called with the run so far, to
    save it for instance.
    """
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    model = timm.create_model(config.model, num_classes=len(training.classes))
    model = model.to(device).to(memory_format=torch.channels_last)
    normalization = model_normalization(model)
    loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    updates = training.batch_count(config.batch_size)
    optimizer = create_optimizer_v2(model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.learning_rate / 100,
        warmup_prefix=True,
        min_lr=config.learning_rate / 1000,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    assert scheduler is not None  # "cosine" is a schedule timm knows

    records: list[EpochRecord] = []
    update = 0
    with _progress(console) as progress:
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            bar = progress.add_task(f"epoch {epoch}/{config.epochs}", total=updates)
            model.train()
            summed_loss, seen = torch.zeros((), device=device), 0
            for images, labels in training.batches(config.batch_size, shuffle=True):
                scheduler.step_update(update)
                images, labels = images.to(device), labels.to(device)
                inputs = normalization(augment(images, **config.augmentation))
                loss = loss_of(model(inputs.contiguous(memory_format=torch.channels_last)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                summed_loss += loss.detach() * len(labels)
                seen += len(labels)
                update += 1
                progress.advance(bar)
            record = EpochRecord(
                epoch=epoch,
                learning_rate=optimizer.param_groups[0]["lr"],
                train_loss=summed_loss.item() / seen,
                test_accuracy=evaluate(model, test, normalization, config.batch_size),
                seconds=time.perf_counter() - started,
            )
            records.append(record)
            progress.remove_task(bar)
            if console is not None:
                console.print(_line(record))
            if after_epoch is not None:
                after_epoch(TrainingResult(model, tuple(records)))
    return TrainingResult(model.eval(), tuple(records))


@torch.no_grad()
def evaluate(model: nn.Module, images: LabelledImages, normalization: Normalization, batch_size: int = 256) -> float:
    """Share of `images` whose label has the largest logit.  Leaves `model` in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for batch, labels in images.batches(batch_size):
        inputs = normalization(batch.to(device)).contiguous(memory_format=torch.channels_last)
        correct += int((model(inputs).argmax(1) == labels.to(device)).sum())
    return correct / len(images)


def input_size(model_name: str) -> int:
    """Side length of the images that a registered model was made for."""
    if not timm.is_model(model_name):
        raise UnknownModelError(f"timm knows no model {model_name!r}; `timm.list_models()` names them all")
    config = timm.get_pretrained_cfg(model_name)
    return config.input_size[-1] if config else 224


def model_normalization(model: nn.Module) -> Normalization:
    """Size, mean and deviation that `model`'s default_cfg asks for."""
    data = resolve_model_data_config(model)
    _, height, width = data["input_size"]
    return Normalization((height, width), tuple(data["mean"]), tuple(data["std"]))


def save_weights(model: nn.Module, path: Path) -> None:
    """All parameters and buffers as safetensors, contiguous and on the CPU."""
    tensors: dict[str, Tensor] = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))


def save_log(records: tuple[EpochRecord, ...], path: Path) -> None:
    """One CSV line per epoch, numbers rounded for reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [column.name for column in fields(EpochRecord)], lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow(
                asdict(record)
                | {
                    "learning_rate": f"{record.learning_rate:.3e}",
                    "train_loss": f"{record.train_loss:.4f}",
                    "test_accuracy": f"{record.test_accuracy:.4f}",
                    "seconds": f"{record.seconds:.1f}",
                }
            )


def open_dataset(name: str, split: Split, directory: Path | None, size: int) -> LabelledImages:
    """`fashion-mnist`, `cifar10`, `cifar100`, or `folder` (with `train/` and `test/` or `val/` inside)."""
    if name == "fashion-mnist":
        return fashion_mnist(split, directory)
    if directory is None:
        raise DatasetError(f"{name} needs --data, the folder that holds it")
    match name:
        case "cifar10":
            return cifar(split, directory, 10)
        case "cifar100":
            return cifar(split, directory, 100)
        case "folder":
            names = ("train",) if split == "train" else ("test", "val")
            root = next((directory / sub for sub in names if (directory / sub).is_dir()), directory / names[0])
            return FolderSet(root, size, train=split == "train")
    raise DatasetError(f"no dataset is called {name!r}; there are fashion-mnist, cifar10, cifar100 and folder")


def _line(record: EpochRecord) -> str:
    return (
        f"epoch {record.epoch:3d}  lr {record.learning_rate:.2e}  loss {record.train_loss:.4f}"
        f"  test accuracy {record.test_accuracy:.2%}  {record.seconds:.0f} s"
    )


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=console is None)


def main(
    output: Annotated[Path, typer.Option(help="Weights to write, .safetensors; the log goes beside it.")],
    model: Annotated[str, typer.Option(help="Any timm model name.")] = "repnext_nano",
    dataset: Annotated[str, typer.Option(help="fashion-mnist, cifar10, cifar100 or folder.")] = "fashion-mnist",
    data: Annotated[Path | None, typer.Option(help="Folder that holds the dataset.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = TrainingConfig.epochs,
    batch_size: Annotated[int, typer.Option(min=2)] = TrainingConfig.batch_size,
    learning_rate: Annotated[float, typer.Option()] = TrainingConfig.learning_rate,
    weight_decay: Annotated[float, typer.Option()] = TrainingConfig.weight_decay,
    seed: Annotated[int, typer.Option()] = TrainingConfig.seed,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = TrainingConfig.device,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves the choice to torch.")] = 0,
) -> None:
    """Train a model from scratch; write its multi-branch weights and the log after every epoch."""
    console = Console()
    if threads:
        torch.set_num_threads(threads)
    config = TrainingConfig(
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=device,
    )
    try:
        size = input_size(model)
        training = open_dataset(dataset, "train", data, size)
        test = open_dataset(dataset, "test", data, size)
    except (DatasetError, UnknownModelError) as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from None
    log = output.with_name(f"{output.stem}_training.csv")

    def save(so_far: TrainingResult) -> None:
        save_weights(so_far.model, output)
        save_log(so_far.records, log)

    train(config, training, test, console, after_epoch=save)
    console.print(f"wrote {output} and {log}", markup=False)


if __name__ == "__main__":
    typer.run(main)
