"""Weights of transformers: the same logits, bit for bit there and back, and folders that do not hold what they say."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import logits, random
from peers import assert_mistakes_are_one_line, randomise_module, torch
from reference import weights_of

from keras_vit import ViTConfig, build_vit, load_model, open_checkpoint, save_weights
from keras_vit.parity import randomise
from keras_vit.weights.huggingface_dinov3 import read_config as read_dinov3
from keras_vit.weights.rows import check_tensors

transformers = pytest.importorskip("transformers")
LOGITS = 1e-4  # absolute, float32 against float32, logits of a few units
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "num_labels": 5}
FAMILIES = {
    "ViTModel": {"intermediate_size": 40},
    "ViTForImageClassification": {"intermediate_size": 40, "hidden_act": "gelu_new", "qkv_bias": False},
    "DeiTModel": {"intermediate_size": 40},
    "DeiTForImageClassification": {"intermediate_size": 40, "hidden_act": "quick_gelu"},
    "DeiTForImageClassificationWithTeacher": {"intermediate_size": 40},
    "Dinov2Model": {"mlp_ratio": 2},
    "Dinov2ForImageClassification": {"use_swiglu_ffn": True},
    "Dinov2WithRegistersModel": {"use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": {"mlp_ratio": 3, "num_register_tokens": 3},
    "DINOv3ViTModel": {"intermediate_size": 40, "num_register_tokens": 2},
    "SiglipVisionModel": {"intermediate_size": 40},
    "SiglipForImageClassification": {"intermediate_size": 40},
}
# Those that have all kinds of tensors between them.
RICH = ("ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "Dinov2WithRegistersModel")
RICH += ("DINOv3ViTModel", "SiglipVisionModel")
EVERYWHERE = "DINOv3ViTModel"  # one suffices, as the table of names is the same under every backend
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.backend) if name == EVERYWHERE else name for name in FAMILIES]
)


def made(name, **options):
    cls = getattr(transformers, name)
    settings = {**SMALL, **FAMILIES[name], **options}
    if name == "SiglipForImageClassification":
        settings = {"vision_config": {**settings, "vision_use_head": False}, "num_labels": settings.pop("num_labels")}
    return randomise_module(cls(cls.config_class(**settings)))


def output_of(module, images, **options):
    """What our model gives: logits, else the pooled token."""
    with torch.no_grad():
        output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **options)
    for name in ("logits", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name).numpy()
    return output.last_hidden_state[:, 0].numpy()


def images_of(size):
    return random(3, *size, 3)


def files_of(folder):
    from safetensors.numpy import load_file

    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@every_family
def test_logits_and_round_trip(name, tmp_path):
    module = made(name)
    module.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    images = images_of((32, 32))
    expected = output_of(module, images)
    assert np.abs(expected).std() > 1000 * LOGITS
    np.testing.assert_allclose(logits(model, images), expected, atol=LOGITS)

    save_weights(model, tmp_path / "back", "huggingface", mean=[0.1, 0.2, 0.3])
    again, report = getattr(transformers, name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_array_equal(output_of(again.eval(), images), expected)
    theirs, ours = files_of(tmp_path / "theirs"), files_of(tmp_path / "back")
    assert set(theirs) - set(ours) <= {key for key in theirs if key.endswith("mask_token")}
    for key, value in ours.items():
        if not key.endswith("mask_token"):
            np.testing.assert_array_equal(value, theirs[key], err_msg=key)

    checkpoint = open_checkpoint(tmp_path / "back")
    assert (checkpoint.source, checkpoint.config, checkpoint.mean) == ("huggingface", model.config, [0.1, 0.2, 0.3])
    twin = load_model(tmp_path / "back")
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(weights_of(twin)[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, (24, 48)) for name in RICH),
        *(pytest.param(name, (64, 40), marks=pytest.mark.slow) for name in FAMILIES if name not in RICH),
    ],
)
def test_another_image_size(name, size, tmp_path):
    module = made(name)
    module.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", image_size=size)
    images = images_of(size)
    options = {} if name.upper().startswith("DINO") else {"interpolate_pos_encoding": True}
    np.testing.assert_allclose(logits(model, images), output_of(module, images, **options), atol=LOGITS)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2WithRegistersModel"])
def test_sharded_folders(name, tmp_path):
    module = made(name)
    module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    images = images_of((32, 32))
    np.testing.assert_allclose(logits(load_model(tmp_path / "shards"), images), output_of(module, images), atol=LOGITS)


def test_class_names_and_normalisation(tmp_path):
    labels = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "eel"}
    made("ViTForImageClassification", id2label=labels).save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.class_names == list(labels.values())
    assert checkpoint.mean == [0.5] * 3
    assert any("no preprocessor_config.json" in note for note in checkpoint.notes)
    transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path / "theirs")
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert (checkpoint.mean, checkpoint.std, checkpoint.notes) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], ())
    model = load_model(tmp_path / "theirs")
    save_weights(model, tmp_path / "back", "huggingface", class_names=checkpoint.class_names, mean=checkpoint.mean)
    assert transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "back").config.id2label == labels
    assert list(transformers.AutoImageProcessor.from_pretrained(tmp_path / "back").image_mean) == [0.1, 0.2, 0.3]
    made("Dinov2Model").save_pretrained(tmp_path / "dino")
    assert open_checkpoint(tmp_path / "dino").class_names is None
    assert open_checkpoint(tmp_path / "dino").config.pool == "cls"


DINOV3 = {"rotary": "centered", "position": "none", "num_classes": 0, "layer_scale": 0.3}
DINOV3_SIZES = {  # of the released checkpoints: width, depth, heads, MLP, whether it is gated
    "vits16": (384, 12, 6, 1536, False),
    "vits16plus": (384, 12, 6, 1536, True),
    "vitb16": (768, 12, 12, 3072, False),
    "vitl16": (1024, 24, 16, 4096, False),
    "vith16plus": (1280, 32, 20, 5120, True),
}


@pytest.mark.parametrize("size", DINOV3_SIZES)
def test_every_size_of_dinov3(size):
    """The released settings without their numbers: all names and shapes are known, and the parameters are counted."""
    width, depth, heads, hidden, gated = DINOV3_SIZES[size]
    settings = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": hidden}
    settings |= {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "num_register_tokens": 4}
    with torch.device("meta"):
        module = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**settings))
    shapes = {re.sub(r"^model\.", "", name): tuple(value.shape) for name, value in module.named_parameters()}
    config, rows, unused = read_dinov3(settings, shapes, "dinov3_vit")
    check_tensors(size, rows, shapes, unused)
    assert (config.num_heads, config.mlp, config.grid_size) == (heads, "swiglu" if gated else "gelu", (14, 14))
    assert config.num_params == sum(value.numel() for value in module.parameters()) - width  # its mask token


def test_the_image_tower_of_a_siglip_model(tmp_path):
    """Text tower and logit scale are left alone; a classifier has no use for the attention pooling."""
    tower = {**SMALL, **FAMILIES["SiglipVisionModel"]}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.SiglipConfig(vision_config=tower, text_config=text, num_labels=5)
    images = images_of((32, 32))
    whole = randomise_module(transformers.SiglipModel(config))
    whole.save_pretrained(tmp_path / "whole")
    model = load_model(tmp_path / "whole")
    np.testing.assert_allclose(logits(model, images), output_of(whole.vision_model, images), atol=LOGITS)
    classifier = randomise_module(transformers.SiglipForImageClassification(config))
    classifier.save_pretrained(tmp_path / "classifier")
    model = load_model(tmp_path / "classifier")
    assert model.config.pool == "gap"
    np.testing.assert_allclose(logits(model, images), output_of(classifier, images), atol=LOGITS)


OTHERS = (
    ("DeiTForImageClassification", {"registers": 1, "prefix_positions": "none"}),
    ("ViTForImageClassification", {"position": "sincos2d"}),
    ("ViTForImageClassification", {"position": "sincos1d", "channels": 1}),
    ("Dinov2WithRegistersForImageClassification", {"registers": 2, "prefix_positions": "none", "pool": "cls_gap"}),
    ("Dinov2Model", {"num_classes": 0, "mlp_dim": 56, "mlp": "swiglu"}),
    ("DINOv3ViTModel", {**DINOV3, "mlp": "swiglu", "key_bias": False, "registers": 3, "image_size": (16, 24)}),
    ("DINOv3ViTModel", {**DINOV3, "rotary_base": 50.0, "mlp": "gelu_tanh", "qkv_bias": False, "patch_size": (8, 4)}),
    ("SiglipForImageClassification", {"pool": "gap", "position": "sincos2d", "image_size": 24, "mlp": "gelu"}),
    ("SiglipVisionModel", {"pool": "map", "num_classes": 0, "image_size": 24, "mlp": "gelu_tanh"}),
)


@pytest.mark.parametrize(("name", "options"), OTHERS, ids=str)
def test_our_models_run_there(name, options, tmp_path):
    sizes = {"image_size": (16, 24), "patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "num_classes": 4}
    if name.startswith("Dinov2"):
        sizes |= {"image_size": 24, "layer_scale": 0.3}
    model = randomise(build_vit(ViTConfig(**{**sizes, **options})))
    images = random(3, *model.config.image_shape)
    save_weights(model, tmp_path / "there", "huggingface")
    there, report = getattr(transformers, name).from_pretrained(tmp_path / "there", output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(output_of(there.eval(), images), logits(model, images), atol=LOGITS)
    np.testing.assert_allclose(logits(load_model(tmp_path / "there"), images), logits(model, images), atol=LOGITS)


def test_what_transformers_has_not_is_named(tmp_path):
    small = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
    for name, options in (
        ("stem", {"stem": "conv"}),
        ("pool", {"pool": "map"}),
        ("pool", {"pool": "gap", "num_classes": 0}),
        ("class_token", {"pool": "gap", "class_token": True}),
        ("registers", {"pool": "gap", "registers": 2}),
        ("layer_scale", {"pool": "gap", "layer_scale": 0.1}),
        ("image_size", {"pool": "gap", "image_size": (16, 24)}),
        ("rotary", {"rotary": "index"}),
        ("position", {"rotary": "centered"}),
        ("num_classes", {"rotary": "centered", "position": "none"}),
        ("layer_scale", {"rotary": "centered", "position": "none", "num_classes": 0}),
        ("key_bias", {"key_bias": False}),
        ("mlp_norm", {"mlp_norm": True}),
        ("pool", {"layer_scale": 0.1}),
        ("layer_scale", {"mlp": "swiglu", "pool": "cls_gap"}),
        ("qk_norm", {"qk_norm": True}),
        ("pre_norm", {"pre_norm": True}),
        ("position", {"position": "none"}),
        ("pre_logits_dim", {"pre_logits_dim": 4}),
        ("mlp_dim", {"layer_scale": 0.1, "pool": "cls_gap", "mlp": "swiglu", "mlp_dim": 28}),
        ("mlp_dim", {"layer_scale": 0.1, "pool": "cls_gap"}),
        ("image_size", {"layer_scale": 0.1, "pool": "cls_gap", "image_size": (16, 24), "mlp_dim": 32}),
        ("num_classes", {"distillation": True, "registers": 1, "num_classes": 0}),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: received .*; allowed in .*transformers: "):
            save_weights(build_vit(ViTConfig(**{**small, **options})), tmp_path / "none", "huggingface")
    assert not list(tmp_path.iterdir())


# Bad input


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface") / "shards"
    made("ViTForImageClassification").save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "resnet"}, "model_type: received 'resnet'; allowed: vit, deit"),
        ({"model_type": None}, "model_type: received None; allowed: vit, deit"),
        ({"model_type": "dinov3_vit"}, "patch_embeddings.weight: received no tensor; allowed: 4 axes, as in DINOv3ViT"),
        ({"model_type": "siglip"}, "patch_embedding.weight: received no tensor; allowed: 4 axes, as in Siglip"),
        ({"model_type": "deit"}, "projection.weight: received no tensor; allowed: 4 axes, as in DeiT"),
        ({"hidden_size": 48}, "hidden_size: received 48; allowed: 24, as the tensors have"),
        ({"hidden_size": "24"}, "hidden_size: received '24'; allowed: int"),
        ({"num_hidden_layers": 3}, "num_hidden_layers: received 3; allowed: 2, as the tensors have"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: received 1000000000; allowed: 2, as the tensors have"),
        ({"intermediate_size": 32}, "! vit.encoder.layer.0.intermediate.dense.weight (40, 24), expected (32, 24)"),
        ({"num_attention_heads": 5}, "num_heads: received 5; allowed: the divisors of width 24"),
        ({"image_size": 64}, "! vit.embeddings.position_embeddings (1, 17, 24), expected (1, 65, 24)"),
        ({"patch_size": [8, "x"]}, "patch_size: received [8, 'x']"),
        ({"hidden_act": "relu"}, "hidden_act: received 'relu'; allowed: gelu"),
        ({"id2label": {"0": "a"}}, "id2label: received 1 classes; allowed: 5 classes, as the tensors have"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_tensors(shards, settings, message, tmp_path):
    shutil.copytree(shards, tmp_path / "changed")
    path = tmp_path / "changed" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_model(tmp_path / "changed")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["DINOv3ViTModel", "SiglipForImageClassification"])
def test_whatever_a_config_holds_a_mistake_is_one_line(name, tmp_path):
    made(name).save_pretrained(tmp_path / "theirs")
    assert_mistakes_are_one_line(tmp_path / "theirs", "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"proj_bias": False}, "proj_bias: received False; allowed: True"),
        ({"query_bias": False}, "query_bias, key_bias, value_bias: received (False, False, True); allowed: all, none, all but"),
        ({"use_gated_mlp": True}, "hidden_act: received 'gelu'; allowed: silu with use_gated_mlp"),
        ({"num_register_tokens": 3}, "! embeddings.register_tokens (1, 2, 24), expected (1, 3, 24)"),
        ({"rope_theta": -1}, "rotary_base: received -1.0; allowed: a number above 0"),
    ],
    ids=str,
)
def test_a_config_of_dinov3_that_contradicts_the_tensors(settings, message, tmp_path):
    made("DINOv3ViTModel").save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_model(tmp_path / "theirs")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "place",
    ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.bin", "", ".safetensors", "a\\b.safetensors"],
)
def test_an_index_stays_in_its_folder(shards, place, tmp_path):
    shutil.copytree(shards, tmp_path / "folder")
    (tmp_path / "model.safetensors").write_bytes(b"outside")
    path = tmp_path / "folder" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["classifier.bias"] = place
    path.write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"^checkpoint: received .*index.json'; allowed: names of .safetensors files in its folder"
    ):
        load_model(tmp_path / "folder")


def test_indexes_that_are_wrong(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["classifier.bias"]
    wrong = {**index["weight_map"], "classifier.bias": next(s for s in index["weight_map"].values() if s != shard)}
    for weight_map, message in (
        (wrong, "a file with 'classifier.bias', as the index says"),
        (
            {**index["weight_map"], "classifier.bias": "model-00009.safetensors"},
            "model-00009.safetensors'; allowed: an existing file",
        ),
        ({}, "an index with a weight_map"),
        (["x"], "an index with a weight_map"),
        ({"a": 3}, "an index with a weight_map"),
    ):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=r"^checkpoint: [^\n]+$") as error:
            load_model(tmp_path / "folder")
        assert message in str(error.value)
    path.write_text(json.dumps(index))
    whole = (tmp_path / "folder" / shard).read_bytes()
    (tmp_path / "folder" / shard).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^checkpoint: received .*; allowed: an intact safetensors file"):
        load_model(tmp_path / "folder")
    (tmp_path / "folder" / shard).unlink()
    with pytest.raises(ValueError, match=rf"^checkpoint: received .*{shard}'; allowed: an existing file$"):
        load_model(tmp_path / "folder")


def test_folders_without_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match=r"allowed: a folder with model.safetensors or model.safetensors.index.json$"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"pytorch_model.bin', a pickle"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"allowed: one with architecture \(timm\) or model_type"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"^source: received 'huggingface' for .*; allowed with it: a folder"):
        open_checkpoint(tmp_path / "config.json", "huggingface")
