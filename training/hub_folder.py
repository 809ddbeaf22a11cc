"""A complete Hub repository in a folder: weights, configuration, processor, card and remote code."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import BaseImageProcessor

import rednet
from arguments import TrainingConfig


CARD_TEMPLATE = Path(__file__).parent.parent / "hub_cards/model_card.md"
REMOTE_CODE = [Path(rednet.__file__).with_name(f"{name}_rednet.py") for name in ("configuration", "modeling")]
AUTO_MAP = {
    "AutoConfig": "configuration_rednet.RedNetConfig",
    "AutoModel": "modeling_rednet.RedNetModel",
    "AutoModelForImageClassification": "modeling_rednet.RedNetForImageClassification",
    "AutoBackbone": "modeling_rednet.RedNetBackbone",
}


def save_hub_folder(
    folder: Path,
    model: rednet.RedNetForImageClassification,
    processor: BaseImageProcessor,
    config: TrainingConfig,
    results: dict,
) -> None:
    """Writes everything beside `folder` and then puts it into its place: the folder is never half of a model."""
    beside, replaced = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for leftover in (beside, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    for source in REMOTE_CODE:
        shutil.copy(source, beside)
    # save_pretrained writes an auto_map of two classes at most.
    model_config = json.loads((beside / "config.json").read_text())
    (beside / "config.json").write_text(json.dumps({**model_config, "auto_map": AUTO_MAP}, indent=2) + "\n")
    make_card(model, config, results).save(beside / "README.md")
    if folder.exists():
        os.rename(folder, replaced)
    os.rename(beside, folder)
    shutil.rmtree(replaced, ignore_errors=True)


def make_card(model: rednet.RedNetForImageClassification, config: TrainingConfig, results: dict) -> ModelCard:
    """The card of a trained model. `results` holds `eval_accuracy`, `eval_top_5_accuracy` and `eval_samples`."""
    name = f"rednet-{config.dataset_name.rstrip('/').split('/')[-1].replace('_', '-')}"
    measured = {"task_type": "image-classification", "dataset_type": config.dataset_name}
    measured |= {"dataset_name": config.dataset_name, "dataset_split": config.validation_split}
    card_data = ModelCardData(
        model_name=name,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "rednet", "involution"],
        datasets=[config.dataset_name],
        metrics=["accuracy"],
        base_model=config.model_name_or_path,
        eval_results=[
            EvalResult(metric_type="accuracy", metric_value=results["eval_accuracy"], metric_name="Top-1", **measured)
        ],
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        model_name=name,
        repository=name,
        origin=config.model_name_or_path or "scratch",
        dataset_name=config.dataset_name,
        validation_split=config.validation_split,
        eval_samples=f"{results['eval_samples']:,}",
        group_channels=model.config.group_channels,
        image_size=config.image_size,
        parameters=f"{rednet.count_parameters(model):,}",
        macs=f"{rednet.count_macs(model, config.image_size, config.image_size) / 1e6:,.2f} M",
        accuracy=f"{100 * results['eval_accuracy']:.2f}",
        top_5_accuracy=f"{100 * results['eval_top_5_accuracy']:.2f}",
        num_labels=model.config.num_labels,
        augmentation="flips" if config.random_crop_min_scale is None else "crops and flips",
        options=yaml.safe_dump(asdict(config), sort_keys=False).strip(),
    )
