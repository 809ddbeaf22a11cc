"""Model cards, rendered from the template and the data in `hub_cards`.

Two parts of a card change after it was rendered: the results, and the repository that the examples load. Each stands in
a block between two marks (HTML comments, which are not shown), so that an update finds it and leaves all other text as
it is. The results are a function of the card's metadata: an update renders the block again, unless somebody edited it.
"""

import hashlib
import warnings
from importlib.resources import files
from pathlib import Path
from typing import cast

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rednet.configuration_rednet import RedNetConfig
from rednet.modeling_rednet import RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetModel
from rednet.profile import count_macs, count_parameters


FOLDER = Path(str(files("rednet.hub_cards")))
PICTURE = FOLDER / "involution.png"
PAPER_RECIPE = """\
The recipe of the paper, on ImageNet-1k (1.28 million images, 1000 classes): SGD with Nesterov momentum 0.9, weight decay
1e-4, learning rate 0.8 for a batch of 2048 images, cosine schedule after a linear warm-up of 3130 iterations, 130
epochs, label smoothing 0.1, random resized crops of 224 x 224 and flips. For evaluation, images are resized to 256 and
cropped at the center to 224 x 224."""
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
# Model class, task and limits for the first name in `architectures`. Any other model is a classifier.
TASKS = {
    "RedNetModel": (RedNetModel, "image-feature-extraction", LIMITS_OF_FEATURES),
    "RedNetForSemanticSegmentation": (RedNetForSemanticSegmentation, "image-segmentation", LIMITS_OF_SEGMENTATION),
}
CLASSIFICATION = (RedNetForImageClassification, "image-classification", LIMITS)
# The publishers of weights, and the pages with their results.
SOURCES = {
    "authors": ("the authors' release", "https://github.com/d-li14/involution"),
    "paddleclas": ("the release of PaddleClas", "https://github.com/PaddlePaddle/PaddleClas"),
}


def known_checkpoints() -> dict[str, dict]:
    """Returns the data of the published depths by name, from rednet-26 to rednet-152."""
    paths = sorted(FOLDER.glob("rednet-*.yaml"), key=lambda path: int(path.stem.split("-")[1]))
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def imagenet_card(
    config: RedNetConfig,
    repository: str,
    weights: str | None,
    *,
    source: str | None = None,
    sha256: str | None = None,
) -> ModelCard:
    """
    Renders the card of converted weights. It has the results that the publisher reports for this depth, if any.

    Args:
        config: the configuration of the converted model.
        repository: the repository that the examples load, see `make_card`.
        weights: the publisher, `authors` or `paddleclas`. None if it is somebody else: the card claims no results.
        source: the name or the URL of the converted file, without the path of a folder on this machine.
        sha256: the SHA-256 of this file, in hexadecimal digits.
    """
    depths = list(config.depths)
    checkpoint = next((data for data in known_checkpoints().values() if data["depths"] == depths), {})
    is_classifier = config.architectures != ["RedNetModel"]
    name = checkpoint.get("name", f"RedNet with stages of {', '.join(map(str, depths))} bottlenecks")
    origin, training, results = "a checkpoint", "The checkpoint does not say how it was trained.", []
    if weights is not None:
        publisher, url = SOURCES[weights]
        origin, training = f"a checkpoint of {publisher} ({url})", f"See {publisher}, {url}."
        if checkpoint and is_classifier and config.num_labels == 1000:
            results, training = _published_results(checkpoint["released"][weights], publisher, url), PAPER_RECIPE
    introduction = f"{name}, converted from {origin}. The conversion does not change the weights."
    if source is not None:
        introduction += f" The converted file is `{source}`"
        introduction += "." if sha256 is None else f", SHA-256 `{sha256}`."
    if not is_classifier:
        introduction += " The model has no classifier: it computes features."
    return make_card(
        config,
        name,
        repository,
        introduction,
        training,
        results=results,
        datasets=["ILSVRC/imagenet-1k"] if results else None,
        paper=checkpoint.get("paper") if results else None,
        speed=checkpoint.get("speed"),
    )


def _published_results(percentages: dict[str, float], publisher: str, url: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="ILSVRC/imagenet-1k",
            dataset_name="ImageNet-1k",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name=metric_name,
            metric_value=round(percentages[key] / 100, 6),
            source_name=f"as published with {publisher}",
            source_url=url,
        )
        for metric_name, key in (("Top-1", "top_1"), ("Top-5", "top_5"))
    ]


def make_card(
    config: RedNetConfig,
    name: str,
    repository: str,
    introduction: str,
    training: str,
    *,
    image_size: int | tuple[int, int] = 224,
    results: list[EvalResult] | None = None,
    datasets: list[str] | None = None,
    base_model: str | None = None,
    paper: dict | None = None,
    speed: dict | None = None,
    options: str | None = None,
) -> ModelCard:
    """
    Renders the card of a model.

    Args:
        config: the configuration of the model. Parameters and multiply-accumulates are counted from it.
        name: the title of the card.
        repository: the repository that the examples load: an id `owner/name`, or a name, which gets the owner
            `your-name`. A push replaces it by the id of the repository that it pushes to.
        introduction, training: Markdown paragraphs: what the model is, and how it was trained.
        image_size: of the images that the multiply-accumulates are for: pixels of the side, or (height, width).
        results: metrics from 0 to 1. Results that others measured name their source.
        datasets: ids of the data sets on the Hub that the model was trained on.
        base_model: id of the model on the Hub that the training started from.
        paper, speed: tables, in the form of the data files in `hub_cards`.
        options: all options of the training script, as YAML.
    """
    model_class, task, limits = TASKS.get((config.architectures or [""])[0], CLASSIFICATION)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.device("meta"):
        model = model_class(config)
    card_data = ModelCardData(
        model_name=name,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=task,
        tags=["vision", "rednet", "involution", "backbone"],
        datasets=datasets,
        metrics=sorted({result.metric_type for result in results}) if results else None,
        base_model=base_model,
        eval_results=results or None,
    )
    stages = config.stage_names[1:]
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
        macs=f"{count_macs(model, height, width) / 1e9:,.3f} G",
        group_channels=config.group_channels or "all",
        generation=GENERATION[config.kernel_generation],
        convolution=config.operator_type == "convolution",
        kernel_size=config.kernel_size,
        stages=str(stages).replace("'", '"'),
        strides=", ".join(str(config.stem_stride * 2**n) for n in range(len(stages))),
        sizes=", ".join(map(str, config.hidden_sizes)),
        paper=paper,
        speed=speed,
        options=options,
    )


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
        examples = examples.replace(f'"{loaded}"', f'"{repository}"')
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
