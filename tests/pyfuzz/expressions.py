"""Expressions that a statement is made of: numbers, questions, keys, weights.

`x` is the value that flows, (B, 4, H, W); `image` is what the function was given.  `<number>` is another expression.
"""

from __future__ import annotations


def lines(text: str) -> tuple[str, ...]:
    """One expression a line."""
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


NUMBERS = lines("""
    x.shape[-1]
    x.size(2)
    x.size()[3]
    image.shape[0]
    len(x)
    x.dim()
    x.ndim
    int(x.shape[2])
    float(x.shape[3])
    math.sqrt(x.shape[-1])
    float(np.sqrt(x.shape[-2]))
    x.shape[-1] ** 0.5
    x.numel() // x.shape[0]
    math.prod(x.shape[2:])
    max(x.shape[2:])
    min(x.shape[-1], 9)
    sum(x.shape)
    len(x.shape)
    math.ceil(x.shape[-1] / 2)
    math.floor(x.shape[-1] / 5)
    round(x.shape[-1] * 0.4)
    round(x.shape[-1] / 3, 1)
    int(x.shape[-1] * 1.5)
    x.shape[-1] % 3
    -(-x.shape[-1] // 4)
    len(f"{x.shape[-1]}")
    len(str(tuple(x.shape)))
    x.shape.numel()
    x[0].shape[-1]
    int(x.shape[-1] > 8)
    (x.shape[-1] > x.shape[-2]) + 1
    divmod(x.shape[-1], 3)[1]
    operator.index(x.shape[-1])
    abs(x.shape[-1] - x.shape[-2])
    self.c0.weight.shape[0]
    len(self.c0.weight)
    self.c0.kernel_size[0]
    bool(x.shape[0])
    {8: 2, 9: 3}.get(x.shape[-1], 1)
    sorted(x.shape)[0]
    sorted(x.shape[1:], reverse=True)[0]
    x.element_size()
    x.shape.index(4)
    x.shape.count(4)
    x.shape[-1].bit_length()
    next(iter(x.shape))
    next(n for n in x.shape if n > 2)
    sum(1 for n in x.shape if n > 8)
    len({*x.shape})
    len([n for n in x.shape if n % 2])
    functools.reduce(operator.mul, x.shape[2:], 1)
    torch.tensor(x.shape[-1]).item()
    x.new_ones(x.shape[-1]).sum()
    torch.finfo(x.dtype).bits
    x.storage_offset()
    int(np.prod(x.shape[2:]))
    int(np.array(x.shape).max())
    int(np.ceil(x.shape[-1] / 4))
    int(str(x.shape[-1]))
    math.gcd(x.shape[-1], x.shape[-2])
    math.log2(x.shape[-1] + 1)
    pow(x.shape[-1], 2) % 7
    x.shape[-1] & 3
    x.shape[-1] >> 1
    x.shape[-1] ^ 1
    ~x.shape[-1] % 5
    [*x.shape][2]
    tuple(x.shape)[-1]
    list(range(x.shape[-1]))[-1]
    len(range(0, x.shape[-1], 3))
    x.shape[-1] if x.shape[-1] > 8 else <number>
    x.shape[-1] or 1
    (x.shape[-1] == 8 and <number>) or <number>
    max(<number>, <number>)
    (lambda n: n + 1)(<number>)
    measured(x)
    measured(x, axis=-2)
    self.area(x)
    side_of(x.shape[-1])
    SIDES.get(x.shape[-1], 1.5)
    dict(zip("bchw", x.shape))["w"]
    dict(enumerate(x.shape))[3]
    getattr(x, "ndim", 3)
    getattr(self, "factor", 2.0)
    getattr(x, "factor", 2.0)
    x.flatten(2).shape[-1]
    x.mean().item() ** 0
    x.chunk(2, 1)[0].shape[1]
    len(x.split(3, 1))
    len(x.unbind(1))
    self.training + 1
    int(isinstance(x, Tensor)) + 1
    int(x.requires_grad) + 1
    torch.is_grad_enabled() + 1
    torch.get_default_dtype().itemsize
    Axis.WIDTH * 0.5
    x.stride(-1) + x.is_contiguous()
    int("8x8" in f"{x.shape[-2]}x{x.shape[-1]}")
    ord(str(x.shape[-1])[0])
    len(repr(x.shape))
    x.__len__()
    x.shape.__len__()
    torch.numel(x) % 11
    max(x.shape, key=lambda n: -n)
    min((n for n in x.shape if n > 2), default=1)
    sum(x.shape[2:], 1)
    sum(map(int, x.shape))
    torch.Size([*x.shape[:2], 1]).numel()
    (x.shape + (3,))[-1]
    (x.shape * 2)[5]
    x.shape[::-1][0]
    statistics.mean(x.shape[2:])
    len(list(itertools.product(x.shape, x.shape)))
    complex(x.shape[-1]).real
    hash(x.shape[-1]) % 5
    hash(x.shape) % 3
    isinstance(x.shape[-1], int) + 1
    len(bytes(x.shape[-1]))
    len("ab" * x.shape[-1])
    len([0] * x.shape[-1])
    torch.arange(x.shape[-1]).sum()
    torch.zeros(x.shape[-1], 2).numel()
    np.arange(x.shape[-1])[-1]
    float(np.float64(x.shape[-1]))
    int(torch.linspace(0, 1, x.shape[-1]).numel())
    torch.as_tensor(x.shape).prod()
    torch.tensor(x.shape[2:]).max().item()
    torch.tensor([*x.shape, 3.5]).max()
    x.nbytes % 7
    x.itemsize
    x.names.__len__()
    x.device.index or 2
""")

QUESTIONS = lines("""
    isinstance(x, Tensor)
    isinstance(x, (list, tuple))
    isinstance(image, torch.Tensor) and not isinstance(image, nn.Parameter)
    type(x) is Tensor
    type(x) == list
    type(x).__name__ == "Tensor"
    type(x) in (Tensor, nn.Parameter)
    issubclass(type(x), Tensor)
    x.__class__ is Tensor
    isinstance(x.shape[-1], int)
    type(x.shape[-1]) is int
    isinstance(x.shape, tuple)
    isinstance(x, Iterable)
    isinstance(x, torch.fx.Proxy)
    isinstance(self.c0, nn.Conv2d)
    isinstance(self.n0, nn.Identity)
    isinstance(self.c0.weight, nn.Parameter)
    hasattr(x, "shape")
    hasattr(x, "logits")
    hasattr(x, "keys")
    hasattr(self, "c0")
    hasattr(self, "absent")
    hasattr(self, "later")
    getattr(x, "is_cuda", True)
    getattr(self, "absent", None) is None
    callable(x)
    callable(self.c0)
    callable(getattr(x, "relu", None))
    x is None
    x is not None
    x is image
    image is x
    x == None
    None in (x,)
    x.shape[-1] > 8
    x.shape[-1] == x.shape[-2]
    x.shape[-1] % 2 == 0
    x.shape[2:] == (8, 8)
    x.shape[-2:] == image.shape[-2:]
    tuple(x.shape[2:]) in {(8, 8), (9, 12)}
    x.shape == image.shape
    x.shape[0] == 1
    9 in x.shape
    4 not in x.shape
    not x.shape[-1] % 3
    4 < x.shape[-1] < 10
    all(n > 3 for n in x.shape)
    any(n > 8 for n in x.shape[2:])
    f"{x.shape[-1]}" == "8"
    str(x.shape[-1]) in "6 7 8"
    "%dx%d" % tuple(x.shape[2:]) == "8x8"
    repr(x.shape).endswith("8])")
    x.dtype == torch.float64
    x.dtype is torch.float32
    x.dtype in (torch.float16, torch.bfloat16)
    x.dtype == self.c0.weight.dtype
    str(x.dtype) == "torch.float64"
    x.is_floating_point()
    torch.is_floating_point(x)
    torch.is_tensor(x)
    x.device.type == "cpu"
    str(x.device) == "cpu"
    x.device == torch.device("cpu")
    x.is_cuda
    x.dim() == 4
    x.ndim != 4
    x.numel() > 300
    x.is_contiguous()
    len(x) > 1
    len(x.shape) == 4
    bool(x.shape[0])
    self.training
    not self.n0.training
    torch.is_grad_enabled()
    x.requires_grad
    image.requires_grad
    x.grad_fn is None
    x.is_leaf
    self.c0.weight.requires_grad
    torch.is_inference_mode_enabled()
    x.is_inference()
    torch.jit.is_scripting()
    torch.jit.is_tracing()
    torch.compiler.is_compiling()
    torch.compiler.is_exporting()
    torch.onnx.is_in_onnx_export()
    torch.is_autocast_enabled("cpu")
    torch.get_default_dtype() == torch.float32
    torch.fx._symbolic_trace.is_fx_tracing()
    torch.overrides.is_tensor_like(x)
    self.flag
    self.c0.bias is not None
    self.c0.stride == (1, 1)
    x.mean() > 0
    bool((x.shape[-1] > 4) & (x.shape[-2] > 4))
    operator.gt(x.shape[-1], 8)
    math.isclose(x.shape[-1] / x.shape[-2], 1.0)
    max(x.shape[2:]) <= 8
    large(x)
    self.is_wide(x)
    (n := x.shape[-1]) > 8 and n < 100
    <number> > 8
    <number> == <number>
    not (<question>)
    <question> and <question>
    <question> or <question>
    [<question>, <question>].count(True) == 1
    dict(a=<question>)["a"]
    bool(<number>)
    id(x) == id(image)
    x.data_ptr() == image.data_ptr()
    torch.equal(x, x)
    x.layout == torch.strided
    x.is_sparse
    x.is_complex()
    x.is_quantized
    x.is_meta
    x.names[0] is None
    isinstance(x.device, torch.device)
    isinstance(x.dtype, torch.dtype)
    Axis(x.shape[1] - 1) is Axis.WIDTH
    next((True for n in x.shape if n == 9), False)
    np.isclose(x.shape[-1], 8)
    np.array_equal(x.shape[2:], (8, 8))
    isinstance(x, collections.abc.Sequence)
    isinstance(x.shape, collections.abc.Sequence)
    "conv" in type(self.c0).__name__.lower()
    list(self.children())[0] is not None
    len(list(self.parameters())) > 4
    sum(p.numel() for p in self.c0.parameters()) > 100
    next(self.parameters()).dtype == x.dtype
    next(self.c0.parameters()).is_cuda
    x.size() == image.size()
    x.size(-1) == image.size(-1)
    x.shape > (1, 2)
    x.shape[2:] != x.shape[:2]
    set(x.shape) == {2, 4, 8}
    x.shape[-1] in range(5, 9)
    x.shape[-1] in SIDES
    x.shape[-1].__gt__(8)
    x.names == (None,) * 4
    torch.can_cast(x.dtype, torch.float32)
    torch.promote_types(x.dtype, torch.float32) == torch.float32
    torch.result_type(x, 1.0) == x.dtype
""")

