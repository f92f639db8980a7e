"""Statements, by kind.  Each takes `x`, (B, 4, H, W), and leaves it so; `<hole>` is an expression.

`<k>` and `<j>` are numbers of parts, `<float>` a constant, `<act>` an activation.  In a block, `{body}` stands for
other statements.  What docs/any-model.md lists as not working (an error that comes for some sizes only, and is
caught; an iterator that goes on) is left out.
"""

from __future__ import annotations


def blocks(text: str) -> tuple[str, ...]:
    """Statements with an empty line between them."""
    return tuple(block.strip("\n") for block in text.strip("\n").split("\n\n"))


CHAINS = blocks("""
x = self.n<k>(self.c<k>(x))

x = self.n<k>(self.c<k>(x)).<act>()

x = F.silu(self.n<k>(self.c<k>(x)))

x = self.n<k>(self.c<k>(x) + self.p<k>(x))

x = self.n<k>(self.c<k>(x)) + self.n<j>(self.p<j>(x))

x = x + self.seq<k>(x)

x = self.seq<k>(x)

x = self.act<k>(x)

x = self.n<k>(self.d<j>(self.p<k>(x)))

for block in self.blocks:
    x = block(x)

x = sum(block(x) for block in self.blocks)

x = torch.stack([self.seq0(x), self.p1(x)]).sum(0)

x = sum([part(x) for name, part in self.table.items()])

a, b = x.chunk(2, 1)
x = self.n<k>(self.c<k>(torch.cat([b, a], 1)))

x = self.n<k>(F.conv2d(x, <weight>, self.c<k>.bias, padding=1))

x = self.n<k>(F.conv2d(x, weight=<weight>, padding="same"))

x = self.norm2d(self.c<k>(x))

x = self.n<k>(self.scaledconv(x))

x = self.n<k>(self.normed(x))
""")

