"""Model cards: the template, and what is known of each checkpoint."""

import re
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rednet.configuration_rednet import RedNetConfig
from rednet.modeling_rednet import RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetModel
from rednet.profile import count_macs, count_parameters


FOLDER = Path(str(files("rednet.hub_cards")))
PICTURE = FOLDER / "involution.png"
PAPER_RECIPE = """\
ImageNet-1k (1.28 million images, 1000 classes) in the paper's recipe: SGD with Nesterov momentum 0.9, learning rate 0.8
at a batch of 2048, weight decay 1e-4, 130 epochs, cosine schedule after a linear warm-up of 3130 iterations, label
smoothing 0.1, random resized crops of 224 and flips. Evaluation: resize to 256, centre crop of 224."""
LIMITS = """\
It knows the {num_labels} classes of its training set, and gives one of them for every picture, also for one that shows
none of them. Its accuracy is known on the validation images named above and on nothing else; pictures of another
kind, of other regions of the world or of people may be treated worse. The biases of the training images are its own."""
LIMITS_OF_FEATURES = """\
Its features are what its training set taught it, and have the biases of those images. What they are worth for a task
is known once it was measured there."""
GENERATION = {
    "bottleneck": "that very pixel by two small linear maps",
    "linear": "that very pixel by a linear map",
    "neighborhood": "that pixel and its neighbors by two small maps",
}
NOT_MEASURED = (
    " The accuracies below are those published with {publisher} for this depth; they were not measured again."
)
LIMITS_OF_SEGMENTATION = """\
It knows the {num_labels} classes of its training set, and gives one of them to every pixel, also where none of them
is. How well is known on the validation images named above and on nothing else; pictures of another kind, of other
regions of the world or of people may be treated worse. The biases of the training images are its own."""
# What `architectures` of a configuration says, the task of that model, and its limits. Else it is a classifier.
TASKS = {
    "RedNetModel": (RedNetModel, "image-feature-extraction", LIMITS_OF_FEATURES),
    "RedNetForSemanticSegmentation": (RedNetForSemanticSegmentation, "image-segmentation", LIMITS_OF_SEGMENTATION),
}
CLASSIFICATION = (RedNetForImageClassification, "image-classification", LIMITS)
# Whose weights, and where they say what these reach.
SOURCES = {
    "authors": ("the authors' release", "https://github.com/d-li14/involution"),
    "paddleclas": ("the release of PaddleClas", "https://github.com/PaddlePaddle/PaddleClas"),
}


def known_checkpoints() -> dict[str, dict]:
    """The data files of this folder, by name: rednet-26 to rednet-152."""
    paths = sorted(FOLDER.glob("rednet-*.yaml"), key=lambda path: int(path.stem.split("-")[1]))
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def imagenet_card(config: RedNetConfig, repository: str, weights: str | None) -> ModelCard:
    """
    The card of converted weights, with what their publishers, if they were published, say of that depth.

    Args:
        config: the converted model's. A depth that nobody published gets a card without results.
        repository: the id or folder that the card's examples load.
        weights: who published them, `authors` or `paddleclas`, or None: of those nothing is claimed.
    """
    depths = list(config.depths)
    facts = next((facts for facts in known_checkpoints().values() if facts["depths"] == depths), {})
    classifier = config.architectures != ["RedNetModel"]
    name = facts.get("name", f"RedNet with stages of {', '.join(map(str, depths))} bottlenecks")
    origin, results = "a checkpoint", []
    training = "The checkpoint does not say how it was trained, and its accuracy was not measured."
    if weights is not None:
        publisher, url = SOURCES[weights]
        origin, training = f"a checkpoint of {publisher} ({url})", f"See {publisher}, {url}."
    introduction = f"{name}, converted from {origin} without a change of any weight."
    if weights is not None and config.num_labels == 1000 and facts and classifier:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="ILSVRC/imagenet-1k",
                dataset_name="ImageNet-1k",
                dataset_split="validation",
                metric_type="accuracy",
                metric_name=metric_name,
                metric_value=round(facts["released"][weights][key] / 100, 6),
                source_name=f"as published with {publisher}",
                source_url=url,
            )
            for metric_name, key in (("Top-1", "top_1"), ("Top-5", "top_5"))
        ]
        introduction += NOT_MEASURED.format(publisher=publisher)
        training = PAPER_RECIPE
    elif not classifier:
        introduction += " It has no classifier: it gives features."
    return make_card(
        config,
        name,
        repository,
        introduction,
        training,
        results=results,
        datasets=["ILSVRC/imagenet-1k"] if results else None,
        paper=facts.get("paper") if results else None,
        speed=facts.get("speed"),
    )


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
    Renders the template.

    Args:
        config: its architecture is counted: parameters and multiply-accumulates at `image_size`, or height and width.
        repository: the id or folder that the examples load.
        introduction, training: paragraphs of Markdown: what it is, and how it was trained.
        results: metrics as parts of 1, each with its data set, and its source where it is not our measurement.
        paper, speed: tables, as in the data files of this folder.
        options: of the training script, as YAML.
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
        repository=repository,
        introduction=introduction,
        training=training,
        limits=limits.format(num_labels=config.num_labels),
        task=task,
        result_rows=[result_row(result) for result in results or []],
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


def set_repository(card: ModelCard, repository: str) -> None:
    """Lets the examples of a rendered card load `repository`."""
    if loaded := re.search(r'AutoImageProcessor\.from_pretrained\("([^"]+)"\)', card.text):
        name, loads = (
            re.escape(loaded[1]),
            r"(from_pretrained\(|model=|^ *)",
        )  # a folder may have the name of an option
        card.text = re.sub(rf'{loads}"{name}"', rf'\1"{repository}"', card.text, flags=re.MULTILINE)


def result_row(result: EvalResult) -> str:
    source = result.source_name or "measured with this repository's weights"
    return f"| {result.metric_name} on {result.dataset_name} | {100 * result.metric_value:.2f} % ({source}) |"


def add_results(card: ModelCard, results: list[EvalResult]) -> None:
    """
    Puts accuracies that were measured on one split of one data set into a card, in the place of those that it has of
    that split: into its metadata, and into the table of a card that `make_card` rendered.
    """
    split, known = results[0].unique_identifier, card.data.eval_results or []
    replaced = [result for result in known if result.unique_identifier == split]
    card.data.eval_results = [result for result in known if result not in replaced] + results
    text = card.text
    for publisher, _ in SOURCES.values() if any(result.source_url for result in replaced) else ():
        text = text.replace(NOT_MEASURED.format(publisher=publisher), "")
    rows = {result_row(result) for result in replaced}
    lines = [line for line in text.split("\n") if line not in rows]
    # Below the last row of the table that is not a result.
    place = next((number for number, line in enumerate(lines, 1) if line.startswith("| Image | ")), None)
    if place is not None:
        lines[place:place] = [result_row(result) for result in results]
    card.text = "\n".join(lines)


__all__ = ["PICTURE", "add_results", "imagenet_card", "known_checkpoints", "make_card", "set_repository"]
