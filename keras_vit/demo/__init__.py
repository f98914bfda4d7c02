"""A page in the browser to try a trained model on. Nothing leaves the machine, and no picture is kept."""

import importlib.util
import os

if importlib.util.find_spec("gradio") is None:
    raise ImportError("demo: needs gradio: pip install 'keras-vision-transformer[demo]'")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported
