import base64
import copy
import hashlib
import json
import re

import numpy as np
import plotly.graph_objects
import pytest
from pages import Page
from plotly.offline import get_plotlyjs

from keras_vit.checks import visible
from keras_vit.search import importance as forests
from keras_vit.search import labels
from keras_vit.search.importance import importance
from keras_vit.search.pareto import front
from keras_vit.search.report import write_report

WILD = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"q\" 'a' ünï 猫 %{x} \u2028 </script> <a href='http://x.org'>"
TIMES_NOISE = 10  # an axis that matters is that much more important than one that does not


AXES = [
    {"name": "patch_size", "kind": "choice", "log": False, "values": [2, 4, 8]},
    {"name": "depth", "kind": "int", "log": False, "values": [2, 3, 4, 5, 6, 7, 8]},
    {"name": "stem", "kind": "choice", "log": False, "values": ["patch", "conv"]},
    {"name": "learning_rate", "kind": "float", "log": True, "values": [3e-4, 1e-2]},
    {"name": "augment", "kind": "float", "log": False, "values": [0.0, 1.0]},
]


def words(axis):
    """The name of an axis as the page shows it."""
    return axis["name"].replace("_", " ")


def make_trial(index, values, accuracy, epochs=3, **fields):
    params = 10_000 * values["depth"] * (2 if values["stem"] == "conv" else 1) + index
    curve = [{"epoch": e, "seconds": 2.5 * e, "val_accuracy": accuracy * e / epochs, "loss": 2 / e} for e in range(1, epochs + 1)]
    return {
        "id": f"{index:03}",
        "status": "COMPLETED",
        "values": values,
        "metrics": {
            "val_accuracy": accuracy,
            "params": params,
            "flops": 100 * params,
            "latency_ms": values["depth"] / 4,
            "epochs": epochs,
        },
        "reason": None,
        "curve": curve,
        "command": f"keras-vit train --recipe trial-{index:03}/recipe.yaml",
        "continues": None,
    } | fields


