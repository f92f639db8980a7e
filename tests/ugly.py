"""Networks as people write them: every habit that stands between a model and a clean trace."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

BN = nn.BatchNorm2d


class ConvNorm(nn.Module):
    """ultralytics' Conv: convolution, norm, SiLU; `k` may be anything."""

    def __init__(self, inputs: int, outputs: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, k, s, k // 2, groups=g, bias=False)
        self.bn = BN(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU() if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Bottleneck(nn.Module):
    def __init__(self, width: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = ConvNorm(width, width, 3), ConvNorm(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """A list that grows: `y.extend(m(y[-1]) for m in self.m)`."""

    def __init__(self, inputs: int, outputs: int, n: int = 2) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = ConvNorm(inputs, 2 * self.c), ConvNorm((2 + n) * self.c, outputs)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNorm(width, width // 2), ConvNorm(width * 2, width)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Concat(nn.Module):
    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Detect(nn.Module):
    """A head that overwrites the list it is given, and rebuilds its anchors when the size changes."""

    shape: Any = None
    anchors = torch.empty(0)

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.nl = len(widths)
        self.cv2 = nn.ModuleList(nn.Sequential(ConvNorm(w, 8, 3), nn.Conv2d(8, 4, 1)) for w in widths)
        self.cv3 = nn.ModuleList(nn.Sequential(ConvNorm(w, 8, 3), nn.Conv2d(8, classes, 1)) for w in widths)

    def forward(self, x: list[Tensor]) -> Any:
        x = list(x)
        for i in range(self.nl):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        shape = x[0].shape
        if self.training:
            return x
        if self.shape != shape:
            self.anchors = torch.cat([torch.arange(v.shape[2] * v.shape[3], device=v.device) for v in x]).to(x[0].dtype)
            self.shape = shape
        box, score = torch.cat([v.flatten(2) for v in x], 2).split((4, x[0].shape[1] - 4), 1)
        return torch.cat((box + self.anchors, score.sigmoid()), 1), x


class Yolo(nn.Module):
    """Layers in one list, each saying where its input comes from (`f`), as ultralytics parses its YAML."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            (-1, ConvNorm(3, 8, 3, 2)), (-1, C2f(8, 8)), (-1, ConvNorm(8, 16, 3, 2)), (-1, C2f(16, 16)),
            (-1, SPPF(16)), (-1, nn.Upsample(None, 2, "nearest")), ([-1, 1], Concat()), (-1, C2f(24, 8)),
            ([7, 4], Detect(3, (8, 16))),
        ]  # fmt: skip
        self.model = nn.Sequential(*(m for _, m in layers))
        for index, (source, m) in enumerate(layers):
            m.i, m.f = index, source
        self.save = [1, 4, 7]

    def forward(self, x: Tensor, augment: bool = False, profile: bool = False, visualize: Any = False) -> Any:
        if augment:
            raise NotImplementedError
        y: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


class UNet(nn.Module):
    """Skips in a list, popped on the way up; the size of a skip decides by how much to pad."""

    def __init__(self, widths: tuple[int, ...] = (6, 8, 10)) -> None:
        super().__init__()

        def double(a: int, b: int) -> nn.Module:
            first = (nn.Conv2d(a, b, 3, padding=1), BN(b), nn.ReLU(inplace=True))
            return nn.Sequential(*first, nn.Conv2d(b, b, 3, padding=1), BN(b), nn.ReLU(inplace=True))

        self.downs, self.ups, self.merges = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for width in widths:
            self.downs.append(double(inputs, width))
            inputs = width
        for width in reversed(widths[:-1]):
            self.ups.append(nn.ConvTranspose2d(inputs, width, 2, 2))
            self.merges.append(double(2 * width, width))
            inputs = width
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(inputs, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, down in enumerate(self.downs):
            x = down(x)
            if i < len(self.downs) - 1:
                skips.append(x)
                x = self.pool(x)
        for up, merge in zip(self.ups, self.merges):
            x, skip = up(x), skips.pop()
            dy, dx = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
            if x.shape[-2:] != skip.shape[-2:]:
                x = F.interpolate(x, skip.shape[-2:])
            x = merge(torch.cat([skip, x], dim=1))
        return self.out(x)


class FPN(nn.Module):
    """An ordered dictionary in, one out; modules fetched by computed names."""

    def __init__(self, widths: dict[str, int], out: int) -> None:
        super().__init__()
        self.names = list(widths)
        for name, width in widths.items():
            self.add_module(f"lateral_{name}", ConvNorm(width, out, act=False))
            self.add_module(f"smooth_{name}", ConvNorm(out, out, 3))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        out: OrderedDict[str, Tensor] = OrderedDict()
        last: Tensor | None = None
        for name in reversed(self.names):
            here = getattr(self, f"lateral_{name}")(features[name])
            if last is not None:
                here = here + F.interpolate(last, size=here.shape[-2:], mode="nearest")
            last = here
            out[name] = getattr(self, f"smooth_{name}")(here)
        return out


@dataclass
class Detections:
    boxes: list[Tensor]
    scores: list[Tensor]
    features: dict[str, Tensor]


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.c3, self.c4 = ConvNorm(3, 6, 3, 2), ConvNorm(6, 8, 3, 2), ConvNorm(8, 10, 3, 2)
        self.fpn = FPN({"c3": 8, "c4": 10}, 6)
        self.head = nn.ModuleDict(
            {"boxes": nn.Conv2d(6, 4, 1), "scores": nn.Sequential(ConvNorm(6, 6, 3), nn.Conv2d(6, 2, 1))}
        )

    def forward(self, images: Tensor) -> Detections:
        c3 = self.c3(self.stem(images))
        features = self.fpn({"c3": c3, "c4": self.c4(c3)})
        boxes = [self.head["boxes"](f) for f in features.values()]
        return Detections(boxes, [self.head["scores"](f).sigmoid() for f in features.values()], features)


class Exits(nn.Module):
    """Early exits by a flag, by a count, by a threshold on data; layers applied twice; hidden in plain containers."""

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvNorm(4, 4, 3) for _ in range(3))
        self.stem, self.exits = ConvNorm(3, 4, 3), nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.table = {"norm": BN(4)}  # a plain dictionary: in no state_dict, moved by nobody
        self.table["norm"].eval().double()
        self.threshold = threshold

    def forward(self, x: Tensor, depth: int | None = None, return_all: bool = False) -> Any:
        x = self.stem(x)
        outputs = []
        for i, layer in enumerate(self.layers):
            if depth is not None and i >= depth:
                break
            x = layer(layer(x))
            x = self.table["norm"](x)
            outputs.append(self.exits[i](x.mean((2, 3))))
            if self.threshold is not None and outputs[-1].softmax(-1).max() > self.threshold:
                break
        return outputs if return_all else outputs[-1]


class Functional(nn.Module):
    """Weights kept as buffers, registered late, tied, standardised on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(6, 3, 3, 3))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.body = nn.Module()
        self.body.register_parameter("weight", nn.Parameter(torch.randn(6, 6, 3, 3)))
        self.body.norm = BN(6)
        self.late()

    def late(self) -> None:
        self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.body.twin = self.body.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, stride=2, padding=1)
        x = F.batch_norm(x, self.mean, self.var, training=False) * self.gamma
        w = self.body.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        x = self.body.norm(F.conv2d(F.relu(x), w, padding=1))
        return F.conv2d(x.relu_(), self.body.twin, None, 1, 1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = ConvNorm(3, 4, 3), ConvNorm(4, 4, 3), nn.Sequential(ConvNorm(4, 4, 3), ConvNorm(4, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = checkpoint(self.b, x, use_reentrant=self.reentrant)
        return checkpoint_sequential(self.c, 2, x, use_reentrant=self.reentrant)


class Output(NamedTuple):
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Tuples(nn.Module):
    """Blocks that pass tuples on, and a named tuple at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 4, 3)
        self.blocks = nn.Sequential(Pair(4), Pair(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, return_dict: bool | None = None, output_hidden: bool = True) -> Any:
        x = self.stem(x)
        x, extra = self.blocks((x, x * 2))
        logits = self.head((x + extra).mean(dim=[-1, -2]))
        if return_dict:
            return {"logits": logits}
        return Output(logits, (x, extra) if output_hidden else ())


class Pair(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = ConvNorm(width, width, 3), ConvNorm(width, width, 3, act=False)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = x
        if not isinstance(a, Tensor):
            raise TypeError("not a tensor")
        y = b + self.f(a)
        return y, a + self.g(y)


class Windows(nn.Module):
    """Pads to a multiple of the window only where that is needed, loops over sizes, asks for types and dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.out = ConvNorm(3, 4, 3), ConvNorm(4, 4, 3), ConvNorm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = (int(n) for n in x.shape)
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4))
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        rows = [self.mix(x[:, :, i : i + 4]) for i in range(0, x.shape[2], 4)]
        x = torch.cat(rows, 2)[:, :, :height, :width]
        assert x.shape == (batch, channels, height, width), f"{x.shape}"
        return self.out(x)


class Decorated(nn.Module):
    """A forward behind a decorator, a property, a lazily built layer, warnings, a counter."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.a = ConvNorm(3, 4, 3)
        self._b: nn.Module | None = None
        self.history: list[Any] = []

    @property
    def b(self) -> nn.Module:
        if self._b is None:
            torch.manual_seed(0)
            self._b = ConvNorm(4, 4, 3).eval().to(self.a.conv.weight)
        return self._b

    @staticmethod
    def logged(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def wrapper(self: Decorated, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return forward(self, *args, **kwargs)

        return wrapper

    @logged
    def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
        if verbose:
            warnings.warn("verbose", stacklevel=1)
        x = self.a(x)
        self.history.append(tuple(x.shape))
        return self.b(x)


UGLY: dict[str, Callable[[], nn.Module]] = {
    "yolo": Yolo, "unet": UNet, "detector": Detector, "exits": Exits, "exits by data": lambda: Exits(2.0),
    "functional": Functional, "checkpointed": Checkpointed, "reentrant": lambda: Checkpointed(True),
    "tuples": Tuples, "windows": Windows, "decorated": Decorated,
}  # fmt: skip
