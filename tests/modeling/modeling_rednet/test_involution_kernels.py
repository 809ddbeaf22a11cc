"""model.involution_kernels: the kernels are those that the model applies."""

import copy
from functools import partial

import pytest
import rednet
import torch
from rednet.modeling_rednet import RedNetInvolution

from cases import plain_involution
from small_models import check_close, model_without_zeros


SIZES = {"embedding_size": 32, "hidden_sizes": [128, 384], "depths": [2, 1], "stem_stride": 2, "num_labels": 3}


@pytest.fixture(scope="module")
def model():
    return model_without_zeros(**SIZES)


def flat(kernels: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: kernel for part in kernels.values() for name, kernel in part.items()}


def recorded(model, pixel_values) -> dict:
    """(module, inputs, output) of every involution in a forward pass, by name."""
    calls, hooks = {}, []

    def record(name, module, inputs, output):
        calls[name] = (module, inputs, output)

    for name, module in model.named_modules():
        if isinstance(module, RedNetInvolution):
            hooks.append(module.register_forward_hook(partial(record, name)))
    with torch.no_grad():
        model(pixel_values)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("size", [(32, 32), (27, 35)], ids=["even", "odd"])
@pytest.mark.parametrize("compiled", [True, False], ids=["operator", "plain"])
def test_kernels_are_what_the_model_applies(model, size, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(rednet.execution_rednet, "involution2d_fused", None)
    pixel_values = torch.randn(2, 3, *size)
    calls, kernels = recorded(model, pixel_values), flat(model.involution_kernels(pixel_values))
    assert list(kernels) == list(calls) and len(kernels) == 4
    for name, (module, (hidden_state,), output) in calls.items():
        assert kernels[name].shape[:4] == (2, module.groups, module.kernel_size, module.kernel_size)
        stride, padding = [module.stride] * 2, [module.kernel_size // 2] * 2
        expected = plain_involution(hidden_state, kernels[name], stride, padding, [1, 1])
        check_close(output, expected)


def test_reading_kernels_changes_nothing(model):
    pixel_values, state = torch.randn(1, 3, 32, 32), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(pixel_values).logits
        model.involution_kernels(pixel_values)
        check_close(model(pixel_values).logits, before)  # equal sums, perhaps in another order
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_kernels_of_a_fused_model_are_the_same(model):
    model = copy.deepcopy(model)
    pixel_values = torch.randn(1, 3, 32, 32)
    before, after = flat(model.involution_kernels(pixel_values)), flat(model.fuse().involution_kernels(pixel_values))
    for name, kernel in before.items():
        check_close(after[name], kernel)


def test_kernels_are_refused_where_they_would_be_wrong():
    model = rednet.RedNetModel(rednet.RedNetConfig(**SIZES))
    convolutions = rednet.RedNetModel(rednet.RedNetConfig(**SIZES, operator_type="convolution"))
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        model.train().involution_kernels(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="with involutions, but operator_type is 'convolution'"):
        convolutions.eval().involution_kernels(torch.zeros(1, 3, 32, 32))


def test_kernels_are_grouped_by_the_parts_of_the_model(model):
    config = rednet.RedNetConfig(**SIZES, neck_type="involution", neck_hidden_size=32, decoder_hidden_size=16)
    segmenter = rednet.RedNetForSemanticSegmentation(config).eval()
    for model, more in ((model, {}), (segmenter, {"neck": 2})):
        kernels = model.involution_kernels(torch.randn(1, 3, 32, 32))
        assert {part: len(named) for part, named in kernels.items()} == {"stem": 1, "stage1": 2, "stage2": 1, **more}
        modules = dict(model.named_modules())
        assert all(isinstance(modules[name], RedNetInvolution) for name in flat(kernels))
