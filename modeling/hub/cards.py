"""Model cards, rendered from the template and the data in `hub_cards`.

Two parts of a card change after it was rendered: the results, and the repository that the examples load. Each stands in
a block between two marks (HTML comments, which are not shown), so that an update finds it and leaves all other text as
it is. The results are a function of the card's metadata: an update renders the block again, unless somebody edited it.
"""

import hashlib
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rednet.configuration_rednet import RedNetConfig
from rednet.modeling_rednet import (
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    RedNetPreTrainedModel,
)
from rednet.profile import count_activations, count_macs, count_parameters


FOLDER = Path(str(files("rednet.hub_cards")))
PICTURE = FOLDER / "involution.png"
# The picture that the examples load.
EXAMPLE_PICTURE = (
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/pipeline-cat-chonk.jpeg"
)
PAPER_RECIPE = """\
The recipe of the paper, on ImageNet-1k (1.28 million images, 1000 classes): SGD with Nesterov momentum 0.9, weight decay
1e-4, learning rate 0.8 for a batch of 2048 images, cosine schedule after a linear warm-up of 3130 iterations, 130
epochs, label smoothing 0.1, random resized crops of 224 x 224 and flips."""
PADDLE_RECIPE = f"""\
It is unknown to the authors of this card whether PaddleClas trained these weights or converted those of the paper's
authors, whose accuracies differ by at most 0.05 points. The configuration in the repository of PaddleClas has 120 epochs
and a learning rate that decreases in steps. The weights of the paper's authors have another recipe.

{PAPER_RECIPE}"""
PAPER_DETAILS = {"Trained at": "224 x 224", "Evaluated at": "224 x 224, the center crop of images resized to 256"}
UNKNOWN_PICTURES = """\
The accuracy on pictures of another kind than those of the results above is unknown. It can be lower, for example on
pictures of people or from other regions of the world. The model inherits the biases of its training images."""
LIMITS = f"""\
The model assigns one of its {{num_labels}} classes to every picture, even if the picture shows none of them.
{UNKNOWN_PICTURES}"""
LIMITS_OF_SEGMENTATION = f"""\
The model assigns one of its {{num_labels}} classes to every pixel, even if the pixel shows none of them.
{UNKNOWN_PICTURES}"""
LIMITS_OF_FEATURES = """\
The features depend on the training images, and inherit their biases. How well they work for another task has to be
measured on that task."""
GENERATION = {
    "bottleneck": "that pixel by two small linear layers",
    "linear": "that pixel by one linear layer",
    "neighborhood": "that pixel and its neighbors by two small layers",
}
# Options of `RedNetConfig` that have their default values in the published classifiers of all depths.
WIDTHS = ["embedding_size", "hidden_sizes"]
LAYERS = ["num_channels", "hidden_act", "kernel_size", "stem_kernel_size", "stem_stride", "group_channels"]
LAYERS += ["reduction_ratio", "kernel_generation", "operator_type"]
# Model class, task and limits for the first name in `architectures`. Any other model is a classifier.
TASKS: dict[str, tuple[type[RedNetPreTrainedModel], str, str]] = {
    "RedNetModel": (RedNetModel, "image-feature-extraction", LIMITS_OF_FEATURES),
    "RedNetForSemanticSegmentation": (RedNetForSemanticSegmentation, "image-segmentation", LIMITS_OF_SEGMENTATION),
}
CLASSIFICATION = (RedNetForImageClassification, "image-classification", LIMITS)


class Release(NamedTuple):
    """Published weights that people convert."""

    name: str
    url: str  # of the page with the results
    license: str  # of the weights, an identifier of the Hub
    license_name: str


# By the name of the publisher.
RELEASES = {
    "authors": Release("the authors' release", "https://github.com/d-li14/involution", "mit", "the MIT license"),
    "paddleclas": Release(
        "the release of PaddleClas", "https://github.com/PaddlePaddle/PaddleClas", "apache-2.0", "Apache-2.0"
    ),
}


