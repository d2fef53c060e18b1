"""Where clips come from: their samples, and the split that a name belongs to."""

import zipfile
from collections import Counter

import numpy as np

from kwslib.data.audio import to_int16
from kwslib.data.folder import which_set


def test_int16_is_exact():
    every = np.arange(-32768, 32768)
    samples, clipped = to_int16((every / 32768).astype(np.float32))
    np.testing.assert_array_equal(samples, every)
    assert not clipped and to_int16(np.array([1.5, -2.0]))[0].tolist() == [32767, -32768]


def test_hash_rule_gives_the_official_split_of_real_names(real_clips):
    names = [n.rsplit("/", 1)[1] for n in zipfile.ZipFile(real_clips).namelist() if "_nohash_" in n]
    count = Counter(which_set(n.split("_nohash_")[0]) for n in names)
    assert count == {"training": 16986, "validation": 2265, "testing": 2835}