def make_search(count=40, noise=0.005, failures=(), formula=None, **fields):
    """A made search: accuracy depends on patch_size most, then on the learning rate, not on depth and augment."""
    rng = np.random.default_rng(0)
    formula = formula or (lambda v: 0.6 + 0.1 * (v["patch_size"] == 4) - 0.02 * abs(np.log(v["learning_rate"] / 2e-3)))
    trials = []
    for index in range(count):
        values = {
            axis["name"]: axis["values"][rng.integers(len(axis["values"]))]
            if axis["kind"] != "float"
            else float(np.exp(rng.uniform(*np.log(axis["values"]))) if axis["log"] else rng.uniform(*axis["values"]))
            for axis in AXES
        }
        accuracy = float(formula(values) + noise * rng.normal())
        failed = {"status": "FAILED", "metrics": {}, "reason": "out of memory: 3 GB", "curve": []} if index in failures else {}
        trials.append(make_trial(index, values, accuracy, **failed))
    search = {
        "settings": {
            "method": "bayesian",
            "data": "cifar10",
            "seed": 0,
            "budget": {"kind": "epochs", "amount": 3},
            "objectives": {"val_accuracy": "max", "latency_ms": "min"},
            "command": "keras-vit search",
        },
        "axes": copy.deepcopy(AXES),
        "trials": trials,
        "now": "2026-11-22T01:00:00",
        "remaining": 5,
        "finished": False,
    }
    return search | fields


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a report and reads it back; every figure is one that plotly accepts. Small forests, to be quick."""
    monkeypatch.setattr(forests, "TREES", 16)
    monkeypatch.setattr(forests, "PARTITIONS", 1)

    def write(search):
        before = copy.deepcopy(search)
        write_report(search, tmp_path / "report.html")
        assert search == before
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        for figure in page.figures:
            plotly.graph_objects.Figure(figure)  # raises for a name or a value that plotly does not know
            for trace in figure["data"]:
                assert len(trace["x"]) == len(trace["y"]) == len(trace.get("hovertext", trace["x"])) > 0
        return page

    return write


def test_nothing_is_requested(written, tmp_path):
    page = written(make_search(failures=(3,)))
    assert len([1 for tag, attributes, text in page.raw if text == get_plotlyjs()]) == 1
    for tag, attributes in page.tags:
        assert tag not in ("base", "iframe", "object", "embed", "img", "audio", "video", "form", "a")
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    own = (tmp_path / "report.html").read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    for word in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in own
    assert "showSendToCloud: false" in own  # plotly.js 4 has a button that uploads the picture
    # The browser holds the page to it: nothing loads, and only these scripts run.
    policy = next(
        attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(maxsplit=1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    scripts = [text for tag, attributes, text in page.raw if tag == "script" and "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert len(digests) == 3  # plotly.js, the search's own, every page's


def test_markup_is_escaped(written):
    plain, wild = make_search(9, failures=(3,)), make_search(40)
    for number, trial in enumerate(wild["trials"]):
        trial["values"] = {WILD if name == "stem" else name: value for name, value in trial["values"].items()}
        trial["values"][WILD] = WILD if number % 2 else "patch"
        trial |= {"id": WILD + str(number), "command": WILD}
        trial["metrics"][WILD] = 1.5
    wild["trials"][3] |= {"status": "FAILED", "reason": WILD}
    wild["axes"][2] |= {"name": WILD, "values": ["patch", WILD]}
    wild |= {"now": WILD, "remaining": WILD}
    wild["settings"] |= {"method": WILD, WILD: {WILD: [WILD]}, "command": WILD, "objectives": {"val_accuracy": "max", WILD: "min"}}
    page = written(wild)
    tags = [tag for tag, _ in page.tags]
    assert set(tags) == {tag for tag, _ in written(plain).tags}
    assert tags.count("script") == 3 + len(page.figures)
    assert len(page.figures) == 8
    assert page.text.count("alert(1)") > 100
    board = next(table for table in page.tables if "status" in table[0])
    shown = visible(WILD)  # its line separator would be obeyed
    assert shown != WILD
    assert board[0].count(shown) == 2  # the metric and the axis
    assert sorted(row[0] for row in board[1:]) == sorted(visible(trial["id"]) for trial in wild["trials"])
    assert all(row[-1] == shown for row in board[1:])
    assert next(table for table in page.tables if "reason" in table[0])[1][1] == shown
    for figure in page.figures:  # plotly.js draws some tags: none of them may come from the search
        texts = re.findall(r"<[^>]*>", json.dumps(figure, ensure_ascii=False))
        assert set(texts) <= {"<br>"}


def test_leaderboard_has_a_row_for_each_trial(written):
    search = make_search(40, failures=(3, 17))
    search["trials"][5] |= {"status": "RUNNING", "metrics": {}}
    page = written(search)
    board = next(table for table in page.tables if "status" in table[0])
    names, rows = board[0], [dict(zip(board[0], row, strict=True)) for row in board[1:]]
    assert {"validation accuracy", "parameters", "latency (ms)", "epochs", *(words(axis) for axis in AXES)} <= set(names)
    done = [trial for trial in search["trials"] if trial["status"] == "COMPLETED"]
    expected = [trial["id"] for trial in sorted(done, key=lambda trial: -trial["metrics"]["val_accuracy"])]
    assert [row["trial"] for row in rows] == [*expected, "005", "003", "017"]
    for row in rows:
        trial = search["trials"][int(row["trial"])]
        assert row["command"] == trial["command"]
        assert row["patch size"] == str(trial["values"]["patch_size"])
        assert row["validation accuracy"] == (f"{trial['metrics']['val_accuracy']:.2%}" if trial["metrics"] else "–")
    found = {row["trial"] for row in rows if row["status"] == "completed, front"}
    assert found == {trial["id"] for trial in front(search["trials"], search["settings"]["objectives"])}
    failed = next(table for table in page.tables if "reason" in table[0])
    assert [row[:2] for row in failed[1:]] == [["003", "out of memory: 3 GB"], ["017", "out of memory: 3 GB"]]


def test_heading_says_how_far_the_search_is(written):
    search = make_search(9, failures=(3, 7))
    best = max((trial for trial in search["trials"] if trial["metrics"]), key=lambda trial: trial["metrics"]["val_accuracy"])
    text = written(search).text
    assert "Search on cifar10, bayesian done 7 running 0 failed 2 left 5" in text
    assert f"best validation accuracy {best['metrics']['val_accuracy']:.2%} Running, as of 2026-11-22T01:00:00" in text
    assert re.search(f"Best[^.]* trial {best['id']}, validation accuracy", text)
    assert re.search("Smallest within 1 point of the best trial|smallest within 1 point of it trial", text, re.I)
    assert "length of a trial 3 epochs" in text
    text = written(search | {"finished": True, "remaining": None}).text
    assert "left unknown" in text
    assert "Finished." in text
    assert "Running" not in text


def test_front_picture_is_the_front(written):
    search = make_search(40, failures=(3, 17))
    page = written(search)
    for name, title in (("latency_ms", "latency (ms)"), ("params", "parameters"), ("flops", "FLOPs per image")):
        figure = page.figure(f"Validation accuracy against {title}")
        others, line = figure["data"]
        expected = front(search["trials"], {"val_accuracy": "max", name: "min"})[::-1]
        assert line["x"] == [trial["metrics"][name] for trial in expected]
        assert line["y"] == [trial["metrics"]["val_accuracy"] for trial in expected]
        assert len(others["x"]) + len(line["x"]) == 38
        assert figure["layout"]["xaxis"].get("type") == (None if name == "latency_ms" else "log")
        assert line["hovertext"][0].startswith(f"trial {expected[0]['id']}<br>validation accuracy")
        assert f"<br>patch size {expected[0]['values']['patch_size']}<br>" in line["hovertext"][0]


def test_learning_curves_join_a_trial_to_the_one_it_continues(written):
    values = make_search(1)["trials"][0]["values"]
    first, other = make_trial(0, values, 0.5, epochs=2), make_trial(1, values, 0.3, epochs=2)
    second = make_trial(2, values, 0.7, epochs=5, continues="000")
    third = make_trial(3, values, 0.8, epochs=9, continues="002")
    third["curve"] = third["curve"][5:]  # only what it has added
    running = make_trial(4, values, 0.6, status="RUNNING", metrics={})
    running["curve"][1] |= {"val_accuracy": None}  # not validated
    lost = make_trial(5, values, 0.2, continues="gone")
    page = written(make_search(0) | {"trials": [first, other, second, third, running, lost]})
    for title, unit in (("epoch", 1), ("seconds of training", 2.5)):
        paths = {}
        for trace in page.figure(f"Validation accuracy over {title}")["data"]:
            for x, text in zip(trace["x"], trace["hovertext"], strict=True):
                if x is not None:
                    paths.setdefault(text[:9], []).append(x / unit)
        assert paths == {
            "trial 000": [1, 2], "trial 001": [1, 2], "trial 002": [2, 3, 4, 5], "trial 003": [5, 6, 7, 8, 9],
            "trial 004": [1, 3], "trial 005": [1, 2, 3],
        }  # fmt: skip


def test_parallel_coordinates_place_values(written):
    search = make_search(40, failures=(3,))
    figure = written(search).figure("Settings and result of each trial")
    assert figure["layout"]["xaxis"]["ticktext"] == [*map(words, AXES), "validation accuracy"]
    done = {trial["id"]: trial for trial in search["trials"] if trial["status"] == "COMPLETED"}
    best = max(trial["metrics"]["val_accuracy"] for trial in done.values())
    worst = min(trial["metrics"]["val_accuracy"] for trial in done.values())
    seen = 0
    for trace in figure["data"]:
        for x, y, text in zip(trace["x"], trace["y"], trace["hovertext"], strict=True):
            if x is None:
                continue
            values, accuracy = done[text[6:9]]["values"], done[text[6:9]]["metrics"]["val_accuracy"]
            expected = [
                {2: 0, 4: 0.5, 8: 1}[values["patch_size"]],
                (values["depth"] - 2) / 6,
                {"conv": 0, "patch": 1}[values["stem"]],
                np.log(values["learning_rate"] / 3e-4) / np.log(1e-2 / 3e-4),
                values["augment"],
                (accuracy - worst) / (best - worst),
            ][x]
            assert (
                abs(y - expected) <= (0.0751, 0.0286, 0.0751, 1e-9, 1e-9, 1e-9)[x]
            )  # of equal values the better lie a little higher
            seen += 1
    assert seen == 39 * 6
    # The best tenth is drawn last, above the others.
    assert figure["data"][-1]["name"].startswith("best 10%")
    assert len(set(text[6:9] for text in figure["data"][-1]["hovertext"] if text)) == 4
    labels = [mark["text"] for mark in figure["layout"]["annotations"] if mark["x"] == 3]
    assert labels == ["0.0003", "0.001732", "0.01"]


def test_importance_finds_what_matters():
    search = make_search(60)
    values, r2 = importance(search["trials"], search["axes"])
    assert r2 > 0.85
    assert list(values) == [axis["name"] for axis in AXES]
    means = {name: mean for name, (mean, _) in values.items()}
    assert sorted(means, key=means.get)[-2:] == ["learning_rate", "patch_size"]
    assert min(means["learning_rate"], means["patch_size"]) > TIMES_NOISE * max(
        abs(means[name]) for name in ("depth", "stem", "augment")
    )
    assert importance(search["trials"], search["axes"]) == (values, r2)  # deterministic


def test_importance_reads_names_and_mixed_types():
    search = make_search(60, formula=lambda v: 0.5 + 0.1 * (v["stem"] == "conv"))
    for trial in search["trials"]:
        trial["values"]["patch_size"] = {2: "auto", 4: 4, 8: None}[trial["values"]["patch_size"]]
    values, r2 = importance(search["trials"], search["axes"])
    assert max(values, key=values.get) == "stem"
    assert r2 > 0.9
    assert values["stem"][0] == pytest.approx(2, abs=0.5)  # a shuffle leaves the forest wrong by twice the variance


def test_importance_compares_trials_of_the_same_length():
    search = make_search(60)
    for index, trial in enumerate(search["trials"]):
        trial["metrics"]["epochs"] = 1 + index % 3
        trial["metrics"]["val_accuracy"] += 0.3 * (index % 3)  # much more than any axis decides
    values, r2 = importance(search["trials"], search["axes"])
    assert r2 > 0.6
    assert max(values, key=values.get) == "patch_size"


def test_importance_does_not_predict_a_trial_from_its_twin():
    search = make_search(40, formula=lambda values: 0.5)
    assert importance(search["trials"], AXES)[1] < 0.1
    again = [trial | {"id": trial["id"] + "b", "continues": trial["id"]} for trial in search["trials"]]
    assert importance(search["trials"] + again, AXES)[1] < 0.1
    assert importance(search["trials"][:6] + again[:6], AXES) is None


def test_importance_is_stated_with_its_method(written):
    page = written(make_search(60))
    _, r2 = importance(make_search(60)["trials"], AXES)
    assert f"On 60 trials the forest has R² = {r2:.2f}" in page.text
    assert "permutation importance (scikit-learn) of a random forest of 32 trees, cross-validated in 5 folds 3 times" in page.text
    assert page.figure("Importance of each setting")["data"][0]["y"][-1] == "patch size"


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        (make_search(9), "Importance: too few trials, 9 with a result; 10 of different configurations and results are needed."),
        (
            make_search(12, noise=0, formula=lambda values: 0.5),
            "Importance: too few trials, 12 with a result; 10 of different configurations and results are needed.",
        ),
        (make_search(40, formula=lambda values: 0.5), "Importance: none visible. On 40 trials the forest has R² = -"),
    ],
)
def test_importance_says_why_there_is_none(written, search, reason):
    page = written(search)
    assert reason in page.text
    assert "permutation importance (scikit-learn)" in page.text
    with pytest.raises(ValueError, match="not in list"):
        page.figure("Importance of each setting")


def test_a_search_without_results(written):
    empty = written(make_search(0))
    assert empty.figures == []
    assert "done 0 running 0 failed 0 left 5 Running" in empty.text
    assert empty.text.count("Nothing yet: no trial has a result.") == 4
    failed = written(make_search(6, failures=range(6)))
    assert failed.figures == []
    assert "done 0 running 0 failed 6" in failed.text
    assert [len(table) for table in failed.tables if "reason" in table[0]] == [7]
    assert [len(table) for table in failed.tables if "status" in table[0]] == [7]
    bare = make_search(0) | {"axes": [], "settings": {}}
    assert "Search" in written(bare).text


def test_one_trial(written):
    page = written(make_search(1))
    assert len(page.figures) == 6
    assert "The line joins 1 of 1 trials: no other trial is better in both" in page.text


def test_odd_numbers_are_left_out(written):
    search = make_search(15)
    for name, value in zip(
        ("val_accuracy", "latency_ms", "params", "flops"), (float("nan"), float("inf"), None, "many"), strict=True
    ):
        search["trials"][0]["metrics"][name] = value
        search["trials"][1]["metrics"].pop(name)
    search["trials"][2]["metrics"] = {"val_accuracy": 0.9}
    search["trials"][3]["curve"][0]["val_accuracy"] = float("nan")
    search["trials"][4]["values"] = {"depth": 3}
    search["trials"][5]["values"]["extra"] = [1, "two", None]
    page = written(search)
    board = next(table for table in page.tables if "status" in table[0])
    assert [row[0] for row in board[1:3]] == ["002", board[2][0]]
    assert {row[0] for row in board[-2:]} == {"000", "001"}
    assert "1, two, –" in page.text
    assert "nan" not in page.text


def test_another_objective_ranks(written):
    search = make_search(9)
    for trial in search["trials"]:
        trial["metrics"]["val_loss"] = 1 - trial["metrics"]["val_accuracy"]
        for row in trial["curve"]:
            row["val_loss"] = 1 - row["val_accuracy"]
    by_accuracy, by_loss = (
        written(search | {"settings": {"objectives": objectives}}) for objectives in ({"val_accuracy": "max"}, {"val_loss": "min"})
    )
    orders = [[row[0] for row in next(t for t in page.tables if "status" in t[0])[1:]] for page in (by_accuracy, by_loss)]
    assert orders[0] == orders[1]
    assert by_loss.figure("Validation loss over epoch")
    assert "Smallest within" not in by_loss.text


def test_the_same_search_gives_the_same_page(tmp_path):
    for name in ("a", "b"):
        write_report(make_search(15, failures=(3,)), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda search: search.pop("axes"), "search: received no 'axes'; allowed: all of settings, axes, trials"),
        (
            lambda search: search["trials"][1].update(status="STOPPED"),
            "status: received 'STOPPED' of trial '001'; allowed: COMPLETED",
        ),
        (lambda search: search["settings"].update(objectives={"val_accuracy": "up"}), "direction: received 'up'"),
    ],
)
def test_a_damaged_search_is_named_and_the_old_page_kept(tmp_path, change, message):
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    search = make_search(3)
    change(search)
    with pytest.raises(ValueError, match=message):
        write_report(search, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("val_accuracy", 0.71234, "71.23%"),
        ("params", 640_000, "640k"),
        ("params", 999_900, "1M"),
        ("flops", 1.234e9, "1.23G"),
        ("flops", 950, "950"),
        ("latency_ms", 1.23456, "1.235"),
        ("train_seconds", 12345.6, "12,346"),
        ("learning_rate", 3e-5, "3e-05"),
        ("stem", "conv", "conv"),
        ("stem", None, "–"),
        ("flag", True, "True"),
        ("list", [1, {"a": None}], "1, a: –"),
    ],
)
def test_show(name, value, text):
    assert labels.show(name, value) == text


def test_words_are_plain(written):
    """No name of a field in the texts, and a front is that of all objectives and nothing else."""
    search = make_search(40, failures=(3, 17))
    page = written(search)
    for text in [page.text, *map(json.dumps, page.figures)]:
        assert re.findall(r"\b[a-z]+_[a-z_]+", re.sub("keras_vit|error_x|trial-[^ ]+", "", text)) == []
    on_front = front(search["trials"], search["settings"]["objectives"])
    assert page.text.count("front") == 1 + len(on_front)  # where it is explained, and at each of its trials
    assert not any("front" in json.dumps(figure) for figure in page.figures)
