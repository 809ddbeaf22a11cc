"""Every snippet and command of the pages is run, or has a reason why not; every link leads somewhere.

Python runs in every test run. Commands, and what they leave for Python that is marked `slow`, run with
`--all-snippets` (`make docs-test`); otherwise it is checked that their files and options exist.
"""

import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from hub_server import HubServer
from snippets import Block, read_blocks, read_commands


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
# Commands, by how they begin, that are not run, and why.
NOT_RUN = {
    "make": "sets up an environment, runs these tests, or measures for minutes",
    "pip install": "needs the network",
    "hf auth login": "asks for a token",
    "python benchmarks/": "measures for minutes",
    "python -m rednet.training.data.open_clip_art": "downloads a package of Debian",
    "python -m build": "needs the network",
    "twine upload": "needs the network",
}
# What the machines that the pages speak of have, and this one has not.
SMALLER = {
    "--config_file configs/accelerate/8_gpus.yaml": "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no",
    "--nnodes 8 --nproc_per_node 8": "--nnodes 1 --nproc_per_node 2",
    "FIRST:29400": "localhost:0",
}
FEW_IMAGES = "--max_train_samples 16 --max_eval_samples 8 --per_device_train_batch_size 4 --dataloader_num_workers 0"
FEW_STEPS = f"{FEW_IMAGES} --max_train_steps 2 --num_warmup_steps 0 --logging_steps 1"
# Options that make a script fast, after those of the page.
SHORTER = {
    "train": f"{FEW_STEPS} --image_size 64 --gradient_accumulation_steps 1",
    "train_segmentation": f"{FEW_STEPS} --per_device_train_batch_size 2 --crop_size 64 64 --sync_batch_norm False",
    "train_detection": f"{FEW_STEPS} --min_size 64 --max_size 96 --channels 32",
    "finetune": f"{FEW_IMAGES} --num_train_epochs 1 --warmup_steps 0 --image_size 64",
    "evaluate_model": "--dataloader_num_workers 0",
    "resnet18": "--epochs 1 --train_pictures 256",
    "guided_filter": "--steps 2",
    "volume": "--steps 2",
    "ablate": "--axes kernel_size=3 --seeds 0 --time_batch_size 2 --options max_train_samples=64 "
    "per_device_train_batch_size=16 num_warmup_steps=0 num_train_epochs=1",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment of a reader who is logged in to a Hub on this machine."""
    with HubServer(user="your-name") as server:
        yield server.environment(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("page", PAGES)
def test_blocks_have_a_known_language(page):
    assert {block.language for block in read_blocks(ROOT / page)} <= {"python", "bash", "text"}


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text()])
def test_python(page, reader):
    scope = {"__name__": "__main__"}
    for block in read_blocks(ROOT / page):
        if block.language == "python" and not block.slow:
            run_python(page, block, scope)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of modules that are run in this process
@pytest.mark.parametrize("page", [page for page in PAGES if "```bash" in (ROOT / page).read_text()])
def test_commands_exist(page, reader):
    for block in read_blocks(ROOT / page):
        if block.language == "bash":
            for words in read_commands(block.text):
                check_command(words)


@pytest.mark.parametrize("page", PAGES)
def test_everything(page, reader, request, hub):
    """In the order of the page, in which a snippet finds what the commands before it left."""
    if not request.config.getoption("--all-snippets"):
        pytest.skip("needs --all-snippets")
    scope = {"__name__": "__main__"}
    for number, block in enumerate(read_blocks(ROOT / page)):
        if block.language == "python":
            run_python(page, block, scope)
        elif block.language == "bash":
            commands = [shorten(words, f"outputs/run-{number}-{n}") for n, words in enumerate(runnable(block))]
            run_bash(page, block, commands, hub)


def run_python(page: str, block: Block, scope: dict) -> None:
    code = "\n" * (block.line - 1) + block.text  # a traceback gives the lines of the page
    exec(compile(code, page, "exec"), scope)


def runnable(block: Block) -> list[list[str]]:
    return [words for words in read_commands(block.text) if not shlex.join(words).startswith(tuple(NOT_RUN))]


def shorten(words: list[str], output_dir: str) -> str:
    command = shlex.join(words)
    for large, small in SMALLER.items():
        command = command.replace(large, small)
    script = re.search(r"(?:training|examples)[./](\w+)(\.py)?\b", command)
    if script and script[1] in SHORTER:
        command += f" {SHORTER[script[1]]}"
        if "--output_dir" not in words:
            command += f" --output_dir {output_dir}"
    return command


def run_bash(page: str, block: Block, commands: list[str], environment: dict[str, str]) -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**environment, "ACCELERATE_USE_CPU": "true", "PATH": path, "TORCH_HOME": os.path.abspath("torch")}
    text = "\n".join(["set -eux", *commands])
    result = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, f"{page}, line {block.line}: {result.stdout}\n{result.stderr}"


def check_command(words: list[str]) -> None:
    """Its program, files, recipes and options exist."""
    words = [word for n, word in enumerate(words) if not is_assignment(words[: n + 1])]
    match words:
        case [] | ["export", *_] | ["hf", "auth", "login"] | ["twine", "upload", _] | ["python", "-m", "build", *_]:
            pass
        case ["pip", "install", *packages]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert {name for package in packages for name in re.findall(r"\.\[(\w+)\]", package)} <= extras.keys()
        case ["make", *_]:
            subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)
        case ["accelerate", "launch", *rest]:
            launch = launch_command_parser().parse_args(rest)
            check_files(rest)
            check_script(["-m"] * bool(launch.module) + [launch.training_script, *launch.training_script_args])
        case ["torchrun", *rest]:
            launch = get_args_parser().parse_args(rest)
            check_script([launch.training_script, *launch.training_script_args])
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case ["python", *rest]:
            check_script(rest)
        case _:
            raise AssertionError(f"unknown command: {shlex.join(words)}")


def is_assignment(words: list[str]) -> bool:
    """Whether the last of the first words of a command sets a variable of its environment."""
    return all(re.match(r"[A-Z_]+=", word) for word in words)


def check_script(words: list[str]) -> None:
    check_files(words)
    if words == ["classify.py"]:  # the reader's own
        return
    if words[0].startswith("benchmarks/"):  # some need packages that tests do not
        help = (ROOT / words[0]).read_text() + (ROOT / "benchmarks/measure.py").read_text()
        arguments = words[1:]
    else:
        words, arguments = (words[:2], words[2:]) if words[0] == "-m" else (words[:1], words[1:])
        first_option = next((n for n, word in enumerate(arguments) if word.startswith("--")), len(arguments))
        help = help_of(*words, *arguments[:first_option])
    for option in arguments:
        if option.startswith("--"):
            assert re.search(rf"{option}\b", help), f"{shlex.join(words)} has no option {option}"


def check_files(words: list[str]) -> None:
    for name, value in zip(words, words[1:]):
        if name in ("--config", "--config_name"):
            packaged = [f"configs/{path}" for path in (f"training/{value}.yaml", f"models/{value}.json")]
            assert any(Path(path).is_file() for path in (value, *packaged)), value
        elif name in ("--config_file", "--train_dir", "--validation_dir", "--model_name_or_path"):
            assert Path(value).exists(), value


@functools.cache
def help_of(*words: str) -> str:
    """What a script or module prints with `--help`, in this process: a new one would take ten seconds to import."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        if words[0] == "-m":
            patch.setattr(sys, "argv", [words[1], *words[2:], "--help"])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            patch.setattr(sys, "argv", [*words, "--help"])
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert not end.value.code, output.getvalue()
    return output.getvalue()


def slug(heading: str) -> str:
    """As GitHub makes anchors of headings."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({path.name})" in index for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


CFF_REQUIRED = {"cff-version", "message", "title", "authors"}
CFF_KNOWN = CFF_REQUIRED | {
    *("abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url"),
    *("preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url"),
    "version",
}
REFERENCE_REQUIRED = {"authors", "title", "type"}
REFERENCE_KNOWN = REFERENCE_REQUIRED | {
    *("abstract", "collection-title", "conference", "doi", "identifiers", "month", "year", "url", "pages", "publisher")
}
AUTHORS = "Duo Li, Jie Hu, Changhu Wang, Xiangtai Li, Qi She, Lei Zhu, Tong Zhang, Qifeng Chen"


def test_citation_has_the_fields_of_its_format():
    """Those of the Citation File Format 1.2.0."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    paper = citation["preferred-citation"]
    assert CFF_REQUIRED <= citation.keys() <= CFF_KNOWN and REFERENCE_REQUIRED <= paper.keys() <= REFERENCE_KNOWN
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])
    assert paper["type"] == "conference-paper" and (paper["year"], paper["month"]) == (2021, 6)
    assert ", ".join(f"{one['given-names']} {one['family-names']}" for one in paper["authors"]) == AUTHORS
    assert AUTHORS in " ".join((ROOT / "README.md").read_text().split())
    assert paper["url"] == "https://arxiv.org/abs/2103.06255"


def test_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[0] == "[Unreleased]" and versions[1].startswith(f"[{project['version']}] - ")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds
