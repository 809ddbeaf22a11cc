"""`fuse()` folds BatchNorm, or raises an error and changes nothing."""

import copy

import pytest
import torch
from rednet.execution_rednet import RedNetFoldedNorm
from rednet.modeling_rednet import RedNetConvLayer, RedNetInvolution
from torch import nn

from changed_models import compare, find, hooks_of_all_modules, images, model, norms_without_statistics, other_modules
from small_models import random_images, small_model


def test_fuse_changes_nothing_but_the_layers():
    network = small_model().eval()
    pictures = random_images(2, 3, 65, 48)
    with torch.no_grad():
        expected = network(pictures).logits
        assert network.fuse() is network
        torch.testing.assert_close(network(pictures).logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.fuse()  # a second time there is nothing left to fold
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_fuse_refuses_what_it_would_break(tmp_path):
    network = small_model().train()
    with pytest.raises(ValueError, match=r"model.eval\(\) first"):
        network.fuse()
    network.eval()
    hook = network.rednet.encoder.stages[0].layers[0].layer[0].convolution.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="without hooks"):
        network.fuse()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    hook.remove()
    network.fuse()
    with pytest.raises(ValueError, match="load it again"):
        network.train()
    with pytest.raises(ValueError, match="before fuse"):
        network.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


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
