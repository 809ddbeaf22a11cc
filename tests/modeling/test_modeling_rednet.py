"""The model family by the conventions of Transformers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from rednet import (
    RedNetBackbone,
    RedNetConfig,
    RedNetForImageClassification,
    RedNetModel,
    count_macs,
    count_parameters,
)
from rednet.modeling_rednet import RedNetInvolutionLayer


# The paper's table: depth -> parameters, 10^9 multiply-accumulates at 224 x 224.
PUBLISHED = {
    26: (9_233_166, 1.685),
    38: (12_386_986, 2.167),
    50: (15_540_806, 2.649),
    101: (25_652_950, 4.659),
    152: (33_984_582, 6.679),
}


def small_config(**changes) -> RedNetConfig:
    values = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 2], "num_labels": 5}
    return RedNetConfig(**{**values, **changes})


def small_model(seed: int = 0, **changes) -> RedNetForImageClassification:
    """With random BatchNorm statistics and weights throughout, so that nothing is multiplied by zero."""
    torch.manual_seed(seed)
    model = RedNetForImageClassification(small_config(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def random_images(*shape, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_parameters_and_macs(root, depth):
    config = AutoConfig.from_pretrained(root / f"configs/models/rednet-{depth}.json")
    assert type(config) is RedNetConfig and config.num_labels == 1000
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    parameters, macs = PUBLISHED[depth]
    assert count_parameters(model) == parameters
    assert round(count_macs(model, 224, 224) / 1e9, 3) == macs


def test_counting_leaves_frozen_layers_frozen():
    model = small_model().train()
    model.rednet.embedder.eval()
    before = [module.training for module in model.modules()]
    assert count_macs(model, 64, 64) > 0
    assert [module.training for module in model.modules()] == before


def test_defaults_are_rednet_50(root):
    saved = json.loads((root / "configs/models/rednet-50.json").read_text())
    config = RedNetConfig(num_labels=1000).to_dict()
    assert {name: config[name] for name in saved if name not in ("architectures", "num_labels")} == {
        name: value for name, value in saved.items() if name not in ("architectures", "num_labels")
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kernel_size": 4}, ["kernel_size=4", "odd"]),
        ({"stem_kernel_size": 0}, ["stem_kernel_size=0", "odd"]),
        ({"group_channels": 24}, ["group_channels=24", "[16, 16, 32]"]),
        ({"reduction_ratio": 0}, ["reduction_ratio=0"]),
        ({"kernel_generation": "quadratic"}, ["kernel_generation", "bottleneck"]),
        ({"hidden_sizes": [64, 130]}, ["hidden_sizes=[64, 130]", "multiples of 4"]),
        ({"embedding_size": 33}, ["embedding_size=33", "even"]),
        ({"depths": [1, 2, 3]}, ["depths=[1, 2, 3]", "hidden_sizes=[64, 128]"]),
        ({"depths": [1, 0]}, ["depths=[1, 0]", "positive"]),
        ({"stem_stride": 3}, ["stem_stride=3"]),
        ({"kernel_size": "seven"}, ["kernel_size"]),
        ({"out_features": ["stage7"]}, ["stage7"]),
    ],
)
def test_impossible_configurations_are_refused(changes, words):
    with pytest.raises(Exception) as raised:
        small_config(**changes)
    for word in words:
        assert word in str(raised.value)


def test_round_trip_through_auto_classes(tmp_path):
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rednet"
    with torch.no_grad():
        expected = model(images)
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert type(classifier) is RedNetForImageClassification and not classifier.training
        assert torch.equal(classifier(images).logits, expected.logits)
        base = AutoModel.from_pretrained(tmp_path)
        assert type(base) is RedNetModel
        torch.testing.assert_close(classifier.classifier(base(images).pooler_output), expected.logits)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == classifier.config.to_dict()


def test_backbone_gives_the_features_of_every_stage(tmp_path):
    model = small_model().eval()
    model.save_pretrained(tmp_path)
    names = ["stem", "stage1", "stage2"]
    backbone = RedNetBackbone.from_pretrained(tmp_path, out_features=names)
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images).feature_maps
        states = model(images, output_hidden_states=True).hidden_states
    assert [tuple(f.shape[1:]) for f in features] == [(32, 16, 24), (64, 16, 24), (128, 8, 12)]
    assert backbone.channels == [32, 64, 128]
    for feature, state in zip(features, states, strict=True):
        assert torch.equal(feature, state)

    chosen = AutoBackbone.from_config(small_config(out_indices=[1]))
    assert type(chosen) is RedNetBackbone and chosen.out_features == ["stage1"]
    outputs = chosen(images, output_hidden_states=True)
    assert len(outputs.feature_maps) == 1 and len(outputs.hidden_states) == 3
    assert chosen(images).hidden_states is None


def test_hidden_states_and_tuples():
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    outputs = model(images, output_hidden_states=True)
    assert [tuple(s.shape) for s in outputs.hidden_states] == [(2, 32, 16, 16), (2, 64, 16, 16), (2, 128, 8, 8)]
    logits, states = model(images, output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, outputs.logits) and len(states) == 3
    assert model(images).hidden_states is None
    model.config.return_dict = False
    assert torch.equal(model(images)[0], outputs.logits)
    model.config.return_dict = True
    pooled = model.rednet(images)
    assert torch.equal(pooled.pooler_output, pooled.last_hidden_state.mean((2, 3)))


def test_loss_is_the_cross_entropy_of_the_labels():
    model = small_model()
    labels = torch.tensor([3, 0])
    outputs = model(random_images(2, 3, 64, 64), labels=labels)
    expected = -outputs.logits.log_softmax(1)[[0, 1], labels].mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_loads_with_another_number_of_labels(tmp_path):
    model = small_model(num_labels=5)
    model.save_pretrained(tmp_path)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (7, 128)
    for (name, value), kept in zip(other.rednet.state_dict().items(), model.rednet.state_dict().values()):
        assert torch.equal(value, kept), name


def test_initialisation_is_the_papers():
    model = RedNetForImageClassification(RedNetConfig(depths=[1, 1, 1, 1]))
    for block in (layer for stage in model.rednet.encoder.stages for layer in stage.layers):
        assert (block.layer[-1].normalization.weight == 0).all()
        assert (block.layer[1].normalization.weight == 1).all()
        assert block.layer[1].involution.span.bias.abs().max() == 0
        weight = block.layer[0].convolution.weight  # Kaiming, fan-out: variance 2 / (out_channels * 1 * 1)
        assert abs(weight.std() / (2 / weight.shape[0]) ** 0.5 - 1) < 0.05


def test_loading_resets_what_the_checkpoint_lacks(tmp_path):
    """BatchNorm buffers that are missing in a file get their defaults, not what memory held."""
    model = small_model()
    state = {k: v for k, v in model.state_dict().items() if "embedder.layers.0.normalization" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    norm = RedNetForImageClassification.from_pretrained(tmp_path).rednet.embedder.layers[0].normalization
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all() and (norm.weight == 1).all()
    assert norm.num_batches_tracked == 0


def enable_checkpointing(model, use_reentrant: bool) -> None:
    """By the public method, which has two names across the supported releases of Transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    """Equal gradients, and BatchNorm statistics that have seen the batch once."""
    images, labels = random_images(2, 3, 48, 48, requires_grad=True), torch.tensor([1, 2])
    plain, checkpointed = small_model(), small_model()
    enable_checkpointing(checkpointed, use_reentrant)
    for model in (plain, checkpointed):
        model.train()
        model(images, labels=labels).loss.backward()
    for (name, expected), value in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(value.grad, expected.grad, msg=name)
    for (name, expected), value in zip(plain.named_buffers(), checkpointed.buffers()):
        assert torch.equal(value, expected), name