ASKING = blocks("""
x = x * (1.0 + 0.1 * (<number>))

x = x + (<number>)

x = x / (1 + abs(<number>))

x = x - <number> if <question> else x * <float>

x = self.n<k>(x) if <question> else x.<act>()

x = self.seq<k>(x) if not (<question>) else self.seq<j>(x)

x = (self.c0 if <question> else self.c1)(x)

x = [self.seq0, self.seq1][<question>](x)

b, c, h, w = x.shape
x = x.view(b, c, h * w).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2) * (h / w)

b, c, *rest = x.shape
x = x.reshape(b, 2, c // 2, *rest).transpose(1, 2).reshape(b, c, *rest)

(b, c), sizes = x.shape[:2], x.shape[2:]
x = x.view(b, -1).view(b, c, *sizes)

*_, h, w = x.size()
x = x + h / (h + w)

match x.shape:
    case (_, 4, 8, _):
        x = x * 2.0
    case (_, _, h, w) if h > w:
        x = x + h
    case _:
        x = x - 1.0

match x:
    case list() | tuple():
        x = x[0]
    case Tensor(shape=(_, c, *_)):
        x = x * c
    case _:
        x = x * 9.0

match x.shape[-1]:
    case 8:
        x = x * 2.0
    case n if n % 2:
        x = x + n
    case _:
        pass

match {"size": x.shape[-1], "flag": self.flag}:
    case {"size": 8, "flag": True}:
        x = x * 2.0
    case {"size": n}:
        x = x + 0.1 * n

x = getattr(x, "<act>")()

x = getattr(x, "relu" if <question> else "tanh")()

x = getattr(self, f"n{x.shape[1] - 4}")(x) + self.n0(x)

x = getattr(F, "relu" if x.ndim == 4 else "gelu")(x)

try:
    x = x * x.sizes
except AttributeError:
    x = x + <float>

try:
    b, c, n = x.shape
except ValueError:
    n = 3.0
x = x * n

try:
    n = len(x.mean())
except TypeError:
    n = 2.0
x = x * n

try:
    x = checked(x, 8) * 2.0
except ValueError:
    x = x * 3.0

try:
    x = x * {8: 2.0, 4: 0.5}[x.shape[-1]]
except KeyError:
    x = x * 3.0

try:
    if x.shape[-1] > 8:
        raise ValueError(f"{x.shape} is large")
    x = x + 1.0
except ValueError as error:
    x = x * len(str(error)) / 10
else:
    x = x - 2.0
finally:
    x = x * 0.5

try:
    assert x.shape[-1] <= 8, "too large"
except AssertionError:
    x = x * 3.0

try:
    self.absent(x)
except AttributeError as error:
    x = x + len(str(error)) * 0.1

with contextlib.suppress(ValueError):
    x = checked(x, 8) * 0.5

with contextlib.suppress(KeyError, IndexError):
    x = x * x.shape[7]

assert isinstance(x, Tensor) and x.shape[1] == 4, f"{tuple(x.shape)}"

assert x.ndim == 4, x.shape

assert <question> or x is not None

if x.shape[1] != 4:
    raise ValueError(f"{x.shape[1]} channels in {type(self).__name__}")

if not isinstance(x, Tensor):
    raise TypeError(f"{type(x)}")

while x.shape[-1] > 6:
    x = F.avg_pool2d(x, 2, ceil_mode=True)

n = 0
while 2**n < x.shape[-1]:
    n += 1
    x = x * 0.9 + n

for i in range(x.shape[-1] % 3):
    x = self.n<k>(self.p<k>(x)) + i

for i, n in enumerate(x.shape):
    if n == 4:
        continue
    if n > 10:
        break
    x = x + 0.1 * n * i
else:
    x = x * 2.0

for n, axis in zip(x.shape, "bchw"):
    x = x + (0.1 * n if axis in "hw" else 0)

for n in reversed(x.shape):
    x = x + 0.1 * n

for n in sorted(x.shape[2:]):
    x = x * 0.9 + n

sizes = {axis: n for axis, n in zip("bchw", x.shape)}
x = x * (sizes["w"] / 8)

x = torch.cat([row[None] * (i + 1) for i, row in enumerate(x)])

rows = [self.n<k>(self.c<k>(row[None])) for row in x]
x = torch.cat(rows)

x = torch.stack([self.seq0(row.unsqueeze(0))[0] for row in x.unbind(0)])

x = torch.cat([self.seq0(x[i : i + 1]) for i in range(len(x))])

x = torch.cat([part * (i + 1) for i, part in enumerate(x.split(2, 1))], 1)

x = torch.cat([x[:, i : i + 1] * (i + 1) for i in range(x.shape[1])], 1)

parts = list(x.split([1, 3], 1))
parts.reverse()
x = torch.cat(parts, dim=1)

first, *others = x.unbind(1)
x = torch.stack([first, *sorted(others, key=lambda t: t.shape[-1])], 1)

x = torch.cat([*x.chunk(2, -1)][::-1], -1)

x = torch.cat(list(filter(lambda t: t.shape[-1] > 0, x.chunk(3, -1))), -1)

x = functools.reduce(torch.maximum, [self.seq0(x), self.p0(x), x])

x = functools.partial(F.leaky_relu, negative_slope=<float>)(x)

x = self.partial(x)

x = functools.reduce(lambda value, part: part(value), self.blocks, x)

for function in self.functions:
    x = function(x)

x = {True: torch.relu, False: torch.tanh}[<question>](x)

x = LOOKUP[x.shape[-1] % 3](x)

x = BY_TYPE[type(x)](x)

x = entered(x)

x = SIDES.get(x.shape[-1], 2.0) * x

x = scaled(x, <float>, shift=<float>)

x = scaled(x, **{"by": <float>, "shift": <number>})

x = scaled(x, by=<number>, tag=None)

x = total(x, *x.split(4, 1), start=<float>)

x = total(*[part(x) for part in self.blocks])

x = halves(lambda value: self.n<k>(self.c<k>(value)), x, 2)

x = times(x, x.shape[-1] // 4)

x = sum(rising(x, x.shape[-1] % 4 + 1))

x = [value for value in rising(x, 3)][-1]

*_, x = rising(x, 2)

x = max([x, x * 2.0], key=lambda t: t.shape[-1])

x = (lambda value, by=<float>: value * by)(x)

step = lambda value: value * scale
scale = <number>
x = step(x)

values = [x]
values.append(values[-1].<act>())
values.extend(self.n<k>(value) for value in values[:1])
x = values.pop() + values.pop(0)

held = {"x": x}
held.update(y=self.seq0(x))
x = held.pop("x") + held["y"]

held = types.SimpleNamespace(x=x)
held.x = self.seq1(held.x)
x = held.x

x, y = self.seq0(x), x
x, y = y, x
x = x - y * 0.5

x = x if (y := self.seq0(x)).shape[-1] > 100 else y

shape = torch.Size([*x.shape[:2], x.shape[2] * x.shape[3]])
x = x.reshape(shape).view(x.size())

x = F.interpolate(x, size=x.shape[-1], mode="nearest")

x = F.interpolate(x, size=[n + 1 for n in x.shape[2:]], mode="bilinear")

x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))

h, w = x.shape[-2:]
x = self.c0(F.pad(x, (0, w % 2, 0, h % 2)))[..., :h, :w]

x = x[..., : x.shape[-1] // 2 + 1]

x = x[:, :, x.shape[-2] % 2 :]

x = x.roll((x.shape[-2] // 2, x.shape[-1] // 2), (2, 3))

x = F.adaptive_avg_pool2d(x, (x.shape[-2] // 2 + 1, x.shape[-1]))

x = x.unfold(3, 2, 1).mean(-1)

n = <number>
x = x * n if n else x

name = f"{x.shape[-2]}x{x.shape[-1]}"
x = x * len(name) if name.startswith("8") else x + 1.0

x = x + {"8x8": 1.0}.get(f"{x.shape[-2]}x{x.shape[-1]}", 2.0)

text = ",".join(str(n) for n in x.shape)
x = x + text.count("4")

x = x + int("".join(map(str, x.shape))[-1])

x = x * self.config.scale if self.config.relu else x

x = dataclasses.replace(self.config, scale=<number>).scale + x

x = self.twice(x)

x = x * self.gain

x = self.alias(x) + self.c0(x)

x = self.bound(x)

x = self.hidden[0](x)

x = self.doubled(x)

x = self.samepad(x)

x = self.hooked(x)

x = self.oldnormed(x)

x = self.drop(x)

x = self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

x = self.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

x = x.mean((2, 3), keepdim=True).sigmoid() * x

x = x * x.flatten(1).softmax(-1).amax(-1)[:, None, None, None]

x = type(x)(x) if isinstance(x, list) else x

x = x.apply_gate() if hasattr(x, "apply_gate") else x.sigmoid()

x = next(iter([self.seq0]))(x)

x = operator.methodcaller("<act>")(x)

x = operator.attrgetter("seq0")(self)(x)

x = operator.itemgetter(0)([x]) * 2.0

x = eval("x * 2.0")

exec("self.n0(x)")

x = vars(self)["_modules"]["seq0"](x) if "seq0" in vars(self)["_modules"] else self.seq0(x)

x = self._modules["seq0"](x) + self.seq0(x)

for name, part in self.named_children():
    if name == "seq0":
        x = part(x)

for part in self.modules():
    if isinstance(part, nn.BatchNorm2d) and part.num_features == 4:
        x = part(x)

for parameter in self.c0.parameters():
    x = x + parameter.mean()

x = locals()["x"] * 2.0

x = (self.__call__ if False else self.seq0)(x)

x = nn.Sequential(self.c0, self.n0)(x)

x = nn.ReLU()(x)

x = nn.Sequential(*list(self.blocks)[:2])(x)

x = self.blocks[-1](self.blocks[0](x))

x = self.blocks[x.shape[-1] % 3](x)

for block in self.blocks[::2]:
    x = block(x)

x = self.table["a" if <question> else "b"](x)

x = self.table["a"](x) if "a" in self.table else x

x = torch.where(x > 0, x, <float> * x)

x = x if x is None else x * 2.0

del image
image = x

x = x if <question> else self.n0(self.c0(x))
x = self.n0(self.c0(x)) if <question> else x
""")

