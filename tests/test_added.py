"""Synthetic speech that joins the training split of real clips, and no other."""

import zipfile

import numpy as np
import pytest
from test_corpus import sound

from kwslib.data.corpus import pack
from kwslib.io import KwsError
from paper.added import add_synthetic


def test_synthetic_words_join_the_training_split_alone(tmp_path):
    archive = tmp_path / "clips.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(40):
            file.writestr(f"clips/{'no' if i % 2 else 'yes'}/{i:08x}_nohash_0.wav", sound(16_000, 16_000, hz=200 + i))
        file.writestr("clips/_background_noise_/hum.wav", sound(16_000, 48_000, hz=50))
        file.writestr("clips/README.md", "no clip")
    real = pack(archive, tmp_path / "real")
    mixed = add_synthetic(archive, ["no", "yes"], tmp_path / "mixed", speakers=3)
    for split in ("validation", "testing"):
        own, same = (c.waves[c.splits == split] for c in (mixed, real))
        assert len(own) and sorted(map(bytes, own)) == sorted(map(bytes, same))
    spoken = np.array([str(speaker).startswith("synthetic") for speaker in mixed.speakers])
    assert (
        spoken.sum() == 6 and (mixed.splits == "training")[spoken].all() and len(mixed.splits) == len(real.splits) + 6
    )
    assert np.array_equal(mixed.noise, real.noise)
    again = add_synthetic(archive, ["no", "yes"], tmp_path / "again", speakers=3)
    assert again.checksum == mixed.checksum and again.card == mixed.card
    with pytest.raises(KwsError, match="none.zip is no zip, or does not exist"):
        add_synthetic(tmp_path / "none.zip", ["no"], tmp_path / "o")
