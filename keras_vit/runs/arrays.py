"""Arrays in a safetensors file, written beside a training.

safetensors' own `save` copies all arrays while no other thread can run: the training would stand still for as long. Its `save_file`
leaves files under names of its own after a kill, and does not raise an OSError on a full disk.
"""

import json
from pathlib import Path

import numpy as np

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
DTYPES |= {f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def write_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file that `safetensors.safe_open` reads.

    Args:
        path: The file.
        arrays: By name; C-contiguous and little-endian.
        metadata: By name.

    Raises:
        OSError: If the file cannot be written.
    """
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # so that all are aligned
    header, end = {"__metadata__": metadata}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8))
