"""What the sweep runs on: one named network each, how it is built, and what it is given.

    timm:NAME                    a timm model
    features:NAME                the same as a backbone, `features_only=True`
    torchvision:NAME             a torchvision classifier
    segmentation:NAME            a torchvision segmentation network, at 65 x 65
    detection:NAME               a torchvision detector: images in, boxes out
    others:NAME                  networks of other packages; skipped where the package is not installed

The smallest variant of each of timm's architecture modules, and the smallest input that it accepts, are
kept in `sweep_models.json`; `python -m benchmarks.sweep_subjects` writes that file anew.
"""

from __future__ import annotations

import fnmatch
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import repfx

TABLE = Path(__file__).with_name("sweep_models.json")
SIZES = (96, 128, 160, 192, 224, 256)
GROUPS = ("timm", "features", "torchvision", "segmentation", "detection", "others")

FEATURES = (
    "resnet18",
    "mobilenetv3_small_050",
    "convnext_atto",
    "repvit_m0_9",
    "efficientnet_lite0",
    "hrnet_w18_small",
)
CLASSIFIERS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
    "wide_resnet50_2",
)  # fmt: skip
SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
DETECTION = (
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn",
)  # fmt: skip
SMP = ("Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3Plus", "Linknet", "MAnet", "UPerNet", "Segformer")
WIDTHS = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
TRANSFORMERS: dict[str, dict[str, Any]] = {  # image classifiers, and their configurations
    "ResNet": {**WIDTHS, "layer_type": "basic"},
    "RegNet": {**WIDTHS, "groups_width": 16},
    "MobileNetV2": {"image_size": 64},
    "EfficientNet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "image_size": 64, "hidden_dim": 640},
    "Levit": {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8]},
    "ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
            "image_size": 64, "patch_size": 8},
    "Swin": {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
}  # fmt: skip


class NotInstalledError(Exception):
    """A network of a package that is not there."""


@dataclass(frozen=True)
class Subject:
    """One network of the sweep."""

    group: str  # one of GROUPS
    name: str
    family: str  # timm's module, or the group
    size: int  # height and width of the input
    resized: bool = False  # built for that size (`img_size`), which its stated one is not

    @property
    def spec(self) -> str:
        """The name as it is written on the command line."""
        return f"{self.group}:{self.name}"


def subjects() -> list[Subject]:
    """All networks of the sweep: the smallest of every family, then those of the other groups."""
    table = json.loads(TABLE.read_text())
    ordered = sorted(table.items(), key=lambda item: item[1]["parameters"])
    found = [Subject("timm", row["model"], family, row["size"], row["resized"]) for family, row in ordered]
    found += [Subject("features", name, "features", 96) for name in FEATURES]
    for name in CLASSIFIERS:
        fixed = {"inception_v3": 299, "vit_b_32": 224, "maxvit_t": 224}
        found.append(Subject("torchvision", name, "torchvision", fixed.get(name, 96)))
    found += [Subject("segmentation", name, "segmentation", 65) for name in SEGMENTATION]
    found += [Subject("detection", name, "detection", 128) for name in DETECTION]
    found += [Subject("others", f"smp-{name}", "segmentation_models_pytorch", 64) for name in SMP]
    return found + [Subject("others", f"hf-{name}", "transformers", 64) for name in TRANSFORMERS]


def chosen(models: str | None = None, families: str | None = None) -> list[Subject]:
    """The subjects that `models` (a glob on names) and `families` (globs on families and groups) name.

    A glob that names no subject of the table is looked up among all of timm's models.
    """
    wanted = subjects()
    if families:
        patterns = [p.strip() for p in families.split(",")]
        wanted = [s for s in wanted if any(fnmatch.fnmatchcase(w, p) for p in patterns for w in (s.family, s.group))]
    if not models:
        return wanted
    patterns = [p.strip() for p in models.split(",")]
    named = [s for s in wanted if any(fnmatch.fnmatchcase(w, p) for p in patterns for w in (s.name, s.spec))]
    known = {s.name for s in named if s.group == "timm"}
    missed = [p for p in patterns if not any(fnmatch.fnmatchcase(w, p) for s in named for w in (s.name, s.spec))]
    extra = [name for p in missed for name in timm.list_models(p.removeprefix("timm:")) if name not in known]
    return named + [Subject("timm", name, _module_of(name), _stated_size(name)) for name in extra]


def build(subject: Subject) -> nn.Module:
    """The network in float64 and eval mode, with statistics and weights behind which no mistake hides."""
    torch.manual_seed(0)
    with quiet():
        model = _factory(subject)
    model = model.double().eval()
    repfx.randomize_statistics(model)
    return _unsettle(model)


def inputs(subject: Subject, height: int, width: int, batch: int = 1) -> tuple[Any, ...]:
    """Arguments of one forward, random and float64."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    image = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)
    return (list(image.sigmoid()),) if subject.group == "detection" else (image,)


@contextmanager
def quiet() -> Iterator[None]:
    """Other libraries' warnings and logs are not the sweep's."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _factory(subject: Subject) -> nn.Module:
    options: dict[str, Any] = {}
    match subject.group:
        case "timm":
            if subject.resized:
                options["img_size"] = subject.size
            return timm.create_model(subject.name, **options)
        case "features":
            return timm.create_model(subject.name, features_only=True)
        case "torchvision":
            if subject.name in ("googlenet", "inception_v3"):
                options["init_weights"] = False
            return torchvision.models.get_model(subject.name, weights=None, **options)
        case "others":
            return _other(subject)
        case _:
            if "rcnn" in subject.name:
                options["box_score_thresh"] = 0.0
            return torchvision.models.get_model(subject.name, weights=None, weights_backbone=None, **options)


def _other(subject: Subject) -> nn.Module:
    """A network of segmentation_models_pytorch or transformers, small and with random weights."""
    try:
        package = importlib.import_module(subject.family)
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{subject.family} is not installed") from error
    kind = subject.name.partition("-")[2]
    if subject.family == "segmentation_models_pytorch":
        return getattr(package, kind)("resnet18", encoder_weights=None, classes=3)
    config = getattr(package, f"{kind}Config")(**TRANSFORMERS[kind])
    return getattr(package, f"{kind}ForImageClassification")(config)


def _unsettle(model: nn.Module) -> nn.Module:
    """Random values for weights that start as constants: a layer scale of 1e-6 hides its whole branch."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 2 or not parameter.is_floating_point() or parameter.min() != parameter.max():
                continue
            noise = torch.rand(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.copy_(noise - 0.5 if parameter.flatten()[0] == 0 else noise + 0.5)
    return model


# --- writing the table ----------------------------------------------------------------------------


def smallest() -> Iterator[tuple[str, str, int, int, bool]]:
    """(module, model, parameters, size, whether built for that size), the smallest variant of each of timm's modules.

    `test_*` models are toys of timm's own tests and count only where a module has nothing else.
    """
    for module in own_modules():
        names = timm.list_models(module=module)
        counted = [(_parameters(name), name) for name in [n for n in names if not n.startswith("test_")] or names]
        count, name = min(counted)
        yield module, name, count, *_smallest_size(name)


def own_modules() -> list[str]:
    """timm's own architecture modules, without those that other packages registered."""
    return [module for module in timm.list_modules() if hasattr(timm.models, module)]


def _parameters(name: str) -> int:
    return sum(p.numel() for p in _planned(name).parameters())


def _planned(name: str, **options: Any) -> nn.Module:
    """A model on the meta device, or with weights where it computes with values while it is built."""
    with quiet():
        try:
            with torch.device("meta"):
                return timm.create_model(name, **options).eval()
        except Exception:  # whatever a model's own code raises
            return timm.create_model(name, **options).eval()


def _smallest_size(name: str) -> tuple[int, bool]:
    """The first of SIZES that the model accepts, as it is or built for it."""
    stated = _stated_size(name)
    for options in ({}, {"img_size": 0}):
        for size in sorted({s for s in SIZES if s < stated}):
            try:
                model = _planned(name, **dict.fromkeys(options, size))
                with torch.no_grad(), quiet():
                    model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
            except Exception:  # whatever a model raises for a size it does not take
                continue
            return size, bool(options)
    return stated, False


def _stated_size(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    return (config.input_size if config is not None else (3, 224, 224))[-1]


def _module_of(name: str) -> str:
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def main() -> None:
    """Write `sweep_models.json`."""
    table = {}
    for module, name, count, size, resized in smallest():
        table[module] = {"model": name, "parameters": count, "size": size, "resized": resized}
        print(f"{module:28} {name:40} {count:>12,} {size}", flush=True)
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
