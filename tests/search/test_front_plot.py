"""The picture of what accuracy costs."""

from PIL import Image

from keras_vit.search.front_plot import draw_front


def test_the_front_is_drawn(tmp_path):
    trials = [
        {"id": str(index), "status": "COMPLETED", "values": {}, "metrics": {"val_accuracy": value, "params": params}}
        for index, (value, params) in enumerate([(0.5, 1e5), (0.7, 2e5), (0.6, 4e5), (0.4, 5e5), (0.8, 1e6)])
    ]
    assert draw_front(trials, {"val_accuracy": "max"}, tmp_path / "front.png", title="5 trials")
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (960, 660)
        counts = {color: count for count, color in picture.convert("RGB").getcolors(1 << 20)}
    assert counts[0xD5, 0x5E, 0x00] > 1000  # the front with its line
    assert 50 < counts[0x00, 0x72, 0xB2] < 300  # the marks of trials 2 and 3, which are not on it, and of the legend: no line
    assert not draw_front(trials[:0], {"val_accuracy": "max"}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