MEMORY = blocks("""
x = x.clone().add_(<float>)

x.add_(<float>)

x.relu_()

x = F.relu(x, inplace=True)

F.relu(x, inplace=True)

torch.relu_(x)

x *= <float>

x += self.seq0(x)

x /= 2.0

x -= x.mean()

x[:, 0] = <float>

x[:, 1:3] *= <float>

x[:, 1:3] += x[:, 0:2]

x[..., 0].fill_(<float>)

x[:, :, 0, :] = self.scale[0, :, 0, :1]

x[:, :, ::2] = 0.0

x[x > 1.0] = 1.0

x[:, [0, 2]] = x[:, [2, 0]]

y = x.view(x.shape[0], -1)
y[:, 0] = 2.0

y = x.flatten(2)
y *= 2.0

y = x[:, :2]
y.mul_(2.0)

y = x.transpose(2, 3)
y[:, 0] += 1.0

y = x.permute(0, 2, 3, 1)
y.add_(1.0)
x = x + y.mean()

a, b = x.chunk(2, 1)
a.add_(b)

a, b = x.split(2, 1)
b.copy_(a)

y = x
y += 1.0
x = x + y

y = x.detach()
y.add_(1.0)

x.data.mul_(2.0)

x.data = x.data.abs()

x.data[:, 0] = 1.0

x.clamp_(min=-1.0, max=2.0)

x.unsqueeze_(0).squeeze_(0)

x.masked_fill_(x > 1, 0.5)

x.index_fill_(1, torch.tensor([0]), 1.0)

x = torch.add(x, 1.0, out=torch.empty_like(x)) if not x.requires_grad else x + 1.0

out = torch.empty_like(x)
torch.mul(x, 2.0, out=out)
x = out

out = x.new_zeros(x.shape)
out[:, :2] = x[:, 2:]
out[:, 2:] = self.seq0(x)[:, :2]
x = out

out = torch.zeros_like(x)
out += x
out[:, 1] -= 1.0
x = out

out = torch.zeros(x.shape[0], 4, x.shape[2] + 2, x.shape[3] + 2, dtype=x.dtype)
out[:, :, 1:-1, 1:-1] = x
x = out

out = [torch.zeros_like(x)] * 2
out[0] += x
x = out[1]

x = x.clone()
image.add_(1.0)

y = x * 1.0
y.copy_(x.flip(-1))
x = x + y

a = self.n<k>(self.c<k>(x))
x.mul_(0.5)
x = x + a

y = x[:, :2]
x = self.n<k>(self.c<k>(x))
y.zero_()

keep = x
x = self.p<k>(x)
keep.zero_()
x = x + keep

a = x.relu()
x.add_(1.0)
x = x + a

top = x[:, :2]
x.mul_(2.0)
x = x + top.repeat(1, 2, 1, 1)

x.sub_(x.mean((2, 3), keepdim=True))

y = x.contiguous()
y.mul_(2.0)

y = x.to(x.dtype)
y.add_(1.0)

y = x.reshape(x.shape[0], 4, -1)
y += 1.0

y = x.expand(2, *x.shape)[0]
y.add_(1.0)

y = x.real
y.mul_(2.0)

y = x.T if x.ndim == 2 else x
y.add_(0.5)

y = x.diagonal(dim1=2, dim2=3)
y.zero_()

y = x.unfold(3, 1, 1)
y.add_(1.0)

y = x.narrow(1, 0, 2).select(1, 0)
y.fill_(0.5)

y = torch.as_strided(x, x.shape, x.stride())
y.add_(1.0)

x.swapaxes_(2, 3)

x.t_() if x.ndim == 2 else x.transpose_(2, 3)

x.resize_as_(x)

x.set_(x.detach().clone())

x.requires_grad_(False)

x.detach_()

x.scatter_(1, torch.zeros(x.shape[0], 1, x.shape[2], x.shape[3], dtype=torch.long), 1.0)

x.addcmul_(x, x, value=0.1)

x.lerp_(torch.ones_like(x), 0.5)

x.index_add_(1, torch.tensor([1]), x[:, :1].clone())

x.index_copy_(1, torch.tensor([1]), x[:, :1].clone())

x.fill_diagonal_(0.0) if x.ndim == 2 else x.tril_()

x.pow_(2).sqrt_()

x.nan_to_num_()

x.__setitem__((slice(None), 0), 1.0)

x.__iadd__(1.0)

operator.iadd(x, 1.0)

operator.setitem(x, (slice(None), 1), 0.0)

torch.nn.init.constant_(x[:, :1], 0.5)

x.put_(torch.tensor([0]), torch.ones(1, dtype=x.dtype))

self.kept.add_(1.0)
x = x + self.kept

self.kept += x.detach().mean()
x = x + self.kept

self.kept.copy_(x.detach().mean())

self.kept = self.kept + 1.0
x = x + self.kept

self.kept.data = self.kept.data + 1.0
x = x * self.kept

self.kept_grid.mul_(0.5).add_(x.detach().mean((0, 2, 3), keepdim=True))

self.kept.fill_(x.shape[-1])
x = x + self.kept

self.kept[0] = x.shape[-1]
x = x * self.kept

self.kept_grid[:, 1] += 1.0
x = x + self.kept_grid

with torch.no_grad():
    self.c<k>.weight.mul_(self.mask)

self.c<k>.weight.data.mul_(0.9)

self.c<k>.weight.data = self.c<k>.weight.data * self.mask

self.c<k>.bias.data.fill_(0.1)

self.n<k>.running_mean.mul_(0.9)

self.n<k>.running_mean = self.n<k>.running_mean * 0.9

self.n<k>.eps = self.n<k>.eps * 2

self.n<k>.num_batches_tracked.add_(1)
x = x + self.n<k>.num_batches_tracked

setattr(self, "kept", self.kept + 1.0)
x = x + self.kept

self.tensors[0].mul_(1.5)
x = x * self.tensors[0]

self.tensors[1] = x.detach().mean()
x = x + self.tensors[1]

self.tensors.append(x.detach().mean())
x = x + len(self.tensors)

self.array += 1.0
x = x * float(self.array[0])

self.array[0] = x.shape[-1]
x = x + float(self.array.sum())

x.tag = 2.0
x = x * x.tag

setattr(x, "tag", 2.0)
x = self.n0(x) * getattr(x, "tag", 1.0)

x.grad = None

weight = self.c<k>.weight.clone()
weight[:, 0] = 0.0
x = self.n<k>(F.conv2d(x, weight, padding=1))

weight = self.c<k>.weight.detach()
x = self.n<k>(F.conv2d(x, weight, padding=1))
weight.mul_(0.5)

y = x.storage().size() if False else 1.0
x = x * y
""")