def known_checkpoints() -> dict[str, dict]:
    """Returns the data of the published depths by name, from rednet-26 to rednet-152."""
    paths = sorted(FOLDER.glob("rednet-*.yaml"), key=lambda path: int(path.stem.split("-")[1]))
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def read_card(path: Path) -> Any:
    """
    Returns the `ModelCard` of a README.md. Type checkers do not know the attributes of its metadata.

    Raises:
        ValueError: it is not text, or its metadata is invalid.
    """
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} has invalid metadata: {error}") from error


def is_card(text: str) -> bool:
    """Returns whether a text is a model card that `make_card` made."""
    return "rednet" in (ModelCard(text, ignore_metadata_errors=True).data.get("tags") or [])


def imagenet_card(
    config: RedNetConfig,
    repository: str,
    publisher: str | None,
    *,
    source: str | None = None,
    sha256: str | None = None,
) -> ModelCard:
    """
    Renders the card of converted weights. A classifier of ImageNet with the architecture of a published depth has the
    results that the publisher reports for it.

    Args:
        config: the configuration of the converted model.
        repository: the repository that the examples load, see `make_card`.
        publisher: of the weights, `authors` or `paddleclas`. None if it is somebody else: the card claims no results
            and no license of the weights.
        source: the name or the URL of the converted file, without the path of a folder on this machine.
        sha256: the SHA-256 of this file, in hexadecimal digits.
    """
    checkpoint, task = _known_checkpoint(config), task_of(config)
    name = checkpoint.get("name", f"RedNet with stages of {', '.join(map(str, config.depths))} bottlenecks")
    if not _has_defaults(config, LAYERS) or task == "image-segmentation":
        checkpoint = {}  # the published results and the measured speed are those of another network
    origin, training, results = "a checkpoint", "The checkpoint does not say how it was trained.", []
    license, license_text = None, "The license of the weights is that of their publisher."
    comparison, details = None, {}
    if publisher is not None:
        release = RELEASES[publisher]
        origin = f"a checkpoint of {release.name} ({release.url})"
        training, license = f"See {release.name}, {release.url}.", release.license
        license_text = f"The weights are those of {release.name}, licensed under {release.license_name}."
        if checkpoint and task == "image-classification" and config.num_labels == 1000:
            results = _published_results(checkpoint["released"][publisher], release)
            training = PADDLE_RECIPE if publisher == "paddleclas" else PAPER_RECIPE
            details, comparison = PAPER_DETAILS, _comparison(checkpoint, publisher)
    introduction = f"{name}, converted from {origin}. The conversion does not change the weights."
    if source is not None:
        introduction += f" The converted file is {source if '://' in source else f'`{source}`'}"
        introduction += "." if sha256 is None else f", SHA-256 `{sha256}`."
    if task == "image-feature-extraction":
        introduction += " The model has no classifier: it computes features."
    return make_card(
        config,
        name,
        repository,
        introduction,
        training,
        image_size=(512, 1024) if task == "image-segmentation" else 224,
        license=license,
        license_text=license_text,
        details=details,
        results=results,
        datasets=["ILSVRC/imagenet-1k"] if results else None,
        comparison=comparison,
        speed=checkpoint.get("speed"),
    )


def has_published_weights(config: RedNetConfig) -> bool:
    """
    Whether the authors or PaddleClas published weights of such a network: it has one of their depths and their widths and,
    if it is a classifier, 1000 classes. (The layers may differ: the authors' detectors have another stem.)
    """
    return _known_checkpoint(config) != {} and (task_of(config) != "image-classification" or config.num_labels == 1000)


def _known_checkpoint(config: RedNetConfig) -> dict:
    """Returns the data of the published depth that a network has, or nothing if its depth or its widths are others."""
    if not _has_defaults(config, WIDTHS):
        return {}
    return next((data for data in known_checkpoints().values() if data["depths"] == list(config.depths)), {})


