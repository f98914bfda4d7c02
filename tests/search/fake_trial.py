"""A trial that trains nothing: its score is a formula, and its environment says what goes wrong. Stands in for trial.py."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_text())
recipe = Path(job["recipe"]).read_text()
quality = re.search(r"monitor: (\S+)", recipe)[1].replace("auto", "accuracy")
number = Path(job["recipe"]).parent.name.split("-")[1].lstrip("0") or "0"
run = Path(job["run"])
run.mkdir(exist_ok=True)
what = json.loads(os.environ.get("FAKE_FAILURES", "{}")).get(number)
if what == "memory":
    raise MemoryError("cannot allocate 80 GiB")
if what == "raise":
    raise RuntimeError("no such kernel")
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "warn":
    sys.exit(128 + signal.SIGTERM)
if what == "hang":
    time.sleep(600)
if what == "nan":
    print("error: loss: nan in epoch 1", file=sys.stderr)
    sys.exit(2)
metrics = run / "metrics.csv"
if not metrics.is_file():
    metrics.write_text(f"epoch,seconds,val_{quality}\n")
    (run / "recipe.yaml").write_text(recipe)
done = metrics.read_text().count("\n") - 1
if "garbage" in metrics.read_text():
    raise RuntimeError("damaged run")
score = 0.5 + 0.4 / (1 + sum(map(ord, recipe)) % 97)
for epoch in range(done, job["until"] or 3):  # a killed one goes on behind its last epoch
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    with metrics.open("a") as file:
        file.write(f"{epoch + 1},{epoch + 1.5},{score}\n")
outcome = {f"val_{quality}": score, "params": 10 + len(recipe), "latency_ms": 1 / score, "overhead_seconds": 7.5}
if job["data"] is None:  # a final training
    outcome = {f"test_{quality}": score}
said = json.loads(os.environ.get("FAKE_RESULTS", "{}")).get(number)
Path(job["result"]).write_text(said or json.dumps(outcome))
