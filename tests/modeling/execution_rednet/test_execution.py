"""Memory formats, 16-bit numbers, compilation, offloading, and the memory of a training step."""

import copy

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.modeling_rednet import RedNetEmbeddings, RedNetInvolutionLayer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, ResNetConfig, ResNetForImageClassification

from small_models import random_images, small_model


class Recorder(TorchDispatchMode):
    # What makes feature maps; views of them as matrices (B, H, W, C) are none.
    makers = {f"aten::{name}" for name in ("convolution", "native_batch_norm", "relu", "add", "avg_pool2d")}
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
    """Every feature map is channels-last, and nothing is copied."""
    model = small_model().train(training).to(memory_format=torch.channels_last)
    images = random_images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with Recorder() as recorder:
        model(images)
    assert recorder.names.count("involution::involution2d_fused") == 4
    copies = {"aten::clone", "aten::copy_", "aten::contiguous", "aten::_to_copy", "aten::reshape", "aten::im2col"}
    assert [name for name in recorder.names if name in copies] == []
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


def test_compiles_as_one_graph():
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        exact = copy.deepcopy(model).double()(images.double()).logits
        logits = compiled(images).logits
    # Each of some thirty layers rounds sums of up to 288 products; in eager mode the same weights are folded.
    assert (logits - exact).norm() <= 30 * 288**0.5 * torch.finfo(torch.float32).eps * exact.norm()


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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_stem_pools_before_relu_in_training(memory_format):
    torch.manual_seed(0)
    stem = RedNetEmbeddings(RedNetConfig(embedding_size=32)).double().train().to(memory_format=memory_format)
    step_by_step = copy.deepcopy(stem)
    step_by_step.pooler.register_forward_hook(lambda *_: None)
    results = []
    for module in (stem, step_by_step):
        input = random_images(2, 3, 21, 18, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
        output = module(input)
        assert (type(output.grad_fn).__name__ == "_MaxPoolReLUBackward") == (module is stem)
        first = torch.autograd.grad((output * output.detach().cos()).sum(), input, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), [input, *module.parameters()])
        results.append((output, first, second, list(module.buffers())))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_layer_under_autocast(dtype):
    """As near to float64 as the layer step by step, within a factor: output, statistics and gradients."""
    torch.manual_seed(0)
    layer = RedNetInvolutionLayer(RedNetConfig(group_channels=8, reduction_ratio=4), 32, 7, stride=2).train()
    images = torch.randn(4, 32, 13, 12)

    def step(layer, enabled, step_by_step=False):
        layer, input = copy.deepcopy(layer), images.clone().to(next(layer.parameters()).dtype).requires_grad_()
        if step_by_step:
            layer.normalization.register_forward_hook(lambda *_: None)
        with torch.autocast("cpu", dtype, enabled=enabled):
            output = layer(input)
        node = type(output.grad_fn.next_functions[0][0]).__name__
        assert (node == "_NormalizedInvolutionBackward") != step_by_step
        (output.to(input.dtype) * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        return [output, input.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]

    results = step(layer, True), step(layer, True, step_by_step=True), step(copy.deepcopy(layer).double(), False)
    for ours, theirs, exact in zip(*results):
        assert ours.dtype == theirs.dtype
        ours, theirs, exact = ours.double(), theirs.double(), exact.double()
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + torch.finfo(dtype).eps * exact.norm()


def test_weights_that_are_brought_when_a_layer_is_called():
    """Accelerate's offloading keeps weights elsewhere until the module that owns them is called."""
    from accelerate import cpu_offload

    # In float64, for the layers are not folded then: in float32 that is another rounding.
    model, images = small_model().double().eval(), random_images(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images).logits
        torch.testing.assert_close(cpu_offload(model, torch.device("cpu"))(images).logits, expected)


def test_compiles_with_freezing():
    """One graph; what was compiled folds and fuses as it likes around the operator."""
    model = small_model(hidden_sizes=[64], depths=[1]).eval().to(memory_format=torch.channels_last)
    images = random_images(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        expected = model(images).logits
        logits = torch.compile(model, fullgraph=True)(images).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
