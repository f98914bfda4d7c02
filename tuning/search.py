"""Searches for the Vision Transformer to use on your images: patch size, depth, heads, width, learning rate and more.

python tuning/search.py                                                    # about 15 minutes, on CIFAR-10 or digits
python tuning/search.py --data folder:PATH --max-time 2h --budget 120s
python tuning/search.py --space tuning/spaces/shape.yaml --space.depth 2..16
python tuning/search.py --method hyperband --budget 27epochs --max-params 2e6
python tuning/search.py --objective accuracy,latency --workers 2
KERAS_BACKEND=torch python tuning/search.py --retrain 3 --seeds 3
python tuning/search.py --chief 0.0.0.0:8500 --out /shared/search          # on one machine, then on each that trains:
python tuning/search.py --worker CHIEF:8500 --out /shared/search

The same command goes on with a search that was stopped. What may be searched: spaces/*.yaml.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("search")
