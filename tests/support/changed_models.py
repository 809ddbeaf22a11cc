"""A model with all kinds of layers, and what users do to the modules of a model."""

import torch
from rednet.modeling_rednet import RedNetConvLayer, RedNetInvolution, RedNetInvolutionLayer
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

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


def find(network: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in network.modules() if type(module) is kind]


# Changes of a model. Each returns the list that its hooks fill, or None


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
