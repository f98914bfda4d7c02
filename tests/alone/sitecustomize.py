"""In the path of processes that do without TensorFlow, which Keras would import only to seed it."""

import sys

sys.modules["tensorflow"] = None
