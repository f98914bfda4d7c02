"""Exported models in their own runtimes, without Keras: a script that `Runtime` starts and asks by lines of JSON.

    python -P keras_vit/export/runtimes.py onnx FOLDER      # then {"do": "predict", "images": "in.npy", "logits": "out.npy"} ...

As a script this file imports NumPy and a runtime, nothing of this library or Keras: the artifact works without them.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FILES = {
    "tf_saved_model": "saved_model.pb",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "openvino": "model.xml",
    "torch": "model.pt2",
    "keras": "model.keras",
}


class Companion:
    """A process that answers in lines of JSON: one line when it is ready, then one for each command.

    Args:
        name: Prefix of error messages.
        command: Its command line.
        environment: Variables to add to this process's own.

    Raises:
        ValueError: If the process ends or answers with an error.
    """

    def __init__(self, name, command, environment):
        from keras_vit.processes import start_process  # not at the top, as the script imports nothing of this library

        self.name = name
        self.process = start_process(
            command,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            self.description = self.answer()
        except BaseException:
            self.close()
            raise

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"{self.name}: its process ended with exit code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, **command):
        """Sends a command and returns its answer."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended, as `answer` reports
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self):
        from keras_vit.processes import end_process

        end_process(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def serve(start):
    """Answers a `Companion`: each line of standard input names a method of the worker, and its arguments.

    Args:
        start: Returns the worker and its description, which is the first answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error; standard output has answers only

    def send(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker, description = start()
        send(description)
        for line in sys.stdin:
            command = json.loads(line)
            send(getattr(worker, command.pop("do"))(**command))
    except Exception as error:  # of any library; it becomes the answer
        send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"})
        sys.exit(1)


class Runtime(Companion):
    """A process with an exported model in its runtime; its commands are the methods of `Worker`.

    Args:
        format: A key of `FILES`.
        folder: Folder of the export.
        threads: Threads of the runtime; None = the runtime's choice.

    Raises:
        ValueError: If the runtime cannot load the model, or later run it.
    """

    def __init__(self, format, folder, threads=None):
        # -P keeps the script's folder off Python's path, where modules of this library would hide others with the same names.
        command = [sys.executable, "-P", os.path.abspath(__file__), format, os.fspath(folder), str(threads or 0)]
        super().__init__(format, command, {"CUDA_VISIBLE_DEVICES": "-1"})

    def predict(self, images, folder, batch_size=None):
        """Logits (B, K) of images (B, H, W, C); both travel as files in a folder."""
        source, target = Path(folder, "images.npy"), Path(folder, "logits.npy")
        np.save(source, images)
        self.ask(do="predict", images=str(source), logits=str(target), batch_size=batch_size)
        return np.load(target)


class Worker:
    """An exported model in its runtime, in the process that `Runtime` starts.

    Args:
        format: A key of `FILES`.
        folder: Folder of the export, with its export.json.
        threads: Threads of the runtime; 0 = the runtime's choice.
    """

    def __init__(self, format, folder, threads):
        self.report = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
        self.run = LOADERS[format](Path(folder), self.report, threads)

    def predict(self, images, logits, batch_size=None):
        images = np.load(images)
        size = batch_size or len(images)
        parts = [self.run(images[start : start + size]) for start in range(0, len(images), size)]
        np.save(logits, np.concatenate(parts))
        return {}

    def time(self, batch_size, seconds):
        """Median seconds of a batch, measured for this many seconds and at least three batches."""
        shape = (batch_size, *self.report["image_shape"])
        images = np.random.default_rng(0).integers(256, size=shape)
        images = images.astype("uint8") if self.report["input"] == "uint8" else (images / 127.5 - 1).astype("float32")
        self.run(images)
        spans = []
        while sum(spans) < seconds or len(spans) < 3:
            before = time.perf_counter()
            self.run(images)
            spans.append(time.perf_counter() - before)
        return {"seconds": float(np.median(spans))}

    def classify(self, images=None, files=None):
        """Label and probability of the likeliest class, by a SavedModel's signatures for images or for encoded files."""
        if files is None:
            answer = self.run.model.signatures["serving_default"](images=self.run.constant(np.load(images)))
        else:
            encoded = [Path(file).read_bytes() for file in files]
            answer = self.run.model.signatures["serving_bytes"](images=self.run.constant(encoded))
        labels, probabilities = answer["labels"].numpy(), answer["probabilities"].numpy()
        return {"labels": [label.decode() for label in labels[:, 0]], "probabilities": probabilities[:, 0].tolist()}


def load_saved_model(folder, report, threads):
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    model = tf.saved_model.load(str(folder))
    serve = model.signatures["serve"]
    name = next(iter(serve.structured_outputs))

    def run(images):
        if images.dtype == np.uint8:  # `serve` takes normalised images; `serving_default` normalises, but gives no logits
            mean, std = (np.asarray(report[key], "float64") for key in ("mean", "std"))
            scale, shift = (1 / (255 * std)).astype("float32"), (-mean / std).astype("float32")
            images = images.astype("float32") * scale + shift
            if report["data_format"] == "channels_first":
                images = images.transpose(0, 3, 1, 2)
        return serve(images=tf.constant(images))[name].numpy()

    run.model, run.constant = model, tf.constant
    return run


def load_onnx(folder, report, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / FILES["onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_litert(folder, report, threads):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter  # a lazy attribute, which an import statement does not find

    interpreter = Interpreter(str(folder / FILES["litert"]), num_threads=threads or os.cpu_count())
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    index, result, current = source["index"], target["index"], tuple(source["shape"])

    def run(images):
        nonlocal current
        if images.shape != current:
            interpreter.resize_tensor_input(index, images.shape)
            interpreter.allocate_tensors()
            current = images.shape
        interpreter.set_tensor(index, images)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return run


def load_openvino(folder, report, threads):
    import openvino

    core = openvino.Core()
    default = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    # On processors with bfloat16 instructions OpenVINO's default is bfloat16. A model cannot carry this setting.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    more = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    compiled = core.compile_model(folder / FILES["openvino"], "CPU", settings | more)

    def run(images):
        return np.array(compiled(images)[0])

    run.facts = {"runtime_settings": settings, "default_precision": default}
    return run


def load_torch(folder, report, threads):
    import torch

    if threads:
        torch.set_num_threads(threads)
    module = torch.export.load(folder / FILES["torch"]).module()

    def run(images):
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


def load_keras(folder, report, threads):
    """The only loader that needs Keras and this library."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from keras_vit.images import normalize
    from keras_vit.model.saved import load_any_keras

    model = load_any_keras(folder / FILES["keras"])

    def run(images):
        if images.dtype == np.uint8:
            images = normalize(images, report["mean"], report["std"])
            if report["data_format"] == "channels_first":
                images = images.transpose(0, 3, 1, 2)
        return np.asarray(model.predict_on_batch(images))

    return run


LOADERS = {
    "tf_saved_model": load_saved_model,
    "onnx": load_onnx,
    "litert": load_litert,
    "openvino": load_openvino,
    "torch": load_torch,
    "keras": load_keras,
}


def main(format, folder, threads):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which may still need answers before it ends this
    if format != "keras":
        sys.modules["keras"] = None  # blocks imports of Keras, such as by TensorFlow: the artifact has to work without it

    def start():
        worker = Worker(format, folder, int(threads))
        return worker, {"keras": sys.modules.get("keras") is not None, "facts": getattr(worker.run, "facts", {})}

    serve(start)


if __name__ == "__main__":
    main(*sys.argv[1:])