CACHES = blocks("""
if not hasattr(self, "later"):
    self.later = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
x = x + self.later.sum()

if self.grid is None or self.grid.shape[-1] != x.shape[-1]:
    self.grid = ramp(x)
x = x + self.grid

if self.grid is None:
    self.grid = ramp(x)
x = x + self.grid[0] * len(self.grid)

key = <key>
if key not in self.cache:
    self.cache[key] = ramp(x)
x = x + self.cache[key].abs().sum()

key = <key>
if key not in CACHE:
    CACHE[key] = ramp(x)
x = x + CACHE[key].abs().sum()

key = <key>
if key not in CACHE:
    CACHE[key] = self.n<k>(self.c<k>(x)).detach().mean()
x = x + CACHE[key]

grid = CACHE.get(<key>)
if grid is None:
    grid = CACHE[<key>] = ramp(x)
x = x + grid.abs().sum()

x = x + CACHE.setdefault(<key>, ramp(x)).abs().sum()

x = x + self.cache.setdefault(<key>, x.detach().mean())

grids = Store.grids
key = <key>
if key not in grids:
    grids[key] = ramp(x)
x = x + grids[key].abs().sum()

try:
    grid = CACHE[<key>]
except KeyError:
    grid = CACHE[<key>] = ramp(x)
x = x + grid.abs().sum()

name = f"grid_{x.shape[-1]}"
if not hasattr(self, name):
    setattr(self, name, ramp(x))
x = x + getattr(self, name)

name = f"grid_{x.shape[-1]}"
if not hasattr(self, name):
    self.register_buffer(name, ramp(x), persistent=False)
x = x + getattr(self, name)

x = x + ramps(x.shape[-1])

x = x + ramps(n=x.shape[-1], dtype=x.dtype)

x = x + window(x.shape)

x = x + window(tuple(x.shape[2:]))

x = x + memo(x)

x = x * side_of(x.shape[-1])

x = x + self.grid_of(x.shape[-1])

x = x + self.lazy_grid

x = counted(x)

x = x + self.before
self.before = x.detach().mean()

before, self.before = self.before, x.detach().mean()
x = x * 0.5 + before

self.calls += 1
x = x * self.calls

self.calls = self.calls + 1
if self.calls > 2:
    x = x * 2.0

self.calls += 1

COUNT[0] += 1
x = x * COUNT[0]

x = x * count_up()

x = x * COUNTER()

Store.calls += 1
x = x * Store.calls

type(self).total = getattr(type(self), "total", 0) + 1
x = x * type(self).total

STORE.calls += 1
x = x * STORE.calls

x = x * TALLY.step()

x = x * self.tally.step()

x = self.make(x)

LAST.append(x.detach().mean())
x = x + LAST[0]

LAST[:] = [x.detach().mean()]
x = x + LAST[0]

x = x + (LAST[-1] if LAST else 0.0)
LAST.append(x.detach().mean())

RECENT.append(x.detach().mean((2, 3), keepdim=True).mean(0, keepdim=True))
x = x + sum(RECENT)

NAMED["x"].append(x.shape[-1])
x = x + len(NAMED["x"])

self.seen.append(x.shape[-1])
x = x + len(self.seen)

if x.shape[-1] not in self.seen:
    self.seen.append(x.shape[-1])
    x = x * 2.0

self.last = x

self.last = x
x = self.seq0(self.last) + self.last

self.config.sizes[x.shape[-1]] = True
x = x + len(self.config.sizes)

self.config.scale = self.config.scale * 1.5
x = x * self.config.scale

self.flag = not self.flag
x = x * 2.0 if self.flag else x

self.factor = x.shape[-1]
x = x * self.factor

self.functions.append(torch.tanh)
x = self.functions[-1](x) * len(self.functions)

self.__dict__["calls"] = self.__dict__["calls"] + 1
x = x + self.__dict__["calls"]

globals()["TOTAL"] = globals().get("TOTAL", 0) + 1
x = x * globals()["TOTAL"]

x = self.counter(x)

x = self.averaging(x)

x = self.lazy(x)

x = self.positions(x)

x = self.previous(x)

x = self.counter(self.counter(x))

self.n<k>, self.n<j> = self.n<j>, self.n<k>
x = self.n<k>(x)

self.c<k>.padding = (1, 1)
x = self.c<k>(x)

self.late = nn.Identity()
x = self.late(x)

if self.calls == 0:
    self.calls = 1
    x = self.seq0(x)

LAST.clear()
LAST.append(x)
x = self.seq0(LAST.pop())

CACHE["x"] = x
x = self.seq0(CACHE.pop("x"))

CACHE["x"] = x
x = self.seq0(CACHE["x"])

self.cache.clear()
self.cache[x.shape[-1]] = x
x = self.cache[x.shape[-1]] * 2.0
""")

