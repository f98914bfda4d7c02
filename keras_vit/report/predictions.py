"""The page of predictions: each picture with its likeliest classes."""

from collections.abc import Sequence

from keras_vit.report.page import data_uri, render
from keras_vit.runs.prediction import Prediction


def predictions_page(predictions: Sequence[Prediction], title: str, notes: Sequence[str] = ()) -> str:
    """An HTML page of predictions with their thumbnails; it needs no other file. Notes are shown below the title."""
    rows = [
        {
            "image": str(each.image),
            "source": data_uri(each.thumbnail, "jpeg"),
            "classes": [*zip(each.classes, each.probabilities, strict=True)],
        }
        for each in predictions
    ]
    return render("predictions.html", title=title, rows=rows, notes=notes, source="keras-vit predict")
