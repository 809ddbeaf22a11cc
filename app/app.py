"""Shows what a RedNet sees in a picture: its top-5, and the kernels that its involutions generate at each place.

    python app/app.py --model outputs/demo/last

Without --model: the model that README.md beside this file names (in a Space, training/push_to_hub.py writes it there),
or else what `make demo` left in outputs/demo. Runs on the CPU.
"""

import argparse
import sys
from html import escape
from pathlib import Path

import gradio as gr
from huggingface_hub import SpaceCard
from PIL import Image

import views


HERE = Path(__file__).parent
DEMO = Path("outputs/demo/last")
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# Gradio's own themes fetch their fonts from elsewhere.
THEME = gr.themes.Base(
    primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], text_size="md"
)
CSS = """
#picture img { width: 100%; height: 100%; object-fit: contain; }
.bar { height: 12px; border-radius: 2px; margin-top: 6px; }
.bar-labels { display: flex; justify-content: space-between; font-size: 0.85em; font-variant-numeric: tabular-nums; }
.kernel-box { container-type: inline-size; }
table.kernel { width: 100%; table-layout: fixed; border-collapse: collapse; margin: 0; }
table.kernel td { padding: 0; text-align: center; height: calc(100cqw / var(--taps)); border: 1px solid #8884;
    font-size: min(0.95rem, calc(100cqw / var(--taps) / 3.4)); font-variant-numeric: tabular-nums; }
table.kernel td.centre { outline: 3px solid black; outline-offset: -3px; }
"""
INTRODUCTION = """\
# What involution sees

`{model}` generates a kernel for every pixel, from what is there, in each of its involutions. The colours show every
kernel **summed over its K x K taps**: where they change, the network treats places differently, which a convolution, \
with one kernel for all places, cannot. **Click a place** in the map to see its own kernel."""
NO_PICTURE = "Choose a picture first."
NO_CLASSES = "This model has no classifier: it has features, and so kernels, but no classes."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        help="folder, or id of a Hub repository. Where the package rednet is not installed, its code is executed",
    )
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    options = parser.parse_args(arguments)
    try:
        model_id = options.model or default_model()
        demo = build(model_id)
    except ValueError as error:
        sys.exit(f"error: {error}")
    demo.launch(server_port=options.port, theme=THEME, css=CSS, footer_links=[], show_error=True)


def default_model() -> str:
    """
    Raises:
        ValueError: neither README.md beside this file nor outputs/demo has a model; the message says what helps.
    """
    if models := SpaceCard.load(HERE / "README.md").data.models:
        return models[0]
    if not DEMO.is_dir():
        raise ValueError(f"there is no {DEMO}: make it with `make demo`, or give a folder or Hub id with --model")
    return str(DEMO)


def example_pictures(model_id: str) -> list[str]:
    """Those beside this file or beside the model's folder, as training/demo.py leaves them, or else Gradio's."""
    for folder in (HERE / "examples", Path(model_id).parent / "examples"):
        if found := sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
            return [str(path) for path in found]
    folder = Path(gr.__file__).parent / "media_assets/images"
    return [str(folder / name) for name in ("cheetah1.jpg", "lion.jpg", "tower.jpg")]


class Demo(gr.Blocks):
    """Blocks that say of a file, whatever is wrong with it, that it cannot be read as a picture."""

    async def preprocess_data(self, *args, **kwargs):
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # Pillow raises what its decoders happen to meet: ValueError, EOFError, SyntaxError
            raise gr.Error(unreadable(error)) from error


def unreadable(error: Exception) -> str:
    return f"This file cannot be read as a picture: {error or type(error).__name__}"


