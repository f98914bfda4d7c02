from helpers import one_line_error
from made import NAMES
from pages import Page

from keras_vit.report.comparison import write_comparison_report


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_runs_are_side_by_side_and_what_differs_is_marked(make_run, tmp_path):
    facts = {"test_accuracy": 0.9, "backend": "torch", "versions": {"python": "3.12", "keras": "3.16"}, "process_seconds": 725.0}
    runs = [make_run("a", learning_rate=0.01), make_run("<i>b", learning_rate=0.02, seed=3, epochs=5, summary=facts)]
    path = write_comparison_report(runs, tmp_path / "both.html")
    assert path == tmp_path / "both.html"
    page = read(path)
    results, settings, machine, same, folders = (table[1:] for table in page.tables)
    assert page.tables[0][0] == ["", "a", "<i>b"]
    results = {row[0]: row[1:] for row in results}
    assert results["test accuracy"] == ["80.00%", "90.00%"]
    assert results["95% interval (Wilson)"] == ["49.02% to 94.33%", "59.58% to 98.21%"]
    assert results["best validation accuracy"] == ["60.00%", "100.00%"]
    assert results["training time"] == ["6.0 s", "10 s"]
    assert results["whole process"] == ["75 s", "12 min 5 s"]
    assert results["images/s (median epoch)"] == ["1,002", "1,003"]
    assert settings == [["train.epochs", "3", "5"], ["train.learning_rate", "0.01", "0.02"], ["seed", "0", "3"]]
    # The values of the second run that are not the first one's, and nothing else.
    assert page.marked == ["5", "0.02", "3", "torch", "3.16"]
    assert ["keras version", "3.15", "3.16"] in machine
    assert ["model.width", "8"] in same
    assert {row[0] for row in same} & {row[0] for row in settings} == set()
    assert folders[0] == ["a", str(runs[0].path)]
    assert {"Loss over epochs", "Accuracy over epochs"} <= set(page.images)
    assert "i" not in {tag for tag, _ in page.tags}


def test_unfinished_and_damaged_runs_are_compared_as_far_as_they_go(make_run, tmp_path):
    runs = [make_run("a"), make_run("b", finished=False), make_run("c", summary={"fingerprint": "0" * 64, "class_names": NAMES})]
    (runs[2].path / "metrics.csv").write_text("nonsense")
    page = read(write_comparison_report(runs, tmp_path / "x.html"))
    assert "b has not finished: 2 of 3 epochs are done." in page.text
    assert "Missing here: the curves of c (run: " in page.text
    assert "The runs have different data" in page.text
    results = {row[0]: row[1:] for row in page.tables[0][1:]}
    assert results["test accuracy"] == ["80.00%", "–", "–"]
    assert "None: the runs have the same settings." in page.text


def test_fewer_than_two_runs_are_refused(make_run, tmp_path):
    run = make_run()
    with one_line_error(r"^runs: received 1; allowed: two or more$"):
        write_comparison_report([run], tmp_path / "x.html")
    with one_line_error(r"^runs: received '.*run' 2 times; allowed: different runs$"):
        write_comparison_report([run, run], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
