"""Arrays as a safetensors file: read back by safetensors itself."""

import errno
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from keras_vit.runs.arrays import DTYPES, write_arrays


def test_safetensors_reads_every_type_and_shape(tmp_path):
    rng, shapes = np.random.default_rng(0), [(), (3,), (2, 3), (0, 4), (1, 1, 5)]
    types = {name: getattr(ml_dtypes, name, name) for name in DTYPES}
    arrays = {name: (9 * rng.random(shapes[index % 5])).astype(types[name]) for index, name in enumerate(DTYPES)}
    write_arrays(tmp_path / "file", arrays, {"state": '{"ä": "\\n"}'})
    with safe_open(tmp_path / "file", framework="numpy") as file:
        assert file.metadata() == {"state": '{"ä": "\\n"}'}
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            if name != "bfloat16":  # safetensors reads it with other frameworks than NumPy
                read = file.get_tensor(name)
                assert (read.dtype, read.shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(read, array)
        assert file.get_slice("bfloat16").get_dtype() == "BF16"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_disk_is_an_oserror():
    with pytest.raises(OSError, match="No space left") as error:
        write_arrays(Path("/dev/full"), {"a": np.zeros(10**6)}, {})
    assert error.value.errno == errno.ENOSPC
