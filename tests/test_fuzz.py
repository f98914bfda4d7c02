"""Everything that is read from outside, changed at random behind its checksums: loaded, or refused in one line."""

import collections
import logging
import random
import sys

import pytest

from benchmarks.fuzz import LOADED, REFUSED, TARGETS, Target, attempt, changed, main

CHANGES = dict.fromkeys(TARGETS, 100)
CHANGES |= {"recipes": 20, "settings": 4, "keras": 30, "runs": 8, "chief": 30}  # those that take longer
pytest.importorskip("tifffile")


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_changed_is_loaded_or_refused(tmp_path, monkeypatch, name):
    pytest.importorskip("keras_tuner")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, without which Python writes to stderr
    target, rng = TARGETS[name](tmp_path), random.Random(0)
    seeds = target.seeds()
    assert [attempt(target, seed) for seed in seeds] == [LOADED] * len(seeds)
    ends = collections.Counter()
    for _ in range(CHANGES[name]):
        content = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 4))):
            content = target.mutated(content, lambda part: changed(part, rng), rng)
        end = attempt(target, content)
        assert end in (LOADED, REFUSED), content
        ends[end] += 1
    assert ends[REFUSED] > CHANGES[name] // 4


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("pass", LOADED),
        ("raise OSError(28, 'No space left')", REFUSED),
        ("raise KeyError('a')", "KeyError in "),
        ("raise SystemExit(2)", "SystemExit in "),
        ("raise OSError('a\\nb')", "OSError in "),
        ("int('a')", "ValueError in "),  # no error of this project
        ("raise ValueError('two\\nlines')", "ValueError in "),
        ("import sys; print('a', file=sys.stderr); raise OSError('a')", "writes to stderr: 'a"),
    ],
)
def test_what_is_a_finding(tmp_path, code, end):
    class Faulty(Target):
        def load(self, content):
            exec(content.decode())

    assert attempt(Faulty(tmp_path), code.encode()).startswith(end)


def test_a_fuzzer_that_is_not_installed_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "atheris", None)
    monkeypatch.setattr(sys, "argv", ["fuzz.py"])
    with pytest.raises(SystemExit, match=r"^fuzz: received no atheris; allowed with: pip install -r requirements-dev.txt"):
        main()


def test_random_changes_are_those_of_the_seed():
    rng = random.Random(3)
    contents = [changed(b"abcdefgh" * 4, rng) for _ in range(50)]
    rng.seed(3)
    assert [changed(b"abcdefgh" * 4, rng) for _ in range(50)] == contents
    assert len(set(contents)) > 30
    assert changed(b"", rng) is not None