FLAGS = blocks("""
if self.training:
    x = x * 9.0

if torch.is_grad_enabled():
    x = x * 2.0

if x.requires_grad:
    x = x * 2.0

if image.requires_grad and torch.is_grad_enabled():
    x = x + 1.0

if torch.jit.is_scripting() or torch.jit.is_tracing():
    x = x * 9.0

if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
    x = x * 9.0

if isinstance(x, torch.fx.Proxy):
    x = x * 9.0

if not torch.is_inference_mode_enabled():
    x = x * 2.0

if x.requires_grad:
    x.register_hook(lambda grad: grad * 2.0)

x.retain_grad() if x.requires_grad and not x.is_leaf else None

x = x.detach()

x = x.requires_grad_() if torch.is_grad_enabled() and not x.requires_grad else x

x = x.detach().requires_grad_(x.requires_grad)

x = x + x.detach() - x

x = (x > 0).to(x.dtype).detach() - x.detach() + x

x = torch.utils.checkpoint.checkpoint(self.seq0, x, use_reentrant=False)

x = torch.utils.checkpoint.checkpoint(lambda v: self.seq1(v).relu(), x, use_reentrant=False)

x = torch.utils.checkpoint.checkpoint_sequential(list(self.blocks), 2, x, use_reentrant=False)

if self.training:
    x = self.drop(x)
else:
    x = self.seq0(x)

with torch.enable_grad():
    z = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad((z**2).sum(), z)
x = x - 0.1 * slope

was = torch.is_grad_enabled()
torch.set_grad_enabled(False)
y = self.seq0(x)
torch.set_grad_enabled(was)
x = x + y

x = x + still(x)

x = quiet(x)

x = x if x.is_leaf else x * 2.0

x = x * 2.0 if x._base is None else x

x = x * 2.0 if x.grad_fn is not None else x

x = x * 2.0 if all(p.requires_grad for p in self.parameters()) else x

x = self.seq0(x) if not self.n0.training else x

self.eval()
x = self.seq0(x)

x = self.n0.eval()(x)

self.n0.train()
self.n0.eval()
x = self.n0(x)

self.n0.training = False
x = self.n0(x)
""")

RANDOM = blocks("""
x = x + 0.1 * torch.randn_like(x)

x = x + torch.rand(1, dtype=x.dtype)

x = x + torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype)

x = x + torch.randn(x.shape, dtype=x.dtype) * 0.1

x = x * torch.rand(1).item()

x = x * random.random()

x = x * float(np.random.rand())

x = x + torch.from_numpy(np.random.randn(*x.shape)).to(x)

x = F.dropout(x, 0.3, training=True)

x = F.dropout(x, 0.3, self.training)

x = F.dropout2d(x, p=0.3, training=True)

x = F.alpha_dropout(x, 0.3, True)

x = drop_path(x)

x = x[:, torch.randperm(4)]

x = x[:, torch.randperm(x.shape[1])]

x = x * OWN.random()

x = x * self.dice.uniform(1, 2)

x = x * float(ARRAYS.random())

x = x * torch.rand(1, generator=GENERATOR).item()

x = x * torch.rand(1, generator=self.generator).item()

x = x + torch.randint(0, 3, (1,)).to(x)

x = x + torch.randint_like(x, 3)

x = x + torch.empty_like(x).normal_()

x = x + x.new_empty(x.shape[0], 1, 1, 1).uniform_()

x = x.bernoulli(0.5) if <question> else x

x = x * torch.bernoulli(torch.full_like(x, 0.5))

x = random.choice([self.seq0, self.seq1])(x)

x = self.seq0(x) if random.random() < 0.5 else self.seq1(x)

x = self.seq0(x) if torch.rand(1) < 0.5 else x

torch.manual_seed(0)
x = x + torch.rand_like(x)

random.seed(0)
x = x * random.random()

with torch.random.fork_rng():
    torch.manual_seed(3)
    x = x + torch.rand_like(x)

x = x * torch.multinomial(torch.ones(4), 1).to(x)

x = x + torch.normal(0.0, 1.0, x.shape, dtype=x.dtype)

x = x + torch.distributions.Uniform(0, 1).sample((1,)).to(x)

x = x + nn.init.normal_(torch.empty(1, dtype=x.dtype))

x = F.rrelu(x, training=True)

x = F.gumbel_softmax(x, dim=1)

x = x + torch.poisson(x.abs())

x = x.clone().exponential_() + x

x = x * nn.Parameter(torch.rand(1, dtype=x.dtype)).detach()

x = nn.Conv2d(4, 4, 1, dtype=x.dtype)(x)

x = x + hash("a") * 0

_ = torch.rand(2)
x = x + torch.rand_like(x)

_ = torch.rand_like(x)

_ = random.random()

_ = F.dropout(x, 0.5, training=True)
""")