def _has_defaults(config: RedNetConfig, names: list[str]) -> bool:
    return all(getattr(config, name) == getattr(RedNetConfig(), name) for name in names)


def _comparison(checkpoint: dict, publisher: str) -> dict:
    """Returns the rows of the table that compares a checkpoint with the family and with networks of its time and later."""
    family = [
        {"name": data["name"], **data["counted"], **data["released"][publisher]}
        for data in known_checkpoints().values()
    ]
    peers = yaml.safe_load((FOLDER / "peers.yaml").read_text())
    return {"family": family, "peers": peers, "paper": checkpoint["paper"], "publisher": RELEASES[publisher].name}


def _published_results(percentages: dict[str, float], release: Release) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="ILSVRC/imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=metric_name,
            metric_value=round(percentages[key] / 100, 6),
            source_name=f"as published with {release.name}",
            source_url=release.url,
        )
        for metric_name, key in (("Top-1", "top_1"), ("Top-5", "top_5"))
    ]


def task_of(config: RedNetConfig) -> str:
    """Returns the name that the Hub has for the task of a model."""
    return _task_data(config)[1]


def _task_data(config: RedNetConfig) -> tuple[type[RedNetPreTrainedModel], str, str]:
    return TASKS.get((config.architectures or [""])[0], CLASSIFICATION)


def make_card(
    config: RedNetConfig,
    name: str,
    repository: str,
    introduction: str,
    training: str,
    *,
    image_size: int | tuple[int, int] = 224,
    details: dict[str, str] | None = None,
    license: str | None = "apache-2.0",
    license_text: str = "The weights have the license that is named at the top of this card.",
    results: list[EvalResult] | None = None,
    datasets: list[str] | None = None,
    base_model: str | None = None,
    comparison: dict | None = None,
    speed: dict | None = None,
    options: str | None = None,
) -> ModelCard:
    """
    Renders the card of a model.

    Args:
        config: the configuration of the model. Parameters, multiply-accumulates and activations are counted from it.
        name: the title of the card.
        repository: the repository that the examples load: an id `owner/name`, or a name, which gets the owner
            `your-name`. A push replaces it by the id of the repository that it pushes to.
        introduction, training: Markdown paragraphs: what the model is, and how it was trained.
        image_size: of the images that operations and activations are counted for: pixels of the side, or (height,
            width).
        details: further rows of the table at the top, such as the resolution and the hardware of the training.
        license: of the weights, an identifier of the Hub. None if it is unknown.
        license_text: a sentence about it.
        results: metrics from 0 to 1. Results that others measured name their source.
        datasets: ids of the data sets on the Hub that the model was trained on.
        base_model: id of the model on the Hub that the training started from.
        comparison: rows for a table of other networks, as `imagenet_card` makes them.
        speed: measurements, in the form of the data files in `hub_cards`.
        options: all options of the training script, as YAML.
    """
    model_class, task, limits = _task_data(config)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.device("meta"):
        model = model_class(config)
    card_data = ModelCardData(
        model_name=name,
        license=license,
        library_name="transformers",
        pipeline_tag=task,
        tags=["vision", "rednet", "involution", "backbone"],
        datasets=datasets,
        metrics=sorted({result.metric_type for result in results}) if results else None,
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        eval_results=results or None,
    )
    stages, convolution = config.stage_names[1:], config.operator_type == "convolution"
    macs = count_macs(model, height, width)
    return ModelCard.from_template(
        card_data,
        template_path=str(FOLDER / "model_card.md"),
        name=name,
        # Always with a slash: no other string in the examples has one, so a push replaces nothing else.
        repository=repository if "/" in repository else f"your-name/{repository}",
        introduction=introduction,
        training=training,
        limits=limits.format(num_labels=config.num_labels),
        task=task,
        results=_results_block(results or []),
        size=f"{height} x {width}",
        parameters=f"{count_parameters(model):,}",
        macs=f"{macs / 1e9:,.3f} G" if macs >= 1e8 else f"{macs / 1e6:,.2f} M",
        activations=f"{count_activations(model, height, width) / 1e6:,.1f} M",
        details=details or {},
        group_channels=config.group_channels or "all",
        generation=GENERATION[config.kernel_generation],
        convolution=convolution,
        notebook=_notebook_steps(task, convolution),
        picture=EXAMPLE_PICTURE,
        top=min(5, config.num_labels),
        license=license_text,
        kernel_size=config.kernel_size,
        stages=str(stages).replace("'", '"'),
        strides=[config.stem_stride * 2**n for n in range(len(stages))],
        sizes=config.hidden_sizes,
        comparison=comparison,
        speed=speed,
        options=options,
    )


