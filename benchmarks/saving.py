"""What does saving the training state within an epoch cost? The pause of the training, and its rate while a state is written.

    KERAS_BACKEND=torch python benchmarks/saving.py [--variants Ti/16,S/16,B/16] [--turns 5] [--json saving.json]

Each variant trains on random images of 32 px, with AdamW and averaged weights: a state is four times the weights. Turns with one
save each alternate with turns without; a turn lasts until the state is written. The cost of a save is the difference of two
neighbouring turns.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
import typing

import keras
import numpy as np

from keras_vit.processes import run_command

BATCH, SIDE, CLASSES, WARM = 64, 32, 10, 3
TRAIN = {"epochs": 1, "steps_per_epoch": 10**6, "batch_size": BATCH, "optimizer": "adamw", "ema": 0.999, "precision": "float32"}
SECONDS = 2.0  # the shortest turn


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="Ti/16,S/16,B/16", help="default: Ti/16,S/16,B/16")
    parser.add_argument("--turns", type=int, default=5, help="of each kind (default: 5)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: every turn")
    options = parser.parse_args()
    rows = []
    print("variant | state | pause | written after | images/s without | while written | a save costs")
    for variant in options.variants.split(","):
        row = {"variant": variant, **measured(variant, options.turns)}
        rows.append(row)
        pause, written, cost = (statistics.median(row[name]) for name in ("pause", "written", "cost"))
        plain, saving = (statistics.median(row[name]) for name in ("plain", "saving"))
        print(
            f"{variant} | {row['megabytes']:,.0f} MB | {1000 * pause:,.0f} ms | {written:.2f} s | {plain:,.0f} | {saving:,.0f} | "
            f"{cost:.2f} s",
            flush=True,
        )
    if options.json:
        from record import write_record

        write_record(options.json, batch_size=BATCH, image_size=SIDE, rows=rows)


def measured(variant, turns):
    """What one variant's turns have given, a list for each quantity."""
    from keras_vit.data.dataset import DataSet, Split
    from keras_vit.recipes.parse import load_recipe
    from keras_vit.training import loop

    class Turns(loop.SaveWithinEpochs):
        """Alternates turns without a save and with one."""

        found: typing.ClassVar = {"pause": [], "written": [], "cost": [], "plain": [], "saving": []}

        def on_train_batch_begin(self, batch, logs=None):
            if batch < WARM:
                return
            now, states = time.perf_counter(), self.session.states
            if batch > WARM:
                self.steps_done += 1
                if self.saves and self.took is None and not states.busy:
                    self.took = now - self.began
                if now - self.began < self.length or states.busy:
                    return
                self.end(now)
            else:
                self.saves, self.length, self.ends = True, SECONDS, []
            self.saves, self.took, self.steps_done = not self.saves, None, 0
            self.began = time.perf_counter()
            if self.saves:
                self.session.save(0, batch)
                self.found["pause"].append(time.perf_counter() - self.began)

        def end(self, now):
            seconds = now - self.began
            if self.saves:
                before, steps = self.ends[-1]
                self.found["written"].append(self.took)
                self.found["saving"].append(self.steps_done * BATCH / seconds)
                self.found["cost"].append(seconds - before * self.steps_done / steps)
                self.length = max(self.length, seconds)  # that the turns are about equally long
            else:
                self.ends.append((seconds, self.steps_done))
                self.found["plain"].append(self.steps_done * BATCH / seconds)
            if len(self.found["saving"]) == turns:
                self.session.training_model.stop_training = True

    images = np.random.default_rng(0).integers(256, size=(20 * BATCH, SIDE, SIDE, 3), dtype="uint8")
    split = Split(images, np.arange(len(images)) % CLASSES)
    data = DataSet("random", split, None, split, [str(index) for index in range(CLASSES)], "", [])
    recipe = load_recipe(
        "quick",
        data="random",
        model={"variant": variant, "image_size": SIDE, "stem": "patch", "stem_depth": 0},
        train=TRAIN,
    )
    keras.backend.clear_session()
    before, loop.SaveWithinEpochs = loop.SaveWithinEpochs, Turns
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = loop.train(recipe, pathlib.Path(folder, "run"), data=data, pictures=False, verbose=0)
            size = sum(array.nbytes for array in run.read_state()[0].values()) / 1e6
    finally:
        loop.SaveWithinEpochs = before
    return {"megabytes": size, **Turns.found}


if __name__ == "__main__":
    run_command(main)