def test_gradient_checkpointing_inside_of_another_model():
    """A detector that enables checkpointing for all of its parts must not count the batch twice either."""

    class Detector(PreTrainedModel):
        config_class = RedNetConfig
        supports_gradient_checkpointing = True

        def __init__(self, config):
            super().__init__(config)
            self.backbone = RedNetBackbone(config)
            self.post_init()

    detector = Detector(small_config()).train()
    enable_checkpointing(detector, use_reentrant=False)
    detector.backbone(random_images(2, 3, 48, 48)).feature_maps[0].sum().backward()
    counts = [m.num_batches_tracked.item() for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert set(counts) == {1}


def test_gradient_checkpointing_under_compile():
    images, labels = random_images(2, 3, 48, 48), torch.tensor([1, 2])
    plain, checkpointed = small_model(), small_model()
    enable_checkpointing(checkpointed, use_reentrant=False)
    compiled = torch.compile(checkpointed.train(), backend="aot_eager")
    compiled(images, labels=labels).loss.backward()
    plain.train()(images, labels=labels).loss.backward()
    for (name, expected), value in zip(plain.named_buffers(), checkpointed.named_buffers()):
        torch.testing.assert_close(value[1], expected, msg=name)


class Recorder(TorchDispatchMode):
    # What makes feature maps; views of them as matrices (B, H, W, C) are none.
    makers = {f"aten::{name}" for name in ("convolution", "native_batch_norm", "relu_", "add_", "avg_pool2d")}
    makers |= {"aten::max_pool2d_with_indices", "involution::involution2d_fused"}

    def __init__(self):
        super().__init__()
        self.names, self.outputs = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func._schema.name)
        if func._schema.name in self.makers:
            results = result if isinstance(result, tuple) else [result]
            self.outputs += [t for t in results if isinstance(t, torch.Tensor)]
        return result


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_from_end_to_end(training):
    """Every feature map is channels-last; copied is but what the strided shortcut takes, a quarter of its input."""
    model = small_model().train(training).to(memory_format=torch.channels_last)
    images = random_images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with Recorder() as recorder:
        model(images)
    assert recorder.names.count("involution::involution2d_fused") == 4
    copies = {"aten::clone", "aten::copy_", "aten::contiguous", "aten::_to_copy", "aten::reshape", "aten::im2col"}
    assert [name for name in recorder.names if name in copies] == ["aten::clone"]
    for output in recorder.outputs:
        if output.dim() == 4 and output.shape[2] > 1:
            assert output.is_contiguous(memory_format=torch.channels_last)


