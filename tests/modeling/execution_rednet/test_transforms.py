"""RedNet under torch.func, in forward mode, and under tracers."""

import copy

import pytest
import torch
from rednet import RedNetConfig, RedNetForImageClassification
from torch import nn
from torch.autograd import forward_ad

from small_models import random_images, randomize_norms, small_model


def tiny_model(seed: int = 0) -> RedNetForImageClassification:
    """With a smooth activation, so that finite differences mean something."""
    torch.manual_seed(seed)
    config = RedNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 16],
        depths=[1, 1],
        group_channels=2,
        reduction_ratio=2,
        kernel_size=3,
        hidden_act="tanh",
        num_labels=2,
    )
    model = RedNetForImageClassification(config)
    randomize_norms(model)
    return model.double().eval()


def loss_of(model: nn.Module):
    def loss(parameters, images):
        return torch.func.functional_call(model, parameters, (images,)).logits.square().sum()

    return loss


def tiny_images(batch: int = 2) -> torch.Tensor:
    return random_images(batch, 3, 16, 16, dtype=torch.float64)


def test_gradients_per_sample_are_those_of_single_images():
    model, images = tiny_model(), tiny_images(3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    grads = torch.func.vmap(torch.func.grad(loss_of(model)), in_dims=(None, 0))(parameters, images[:, None])
    for n, image in enumerate(images):
        model.zero_grad()
        model(image[None]).logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(grads[name][n], parameter.grad, msg=name)


def test_stacked_models():
    models, images = [tiny_model(seed) for seed in range(3)], tiny_images()
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def logits(parameters, buffers, images):
        return torch.func.functional_call(base, (parameters, buffers), (images,)).logits

    given = torch.func.vmap(logits, in_dims=(0, 0, None))(parameters, buffers, images)
    torch.testing.assert_close(given, torch.stack([model(images).logits for model in models]))


@pytest.mark.parametrize("grad_mode", [True, False])
def test_directional_derivatives_are_finite_differences(grad_mode):
    model, images = tiny_model(), tiny_images()
    direction, step = torch.randn_like(images), 1e-6

    def f(images):
        return model(images).logits

    with torch.set_grad_enabled(grad_mode):
        difference = (f(images + step * direction) - f(images - step * direction)) / (2 * step)
        logits, tangent = torch.func.jvp(f, (images,), (direction,))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(f(forward_ad.make_dual(images, direction)))
        _, pull = torch.func.vjp(f, images)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dual.tangent, tangent)
    torch.testing.assert_close(pull(torch.ones_like(logits))[0].mul(direction).sum(), tangent.sum())


def test_jacobians_and_hessian():
    model, images = tiny_model(), tiny_images(1)

    def f(corner):
        return model(torch.cat([corner, images[..., 2:]], -1)).logits[0]

    corner = images[..., :2].clone()
    backward, forward = torch.func.jacrev(f)(corner), torch.func.jacfwd(f)(corner)
    torch.testing.assert_close(backward, forward)
    torch.testing.assert_close(backward, torch.autograd.functional.jacobian(f, corner))

    def g(pixel):
        return f(torch.cat([pixel, corner[0, :, 0].flatten()[3:]]).reshape(1, 3, 1, 2).expand_as(corner)).sum()

    pixel = corner[0, :, 0, 0].clone()
    expected = torch.autograd.functional.hessian(g, pixel)
    torch.testing.assert_close(torch.func.hessian(g)(pixel), expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_trace(training, grad_mode):
    """The trace is checked by torch in both grad modes, and follows the size of a batch."""
    model = small_model(return_dict=False).train(training)
    images = random_images(2, 3, 48, 48)
    with torch.set_grad_enabled(grad_mode):
        # In training each pass changes the statistics, not the result: those are compared here.
        traced = torch.jit.trace(copy.deepcopy(model), images, check_trace=not training)
        torch.testing.assert_close(traced(images)[0], model(images)[0], rtol=1e-3, atol=1e-3)
        images = random_images(3, 3, 48, 48)
        torch.testing.assert_close(traced(images)[0], model(images)[0], rtol=1e-3, atol=1e-3)