KEYS = lines("""
    x.shape[-1]
    x.shape
    tuple(x.shape)
    x.shape[-2:]
    (x.shape[-2], x.shape[-1])
    (x.shape[-1], x.dtype, x.device)
    (x.shape[-1], str(x.device))
    f"{x.shape[-2]}x{x.shape[-1]}"
    str(x.shape[-1])
    "%d" % x.shape[-1]
    x.dtype
    str(x.dtype)
    x.device
    x.device.type
    "grid"
    len(x)
    x.size()
    hash((x.shape[-1], 3))
    (*x.shape[2:], "grid")
    frozenset(x.shape)
    "x".join(map(str, x.shape))
    repr(x.shape)
    x.shape[-1] // 4
    self.training
    id(self)
    torch.is_grad_enabled()
    x.requires_grad
    <number>
    <question>
    -1
""")

WEIGHTS = lines("""
    self.c<k>.weight
    self.c<k>.weight * self.mask
    standardised(self.c<k>.weight)
    F.normalize(self.c<k>.weight.flatten(1)).view_as(self.c<k>.weight)
    self.c<k>.weight.clone().mul_(self.mask)
    self.c<k>.weight.flip(-1)
    torch.where(self.mask > 0.5, self.c<k>.weight, 0.0)
    self.c<k>.weight.masked_fill(self.mask < 0.5, 0.1)
    self.c<k>.weight.sign() * self.c<k>.weight.abs().mean()
    self.c<k>.weight * torch.sigmoid(self.scale.view(4, 1, 1, 1))
    self.c<k>.weight * (1.0 if self.training else 0.5)
    self.c<k>.weight + self.c<j>.weight
    self.c<k>.weight.detach()
    self.c<k>.weight.data
    self.c<k>.weight.to(x.dtype)
    F.pad(self.p<k>.weight, (1, 1, 1, 1)) + self.c<j>.weight
    Sign.apply(self.c<k>.weight)
    Clip.apply(self.c<k>.weight, -0.2, 0.2)
    torch.stack([self.c<k>.weight, self.c<j>.weight]).mean(0)
    sum(c.weight for c in (self.c0, self.c1))
    self.c<k>.weight[torch.tensor([3, 2, 1, 0])]
    self.c<k>.weight * torch.rand_like(self.c<k>.weight)
    self.weight_of(self.c<k>)
    self.c<k>.weight / x.shape[-1]
    self.c<k>.weight * (x.shape[-1] > 8)
    dict(self.c<k>.named_parameters())["weight"]
    self.c<k>._parameters["weight"]
    self.state_dict()["c0.weight"] + self.c0.weight * 0
    self.get_parameter("c0.weight") + self.c0.weight * 0
    nn.Parameter(self.c<k>.weight.detach() * 2)
    copy.deepcopy(self.c<k>).weight * 2
""")
EXPRESSIONS = {"number": NUMBERS, "question": QUESTIONS, "key": KEYS, "weight": WEIGHTS}
