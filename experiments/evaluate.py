"""Evaluates a run, compares runs, or shows what positions a run has learned.

    python experiments/evaluate.py RUN                          # accuracy, top-5, loss, calibration, every class
    python experiments/evaluate.py RUN --split validation
    python experiments/evaluate.py RUN --data folder:PATH       # another data set with as many classes
    python experiments/evaluate.py RUN_A RUN_B --out both.png   # curves and a table
    python experiments/evaluate.py RUN --positions              # figure 7 of the ViT paper

Numbers and pictures of one run are written into its folder.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("evaluate")
