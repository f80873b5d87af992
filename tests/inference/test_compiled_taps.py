"""Taps through the eager network and both compilers: the same maps, as copies, and none without taps."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from camworker.errors import NetworkError
from camworker.inference import pixel_network
from camworker.inference.compilers.aotinductor import compile_for_cuda, load_for_cuda
from camworker.inference.pixel_network import NetworkOutput, PixelNetwork
from camworker.networks.taps import Taps
from support.tapped_network import SIDE, tapped_package

PACKAGE = tapped_package()


def network(taps: bool = True, dtype: torch.dtype = torch.float32) -> PixelNetwork:
    return PixelNetwork(
        PACKAGE.network,
        PACKAGE.preprocessing,
        device=torch.device("cpu"),
        dtype=dtype,
        batch_size=4,
        input_size=SIDE,
        taps=taps,
    )


def noise(count: int = 4, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, SIDE, SIDE), np.uint8)
    return torch.from_numpy(values)


@torch.inference_mode()
def evaluated(tapped: PixelNetwork, pixels_BCHW: torch.Tensor) -> NetworkOutput:
    return tapped.evaluate(pixels_BCHW)


def assert_close(output: NetworkOutput, other: NetworkOutput, tolerance: float = 1e-4) -> None:
    for name in NetworkOutput.__slots__:
        torch.testing.assert_close(
            getattr(output, name), getattr(other, name), rtol=tolerance, atol=tolerance
        )


def test_the_maps_are_those_of_the_layers():
    body = PACKAGE.network.model["body"]
    images_BCHW = (noise().float() / 255 - 0.5) / 0.2
    output = evaluated(network(), noise())
    with torch.inference_mode():
        for map_BCHW, layers in ((output.fine_BCHW, 2), (output.deep_BCHW, 4), (output.features_BCHW, 6)):
            torch.testing.assert_close(map_BCHW, body[:layers](images_BCHW), rtol=1e-4, atol=1e-4)
    assert output.fine_BCHW.shape == (4, 5, 16, 16)
    assert output.deep_BCHW.shape == (4, 6, 8, 8)


def test_all_maps_are_float32():
    output = evaluated(network(dtype=torch.bfloat16), noise())
    assert {getattr(output, name).dtype for name in NetworkOutput.__slots__} == {torch.float32}
    exact = evaluated(network(), noise())
    assert_close(output, exact, 0.1)
    assert torch.equal(output.fine_BCHW, exact.fine_BCHW)
    assert not torch.equal(output.deep_BCHW, exact.deep_BCHW)


def test_a_compiled_network_gives_the_same_maps_for_batches_of_any_size(tmp_path, monkeypatch):
    file, eager = tmp_path / "tapped.pt2", network()
    compiled, loaded = network(), network()
    assert compiled.compile_into(file, streams=2) is None
    monkeypatch.setattr(pixel_network, "compile_features", None)  # the second one must not want it
    assert loaded.compile_into(file, streams=1) is None
    for count in (1, 3, 4, 6):  # two of them by the compiled network, one of these filled up
        expected = evaluated(eager, noise(count))
        assert len(expected.fine_BCHW) == len(expected.deep_BCHW) == count
        assert_close(evaluated(compiled, noise(count)), expected)
        assert_close(evaluated(loaded, noise(count)), expected)


def test_the_next_batch_does_not_overwrite_the_last_maps(tmp_path):
    tapped = network()
    assert tapped.compile_into(tmp_path / "tapped.pt2", streams=1) is None
    output = evaluated(tapped, noise())
    before = copy.deepcopy(output)
    other = evaluated(tapped, noise(seed=1))
    assert not torch.equal(other.fine_BCHW, before.fine_BCHW)
    assert_close(output, before, 0)


def test_without_taps_nothing_is_computed_for_them(tmp_path):
    plain, tapped = network(taps=False), network()
    output = evaluated(plain, noise())
    assert plain.taps is output.fine_BCHW is output.deep_BCHW is None
    assert len(plain(noise())) == 1
    assert len(tapped(noise())) == 3
    expected = evaluated(tapped, noise())
    assert torch.equal(output.features_BCHW, expected.features_BCHW)
    assert torch.equal(output.logits_BK, expected.logits_BK)
    assert plain.compile_into(tmp_path / "plain.pt2", streams=1) is None
    assert evaluated(plain, noise()).fine_BCHW is None


def test_the_file_of_a_network_without_taps_is_not_used_for_one_with_taps(tmp_path):
    file = tmp_path / "network.pt2"
    assert network(taps=False).compile_into(file, streams=1) is None
    tapped = network()
    assert tapped.compile_into(file, streams=1) == "it computes 1 maps, not 3"
    assert evaluated(tapped, noise()).deep_BCHW is not None


@pytest.mark.parametrize(("index", "what"), [(0, "logits"), (1, "map at stride 8"), (2, "map at stride 16")])
def test_a_compiled_network_with_another_map_is_not_used(tmp_path, monkeypatch, index, what):
    tapped = network()

    def wrong(pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(m.flip(1) if n == index else m for n, m in enumerate(tapped(pixels_BCHW)))

    monkeypatch.setattr(pixel_network, "compile_features", lambda file, network, pixels_BCHW: file.touch())
    monkeypatch.setattr(pixel_network, "load_compiled_features", lambda file, **options: wrong)
    why = tapped.compile_into(tmp_path / "tapped.pt2", streams=1)
    assert why is not None
    assert why.startswith(f"its {what} would differ by")
    assert tapped._compiled is None


def test_a_network_without_taps_is_refused_where_they_are_needed():
    unusual = copy.deepcopy(PACKAGE.network)
    unusual.drop_taps("no feature map at stride 8")
    with pytest.raises(NetworkError, match="no feature map at stride 8"):
        PixelNetwork(
            unusual,
            PACKAGE.preprocessing,
            device=torch.device("cpu"),
            dtype=torch.float32,
            batch_size=4,
            input_size=SIDE,
            taps=True,
        )


def test_a_network_without_a_map_at_stride_16_gives_one_map(tmp_path):
    package = tapped_package()
    package.network._taps = Taps(package.network.taps.fine, None)
    package.network._tapped = ()
    tapped = PixelNetwork(
        package.network,
        package.preprocessing,
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=4,
        input_size=SIDE,
        taps=True,
    )
    expected = evaluated(network(), noise())
    assert tapped.compile_into(tmp_path / "fine.pt2", streams=1) is None
    output = evaluated(tapped, noise())
    torch.testing.assert_close(output.fine_BCHW, expected.fine_BCHW, rtol=1e-4, atol=1e-4)
    assert output.deep_BCHW is None


def test_the_copy_holds_each_parameter_once():
    tapped = network()
    held = {tensor.data_ptr() for tensor in (*tapped.parameters(), *tapped.buffers())}
    own = {tensor.data_ptr() for tensor in (tapped.mean, tapped.std)}
    model = {tensor.data_ptr() for tensor in tapped.network.model.state_dict().values()}
    assert held == own | model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchs_own_compiler_gives_the_same_maps(tmp_path: Path, monkeypatch):
    """AOTInductor compiles for the CPU as well as for a GPU."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tapped: nn.Module = network()
    with torch.inference_mode():
        compile_for_cuda(tmp_path / "tapped.pt2", tapped, noise())
        compiled = load_for_cuda(tmp_path / "tapped.pt2", 1)(noise())
        assert len(compiled) == 3
        torch.testing.assert_close(tuple(compiled), tapped(noise()), rtol=1e-4, atol=1e-4)
