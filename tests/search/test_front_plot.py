"""The picture of what accuracy costs."""

from PIL import Image

from keras_vit.search.front_plot import draw_front


def test_the_front_is_drawn(tmp_path):
    trials = [
        {"id": str(index), "status": "COMPLETED", "values": {}, "metrics": {"val_accuracy": value, "params": params}}
        for index, (value, params) in enumerate([(0.5, 1e5), (0.7, 2e5), (0.6, 4e5), (0.8, 1e6)])
    ]
    assert draw_front(trials, {"val_accuracy": "max"}, tmp_path / "front.png", title="4 trials")
    with Image.open(tmp_path / "front.png") as picture:
        assert picture.size == (960, 660)
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colors  # the front, and trial 2, which is not on it
    assert not draw_front(trials[:0], {"val_accuracy": "max"}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