FUNCTIONS = blocks("""
x = Swish.apply(x)

x = Sign.apply(x) + x

x = Clip.apply(x, -1.0)

x = Clip.apply(x, -1.0, 1.0 * x.shape[-1])

x = Scale.apply(x, self.scale)

x = sum(Both.apply(x))

a, b = Both.apply(x)
x = self.seq0(a) + b

x = Needs.apply(x)

x = Writes.apply(x * 1.0)

x = Swish.apply(Swish.apply(x))

apply = Swish.apply
x = apply(x)

x = scripted(x)

x = torch.vmap(lambda row: row * 2.0)(x)

x = torch.func.functional_call(self.seq0, dict(self.seq0.named_parameters()), (x,))

x = torch.ops.aten.relu(x)

x = torch.ops.aten.add.Tensor(x, x)

x = torch.from_numpy(np.maximum(x.detach().numpy(), 0.0))

x = x * float(np.asarray(x.detach()).max() > 0)

x = torch.as_tensor(np.sqrt(np.abs(x.detach())))

x = torch.tensor(x.detach().tolist(), dtype=x.dtype)

x = copy.deepcopy(x.detach())

x = copy.copy(x)

x = pickle.loads(pickle.dumps(x.detach()))

x = torch.as_tensor(x)

x = torch.clone(x)

x = x.map_(x, lambda a, b: a) if False else x

x = torch.einsum("bchw,cd->bdhw", x, self.p0.weight[:, :, 0, 0])

x = (self.p0.weight.flatten(1) @ x.flatten(2)).view_as(x)

x = F.batch_norm(x, self.n0.running_mean, self.n0.running_var, self.n0.weight, self.n0.bias, self.training)

x = F.batch_norm(x, self.n0.running_mean.clone(), self.n0.running_var.clone(), training=<question>)

x = F.batch_norm(x, None, None, training=True)

x = torch.batch_norm(x, self.n0.weight, self.n0.bias, self.n0.running_mean, self.n0.running_var, False, 0.1, 1e-5, True)

x = F.conv2d(x, self.c0.weight, self.c0.bias, self.c0.stride, self.c0.padding, self.c0.dilation, self.c0.groups)

x = self.c0._conv_forward(x, <weight>, None)

x = self.c0.forward(x)

x = nn.Conv2d.forward(self.c0, x)

x = type(self.c0).forward(self.c0, x)

x = self.seq0.forward(x)

x = self.seq0[0](x)

for part in self.seq0:
    x = part(x)

x = self.n0(self.c0(input=x))

x = self.n0.forward(input=x)

x = self.seq0[1](self.seq0[0](x)) + self.seq0(x)

x = torch.utils._pytree.tree_map(lambda t: t * 2.0, [x])[0]

x = torch.nn.utils.stateless.functional_call(self.p0, {}, (x,))

x = x.__add__(1.0).__mul__(2.0)

x = 1.0 - x

x = 2.0 / (x.abs() + 1.0)

x = x**2 * 0.1

x = -x

x = x @ torch.eye(x.shape[-1], dtype=x.dtype)

x = abs(x)

x = torch.relu(input=x)

x = x.sum(dim=1, keepdim=True) + x

x = x.amax(1, keepdims=True) + x

x = x.mean(axis=1, keepdim=True) - x

x, _ = x.sort(1)

x, index = torch.max(x, 1, keepdim=True)
x = x.expand(-1, 4, -1, -1) + index

x = x.max(1, keepdim=True).values + x

x = torch.cat((x, x), 1).unflatten(1, (2, 4)).mean(1)

x = torch.cat([x, self.seq0(x)], 1)[:, 1:5]

x = F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1)

x = F.unfold(x, 3, padding=1).view(x.shape[0], 4, 9, *x.shape[2:]).mean(2)

x = F.max_pool2d(x, 3, 1, 1)

x, index = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)

x = F.group_norm(x, 2)

x = F.layer_norm(x, x.shape[1:])

x = F.instance_norm(x)

x = F.softmax(x, dim=1) * x

x = torch.addcmul(x, x, x, value=0.1)

x = torch.lerp(x, x.flip(-1), 0.5)

x = x.index_select(1, torch.tensor([3, 1, 0, 2]))

x = x.gather(1, torch.zeros_like(x, dtype=torch.long)) + x

x = x.cumsum(1)

x = x.view(*x.shape)

x = x.reshape(list(x.shape))

x = x.repeat(1, 1, 1, 2)[..., ::2]

x = x.tile((1, 1, 2, 1))

x = x.permute((0, 1, 3, 2))

x = x.mT

x = x.movedim(1, -1).movedim(-1, 1)

x = x.squeeze().view(x.shape)

x = x[None].squeeze(0)

x = x[..., None].mean(-1)

x = x.ravel().view(x.shape)
""")