def test_memory_formats_agree():
    model = small_model().double().eval()
    images = random_images(2, 3, 65, 47, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images).logits
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(how):
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).logits
        if how == "weights":
            logits = model.bfloat16()(images.bfloat16()).logits
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@given(height=st.integers(32, 75), width=st.integers(32, 75), stem_stride=st.sampled_from([1, 2, 4]))
@settings(max_examples=15)
def test_any_size_from_32_up(height, width, stem_stride):
    model = small_model(stem_stride=stem_stride).eval()
    with torch.no_grad():
        states = model(random_images(1, 3, height, width), output_hidden_states=True).hidden_states
    # A stride of 2 rounds up, for convolution, pooling and involution alike.
    sizes = [(height, width)]
    while len(sizes) < 4:
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    first = {1: 0, 2: 1, 4: 2}[stem_stride]
    assert [tuple(s.shape[2:]) for s in states] == [sizes[first], sizes[first], sizes[first + 1]]


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="1 channels, expected 3"):
        small_model()(torch.zeros(1, 1, 64, 64))


def test_compiles_as_one_graph():
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images).logits, model(images).logits)


def test_trainer_accumulates_as_the_large_batch(tmp_path):
    """One step of Trainer on 4 x 2 images gives the weights of one step on 8 (frozen BatchNorm: no batch statistics)."""
    rows = [
        {"pixel_values": random_images(8, 3, 32, 32)[n], "labels": torch.tensor(n % 5)} for n in range(8)
    ]  # fmt: skip

    class FrozenRedNetForImageClassification(RedNetForImageClassification):
        def train(self, mode=True):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            return self

    weights = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = FrozenRedNetForImageClassification(small_config())
        arguments = TrainingArguments(
            str(tmp_path / str(accumulation)), per_device_train_batch_size=8 // accumulation, use_cpu=True,
            gradient_accumulation_steps=accumulation, max_steps=1, learning_rate=0.1, optim="sgd", report_to=[],
            lr_scheduler_type="constant", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_image_processor_is_found_by_the_configuration(tmp_path):
    """A preprocessor_config.json that does not name its class is read by the one of the model type."""
    small_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}, "crop_pct": 0.875}))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert "ConvNextImageProcessor" in type(processor).__name__
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)


WITHOUT_TORCHVISION = """
import importlib.util, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchvision", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torchvision", "timm") else find_spec(name, *rest)

import rednet
from PIL import Image
from transformers import AutoImageProcessor, pipeline
print(type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__)
assert len(pipeline("image-classification", model=sys.argv[1])(Image.new("RGB", (80, 60)), top_k=2)) == 2
assert not {"torchvision", "timm"} & set(sys.modules)
"""


