"""What a module computes is what its class says, whatever was done to the modules of a model."""

import contextlib
import copy

import pytest
import torch
from rednet.execution_rednet import RedNetFoldedNorm
from rednet.modeling_rednet import RedNetConvLayer, RedNetInvolution, RedNetInvolutionLayer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from plain_rednet import plain
from small_models import random_images, small_model


def model() -> nn.Module:
    """All kinds of layers, with 1x1 convolutions of fewer pixels than channels and of more."""
    network = small_model(hidden_sizes=[64, 128, 256], depths=[1, 1, 2], group_channels=8).double()
    network.to(memory_format=torch.channels_last)
    # Statistics of the very images, so that values stay near 1 in evaluation mode.
    for norm in find(network, nn.BatchNorm2d):
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(images())
    for norm in find(network, nn.BatchNorm2d):
        norm.momentum = 0.1
    return network


def images() -> torch.Tensor:
    return random_images(3, 3, 45, 33, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


class Double(nn.Module):
    def forward(self, input):
        return input.double()


def find(network: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in network.modules() if type(module) is kind]


# --- Changes of a model. Each returns what it records, or nothing ---


def hooks_of_all_modules(network):
    seen = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, arguments, output, name=name: seen.append((name, output)))
    return seen


def inputs_of_all_modules(network):
    seen = []
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda module, arguments, name=name: seen.append((name, arguments)))
    return seen


def hooks_that_change_outputs(network):
    for module in find(network, nn.BatchNorm2d)[::2] + find(network, nn.Conv2d)[::3] + find(network, nn.ReLU)[::2]:
        module.register_forward_hook(lambda module, arguments, output: 1.25 * output)


def full_backward_hooks(network):
    seen = []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_full_backward_hook(lambda module, into, out, name=name: seen.append((name, out)))
    return seen


def parametrizations_of_weights(network):
    for module in find(network, nn.Conv2d)[::2]:
        parametrizations.weight_norm(module)

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for module in find(network, nn.BatchNorm2d)[::2]:
        parametrize.register_parametrization(module, "weight", Doubled())


def pruned_weights(network):
    for module in find(network, nn.Conv2d):
        module.weight.data = module.weight.data.contiguous()  # `prune` wants it
        prune.l1_unstructured(module, "weight", 0.5)


def adapters(network):
    class Adapter(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) + 0.5

    for module in find(network, nn.Conv2d)[1::2]:
        module.__class__ = Adapter


def replaced_forwards(network):
    for module in find(network, nn.BatchNorm2d)[::2] + find(network, nn.Conv2d)[::3] + find(network, nn.ReLU)[::2]:
        module.forward = lambda input, forward=module.forward: 1.25 * forward(input)
    for module in find(network, nn.Conv2d)[1::3]:
        module._conv_forward = lambda *arguments, forward=module._conv_forward: 1.25 * forward(*arguments)


def convolutions_with_other_attributes(network):
    torch.manual_seed(0)
    layers = find(network, RedNetConvLayer)
    for layer in layers:
        layer.convolution.stride = layer.convolution.stride[0]
    layers[0].convolution.padding_mode = "circular"
    layers[1].convolution.padding_mode = "reflect"
    spatial = [layer.convolution for layer in layers if layer.convolution.kernel_size == (3, 3)]
    spatial[-1].dilation = spatial[-1].padding = (2, 2)
    for layer in layers[2::2]:
        layer.convolution.bias = nn.Parameter(torch.linspace(-1, 1, layer.convolution.out_channels).double())
    width = layers[-2].convolution.in_channels
    layers[-2].convolution = nn.Sequential(
        nn.Conv2d(width, width, 3, padding="same", groups=width), layers[-2].convolution
    ).double()
    layers[-3].convolution.padding = "same"


def padded_pointwise_convolutions(network):
    for module in find(network, RedNetInvolution):
        module.span.padding = (1, 1)
        module.span.register_forward_hook(lambda module, arguments, output: output[:, :, 1:-1, 1:-1])


def grouped_convolutions(network):
    for layer in find(network, RedNetConvLayer):
        if layer.convolution.in_channels % 4 == 0 and layer.convolution.out_channels % 4 == 0:
            layer.convolution.groups = 4
            layer.convolution.weight = nn.Parameter(layer.convolution.weight[:, ::4].contiguous())


def spans_without_bias(network):
    for module in find(network, RedNetInvolution):
        module.span.bias = None


def norms_without_statistics(network):
    for norm in find(network, nn.BatchNorm2d):
        norm.running_mean = norm.running_var = None


def norms_that_do_not_track(network):
    for norm in find(network, nn.BatchNorm2d)[::2]:
        norm.track_running_stats = False


def norms_without_scale_and_shift(network):
    for norm in find(network, nn.BatchNorm2d)[::2]:
        norm.weight = norm.bias = None


def norms_without_count(network):
    for norm in find(network, nn.BatchNorm2d):
        norm.num_batches_tracked = None