def _notebook_steps(task: str, convolution: bool) -> str:
    """Returns what the notebook of `make_notebook` does, as a part of a sentence."""
    steps = ["runs the model"]
    if not convolution:
        steps.append("shows the generated kernels")
    if task != "image-segmentation":
        steps.append("fine-tunes it")
    return " and ".join([", ".join(steps[:-1]), steps[-1]] if steps[1:] else steps)


def repository_of(card: ModelCard) -> str:
    """Returns the repository that the examples of a card load, or "" if `make_card` did not render it."""
    return _split(card.text, "examples")[1]


def add_results(card: ModelCard, results: list[EvalResult]) -> None:
    """
    Adds results of one split of one data set to a card. They replace the results that the card has for this split.

    The metadata always gets them. The text gets them if it has a block of results that nobody edited; otherwise it stays
    as it is, and a warning says so.
    """
    split, data = results[0].unique_identifier, cast(ModelCardData, card.data)
    others = [result for result in data.eval_results or [] if result.unique_identifier != split]
    data.eval_results = others + results
    before, digest, body, after = _split(card.text, "results")
    if digest == _digest(body):
        card.text = before + _results_block(data.eval_results) + after
    else:
        warnings.warn(
            "only the metadata of the card has the new results: the results in its text were edited, or rednet did not "
            "write them",
            stacklevel=2,
        )


def set_repository(card: ModelCard, repository: str) -> None:
    """Lets the examples of a card that `make_card` rendered load `repository`, an id `owner/name`."""
    before, loaded, examples, after = _split(card.text, "examples")
    if loaded:
        for place in ('"{}"', "huggingface.co/{}/"):  # in the code, and in the link to the notebook
            examples = examples.replace(place.format(loaded), place.format(repository))
        card.text = before + _block("examples", repository, examples) + after


def _results_block(results: list[EvalResult]) -> str:
    body = "\nThe accuracy of these weights has not been measured.\n"
    if results:
        body = "\n".join(["", "| Metric | Value |", "|---|---|", *map(_result_row, results), ""])
        if any(result.source_url for result in results):
            body += "\nPublished results were not measured again with these weights.\n"
    return _block("results", _digest(body), body)


def _result_row(result: EvalResult) -> str:
    value = result.metric_value
    if isinstance(value, int | float) and 0 <= value <= 1:
        value = f"{100 * value:.2f} %"
    source = result.source_name or "measured with this repository's weights"
    return f"| {result.metric_name or result.metric_type} on {result.dataset_name} | {value} ({source}) |"


def _digest(body: str) -> str:
    """Shows whether a block was edited. White space, such as line ends of another system, does not count."""
    return hashlib.sha256(" ".join(body.split()).encode()).hexdigest()[:8]


def _block(kind: str, key: str, body: str) -> str:
    return f"<!-- rednet {kind} {key} -->{body}<!-- end of rednet {kind} -->"


def _split(text: str, kind: str) -> tuple[str, str, str, str]:
    """Splits a text into what is before a block, the block's key and body, and what is after it.

    The key of a text without such a block is empty.
    """
    before, _, rest = text.partition(f"<!-- rednet {kind} ")
    key, _, rest = rest.partition(" -->")
    body, end, after = rest.partition(f"<!-- end of rednet {kind} -->")
    return (before, key, body, after) if end else (text, "", "", "")
