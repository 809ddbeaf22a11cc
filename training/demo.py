"""Shows the result of a training run: `python training/demo.py outputs/demo`.

Loads the Hub folder with the Auto classes and `pipeline`, prints the top predictions for some test images, and draws
demo.png and demo.svg: images with true and predicted classes, and the learning curve. It saves some of the images to the
folder `examples`, for the app.
"""

import argparse
import json
from pathlib import Path

import rednet  # noqa: F401  registers RedNet with the Auto classes
import torch
from datasets import Dataset
from rednet.training.data.sources import load_images
from rednet.training.figures.curves import read_log
from rednet.training.figures.demo import draw_demo
from rednet.training.figures.style import save
from rednet.training.options.scripts import TrainingConfig
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils.logging import disable_progress_bar


PRINTED, DRAWN = 5, 24


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output_dir of training/train.py")
    run = parser.parse_args(arguments).run
    disable_progress_bar()
    config = TrainingConfig(**json.loads((run / "options.json").read_text()))
    results = json.loads((run / "results.json").read_text())
    _, images = load_images(config)
    rows = images.select(range(min(DRAWN, len(images))))

    folder = str(run / "last")
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    names = [model.config.id2label[n] for n in range(model.config.num_labels)]
    with torch.no_grad():
        logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits

    classify = pipeline("image-classification", model=folder)
    printed = rows.take(min(PRINTED, len(rows)))
    print(f"\nThe first {len(printed)} test images, by pipeline('image-classification', model='{folder}'):")
    for row in printed:
        top = classify(row["image"], top_k=3)
        guesses = ", ".join(f"{guess['label']} {100 * guess['score']:.0f} %" for guess in top)
        print(f"  {names[row['label']]:>16}: {guesses}")

    save_examples(run / "examples", rows)
    save(draw_demo(rows, logits.softmax(1), names, read_log(run), results), run, "demo")
    print(f"\ntop-1 {100 * results['eval_accuracy']:.2f} % on {results['eval_samples']} test images")
    print(f"figure: {run}/demo.png   results: {run}/results.json   Hub folder: {folder}")


def save_examples(folder: Path, rows: Dataset) -> None:
    """Saves the first image of every class."""
    folder.mkdir(exist_ok=True)
    labels = list(rows["label"])
    for label in set(labels):
        path = folder / f"{label:02}.png"
        temporary = path.with_name(f".{path.name}")
        rows[labels.index(label)]["image"].save(temporary, "PNG")
        temporary.replace(path)


if __name__ == "__main__":
    main()