def build(model_id: str) -> gr.Blocks:
    """
    Raises:
        ValueError: the model cannot be shown.
    """
    model, processor = views.load_model(model_id)
    examples = example_pictures(model_id)

    def see(picture: Image.Image | None, stage: int, block: int, group: int, point: tuple[float, float]):
        if picture is None:
            return {seen: None, classes: None, heat: None, heat_legend: "", kernel: "", text: NO_PICTURE}
        try:
            picture = picture.convert("RGB")  # of a GIF, this is where it is decoded
        except Exception as error:
            raise gr.Error(unreadable(error)) from error
        now = views.see(model, processor, picture)
        return {seen: now, classes: now.classes or None} | show(now, stage, block, group, point)

    def show(now: views.Seen | None, stage: int, block: int, group: int, point: tuple[float, float]):
        """Everything that depends on the choice. A choice that the stage does not have becomes its nearest."""
        if now is None:
            return {text: NO_PICTURE}
        stage = min(max(int(stage), min(now.kernels)), max(now.kernels))
        blocks = now.kernels[stage]
        block = min(max(int(block), 1), len(blocks))
        kernels, stride = blocks[block - 1], now.strides[stage][block - 1]
        group = min(max(int(group), 1), len(kernels))
        sums, chosen = views.kernel_sums(kernels, group - 1), views.place(kernels, stride, group - 1, point)
        where = f"stage {stage}, block {block}" if stage else "the stem"
        return {
            stage_slider: gr.Slider(value=stage, minimum=min(now.kernels), maximum=max(now.kernels)),
            block_slider: slider_to(len(blocks), block),
            group_slider: slider_to(len(kernels), group),
            heat: views.heat_map(now.picture, sums, chosen),
            heat_legend: f"Sum of the kernel, {where}, group {group} of {len(kernels)}:" + views.heat_legend(sums),
            kernel: f'<div class="kernel-box">{views.kernel_table(chosen.kernel)}</div>',
            text: place_text(now, chosen, where, group, point),
        }

    def click(now: views.Seen | None, stage: int, block: int, group: int, shown: Image.Image, event: gr.SelectData):
        chosen = tuple((index + 0.5) / side for index, side in zip(event.index, shown.size))
        return {point: chosen} | show(now, stage, block, group, chosen)

    with Demo(title="What involution sees", analytics_enabled=False) as demo:
        seen, point = gr.State(time_to_live=3600), gr.State((0.5, 0.5))
        gr.Markdown(INTRODUCTION.format(model=escape(model_id)))
        with gr.Row():
            with gr.Column(min_width=280):
                picture = gr.Image(
                    examples[0],
                    type="pil",
                    label="Picture",
                    sources=["upload", "clipboard"],
                    height=300,
                    elem_id="picture",
                )
                gr.Examples(examples, picture, label="Examples")
                classes = gr.Label(label="Top-5", num_top_classes=5, show_heading=False, elem_id="classes")
                if not hasattr(model, "classifier"):
                    gr.Markdown(NO_CLASSES)
            with gr.Column(min_width=280):
                gr.Markdown("### The kernels, each summed over K x K")
                heat = gr.Image(
                    type="pil", format="png", show_label=False, interactive=False, buttons=[], elem_id="heat"
                )
                heat_legend = gr.HTML(elem_id="heat-legend")
                stage_slider = gr.Slider(
                    0, len(model.config.depths), 1, step=1, label="Stage (0 is the stem)", buttons=[], elem_id="stage"
                )
                block_slider = gr.Slider(1, 2, 1, step=1, label="Block of the stage", buttons=[], elem_id="block")
                group_slider = gr.Slider(1, 2, 1, step=1, label="Group of channels", buttons=[], elem_id="group")
            with gr.Column(min_width=280):
                gr.Markdown("### The kernel of one place")
                kernel = gr.HTML(elem_id="kernel")
                text = gr.Markdown(elem_id="place")

        choice = [stage_slider, block_slider, group_slider]
        chosen = [*choice, heat, heat_legend, kernel, text]
        of_picture = ([picture, *choice, point], [seen, classes, *chosen])
        picture.change(see, *of_picture)
        demo.load(see, *of_picture)
        for slider in choice:
            slider.input(show, [seen, *choice, point], chosen, show_progress="hidden", trigger_mode="always_last")
        heat.select(click, [seen, *choice, heat], [point, *chosen], show_progress="hidden")
    return demo


def slider_to(maximum: int, value: int) -> gr.Slider:
    """Hidden where there is nothing to choose; its maximum must be above its minimum all the same."""
    return gr.Slider(value=value, maximum=max(maximum, 2), visible=maximum > 1)


def place_text(seen: views.Seen, place: views.Place, where: str, group: int, point: tuple[float, float]) -> str:
    (height, width), taps = seen.picture.shape[:2], len(place.kernel)
    x, y = int(point[0] * width), int(point[1] * height)
    return (
        f"Pixel ({x}, {y}) of the {width} x {height} picture that the model sees; row {place.row}, column {place.column} "
        f"of {place.size[0]} x {place.size[1]} in {where}. In every channel of group {group} the {taps} x {taps} window "
        f"around it (outlined in the map) is added up with these weights; outlined here is the one of the pixel itself. "
        f"Sum of the kernel: {views.number(place.kernel.sum().item(), '.4g')}."
    )


if __name__ == "__main__":
    main()
