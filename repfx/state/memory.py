"""What identifies the memory of a tensor."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def memory_of(tensor: Tensor) -> int:
    """A number that tensors in the same memory have in common: its address, or the tensor's own identity without one.

    None has any on the meta device, whatever device a fake one says it is on; nor may some layouts and subclasses.
    """
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):
        return id(tensor)
