"""The shapes of Mamba-Light that only the search trains."""

import pytest
import torch
import yaml

from kwslib.models.cost import count_macs
from kwslib.models.mamba import MambaBlock
from kwslib.models.registry import MODELS, build
from paper import trials


@pytest.fixture
def candidates():
    """The module; afterwards the registry is as it was."""
    before = dict(MODELS)
    with trials.candidates() as module:
        yield module
    assert MODELS == before


def test_shapes_take_clips_of_any_length_and_cost_no_more_than_bc_resnet_8(root, candidates):
    asked = yaml.safe_load((root / "profiles/search/shapes.yaml").read_text())["trials"]
    most = count_macs(build("bc_resnet_8", 15), torch.randn(1, 101, 40))
    for trial in asked.values():
        torch.manual_seed(0)
        model, bands = build(trial["model"], 15).eval(), trial.get("n_mels", 64)
        assert count_macs(model, torch.randn(1, 101, bands)) <= most
        clips = torch.randn(2, 101, bands)
        whole, cut = model(clips), model(clips, torch.tensor([101, 60]))
        assert whole.shape == (2, 15) and whole.isfinite().all()
        torch.testing.assert_close(cut[0], whole[0], rtol=1e-4, atol=1e-4)
        assert (cut[1] - whole[1]).abs().max() > 1e-3


def test_one_block_hears_what_comes_and_the_other_does_not(candidates):
    torch.manual_seed(0)
    frames = torch.randn(1, 9, 16)
    later = frames.clone()
    later[:, -1] = torch.randn(16)
    for block, hears in ((candidates.BothWays(16, 0.0), True), (MambaBlock(16, 0.0), False)):
        moved = (block(later) - block(frames))[:, 0].abs().max()
        assert (moved > 1e-6) == hears


def test_excitation_weighs_each_channel_of_a_clip_alike(candidates):
    torch.manual_seed(0)
    layer = candidates.StridedFrontEnd(8).layers[0]
    squeezed, x = candidates.Squeezed(layer).eval(), torch.randn(2, 1, 20, 16)
    ratio = squeezed(x) / squeezed.layer(x)
    assert (ratio.amax((2, 3)) - ratio.amin((2, 3))).max() < 1e-4 and 0 < ratio.min() and ratio.max() < 1