def norms_with_other_constants(network):
    for norm in find(network, nn.BatchNorm2d):
        norm.eps, norm.momentum = 0.1, 0.3
    for norm in find(network, nn.BatchNorm2d)[::3]:
        norm.momentum = None


def frozen_norms(network):
    for norm in find(network, nn.BatchNorm2d)[::2]:
        norm.requires_grad_(False)
        norm.train = lambda mode=True, norm=norm: norm  # stays in evaluation mode
        norm.training = False


def norms_in_training_mode(network):
    """As Monte Carlo and test-time adaptation do: they survive `eval()`."""
    for norm in find(network, nn.BatchNorm2d)[::2]:
        norm.train = lambda mode=True, norm=norm: norm
        norm.training = True


def other_modules(network):
    layers = find(network, RedNetConvLayer)
    layers[0].normalization = nn.Identity()
    layers[2].normalization = nn.GroupNorm(4, layers[2].convolution.out_channels).double()
    layers[3].normalization = nn.SyncBatchNorm(layers[3].convolution.out_channels).double().eval()
    layers[3].normalization.train = lambda mode=True: layers[3].normalization  # trains on GPUs only
    involutions = find(network, RedNetInvolutionLayer)
    involutions[0].normalization = nn.Identity()
    involutions[1].activation = nn.Tanh()
    involutions[2].normalization = nn.InstanceNorm2d(involutions[2].normalization.num_features).double()


def frozen_parameters(network):
    for parameter in list(network.parameters())[::3]:
        parameter.requires_grad_(False)


CHANGES = [
    adapters,
    convolutions_with_other_attributes,
    frozen_norms,
    frozen_parameters,
    full_backward_hooks,
    grouped_convolutions,
    hooks_of_all_modules,
    hooks_that_change_outputs,
    inputs_of_all_modules,
    norms_in_training_mode,
    norms_that_do_not_track,
    norms_with_other_constants,
    norms_without_count,
    norms_without_scale_and_shift,
    norms_without_statistics,
    other_modules,
    padded_pointwise_convolutions,
    parametrizations_of_weights,
    pruned_weights,
    replaced_forwards,
    spans_without_bias,
]


def flat(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else []
    return [tensor for item in values for tensor in flat(item)]


def compare(expected, given, what: str) -> None:
    """In float64 the order of sums is worth some 1e-13; the models are a dozen layers deep."""
    expected, given = flat(expected), flat(given)
    assert len(expected) == len(given), what
    for n, (left, right) in enumerate(zip(expected, given)):
        scale = max(left.detach().abs().max().item(), 1) if left.numel() else 1
        torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-10 * scale, msg=lambda m: f"{what} {n}: {m}")


def run(network: nn.Module, mode: str):
    """Logits, and in training the gradients and the statistics of BatchNorm after a step."""
    network.train(mode == "train")
    input = images().requires_grad_(mode != "no_grad")
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode, contextlib.nullcontext)
    with context():
        logits = network(input).logits
    if mode not in ("train", "eval"):
        return [logits]
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    return [logits, input.grad, *grads, *network.buffers()]


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "inference_mode"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_modules_are_computed_as_they_are(change, mode):
    ours, theirs = model(), plain(model())
    seen, expected = change(ours), change(theirs)
    compare(run(theirs, mode), run(ours, mode), "result")
    if expected is not None:
        assert [name for name, _ in seen] == [name for name, _ in expected]
        compare([v for _, v in expected], [v for _, v in seen], "what a hook keeps")
        assert expected or (change, mode) in [(full_backward_hooks, m) for m in ("no_grad", "inference_mode")]


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_global_hooks_see_every_module(mode):
    """Profilers and attribution tools attach to all modules of a process at once."""
    register = nn.modules.module
    calls = {}
    for name, network in (("ours", model()), ("theirs", plain(model()))):
        names = {module: n for n, module in network.named_modules()}
        calls[name] = []

        def forward_hook(module, arguments, output, names=names, seen=calls[name]):
            seen.append((names.get(module), output))

        def backward_hook(module, into, out, names=names, seen=calls[name]):
            seen.append((names.get(module), out))

        handles = [
            register.register_module_forward_hook(forward_hook),
            register.register_module_full_backward_hook(backward_hook),
        ]
        try:
            run(network, mode)
        finally:
            for handle in handles:
                handle.remove()
    assert [name for name, _ in calls["ours"]] == [name for name, _ in calls["theirs"]]
    compare([v for _, v in calls["theirs"]], [v for _, v in calls["ours"]], "what a global hook keeps")


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_unchanged_and_copied_models(mode):
    """The shortcuts themselves, before and after a copy, and with parameters given to a call."""
    expected = run(plain(model()), mode)
    compare(expected, run(model(), mode), "result")
    compare(expected, run(copy.deepcopy(model()), mode), "result of a copy")
    network = model().train(mode == "train")
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    with torch.set_grad_enabled(mode != "no_grad"):
        logits = torch.func.functional_call(network, state, (images(),)).logits
    compare(expected[:1], [logits], "functional_call")


