"""The checks of the Hub on a card: those of the YAML block at its beginning."""

import re
from collections.abc import Iterator
from typing import Any

import yaml


LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
""".split()

PIPELINE_TAGS = """
biology text-classification token-classification table-question-answering question-answering zero-shot-classification
translation summarization feature-extraction text-generation text2text-generation fill-mask sentence-similarity
text-to-speech text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
image-to-text image-to-image image-to-video unconditional-image-generation video-classification reinforcement-learning
robotics tabular-classification tabular-regression tabular-to-text table-to-text multiple-choice text-ranking
text-retrieval time-series-forecasting text-to-video image-text-to-text visual-question-answering
document-question-answering zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection
text-to-3d image-to-3d image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval
any-to-any other
""".split()

BASE_MODEL_RELATIONS = ["adapter", "finetune", "merge", "quantized"]
SPACE_SDKS = ["gradio", "docker", "static"]
SPACE_COLORS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]

# A key with a question mark is optional.
SCHEMA = {
    "?pipeline_tag": str,
    "?library_name": str,
    "?tags": [str],
    "?model-index": [
        {
            "name": str,
            "results": [
                {
                    "task": {"type": str, "?name": str},
                    "dataset": {"type": str, "name": str, "?config": str, "?split": str, "?revision": str},
                    "metrics": [{"type": str, "value": object, "?name": str}],
                    "?source": {"url": str, "?name": str},
                }
            ],
        }
    ],
}


def metadata(card: str) -> dict[str, Any] | None:
    """The metadata of a card, or None if it has none. Raises yaml.YAMLError if it does not parse."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", card, re.DOTALL | re.MULTILINE)
    data = yaml.safe_load(block[1]) if block else None
    if data is not None and not isinstance(data, dict):
        raise yaml.YAMLError("the metadata must be a mapping")
    return data or None


def check(card: str, space: bool = False) -> tuple[list[str], list[str]]:
    """The errors, with which the Hub rejects the card of a model or a Space, and the warnings, with which it accepts it."""
    try:
        data = metadata(card)
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors, warnings = list(_breaches(data, SCHEMA, "")), []
    licenses = data.get("license", [])
    if not all(license in LICENSES for license in (licenses if isinstance(licenses, list) else [licenses])):
        errors.append(f'"license" must be one of [{", ".join(LICENSES)}, array]')
    models = data.get("base_model", [])
    if not all(isinstance(model, str) for model in (models if isinstance(models, list) else [models])):
        errors.append('"base_model" must be one of [string, array]')
    if data.get("base_model_relation", "finetune") not in BASE_MODEL_RELATIONS:
        errors.append(f'"base_model_relation" must be one of {BASE_MODEL_RELATIONS}')
    if space:
        choices = {"sdk": SPACE_SDKS, "colorFrom": SPACE_COLORS, "colorTo": SPACE_COLORS}
        errors += [
            f'"{key}" must be one of {values}' for key, values in choices.items() if data.get(key) not in values
        ]
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    tag = data.get("pipeline_tag", "other")
    if tag not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{tag}" is not in the official list: {", ".join(PIPELINE_TAGS)}')
    return errors, warnings


def _breaches(value: Any, schema: Any, where: str) -> Iterator[str]:
    if isinstance(schema, list):
        if not isinstance(value, list):
            yield f'"{where}" must be an array'
            return
        for index, item in enumerate(value):
            yield from _breaches(item, schema[0], f"{where}[{index}]")
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            yield f'"{where}" must be of type object'
            return
        for key, part in schema.items():
            name = key.removeprefix("?")
            path = f"{where}.{name}".removeprefix(".")
            if name in value:
                yield from _breaches(value[name], part, path)
            elif key == name:
                yield f'"{path}" is required'
    elif not isinstance(value, schema):
        yield f'"{where}" must be a string'
