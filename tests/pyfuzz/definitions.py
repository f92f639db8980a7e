"""What statements name: functions, classes and tables of the file, parts and methods of the class.

A definition is written into a program where its name is used.
"""

from __future__ import annotations

import re

_TOP = """
def measured(x, axis=-1):
    return x.shape[axis] + 0.5

def large(x, than=8):
    return x.shape[-1] > than

@functools.lru_cache(maxsize=None)
def side_of(n):
    return n * 0.5

SIDES = {8: 0.5, 9: 1.25, 12: 2.0}

class Axis(enum.IntEnum):
    BATCH = 0
    HEIGHT = 2
    WIDTH = 3

class Pair(NamedTuple):
    early: Any
    late: Any = None

@dataclasses.dataclass
class Record:
    value: Any
    size: Any = None

@dataclasses.dataclass(frozen=True)
class Frozen:
    value: Any
    sizes: tuple = ()

class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))

class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, grad):
        return grad

class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high=1.0):
        ctx.low, ctx.high = low, high
        ctx.save_for_backward(x)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.low) & (x <= ctx.high)), None, None

class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return grad * scale * 2.0, (grad * x).sum((0, 2, 3), keepdim=True)

class Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu(), -x

    @staticmethod
    def backward(ctx, a, b):
        return a - b

class Needs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0 if ctx.needs_input_grad[0] else x * 3.0

    @staticmethod
    def backward(ctx, grad):
        return grad

class Writes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(0.5)

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.5

CACHE = {}

LAST = []

RECENT = collections.deque(maxlen=2)

NAMED = collections.defaultdict(list)

COUNT = [0]

TICKS = itertools.count(1)

OWN = random.Random(3)

ARRAYS = np.random.default_rng(3)

GENERATOR = torch.Generator().manual_seed(3)

class Store:
    grids = {}
    calls = 0

STORE = types.SimpleNamespace(calls=0, grids={})

class Tally:
    def __init__(self):
        self.calls = 0

    def step(self):
        self.calls += 1
        return self.calls

TALLY = Tally()

TOTAL = 0

def count_up():
    global TOTAL
    TOTAL += 1
    return TOTAL

def counting():
    calls = 0

    def step():
        nonlocal calls
        calls += 1
        return calls

    return step

COUNTER = counting()

def ramp(x):
    return torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype, device=x.device)

@functools.lru_cache(maxsize=4)
def ramps(n, dtype=torch.float64):
    return torch.linspace(0, 1, n, dtype=dtype)

@functools.cache
def window(shape):
    return torch.ones(shape[-1], dtype=torch.float64).cumsum(0)

def memo(x, known={}):
    if x.shape[-1] not in known:
        known[x.shape[-1]] = ramp(x)
    return known[x.shape[-1]]

def counted(x, calls=[0]):
    calls[0] += 1
    return x * calls[0]

def standardised(w):
    mean = w.mean((1, 2, 3), keepdim=True)
    return (w - mean) / (w.std((1, 2, 3), keepdim=True) + 1e-5)

def scaled(x, by=2.0, *, shift=0.0, **others):
    return x * by + shift + len(others)

def total(*values, start=0.0):
    found = start
    for value in values:
        found = found + value
    return found

def halves(run, x, depth):
    if depth == 0 or x.shape[-1] < 4:
        return run(x)
    left, right = x.chunk(2, -1)
    return torch.cat([halves(run, left, depth - 1), halves(run, right, depth - 1)], -1)

def times(x, n):
    return x if n <= 0 else times(x * 0.9 + 0.1, n - 1)

def checked(x, most=8):
    if x.shape[-1] > most:
        raise ValueError(f"{tuple(x.shape)} is too large")
    return x

def rising(x, n):
    for i in range(n):
        yield x * (i + 1)

@functools.singledispatch
def entered(x):
    return x * 3.0

@entered.register(torch.Tensor)
def _entered_tensor(x):
    return x.relu() + x

@entered.register(list)
def _entered_list(x):
    return x[0]

LOOKUP = {0: torch.relu, 1: torch.tanh, 2: lambda x: x * 2}

BY_TYPE = {Tensor: torch.relu, list: torch.tanh}

@contextlib.contextmanager
def doubling(owner):
    owner.__dict__["factor"] = 2.0
    yield owner
    owner.__dict__.pop("factor", None)

@contextlib.contextmanager
def without_gradients():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)

class Noted:
    def __enter__(self):
        COUNT[0] += 1
        return self

    def __exit__(self, *error):
        return error[0] is ZeroDivisionError

@contextlib.contextmanager
def in_double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)

@torch.no_grad()
def still(x):
    return x.mean((2, 3), keepdim=True)

def quietly(function):
    @functools.wraps(function)
    def run(*args, **kwargs):
        with torch.no_grad():
            return function(*args, **kwargs)
    return run

@quietly
def quiet(x):
    return x * 2.0

@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2.0 + 1.0

def drop_path(x, p=0.25):
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - p)
    return x * mask / (1 - p)

@dataclasses.dataclass
class Config:
    width: int = 4
    scale: float = 1.5
    relu: bool = True
    sizes: dict = dataclasses.field(default_factory=dict)

class Doubled(nn.Module):
    def __call__(self, x):
        return super().__call__(x) * 2.0

    def forward(self, x):
        return x + 1.0

class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls

class Averaging(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept_mean", torch.zeros(1))

    def forward(self, x):
        self.kept_mean.mul_(0.9).add_(x.detach().mean() * 0.1)
        return x - self.kept_mean

class Lazy(nn.Module):
    def forward(self, x):
        if not hasattr(self, "grid"):
            self.grid = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return x + self.grid.sum()

class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        key = (x.shape[-2], x.shape[-1], x.dtype)
        if key not in self.cache:
            y, z = torch.meshgrid(torch.arange(key[0]), torch.arange(key[1]), indexing="ij")
            self.cache[key] = (y + z).to(x)
        return x + self.cache[key] * 0.1

class Previous(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        before, self.last = self.last, x.detach().mean()
        return x if before is None else x + before

class ScaledConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight * 0.5, self.bias)

class SamePad(nn.Conv2d):
    def forward(self, x):
        h, w = x.shape[-2:]
        pad = max((math.ceil(w / 2) - 1) * 2 + 3 - w, 0)
        x = F.pad(x, (pad // 2, pad - pad // 2, 1, 1))
        return super().forward(x)[..., :h, :w]

class Norm2d(nn.BatchNorm2d):
    def forward(self, x):
        if x.requires_grad and self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
"""


def _named(text: str) -> dict[str, str]:
    """The definitions of a text by the names that they bind."""
    found: dict[str, str] = {}
    for block in re.split(r"\n\n(?=\S)", text.strip()):
        name = re.search(r"^(?:class|def) (\w+)|^(\w+) =", block, re.MULTILINE)
        assert name is not None, block
        found[name[1] or name[2]] = block
    return found


TOP = _named(_TOP)
ALONG = {"entered": ("_entered_tensor", "_entered_list"), "Noted": ("COUNT",), "count_up": ("TOTAL",)}

PARTS = {
    r"c\d": "nn.Conv2d(4, 4, 3, padding=1)",
    r"n\d": "nn.BatchNorm2d(4)",
    r"p\d": "nn.Conv2d(4, 4, 1, bias=False)",
    r"d\d": "nn.Conv2d(4, 4, 3, padding=1, groups=4)",
    r"seq\d": "nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))",
    r"act\d": "nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))",
    "blocks": "nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(3))",
    "table": 'nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))})',
    "head": "nn.Linear(4, 4)",
    "ln": "nn.LayerNorm(4)",
    "drop": "nn.Dropout(0.5)",
    "doubled": "Doubled()",
    "counter": "Counting()",
    "averaging": "Averaging()",
    "lazy": "Lazy()",
    "positions": "Positions()",
    "previous": "Previous()",
    "scaledconv": "ScaledConv(4, 4, 3, padding=1)",
    "samepad": "SamePad(4, 4, 3)",
    "norm2d": "Norm2d(4)",
    "hooked": "nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))",
    "normed": "nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))",
    "oldnormed": "nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))",
    "scale": "nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)",
    "mask": "!torch.linspace(0, 1, 4 * 4 * 9).view(4, 4, 3, 3).round()",
    "kept": "!torch.zeros(1)",
    "kept_grid": "!torch.zeros(1, 4, 1, 1)",
    "flag": "True",
    "factor": "1.5",
    "grid": "None",
    "calls": "0",
    "before": "0.0",
    "cache": "{}",
    "seen": "[]",
    "config": "Config()",
    "functions": "[torch.relu, torch.tanh, lambda x: x * 0.5]",
    "partial": "functools.partial(F.leaky_relu, negative_slope=0.3)",
    "generator": "torch.Generator().manual_seed(1)",
    "dice": "random.Random(1)",
    "tensors": "[torch.ones(1, 4, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]",
    "array": "np.ones(3)",
    "bound": "self.c0.forward",
    "hidden": "[nn.BatchNorm2d(4).double().eval()]",
    "tally": "Tally()",
    "alias": "self.c0",
}
AFTER = {"hooked": "self.hooked[1].register_forward_hook(lambda module, args, out: out * 2.0)"}

METHODS = {
    "area": "def area(self, x):\n    h, w = x.shape[-2:]\n    return h * w / 4",
    "is_wide": "def is_wide(self, x):\n    return x.size(-1) > x.size(-2)",
    "weight_of": "@staticmethod\ndef weight_of(conv):\n    return conv.weight * 0.5",
    "twice": "def twice(self, x):\n    return self.n0(self.c0(x)) * 2.0",
    "gain": "@property\ndef gain(self):\n    return self.scale * 2.0",
    "grid_of": (
        "@functools.lru_cache(maxsize=None)\ndef grid_of(self, n):\n    return torch.arange(n, dtype=torch.float64)"
    ),
    "make": "@classmethod\ndef make(cls, x):\n    cls.made = getattr(cls, 'made', 0) + 1\n    return x * cls.made",
    "lazy_grid": "@functools.cached_property\ndef lazy_grid(self):\n    return self.scale.detach() * 3.0",
}
