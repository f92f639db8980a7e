"""Writing compiled modules for runtimes: whole files, the same operations, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import repfx
from repfx import export
from repfx.errors import UserError
from repfx.export.program import fix_borders, measured_error
from repfx.layers import BorderTerm
from repfx.rewriting import OBJECTIVES
from tests.blocks.perhead import TransformerBlock
from tests.outside import SIZE, tiny

INPUT = (torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0)),)
WRITERS = {".pt2": export.to_pt2, ".onnx": export.to_onnx, ".mlpackage": export.to_coreml}


class Biased(nn.Module):
    """A biased 1x5 followed by a padded 5x1: one convolution with a border term."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, (1, 5), padding=(0, 2), groups=3)
        self.second = nn.Conv2d(3, 3, (5, 1), padding=(2, 0), groups=3)
        nn.init.constant_(self.first.bias, 3.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class DataDependent(nn.Module):
    """Code that no exporter follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def fused_tiny(objective: str = "macs") -> nn.Module:
    return repfx.reparameterize(tiny(), INPUT, objective=objective)


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("objective", OBJECTIVES.own)
def test_convolutions_survive_export(ending: str, objective: str, tmp_path: Path) -> None:
    fused = fused_tiny(objective)
    written = WRITERS[ending](fused, INPUT, tmp_path / f"net{ending}")
    assert written.convolutions == repfx.report(fused).after.convolutions == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [f"net{ending}"]


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_any_batch_and_the_original_numbers(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{ending}"
    WRITERS[ending](fused_tiny(), INPUT, path)
    for batch in (1, 5):
        x = torch.randn(batch, *SIZE)
        if ending == ".onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            got = torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
        else:
            got = torch.export.load(path).module()(x)
        torch.testing.assert_close(got, tiny()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", WRITERS)
def test_border_terms_become_constants(ending: str, tmp_path: Path) -> None:
    fused = repfx.reparameterize(Biased().eval(), INPUT, objective="single-branch")
    assert any(isinstance(part, BorderTerm) for part in fused.modules()), "the test lost its subject"
    written = WRITERS[ending](fused, INPUT, tmp_path / f"net{ending}")
    assert written.convolutions == 1
    executed = {name.lower() for name in written.operations} - {"cast", "_assert_tensor_metadata"}
    assert executed <= {"conv", "conv2d", "add"}, written.operations
    if not isinstance(written, export.CoreMLPackage):
        assert written.relative_error < 1e-5


def test_fixing_borders_leaves_the_module_alone() -> None:
    fused = repfx.reparameterize(Biased().eval(), INPUT, objective="single-branch")
    fixed = fix_borders(fused, INPUT)
    assert any(isinstance(part, BorderTerm) for part in fused.modules())
    assert not any(isinstance(part, BorderTerm) for part in fixed.modules())
    torch.testing.assert_close(fixed(*INPUT), fused(*INPUT))


def test_a_border_term_at_two_sizes_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = repfx.reparameterize(Biased().eval(), INPUT, objective="single-branch")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), self.inner(x[:, :, 1:])

    fixed = fix_borders(Twice(), INPUT)
    assert any(isinstance(part, BorderTerm) for part in fixed.modules())


def test_a_wrong_file_is_noticed() -> None:
    """The measurement must be able to fail: 1 % off one bias is discarded."""
    model, off = tiny(), tiny()
    off.head.bias.data *= 1.01
    with pytest.raises(export.ExportError, match="differs from the module"):
        measured_error(model, lambda inputs: [off(*inputs)], INPUT, dynamic_batch=True)
    with pytest.raises(export.ExportError, match="differs from the module by inf"):
        measured_error(model, lambda inputs: [model(*inputs) * np.nan], INPUT, dynamic_batch=True)


@pytest.mark.parametrize("ending", WRITERS)
def test_what_cannot_be_exported_leaves_the_old_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{ending}"
    if ending == ".mlpackage":
        path.mkdir()
        (path / "old").write_text("old")
    else:
        path.write_text("old")
    with pytest.raises(export.ExportError, match=r"torch\.export cannot follow its code") as error:
        WRITERS[ending](DataDependent(), INPUT, path)
    assert "\n" not in str(error.value)
    assert ((path / "old") if path.is_dir() else path).read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_existing_package_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "net.mlpackage"
    path.mkdir()
    (path / "stale").write_text("old")
    export.to_coreml(fused_tiny(), INPUT, path, precision="fp32", minimum_deployment_target="iOS17")
    assert not (path / "stale").exists()
    assert export.count_coreml_convs(path) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.mlpackage"]


def test_core_ml_types_are_as_asked(tmp_path: Path) -> None:
    import coremltools

    path = tmp_path / "net.mlpackage"
    package = export.to_coreml(fused_tiny(), INPUT, path)
    specification = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    ports = [*specification.description.input, *specification.description.output]
    float32 = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    assert [port.type.multiArrayType.dataType for port in ports] == [float32, float32]
    assert (package.inputs, package.outputs, package.precision) == (("input",), ("output",), "fp16")
    assert package.operations["cast"] == 2  # into half precision and back


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"precision": "int8"}, "unknown precision"), ({"minimum_deployment_target": "iOS12"}, "iOS15 or iOS16")],
)
def test_core_ml_options_are_checked(arguments: dict[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        export.to_coreml(fused_tiny(), INPUT, tmp_path / "net.mlpackage", **arguments)  # type: ignore[arg-type]


def test_no_core_ml_package_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.mlpackage").mkdir()
    for name, reason in (("absent.mlpackage", "no such"), ("empty.mlpackage", "reads back")):
        with pytest.raises(UserError, match=reason):
            export.count_coreml_convs(tmp_path / name)


@pytest.mark.parametrize("name", ["net.onnx", "missing/net.onnx"])
def test_paths_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(UserError, match=r"in the way|does not exist"):
        export.to_onnx(fused_tiny(), INPUT, tmp_path / name)


def test_recommended_objectives() -> None:
    assert export.recommended_objective("a.safetensors") == "single-branch"
    assert {export.recommended_objective(f"a{ending}") for ending in WRITERS} == {"macs"}
    with pytest.raises(UserError, match=r"unknown ending .\.tflite"):
        export.recommended_objective("a.tflite")


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_fused_attention_with_a_trained_bias(ending: str, tmp_path: Path) -> None:
    """Decomposed under gradients, the attention had another memory layout than it was traced with."""
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    fused = repfx.reparameterize(TransformerBlock().eval(), (x,))
    assert sum(n.target is torch.nn.functional.scaled_dot_product_attention for n in fused.graph.nodes) == 1
    assert WRITERS[ending](fused, (x,), tmp_path / f"a{ending}").relative_error < 1e-5
