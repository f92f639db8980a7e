"""Which modules are one call in the graph, and which are traced through.

A leaf is a module whose code is not read (an island), one of ours, or a layer of torch's that computes what its
class says: not one whose forward was replaced, whose attributes were changed on the way, or that holds values.
"""

from __future__ import annotations

from torch import fx, nn

_OWN_FORWARD = (
    nn.modules.batchnorm._BatchNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
COMPUTING = ("forward", "_conv_forward", "_output_padding")  # what torch's own layers compute with
_MOVING = (
    nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip


def has_own_call(module: nn.Module) -> bool:
    """Whether calling a module is more than calling its forward, by its class."""
    if isinstance(module, fx.GraphModule):
        return False
    of = type(module)
    return of.__call__ is not nn.Module.__call__ or of._call_impl is not nn.Module._call_impl


def computes_as_torch(of: type[nn.Module]) -> bool:
    """Whether a class computes what a layer of torch's own computes, which it is a subclass of."""
    return any(issubclass(of, kind) and _has_code_of(of, kind) for kind in _OWN_FORWARD)


def _has_code_of(of: type[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether a class has all that its torch class computes with from there."""
    return all(getattr(of, name, None) is getattr(kind, name, None) for name in COMPUTING)


def computes_otherwise(module: nn.Module) -> bool:
    """Whether what a module computes with was replaced on the object."""
    return not module.__dict__.keys().isdisjoint(COMPUTING)


def draws_or_keeps(module: nn.Module) -> bool:
    """Whether a layer in training mode draws, or keeps statistics: it counts, whoever reads what it returns."""
    return module.training and isinstance(module, _MOVING)


def holds_values(module: nn.Module) -> bool:
    """Whether attributes of a module are traced values: `nn.Upsample(size=y.shape[2:])`."""
    return any(map(_is_or_holds_value, module.__dict__.values()))


def _is_or_holds_value(attribute: object) -> bool:
    items = attribute if type(attribute) in (tuple, list) else (attribute,)
    return any(issubclass(type(item), fx.Proxy) for item in items)  # type: ignore[attr-defined]