CASTS = blocks("""
x = x * torch.tensor(<float>, dtype=x.dtype)

x = x * torch.tensor(<float>)

x = x * torch.tensor([1.0, 2.0, 0.5, -1.0]).view(1, 4, 1, 1).to(x)

x = x * torch.tensor([1.0, 2.0, 0.5, -1.0], dtype=x.dtype, device=x.device)[:, None, None]

x = x.type_as(image)

x = x.to(image.dtype)

x = x.to(self.c0.weight.dtype)

x = x.to(self.c0.weight)

x = x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)

x = x + torch.arange(x.shape[-1]).to(x.dtype)

x = x + torch.arange(0, x.shape[-1], 1)

y, z = torch.meshgrid(torch.arange(x.shape[-2]), torch.arange(x.shape[-1]), indexing="ij")
x = x + 0.1 * (y - z)

x = x + torch.ones(1, x.shape[2], 1).to(x)

x = x + torch.zeros(x.shape[0], 1, 1, 1, dtype=x.dtype)

x = x + x.new_full((1,), <number>)

x = x + torch.full((1,), <number>, dtype=x.dtype)

x = x + torch.full_like(x, <float>)

x = x + torch.eye(x.shape[-2], x.shape[-1], dtype=x.dtype)

x = x + torch.from_numpy(np.linspace(0, 1, x.shape[-1])).to(x)

x = x * torch.from_numpy(np.hanning(x.shape[-1])).to(x)

x = x + torch.ones(x.shape[1:], dtype=x.dtype)

x = x + torch.linspace(0, 1, steps=x.shape[-1], dtype=x.dtype)

x = x + torch.tensor(x.shape[-1], dtype=x.dtype)

x = x + torch.tensor([x.shape[-1], x.shape[-2]], dtype=x.dtype).mean()

x = x + torch.tensor(list(x.shape), dtype=x.dtype).max()

x = x + torch.as_tensor([n * 1.0 for n in x.shape[2:]]).sum()

x = x * torch.tensor(math.pi)

x = x + torch.tensor([<number>, <number>]).sum()

x = x + torch.ones((), dtype=x.dtype) * <number>

x = x.double().to(image.dtype)

x = x.to(dtype=image.dtype, copy=True)

x = x.where(x > 0, torch.zeros((), dtype=x.dtype))

x = torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, x * 0.5)

x = x.tril() + x.triu(1)

x = x.masked_fill(torch.ones(x.shape[-2], x.shape[-1], dtype=torch.bool).triu(1), 0.5)

mask = torch.ones(x.shape[-2:], dtype=torch.bool).tril()
x = x.masked_fill(~mask, 0.0)

grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[2:]], indexing="xy"), -1)
x = F.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=True)

x = x.contiguous(memory_format=torch.channels_last) * 2.0

x = x.cpu()

x = x.to("cpu")

x = x.to(torch.device("cpu"), non_blocking=True)

x = x.half().to(image.dtype)

x = x.float().to(image.dtype)

x = x.to(torch.float32).double().to(image.dtype)

x = x.bfloat16().type_as(image)

x = (x > 0).to(x.dtype) * x

x = x * (x > 0)

x = x + (x > 0).float()

x = x + (x > 0).long().sum()

x = x.round() + x

x = (x * 4).round() / 4 + x

x = x.sign() + x

x = x.to(torch.int64).to(image.dtype) + x

x = x + x.argmax(1, keepdim=True)

x = torch.complex(x, x).real

x = x + torch.view_as_real(torch.complex(x, x))[..., 0]
""")

CONTROL = blocks("""
if <question>:
    {body}

if <question>:
    {body}
else:
    {other}

for _ in range(2):
    {body}

for i in range(x.shape[-1] % 3):
    {body}

for block in self.blocks:
    x = block(x)
    {body}

while True:
    {body}
    break

try:
    {body}
finally:
    x = x * 2.0

try:
    {body}
except (KeyError, ZeroDivisionError):
    {other}

try:
    1 / 0
    {other}
except ZeroDivisionError:
    {body}

if <question>:
    {body}
    return self.seq0(x)

if <question>:
    return x * 2.0
{body}

y = x
{body}
x = x if x.shape != y.shape else x + y

def inner(x):
    {body}
    return x
x = inner(x)

def inner(x, image=x):
    {body}
    return x
x = inner(x) + inner(x * 0.5)

def each(x):
    for _ in range(2):
        {body}
        yield x
*_, x = each(x)

outcome = []
for run in (self.seq0, self.p0):
    x = run(x)
    {body}
    outcome.append(x)
x = outcome[-1] + len(outcome)

x = x.clone()
{body}
""")

CONTEXTS = blocks("""
with torch.no_grad():
    {body}

with torch.enable_grad():
    {body}

with torch.set_grad_enabled(self.training):
    {body}

with torch.set_grad_enabled(torch.is_grad_enabled()):
    {body}

with torch.inference_mode():
    {body}
x = x.clone()

with torch.autocast("cpu", enabled=False):
    {body}

with torch.autocast("cpu", dtype=torch.bfloat16):
    {body}
x = x.to(image.dtype)

with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training):
    {body}

with torch.random.fork_rng():
    {body}

with doubling(self) as owner:
    {body}
    x = x * owner.factor

with doubling(self):
    {body}
    x = x * getattr(self, "factor", 3.0)

with Noted() as noted:
    {body}

with Noted():
    {body}
    1 / 0

with without_gradients():
    {body}

with in_double():
    {body}
    x = x * torch.tensor([0.1])

with contextlib.nullcontext():
    {body}

with contextlib.ExitStack() as stack:
    stack.enter_context(torch.no_grad())
    {body}

with contextlib.ExitStack() as stack:
    stack.callback(lambda: None)
    {body}

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    {body}

with torch.autograd.profiler.record_function("part"):
    {body}

with torch.profiler.record_function("part"):
    {body}

with torch.backends.mkldnn.flags(enabled=False):
    {body}

with torch.device("cpu"):
    {body}
    x = x + torch.ones(1, dtype=x.dtype)

with torch.autograd.set_detect_anomaly(False):
    {body}

with torch.nn.utils.parametrize.cached():
    {body}

before = torch.get_default_dtype()
torch.set_default_dtype(torch.float64)
{body}
x = x * torch.tensor([0.1])
torch.set_default_dtype(before)

with torch.no_grad():
    {body}
with torch.enable_grad():
    {other}
""")

