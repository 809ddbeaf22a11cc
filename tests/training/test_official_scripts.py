"""
What run_image_classification.py and run_image_classification_no_trainer.py of Transformers call, with the values that
they pass: classes as strings, transforms made of what the image processor says, dictionaries of stacked tensors.
"""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rednet.training.data.sources import load_images
from rednet.training.options.scripts import TrainingConfig
from sklearn.metrics import accuracy_score
from torchvision import transforms
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    get_scheduler,
)


@pytest.fixture
def official(start, digits):
    """Their model for ten classes, their processor, and their two data sets with transforms."""
    train, validation = load_images(
        TrainingConfig(
            dataset_name=str(digits),
            validation_split="test",
            image_column_name="picture",
            label_column_name="digit",
            max_train_samples=200,
            max_eval_samples=100,
        )
    )
    labels = train.features["label"].names
    common = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(
        start,
        num_labels=len(labels),
        label2id={label: str(n) for n, label in enumerate(labels)},
        id2label={str(n): label for n, label in enumerate(labels)},
        finetuning_task="image-classification",
        **common,
    )
    model = AutoModelForImageClassification.from_pretrained(
        start, from_tf=False, config=config, ignore_mismatched_sizes=True, **common
    )
    processor = AutoImageProcessor.from_pretrained(start, **common)
    assert "shortest_edge" in processor.size and hasattr(processor, "image_mean") and hasattr(processor, "image_std")
    size = processor.size["shortest_edge"]
    end = [transforms.ToTensor(), transforms.Normalize(mean=processor.image_mean, std=processor.image_std)]
    steps = {
        "train": [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end],
        "validation": [transforms.Resize(size), transforms.CenterCrop(size), *end],
    }

    def transformed(images, name):
        transform = transforms.Compose(steps[name])
        return images.with_transform(
            lambda rows: {**rows, "pixel_values": [transform(image.convert("RGB")) for image in rows["image"]]}
        )

    return model, processor, transformed(train, "train"), transformed(validation, "validation")


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def test_what_the_official_script_with_trainer_calls(official, start, tmp_path):
    model, processor, train, validation = official
    assert "rednet" in {config.model_type for config in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING}
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        remove_unused_columns=False,
        num_train_epochs=1,
        learning_rate=5e-3,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=lambda p: {"accuracy": accuracy_score(p.label_ids, p.predictions.argmax(1))},
        processing_class=processor,
        data_collator=collate,
    )
    result = trainer.train(resume_from_checkpoint=None)
    trainer.save_model()
    for split, metrics in (("train", result.metrics), ("eval", trainer.evaluate())):
        trainer.log_metrics(split, metrics)
        trainer.save_metrics(split, metrics)
    trainer.save_state()
    trainer.create_model_card(
        finetuned_from="user/rednet", tasks="image-classification", dataset="user/digits", tags=["vision"]
    )
    accuracy = json.loads((tmp_path / "run/eval_results.json").read_text())["eval_accuracy"]
    assert 1 < result.metrics["train_loss"] < 3 and trainer.state.global_step == 25
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run").eval()
    batch = collate([validation[n] for n in range(len(validation))])
    with torch.no_grad():
        predictions = saved(batch["pixel_values"]).logits.argmax(1)
    assert accuracy == pytest.approx(accuracy_score(batch["labels"], predictions), abs=0.011)
    assert saved.config.id2label == {n: f"number {n}" for n in range(10)}
    assert {"README.md", "preprocessor_config.json", "modeling_rednet.py"} <= {
        f.name for f in (tmp_path / "run").iterdir()
    }


def test_what_the_official_script_without_trainer_calls(official, tmp_path):
    model, processor, train, validation = official
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loaders = [
        torch.utils.data.DataLoader(train, shuffle=True, collate_fn=collate, batch_size=20),
        torch.utils.data.DataLoader(validation, collate_fn=collate, batch_size=30),
    ]
    plain = {name for name, _ in model.named_parameters() if "bias" in name or "LayerNorm.weight" in name}
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in plain) == free], "weight_decay": decay}
        for free, decay in ((False, 0.01), (True, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=5)
    model, optimizer, *loaders, scheduler = accelerator.prepare(model, optimizer, *loaders, scheduler)
    model.train()
    for batch in loaders[0]:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    accelerator.save_state(str(tmp_path / "epoch_0"))
    model.eval()
    predictions, labels = [], []
    for batch in loaders[1]:
        with torch.no_grad():
            predicted = model(**batch).logits.argmax(dim=-1)
        for all_of_them, part in zip(
            (predictions, labels), accelerator.gather_for_metrics((predicted, batch["labels"]))
        ):
            all_of_them += part.tolist()
    assert len(predictions) == 100
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path / "run", is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    processor.save_pretrained(tmp_path / "run")
    # And from a saved state: `resume_from_checkpoint`.
    with torch.no_grad():
        accelerator.unwrap_model(model).classifier.weight.zero_()
    accelerator.load_state(str(tmp_path / "epoch_0"))
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    state = accelerator.unwrap_model(model).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saved.state_dict().items())
    assert Path(tmp_path / "run/preprocessor_config.json").is_file()
