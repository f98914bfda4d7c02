"""The lines of the guide with which an export is used: they print the class that `keras_vit.predict` gives."""

import re

import keras
import numpy as np
import pytest
from helpers import ROOT, make_model
from PIL import Image
from sklearn.datasets import load_sample_images
from test_export import MEAN, NAMES, OWN, STD, WRITTEN_HERE

from keras_vit import export_model, predict
from keras_vit.data.decode import read_image
from keras_vit.runs.calibration import probabilities_of

SHARE = 0.75  # of a picture, `center_crop`
DECODED = 3  # grey levels: the library decodes a JPEG at an eighth of its size
GUIDE = (ROOT / "docs" / "guides" / "export.md").read_text(encoding="utf-8")
LINES = {
    found[1]: block
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    if (found := re.search(r"RUN/export/(\w+)", block))
}


def test_every_format_has_its_lines():
    assert set(LINES) == {"onnx", "litert", "openvino", "tf_saved_model", "torch"}


def test_the_probabilities_of_the_guide():
    (block,) = [found for found in re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL) if "def prob" in found]
    names, logits = {}, np.float32([[1, -2, 4], [300, 0, -5]])
    exec(block, names)
    for several in (False, True):
        found = names["probabilities"](logits, {"temperature": 1.7, "multi_label": several})
        np.testing.assert_allclose(found, probabilities_of(logits, several, 1.7), atol=1e-12)


def by_format(names):
    own = OWN[keras.backend.backend()]
    return [pytest.param(name, marks=[] if name == own != "onnx" else pytest.mark.slow) for name in names]


@pytest.mark.backend
@pytest.mark.parametrize("name", by_format(WRITTEN_HERE))
def test_the_lines_of_the_guide(tmp_path, monkeypatch, capsys, request, name):
    if name == OWN[keras.backend.backend()]:
        request.getfixturevalue("in_process")
    model = make_model("gap", depth=1)
    report = export_model(model, tmp_path / "RUN" / "export" / name, name, mean=MEAN, std=STD, class_names=NAMES, center_crop=SHARE)
    if name == "openvino":  # the numbers hold for this setting, which the guide's lines have too
        assert report["runtime_settings"] == {"INFERENCE_PRECISION_HINT": "f32"}
        assert report["default_precision"] in ("f32", "bf16", "f16")
        assert '{"INFERENCE_PRECISION_HINT": "f32"}' in LINES[name]
    monkeypatch.chdir(tmp_path)
    for index, picture in enumerate(load_sample_images().images):
        Image.fromarray(picture[index * 100 :]).save("photo.jpg", quality=95)
        (expected,) = predict(model, ["photo.jpg"], mean=MEAN, std=STD, class_names=NAMES, center_crop=SHARE)
        capsys.readouterr()
        names = {}
        exec(LINES[name], names)
        assert capsys.readouterr().out.strip() == expected.classes[0]
        if "images" in names:  # SavedModel reads the file itself
            seen = read_image("photo.jpg", (*model.config.image_size, 3), SHARE).astype(int)
            assert np.abs(names["images"][0] - seen).mean() < DECODED