def test_imports_without_pillow():
    code = WITHOUT_TORCHVISION.split("import rednet")[0].replace('("torchvision", "timm")', '("torchvision", "PIL")')
    code += "import rednet, torch; rednet.RedNetModel(rednet.RedNetConfig(depths=[1, 1, 1, 1])).eval()(torch.zeros(1, 3, 32, 32))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_works_without_torchvision(tmp_path):
    small_model().save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    command = [sys.executable, "-c", WITHOUT_TORCHVISION, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "ConvNextImageProcessorPil"


def test_importing_compiles_nothing(tmp_path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "import rednet"], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def saved_bytes(model: torch.nn.Module, images: torch.Tensor) -> int:
    """What a forward pass keeps for the backward pass, every storage counted once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in parameters)


def test_trains_in_less_memory_than_resnet(root):
    """Parameters, momentum and what is kept for the backward pass, at the size of images where ResNet has its best."""
    config = AutoConfig.from_pretrained(root / "configs/models/rednet-50.json")
    images = random_images(4, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    total = []
    for model in (RedNetForImageClassification(config), ResNetForImageClassification(ResNetConfig(num_labels=1000))):
        model.train().to(memory_format=torch.channels_last)
        total.append(saved_bytes(model, images) + 2 * sum(p.nbytes for p in model.parameters()))
    assert total[0] < total[1]


@pytest.mark.parametrize("stride", [1, 2])
def test_training_layer_has_the_gradients_of_its_parts(stride):
    torch.manual_seed(0)
    config = RedNetConfig(group_channels=2, reduction_ratio=2, hidden_act="tanh")
    layer = RedNetInvolutionLayer(config, 4, 3, stride).double().train()
    input = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def f(input, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (input,))

    arguments = (input, *layer.parameters())
    assert type(f(*arguments).grad_fn.next_functions[0][0]).__name__ == "_NormalizedInvolutionBackward"
    assert torch.autograd.gradcheck(f, arguments)
    assert torch.autograd.gradgradcheck(f, arguments)

    # A hook makes the layer go step by step: the same result, and the same statistics.
    parts = RedNetInvolutionLayer(config, 4, 3, stride).double().train()
    parts.load_state_dict(layer.state_dict())
    parts.normalization.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(parts(input), layer(input))
    for (name, expected), value in zip(parts.named_buffers(), layer.buffers()):
        torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("batch, size", [(1, 32), (2, 65), (3, 128)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference_computes_what_its_layers_say(batch, size, layout):
    """Folded normalization, matrix products and the fused operator, against every module called one by one."""
    model = small_model(embedding_size=64, hidden_sizes=[64, 128, 256], depths=[1, 2, 1]).double().eval()
    model.to(memory_format=layout)
    images = random_images(batch, 3, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    with torch.no_grad():
        logits = model(images).logits
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
                module.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(logits, model(images).logits)


def test_changed_layers_are_called():
    """Adapters and hooks inside of a model are not passed over by what is folded and fused around them."""
    model = small_model().eval()
    images = random_images(1, 3, 48, 48)
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        model(images)
    expected = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d))]
    assert sorted(calls) == sorted(expected)


def test_weights_that_are_brought_when_a_layer_is_called():
    """Accelerate's offloading keeps weights elsewhere until the module that owns them is called."""
    from accelerate import cpu_offload

    model, images = small_model().eval(), random_images(1, 3, 48, 48)
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(cpu_offload(model, torch.device("cpu"))(images).logits, expected)


def test_fuse_changes_nothing_but_the_layers():
    model = small_model().eval()
    images = random_images(2, 3, 65, 48)
    with torch.no_grad():
        expected = model(images).logits
        assert model.fuse() is model
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(name.endswith(("layers.1.normalization", "layer.1.normalization")) for name in norms)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fuse()  # a second time there is nothing left to fold
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_fuse_refuses_what_it_would_break(tmp_path):
    model = small_model().train()
    with pytest.raises(ValueError, match=r"model.eval\(\) first"):
        model.fuse()
    model.eval()
    hook = model.rednet.encoder.stages[0].layers[0].layer[0].convolution.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="without hooks"):
        model.fuse()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    hook.remove()
    model.fuse()
    with pytest.raises(ValueError, match="load it again"):
        model.train()
    with pytest.raises(ValueError, match="before fuse"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_compiles_with_freezing():
    """One graph; what was compiled folds and fuses as it likes around the operator."""
    model = small_model().eval().to(memory_format=torch.channels_last)
    images = random_images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        expected = model(images).logits
        logits = torch.compile(model, fullgraph=True)(images).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