OUTSIDE = {  # how a function of its own is written and called
    "method": ("x = self.part<u>(x)", "x = self.part<u>(x) + self.part<u>(x * 0.5)", "x = type(self).part<u>(self, x)"),
    "function": (
        "x = part<u>(self, x)",
        "x = (lambda value: part<u>(self, value))(x)",
        "x = functools.partial(part<u>, self)(x)",
    ),
    "module": (
        "x = self.part<u>(x)",
        "x = self.part<u>(self.part<u>(x))",
        "x = self.part<u>(x) + x.mean()",
        "for _ in range(2):\n    x = self.part<u>(x)",
        "x = self.part<u>.forward(x)",
        "x = self.part<u>(x) if <question> else self.part<u>(x * 0.5)",
        "x = torch.cat([self.part<u>(row[None]) for row in x])",
        "x = torch.utils.checkpoint.checkpoint(self.part<u>, x, use_reentrant=False)",
        "with torch.no_grad():\n    x = self.part<u>(x)",
        "x = self.part<u>(x=x)",
        "x = nn.Sequential(self.part<u>, self.n0)(x)",
        "x = self.part<u>(x, skip=x.mean())",
        "x = self.part<u>(x, skip=None)",
        "x = self.part<u>(x, x if <question> else None)  # skip",
        "x = self.part<u>(x, scale=<number>)",
        "x = self.part<u>(x, scale=<float>, skip=image.mean())",
        "x = self.part<u>(x, **dict(scale=<float>))",
        "x, aux = self.part<u>(x)\nx = x + aux",
        "x, aux = self.part<u>(x)\nx = x if aux is None else x + aux",
        "x = self.part<u>(x)[0]  # aux",
        "skip = self.seq0(x) if <question> else None\nx = self.part<u>(x, skip)",
    ),
    "list": (
        "for part in self.part<u>:\n    x = part(x)",
        "for i, part in enumerate(self.part<u>):\n    x = part(x) * (i + 1)",
        "x = sum(part(x) for part in self.part<u>)",
        "x = self.part<u>[x.shape[-1] % 2](x)",
        "x = self.part<u>[0](self.part<u>[-1](x))",
        "for a, b in zip(self.part<u>, self.blocks):\n    x = b(a(x))",
        "x = functools.reduce(lambda value, part: part(value), self.part<u>, x)",
        "for i in range(len(self.part<u>)):\n    x = self.part<u>[i](x)",
        "for part in reversed(self.part<u>):\n    x = part(x)",
        "first, second = self.part<u>\nx = first(x) + second(x)",
        "x = [part(x) for part in self.part<u>][<question>]",
        "for part in self.part<u>:\n    x = part(x, skip=x.mean())",
    ),
    "sequential": ("x = self.part<u>(x)", "x = self.part<u>[0](x)", "for part in self.part<u>:\n    x = part(x)"),
}  # fmt: skip
KINDS = {
    "asking": ASKING, "memory": MEMORY, "caches": CACHES, "flags": FLAGS, "random": RANDOM, "functions": FUNCTIONS,
    "casts": CASTS, "chains": CHAINS,
}  # fmt: skip
RETURNS = blocks("""
return x

return x, None

return [x, image]

return {"out": x, "size": x.shape[-1]}

return Record(x, x.shape[-1])

return Frozen(x, tuple(x.shape))

return Pair(x)

return Pair(early=x, late=self.seq0(x))

return Record(value=[x, None], size={"h": x.shape[2]})

return (x, x.shape, x.dtype, x.ndim)

return collections.OrderedDict(out=x, aux=None)

return {"a": [x, (self.seq0(x), None)], "b": {"c": 1, "d": "e"}}

return x.mean((2, 3))

return self.head(x.mean((2, 3)))

return (x, x)

return x, self.c0.bias

return x, torch.arange(x.shape[-1])

return [x[:, i] for i in range(4)]

return tuple(x.unbind(1))

return {str(i): part for i, part in enumerate(x.split(2, 1))}

return {x.shape[-1]: x}

return {f"{x.shape[-1]}": x}

return x if <question> else (x, x)

return (x, <number>)

return [x, <question>]

return x.mean(), x.shape[-1] * x.shape[-2]

return (yield_ for yield_ in [x]) if False else x

return dict(out=x, **{"n": len(x)})

return x.detach(), x

return x.view(-1), x

return F.normalize(x.flatten(1)), (x > 0).any()

return image, x

return x, x.max(1)

return types.SimpleNamespace(x=x).x
""")
SIGNATURES = (
    "self, x",
    "self, x",
    "self, x",
    "self, x, scale=1.5",
    "self, x, mask=None, *, relu=True",
    "self, x, *others",
    "self, x, **options",
    "self, x, *, size=None, flag=False",
)
OPENINGS = {  # what a signature's arguments are good for
    "self, x, scale=1.5": "x = x * scale",
    "self, x, mask=None, *, relu=True": "x = x if mask is None else x * mask\nx = x.relu() if relu else x",
    "self, x, *others": "x = x + len(others)\nfor other in others:\n    x = x + other",
    "self, x, **options": 'x = x * options.get("scale", 2.0) + len(options)',
    "self, x, *, size=None, flag=False": "size = size or x.shape[-1]\nx = x * 2.0 if flag else x\nx = x + size",
}
