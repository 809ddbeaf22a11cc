"""Shortcuts give the values of the modules that they replace, whatever users do to the modules of a model."""

import contextlib
import copy

import pytest
import torch
from rednet import RedNetConfig, RedNetModel
from rednet.modeling_rednet import RedNetInvolution
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from changed_models import CHANGES, compare, find, full_backward_hooks, images, model
from plain_rednet import plain
from small_models import random_images, small_model


class Double(nn.Module):
    def forward(self, input):
        return input.double()


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


@pytest.mark.parametrize("training", [False, True])
def test_a_feature_that_a_hook_keeps_is_not_overwritten(training):
    network, kept = model().train(training), []
    block = network.rednet.encoder.stages[0].layers[0]
    for module in (block.layer[0].normalization, block.layer[2]):
        module.register_forward_hook(lambda module, arguments, output: kept.append((output, output.clone())))
    with torch.set_grad_enabled(training):
        network(images())
    for feature, copied in kept:
        assert torch.equal(feature, copied)
        assert feature.min() < 0, "not rectified yet"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [TorchDispatchMode, TorchFunctionMode])
def test_a_result_that_a_mode_keeps_is_not_overwritten(kind, training):
    network, kept = model().train(training), []

    class Recorder(kind):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            if type(result) is torch.Tensor:
                kept.append((result, result.clone()))
            return result

        __torch_function__ = __torch_dispatch__

    with torch.set_grad_enabled(training), Recorder():
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


def one_block() -> RedNetModel:
    torch.manual_seed(0)
    return RedNetModel(RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1])).eval()


def outputs(network: RedNetModel) -> torch.Tensor:
    return network(torch.ones(1, 3, 32, 32)).last_hidden_state


def test_a_hook_gets_the_involutions_own_result():
    network, seen = one_block(), []
    network.encoder.stages[0].layers[0].layer[1].involution.register_forward_hook(
        lambda module, arguments, output: seen.append(output.detach())
    )
    with_gradients = outputs(network)
    with torch.no_grad():
        without = outputs(network)
    torch.testing.assert_close(with_gradients, without)
    torch.testing.assert_close(seen[0], seen[1])
    assert seen[0].min() < 0, "neither normalized nor rectified yet"


def test_a_wrapper_needs_no_more_than_the_input():
    class Doubled(torch.nn.Module):
        def __init__(self, involution: RedNetInvolution):
            super().__init__()
            self.involution = involution

        def forward(self, hidden_state):
            return 2 * self.involution(hidden_state)

    network = one_block()
    layer = network.encoder.stages[0].layers[0].layer[1]
    layer.involution = Doubled(layer.involution)
    with_gradients = outputs(network)
    with torch.no_grad():
        torch.testing.assert_close(outputs(network), with_gradients)


@pytest.mark.parametrize("batch, size", [(1, 32), (2, 65), (3, 128)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference_computes_what_its_layers_say(batch, size, layout):
    """Folded normalization, matrix products and the fused operator, against every module called one by one."""
    network = small_model(embedding_size=64, hidden_sizes=[64, 128, 256], depths=[1, 2, 1]).double().eval()
    network.to(memory_format=layout)
    pictures = random_images(batch, 3, size, size, dtype=torch.float64).contiguous(memory_format=layout)
    with torch.no_grad():
        logits = network(pictures).logits
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
                module.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(logits, network(pictures).logits)


def test_changed_layers_are_called():
    """Adapters and hooks of single layers are called, although the layers around them are folded and fused."""
    network = small_model().eval()
    pictures = random_images(1, 3, 48, 48)
    calls = []
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        network(pictures)
    expected = [n for n, m in network.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d))]
    assert sorted(calls) == sorted(expected)
