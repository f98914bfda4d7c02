"""An exported program of PyTorch, `.pt2`."""

import json

import torch

from keras_vit.export.runtimes import FILES
from keras_vit.export.writers.common import metadata, serving_model


def write(model, folder, report, calibration):
    program = exported_program(model, report)
    for node in program.graph.nodes:  # source lines and paths of this machine, half of the graph's size
        for name in ("stack_trace", "nn_module_stack", "torch_fn"):
            node.meta.pop(name, None)
    torch.export.save(program, folder / FILES["torch"], extra_files={"keras_vit.json": json.dumps(metadata(report))})


def exported_program(model, report: dict) -> torch.export.ExportedProgram:
    """The model as an exported program, for the batch size of the report or for any."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.models = [serving_model(model, report)]  # in a list: as a submodule its parameters would be stored twice

        def forward(self, images):
            return self.models[0](images, training=False)

    shape = (report["batch_size"] or 2, *report["image_shape"])
    example = torch.zeros(shape, dtype=torch.uint8 if report["input"] == "uint8" else torch.float32)
    dynamic = None if report["batch_size"] else {"images": {0: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        return torch.export.export(Module().eval(), (example,), dynamic_shapes=dynamic, strict=False)
