"""What identifies the memory of a tensor: views have theirs in common, and what has none is its own."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from repfx.state import memory_of


def test_views_are_in_the_same_memory() -> None:
    x = torch.zeros(3, 4)
    assert memory_of(x[1:, ::2].t()) == memory_of(x.data) == memory_of(x)
    assert memory_of(x.clone()) != memory_of(x)


def test_what_has_no_memory_is_told_apart() -> None:
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(torch.zeros(2)), mode.from_tensor(torch.zeros(2))]
    metas = [torch.zeros(2, device="meta"), torch.zeros(2, device="meta")]
    empty = [torch.zeros(0), torch.zeros(0)]
    sparse = [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()]
    for tensors in (fakes, metas, empty, sparse):
        assert [memory_of(tensor) for tensor in tensors] == [id(tensor) for tensor in tensors]