@pytest.mark.parametrize("outer, inner", [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nested_autocast(outer, inner, mode):
    """Forward in an inner autocast, backward in the outer one, as plain modules allow it."""

    def gradients(network, input):
        network.train(mode == "train")
        input.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            with torch.autocast("cpu", torch.bfloat16, enabled=inner):
                logits = network(input).logits
            logits.to(input.dtype).square().sum().backward()
        return logits, input.grad

    ours = gradients(model().float(), images().float())
    theirs = gradients(plain(model().float()), images().float())
    outer = inner = False
    exact = gradients(plain(model()), images())
    for left, right, truth in zip(ours, theirs, exact):
        assert left.dtype == right.dtype
        # The rounding of bfloat16 differs with the order of operators: as near to float64, within a factor.
        assert (left - truth).norm() <= 2 * (right - truth).norm() + 1e-5 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    """Folded and fused, a model is as near to float64 as its modules called one by one, within a factor."""
    network = model().eval()
    with torch.no_grad():
        exact = network(images()).logits
        network.to(dtype)
        input = images().to(dtype)
        ours, theirs = network(input).logits, plain(network)(input).logits
    assert ours.dtype == dtype
    assert (ours - exact).norm() <= 4 * (theirs - exact).norm() + torch.finfo(dtype).eps * exact.norm()


def test_a_feature_that_a_hook_keeps_is_not_overwritten():
    network, kept = model().eval(), []
    block = network.rednet.encoder.stages[0].layers[0]
    for module in (block.layer[0].normalization, block.layer[2]):
        module.register_forward_hook(lambda module, arguments, output: kept.append((output, output.clone())))
    with torch.no_grad():
        network(images())
    for feature, copied in kept:
        assert torch.equal(feature, copied)
        assert feature.min() < 0, "not rectified yet"


@pytest.mark.parametrize("kind", [TorchDispatchMode, TorchFunctionMode])
def test_a_result_that_a_mode_keeps_is_not_overwritten(kind):
    network, kept = model().eval(), []

    class Recorder(kind):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            if type(result) is torch.Tensor:
                kept.append((result, result.clone()))
            return result

        __torch_function__ = __torch_dispatch__

    with torch.no_grad(), Recorder():
        network(images())
    assert len(kept) > len(find(network, nn.Conv2d))
    assert all(torch.equal(result, copied) for result, copied in kept)


def test_a_residual_of_another_dtype_decides_the_result():
    network = model().float().eval()
    block = network.rednet.encoder.stages[0].layers[0]
    block.shortcut = nn.Sequential(block.shortcut, Double())
    input = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(block)(input)
        result = block(input)
    assert result.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_tensor_subclasses_are_given_to_modules():
    """Quantized weights are tensors of another type: the convolution that holds them has to be called."""
    calls = []

    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), kwargs=None):
            calls.append(function.__name__)
            return super().__torch_function__(function, types, arguments, kwargs)

    network = model().eval()
    expected = run(plain(model()), "no_grad")
    for module in find(network, nn.Conv2d):
        module.weight = nn.Parameter(module.weight.detach().as_subclass(Wrapped), requires_grad=False)
    compare(expected, [logits.as_subclass(torch.Tensor) for logits in run(network, "no_grad")], "result")
    assert calls.count("conv2d") == len(find(network, nn.Conv2d))


def test_a_batch_of_one_value_is_refused_as_by_batch_norm():
    network = small_model(stem_stride=4).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(random_images(1, 3, 8, 8))


@pytest.mark.parametrize("change", [norms_without_statistics, other_modules, hooks_of_all_modules])
def test_fuse_refuses_what_it_cannot_fold_and_changes_nothing(change):
    network = model().eval()
    change(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    if change is other_modules:
        network.train(False)
    with pytest.raises(ValueError, match="cannot fold"):
        network.fuse()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_model_with_an_identity_is_not_taken_for_a_fused_one(tmp_path):
    network = model()
    find(network, RedNetConvLayer)[0].normalization = nn.Identity()
    network.train()
    network.save_pretrained(tmp_path / "model")
    network.eval().fuse()
    with pytest.raises(ValueError, match="fused"):
        network.rednet.train()


def test_hooks_after_fuse_see_a_model_that_computes_the_same():
    network = model().eval()
    with torch.no_grad():
        expected = network(images()).logits
        network.fuse()
        compare([expected], [network(images()).logits], "fused")
        find(network, RedNetInvolution)[0].register_forward_hook(lambda module, arguments, output: None)
        compare([expected], [network(images()).logits], "fused, with a hook")
        compare([expected], [copy.deepcopy(network)(images()).logits], "fused and copied")
        norms, seen = find(network, RedNetFoldedNorm), []
        for norm in norms:
            norm.register_forward_hook(lambda module, arguments, output: seen.append(module))
        compare([expected], [network(images()).logits], "fused, with hooks of what BatchNorm left")
    assert set(seen) == set(norms)
