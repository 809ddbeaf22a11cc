"""What is hooked to an involution, or put in its place, sees the same whether gradients are on or off."""

import torch
from rednet import RedNetConfig, RedNetModel
from rednet.modeling_rednet import RedNetInvolution


def model() -> RedNetModel:
    torch.manual_seed(0)
    return RedNetModel(RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1])).eval()


def outputs(model: RedNetModel) -> torch.Tensor:
    return model(torch.ones(1, 3, 32, 32)).last_hidden_state


def test_a_hook_gets_the_involutions_own_result():
    network, seen = model(), []
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

    network = model()
    layer = network.encoder.stages[0].layers[0].layer[1]
    layer.involution = Doubled(layer.involution)
    with_gradients = outputs(network)
    with torch.no_grad():
        torch.testing.assert_close(outputs(network), with_gradients)
