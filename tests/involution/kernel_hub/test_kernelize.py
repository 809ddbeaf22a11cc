"""RedNet as remote code runs a kernel of the Kernel Hub, through `kernels` and through Transformers."""

import copy
import os
from pathlib import Path

import pytest
import torch
from kernels import Mode, kernelize, use_kernel_mapping
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.configuration_rednet import REMOTE_CODE
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils.import_utils import KERNELS_MIN_VERSION

from hub_server import HubServer
from interpreter import python
from remote import WITHOUT_PACKAGES, run
from small_models import random_images, small_model


NO_COMPILER = {"PATH": "/nonexistent", "TORCH_EXTENSIONS_DIR": os.devnull + "/cache"}
AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
}
LOAD = """
import copy
from pathlib import Path
import torch
torch.version.cuda = None  # so that `kernels` chooses the build for the CPU, as with a CPU build of torch
from kernels import LayerRepository, LocalLayerRepository, Mode, kernelize, register_kernel_mapping, use_kernel_mapping
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageClassification, KernelConfig

class Recorder(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        names.add(func._schema.name)
        return func(*args, **(kwargs or {}))

def load(**options):
    return AutoModelForImageClassification.from_pretrained(model_folder, trust_remote_code=True, **options)

def involutions(model):
    return [module for module in model.modules() if type(module).__name__ == "RedNetInvolution"]

def is_kernelized(model):
    # The layers of a kernel are in a module with the name of its operators.
    return {layer.forward.__func__.__module__.startswith("_involution_cpu_") for layer in involutions(model)} == {True}

model_folder, repository = sys.argv[1:3]
local = LocalLayerRepository(Path(repository), layer_name="RedNetInvolution")
hub = LayerRepository("user/involution", layer_name="RedNetInvolution", version=1, trust_remote_code=["user/involution"])
"""


@pytest.fixture(scope="module")
def model() -> RedNetForImageClassification:
    torch.manual_seed(0)
    config = RedNetConfig(embedding_size=32, hidden_sizes=[64, 64], depths=[1, 1], num_labels=3, auto_map=AUTO_MAP)
    model = RedNetForImageClassification(config).eval()
    for module in model.modules():  # a zero here would hide what comes before it
        if getattr(module, "zero_init", False):
            torch.nn.init.ones_(module.weight)
    return model


