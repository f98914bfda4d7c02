"""Records of TensorFlow Datasets as a `Source` of `Photos`: read at random, in both of its formats, without TensorFlow.

A record is a serialised `tf.train.Example` with an encoded picture and a label.
"""

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.data.checked import remembered
from keras_vit.data.photos import examine_all

HEAD, TAIL = 12, 4  # bytes of a TFRecord around its data: the length as uint64 and a checksum before, a checksum after


class Records:
    """Pictures and labels of a part of a data set.

    Args:
        records: Serialised examples by number.
        files: What they are read from.
        part: `train`, `validation` or `test`.
        features: The data set's `tfds.features.FeaturesDict`.
    """

    def __init__(self, records: Sequence[bytes], files: Sequence[str], part: str, features):
        import tensorflow_datasets as tfds

        self.part, self._records = part, records
        self._features = tfds.features.FeaturesDict({name: features[name] for name in ("image", "label")})
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        found = remembered("records", files, self._examine)
        self.labels, self.sizes, self.digests = found["labels"], found["sizes"], found["digests"]
        self._starts, self._lengths = found["starts"], found["lengths"]

    def open(self, row: int) -> io.BytesIO:
        start = self._starts[row]
        return io.BytesIO(self._records[row][start : start + self._lengths[row]])

    def name(self, row: int) -> str:
        return f"{self.part} record {row}"

    def _examine(self):
        count = len(self._records)
        labels, starts, lengths = np.full(count, -1, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)

        def open_first(row):
            record = self._records[row]
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
            labels[row], starts[row], lengths[row] = example["label"], record.index(example["image"]), len(example["image"])
            return io.BytesIO(example["image"])

        return {**examine_all(open_first, range(count)), "labels": labels, "starts": starts, "lengths": lengths}


def read_records(builder, part: str) -> Records:
    """A part of a prepared data set.

    Args:
        builder: A `tfds.core.DatasetBuilder` whose data set is prepared as ArrayRecord or TFRecord.
        part: The name of a split.

    Raises:
        ValueError: If the files are in another format, or do not hold the records that the data set states.
    """
    import tensorflow_datasets as tfds

    shards = builder.info.splits[part].file_instructions
    files = [os.fspath(shard.filename) for shard in shards]
    kind = builder.info.file_format.value
    if kind == "array_record":
        records = builder.as_data_source(part, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    elif kind == "tfrecord":
        records = TFRecords(files, [shard.take for shard in shards])
    else:
        raise ValueError(f"data: received {builder.name!r} prepared as {kind}; allowed: tfrecord, array_record")
    return Records(records, files, part, builder.info.features)


class TFRecords:
    """The data of TFRecord files by number: https://www.tensorflow.org/tutorials/load_data/tfrecord describes the format.

    Args:
        files: The files in order.
        counts: The number of records in each.
    """

    def __init__(self, files: Sequence[str], counts: Sequence[int]):
        self.files = files
        found = remembered("frames", files, lambda: frames(files))
        self._shards, self._starts, self._lengths = found["shards"], found["starts"], found["lengths"]
        for index, (file, count) in enumerate(zip(files, counts, strict=True)):
            received, name = np.count_nonzero(self._shards == index), "/".join(Path(file).parts[-3:])
            if received != count:
                raise ValueError(f"data: received {received:,} records in {name!r}; allowed: {count:,}; prepare the data set again")

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, row: int) -> bytes:
        with open(self.files[self._shards[row]], "rb", buffering=0) as file:
            file.seek(self._starts[row])
            return file.read(self._lengths[row])


def frames(files: Sequence[str]) -> dict[str, np.ndarray]:
    """Where the data of every whole record lies: `shards` (index of the file), `starts` and `lengths` (bytes), int64 (M,)."""
    found = []
    for index, path in enumerate(files):
        end, start = os.path.getsize(path), HEAD
        with open(path, "rb") as file:
            while len(head := file.read(HEAD)) == HEAD:
                (length,) = struct.unpack("<Q", head[:8])
                if start + length + TAIL > end:  # cut off, or no TFRecord
                    break
                found.append((index, start, length))
                file.seek(start + length + TAIL)
                start += length + TAIL + HEAD
    return dict(zip(("shards", "starts", "lengths"), np.array(found, np.int64).reshape(-1, 3).T, strict=True))
