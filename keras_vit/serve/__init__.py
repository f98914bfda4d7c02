"""An HTTP server for a `Classifier`: KServe's version 2 inference protocol and TensorFlow Serving's REST."""