@pytest.fixture(scope="module")
def model_folder(model, root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    for source in REMOTE_CODE:
        (folder / source).write_text((root / "modeling" / source).read_text())
    return folder


@pytest.fixture(scope="module")
def hub_environment(repository, binary, tmp_path_factory) -> dict[str, str]:
    """The environment of a client of a Hub that has the kernel."""
    with HubServer() as hub:
        environment = hub.environment(tmp_path_factory.mktemp("home")) | NO_COMPILER
        environment["HF_HUB_DISABLE_TELEMETRY"] = "0"  # otherwise kernels 0.17.2 sends an invalid header
        result = python("-m", "involution.kernel_hub", "push", repository, env=environment)
        assert result.returncode == 0, result.stderr
        yield environment


KERNELIZE = """
images, names = torch.load(sys.argv[3]), set()
model = load().to(images.dtype)
plain = copy.deepcopy(model)
kernel = local if sys.argv[4] == "a folder" else hub
with use_kernel_mapping({"RedNetInvolution": {"cpu": kernel, "cuda": kernel}}, inherit_mapping=False):
    kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, use_fallback=False)
assert is_kernelized(model) and not is_kernelized(plain)
with torch.no_grad():
    with Recorder():
        logits = model(images).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images).logits
    torch.testing.assert_close(compiled, logits)
    # What a user does to a module still counts.
    changed = copy.deepcopy(model), copy.deepcopy(plain)
    for network in changed:
        for layer in involutions(network):
            layer.span.register_forward_hook(lambda module, inputs, output: 2 * output)
            layer.register_forward_hook(lambda module, inputs, output: output + 1)
    outputs = [network(images).logits for network in changed]
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], logits)
    kernels = [network.involution_kernels(images)["stage1"] for network in (model, plain)]
    torch.testing.assert_close(*kernels)
    torch.testing.assert_close(copy.deepcopy(model).fuse()(images).logits, logits)
model.train()(images).logits.square().sum().backward()
assert not {"rednet", "involution"} & set(sys.modules)
torch.save((logits, {name: parameter.grad for name, parameter in model.named_parameters()}), sys.argv[3])
print(*sorted(name for name in names if "involution2d" in name))
"""


@pytest.mark.parametrize("source", ["a folder", "the Hub"])
def test_a_kernelized_model_equals_the_package(
    source, model, model_folder, repository, binary, hub_environment, tmp_path
):
    """Logits, gradients and generated kernels, in eager mode, compiled and fused."""
    tensors, images = tmp_path / "tensors.pt", torch.randn(2, 3, 33, 50, dtype=torch.float64)
    torch.save(images, tensors)
    output, errors = run(
        WITHOUT_PACKAGES + LOAD + KERNELIZE, model_folder, repository, tensors, source, **hub_environment
    )
    assert "RuntimeWarning" not in errors and output == f"{next(binary.glob('*.so')).stem}::involution2d_fused\n"
    logits, grads = torch.load(tensors)
    expected = copy.deepcopy(model).double()
    with torch.no_grad():
        torch.testing.assert_close(logits, expected(images).logits, rtol=1e-12, atol=1e-12)
    expected.train()(images).logits.square().sum().backward()
    torch.testing.assert_close(grads, {name: p.grad for name, p in expected.named_parameters()}, rtol=1e-9, atol=1e-9)


TRANSFORMERS = """
from transformers.utils import kernel_config
images = torch.randn(2, 3, 33, 50)
with torch.no_grad():
    expected = load()(images).logits

def check(model):
    assert is_kernelized(model)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected)

register_kernel_mapping({"RedNetInvolution": {"cpu": local}})
model = load(use_kernels=True)
check(model)
assert is_kernelized(model.train()) and is_kernelized(model.eval())
register_kernel_mapping({}, inherit_mapping=False)
assert not is_kernelized(load(use_kernels=True))

try:
    load(use_kernels=True, kernel_config=KernelConfig({"RedNetInvolution": "user/involution:RedNetInvolution"}))
except ValueError as error:
    assert "not from a trusted publisher" in str(error) or "could not verify" in str(error), error
names = ("user/involution:RedNetInvolution", {"version": 1, "trust_remote_code": True})
try:
    load(use_kernels=True, kernel_config=KernelConfig({"RedNetInvolution": names}))
except ValueError as error:
    print(error)
# Transformers offers this only for other devices: what it does for them works with this kernel.
kernel_config.KERNELS_SUPPORTED_DEVICE_TYPES.append("cpu")
model = load(use_kernels=True, kernel_config=KernelConfig({"RedNetInvolution": names}))
check(model)
print(is_kernelized(model.train()), is_kernelized(model.eval()))
model = load()
model.set_use_kernels(True, KernelConfig({"RedNetInvolution": f"{repository}:RedNetInvolution"}, use_local_kernel=True))
check(model)
"""


def test_transformers_kernelizes(model_folder, repository, binary, hub_environment, tmp_path):
    """With metadata of a release of `kernels` that Transformers supports: the release may be older."""
    metadata = tmp_path / f"first/kernels-{KERNELS_MIN_VERSION}.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    environment = hub_environment | {"PYTHONPATH": str(tmp_path / "first")}
    output, _ = run(WITHOUT_PACKAGES + LOAD + TRANSFORMERS, model_folder, repository, **environment)
    refusal, modes = output.splitlines()
    assert refusal.startswith("Only devices in") and refusal.endswith("got: cpu")
    assert modes == "False True"  # a KernelConfig is for the mode that the model has when it gets it


PLAIN = """
import torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
images = torch.randn(2, 3, 33, 50)
with torch.no_grad():
    compiled = torch.compile(model, fullgraph=True, backend="eager")(images).logits
    print("compiled", file=sys.stderr)
    torch.testing.assert_close(model(images).logits, compiled)
model.train()(images)
"""


def test_remote_code_without_a_kernel_says_so_once(model_folder, tmp_path):
    _, errors = run(WITHOUT_PACKAGES + PLAIN, model_folder, HF_HOME=str(tmp_path))
    # No warning during graph capture, and one in all later passes and layers.
    during, after = errors.split("compiled\n", 1)
    warning = "RedNet's involutions run in plain PyTorch"
    assert warning not in during and after.count(warning) == 1
    assert "(No module named 'involution')" in after and "`pip install .`" in after and "`kernels.kernelize`" in after


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def operators(network, images) -> list[str]:
    with torch.no_grad(), Operators() as recorded:
        network(images)
    return recorded.names


def test_a_model_without_a_kernel_keeps_its_shortcuts():
    """`kernelize` sets `forward` even if it finds no kernel."""
    network, images = small_model().eval(), random_images(2, 3, 33, 50)
    expected = operators(network, images)
    with use_kernel_mapping({}, inherit_mapping=False):
        kernelize(network, mode=Mode.INFERENCE)
    assert any("forward" in module.__dict__ for module in network.modules())
    assert operators(network, images) == operators(copy.deepcopy(network), images) == expected
