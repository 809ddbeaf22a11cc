"""Uses what a training run left, as anybody would: `python training/demo.py outputs/demo`.

Loads the Hub folder through the Auto classes and `pipeline`, prints the top predictions for a handful of test
pictures, and draws demo.png and demo.svg: pictures with true and predicted classes, and the learning curve. Leaves
some of the pictures in the folder `examples`, for the app.
"""

import argparse
import json
from pathlib import Path

import rednet  # noqa: F401  registers RedNet with the Auto classes
import torch
from matplotlib.figure import Figure
from rednet.training.data.sources import load_images
from rednet.training.figures.__main__ import read_log
from rednet.training.figures.style import look, save
from rednet.training.options.groups import TrainingConfig
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils.logging import disable_progress_bar


PRINTED, DRAWN = 5, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output_dir of training/train.py")
    run = parser.parse_args().run
    disable_progress_bar()
    config = TrainingConfig(**json.loads((run / "options.json").read_text()))
    results = json.loads((run / "results.json").read_text())
    _, images = load_images(config)
    rows = images.select(range(DRAWN))
    names = images.features["label"].names

    folder = str(run / "last")
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits

    classify = pipeline("image-classification", model=folder)
    print(f"\nThe first {PRINTED} test pictures, by pipeline('image-classification', model='{folder}'):")
    for row in rows.select(range(PRINTED)):
        top = classify(row["image"], top_k=3)
        guesses = ", ".join(f"{guess['label']} {100 * guess['score']:.0f} %" for guess in top)
        print(f"  {names[row['label']]:>16}: {guesses}")

    save_examples(run / "examples", rows)
    save(draw(rows, logits.softmax(1), names, read_log(run), results), run, "demo")
    print(f"\ntop-1 {100 * results['eval_accuracy']:.2f} % on {results['eval_samples']} test images")
    print(f"picture: {run}/demo.png   results: {run}/results.json   Hub folder: {folder}")


def save_examples(folder: Path, rows) -> None:
    """The first picture of every class."""
    folder.mkdir(exist_ok=True)
    for label in set(rows["label"]):
        rows["image"][rows["label"].index(label)].save(folder / f"{label:02}.png")


@look
def draw(rows, probabilities: torch.Tensor, names: list[str], log: list[dict], results: dict) -> Figure:
    columns, lines = 8, DRAWN // 8
    figure = Figure(figsize=(15, 9.5))
    pictures, curves = figure.subfigures(2, 1, height_ratios=[2, 1])
    pictures.suptitle("Test pictures: predicted class, and the true one in brackets where it is another")
    for axes, row, probability in zip(pictures.subplots(lines, columns).flat, rows, probabilities):
        best = int(probability.argmax())
        right = best == row["label"]
        axes.imshow(row["image"], cmap="gray_r")
        label = f"{names[best]} {100 * probability[best]:.0f} %" + ("" if right else f"\n({names[row['label']]})")
        axes.set_title(label, fontsize=9, color="tab:green" if right else "tab:red")
        axes.axis("off")

    loss_axes, accuracy_axes = curves.subplots(1, 2)
    losses = [entry for entry in log if "loss" in entry]
    loss_axes.plot([e["step"] for e in losses], [e["loss"] for e in losses])
    loss_axes.set(xlabel="step", ylabel="training loss", title="Learning curve")
    evaluations = [entry for entry in log if "eval_accuracy" in entry]
    accuracies = [100 * e["eval_accuracy"] for e in evaluations]
    accuracy_axes.plot([e["step"] for e in evaluations], accuracies, marker="o", color="tab:orange")
    accuracy_axes.set(
        xlabel="step",
        ylabel="test top-1 (%)",
        title=f"{100 * results['eval_accuracy']:.2f} % at the end, {results['parameters']:,} parameters",
    )
    return figure


if __name__ == "__main__":
    main()
