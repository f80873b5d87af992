"""The refined maps made with tensors equal those made with arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.boxes.refine import refined_maps, refined_values
from camworker.inference.refine_on_device import refined_maps_on_device, refined_values_on_device
from camworker.refinement import Refinement
from support.refinement import random_features, random_head


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from([1, 3, 16, 40]),
    grid=st.sampled_from([(28, 28), (9, 12), (5, 5)]),
    kind=st.sampled_from(["ridge", "foreground"]),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_maps_equal_those_of_arrays(seed, channels, grid, kind, scoring, counts):
    rng = np.random.default_rng(seed)
    fine_BCHW, deep_BCHW = random_features(rng, len(counts), channels, grid)
    head, refinement = random_head(rng, channels, deep_BCHW.shape[1]), Refinement.of(kind, scoring)
    images_M = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cams_Mhw = rng.normal(size=(len(images_M), 7, 7)).astype(np.float16)
    cams_Mhw[:1] = -1  # no positive value
    arrays = (cams_Mhw, images_M, fine_BCHW, deep_BCHW)
    tensors = [torch.from_numpy(array) for array in arrays]
    values_MHW = refined_values_on_device(*tensors, refinement, head)
    assert values_MHW.dtype == torch.float32
    np.testing.assert_allclose(
        values_MHW.numpy(), refined_values(*arrays, refinement, head), rtol=0, atol=1e-5
    )
    maps_MHW = refined_maps_on_device(*tensors, refinement, head)
    assert (maps_MHW.dtype, maps_MHW.shape) == (torch.uint8, (len(images_M), *grid))
    expected_MHW = refined_maps(*arrays, refinement, head)
    assert np.abs(maps_MHW.numpy().astype(int) - expected_MHW).max(initial=0) <= 1
    assert not maps_MHW[:1].any()


def test_features_of_lower_precision_are_refined_in_float32():
    rng = np.random.default_rng(6)
    fine_BCHW, deep_BCHW = (torch.from_numpy(x).bfloat16() for x in random_features(rng, 2, 8, (8, 8)))
    head, refinement = random_head(rng, 8, deep_BCHW.shape[1]), Refinement.of("foreground", "softmax")
    cams_Mhw, images_M = torch.rand(4, 3, 3).half(), torch.tensor([1, 0, 0, 1])
    made = refined_values_on_device(cams_Mhw, images_M, fine_BCHW, deep_BCHW, refinement, head)
    in_float32 = (cams_Mhw.float(), images_M, fine_BCHW.float(), deep_BCHW.float())
    assert torch.equal(made, refined_values_on_device(*in_float32, refinement, head))


def test_a_map_that_is_not_finite_has_no_refined_map():
    rng = np.random.default_rng(7)
    fine_BCHW, deep_BCHW = (torch.from_numpy(x) for x in random_features(rng, 1, 3, (6, 6)))
    cams_Mhw = torch.rand(4, 3, 3)
    cams_Mhw[0, 1, 1], cams_Mhw[1, 0, 0], cams_Mhw[2] = torch.nan, torch.inf, 0
    refinement = Refinement.of("ridge", "softmax")
    maps_MHW = refined_maps_on_device(
        cams_Mhw, torch.zeros(4, dtype=torch.int64), fine_BCHW, deep_BCHW, refinement, None
    )
    assert maps_MHW.flatten(1).amax(1).tolist() == [0, 0, 0, 255]


def test_a_missing_head_is_refused():
    rng = np.random.default_rng(8)
    fine_BCHW, deep_BCHW = (torch.from_numpy(x) for x in random_features(rng, 1, 3, (6, 6)))
    refinement = Refinement.of("foreground", "softmax")
    with pytest.raises(ValueError, match="needs a head"):
        refined_maps_on_device(
            torch.rand(1, 3, 3), torch.zeros(1, dtype=torch.int64), fine_BCHW, deep_BCHW, refinement, None
        )
