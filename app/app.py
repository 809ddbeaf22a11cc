"""Shows the five most probable classes of a picture, and the kernels that a RedNet generates for each pixel.

    python app/app.py --model outputs/demo/last

The default model is that under `models` in README.md in this folder (`python -m rednet.hub push` writes it there for a
Space), or else the model of `make demo` in outputs/demo. The app runs on the CPU.
"""

import argparse
import sys
from html import escape
from pathlib import Path

import gradio as gr
from huggingface_hub import SpaceCard
from PIL import Image, UnidentifiedImageError

import views


HERE = Path(__file__).parent
DEMO = Path("outputs/demo/last")
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# Gradio's own themes load fonts from other servers.
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
table.kernel td.center { outline: 3px solid black; outline-offset: -3px; }
"""
INTRODUCTION = """\
# What involution sees

In each of its involutions, `{model}` generates one kernel for every pixel, from the content of that pixel. The colors
show each kernel **summed over its K x K taps**. Different colors mean that the network treats the pixels differently; a
convolution has one kernel for all pixels. **Click a pixel** in the map to see its kernel."""
NO_PICTURE = "Choose a picture first."
NO_CLASSES = "This model has no classifier, so it predicts no classes."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        help="folder or Hub repository. If the package rednet is not installed, the code in it is executed",
    )
    parser.add_argument("--port", type=int, help="default: the first free port from 7860")
    options = parser.parse_args(arguments)
    try:
        model_id = options.model or default_model()
        demo = build(model_id)
    except ValueError as error:
        sys.exit(f"error: {error}")
    demo.launch(server_port=options.port, theme=THEME, css=CSS, footer_links=[], show_error=True)


def default_model() -> str:
    """
    Returns the folder or the id of the model that the app loads without --model.

    Raises:
        ValueError: README.md in this folder names no model, and outputs/demo contains none.
    """
    if models := SpaceCard.load(HERE / "README.md").data.models:
        return models[0]
    if not DEMO.is_dir():
        raise ValueError(f"{DEMO} does not exist: run `make demo`, or set --model to a folder or Hub repository")
    return str(DEMO)


def example_pictures(model_id: str) -> list[str]:
    """Returns pictures in `examples` next to this file or next to the model (training/demo.py), or else Gradio's."""
    for folder in (HERE / "examples", Path(model_id).parent / "examples"):
        if found := sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
            return [str(path) for path in found]
    folder = Path(gr.__file__).parent / "media_assets/images"
    return [str(folder / name) for name in ("cheetah1.jpg", "lion.jpg", "tower.jpg")]


class Demo(gr.Blocks):
    """Blocks that report every error in a file as one message: the file cannot be read as a picture."""

    async def preprocess_data(self, *args, **kwargs):
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds: ValueError, EOFError, SyntaxError
            # Gradio raises its own error, with names of arguments and paths of the server, from that of Pillow.
            raise gr.Error(unreadable(error.__cause__ or error)) from error


def unreadable(error: BaseException) -> str:
    reason = error or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its text has a path of the server
        reason = "its format is unknown"
    return f"This file cannot be read as a picture: {reason}"


def build(model_id: str) -> gr.Blocks:
    """
    Builds the page of a model, a folder or the id of a Hub repository.

    Raises:
        ValueError: the model cannot be shown.
    """
    model, processor = views.load_model_and_processor(model_id)
    examples = example_pictures(model_id)

    def analyze(picture: Image.Image | None, stage: int, block: int, group: int, point: tuple[float, float]):
        if picture is None:
            return {state: None, classes: None, heat: None, heat_legend: "", kernel: "", text: NO_PICTURE}
        try:
            picture = picture.convert("RGB")  # decodes a GIF
        except Exception as error:
            raise gr.Error(unreadable(error)) from error
        analysis = views.analyze(model, processor, picture)
        return {state: analysis, classes: analysis.classes or None} | update(analysis, stage, block, group, point)

    def update(analysis: views.Analysis | None, stage: int, block: int, group: int, point: tuple[float, float]):
        """The outputs that depend on the sliders. An invalid block or group is replaced by the nearest valid one."""
        if analysis is None:
            return {text: NO_PICTURE}
        stage = min(max(int(stage), min(analysis.kernels)), max(analysis.kernels))
        blocks = analysis.kernels[stage]
        block = min(max(int(block), 1), len(blocks))
        kernels, stride = blocks[block - 1], analysis.strides[stage][block - 1]
        group = min(max(int(group), 1), len(kernels))
        sums, chosen = views.kernel_sums(kernels, group - 1), views.kernel_at(kernels, stride, group - 1, point)
        where = f"stage {stage}, block {block}" if stage else "the stem"
        return {
            stage_slider: gr.Slider(value=stage, minimum=min(analysis.kernels), maximum=max(analysis.kernels)),
            block_slider: slider_to(len(blocks), block),
            group_slider: slider_to(len(kernels), group),
            heat: views.heat_map(analysis.picture, sums, chosen),
            heat_legend: f"Sum of the kernel, {where}, group {group} of {len(kernels)}:" + views.heat_legend(sums),
            kernel: f'<div class="kernel-box">{views.kernel_table(chosen.kernel)}</div>',
            text: pixel_text(analysis, chosen, where, group, point),
        }

    def click(
        analysis: views.Analysis | None, stage: int, block: int, group: int, shown: Image.Image, event: gr.SelectData
    ):
        clicked = tuple((index + 0.5) / side for index, side in zip(event.index, shown.size))
        return {point: clicked} | update(analysis, stage, block, group, clicked)

    with Demo(title="What involution sees", analytics_enabled=False) as demo:
        state, point = gr.State(time_to_live=3600), gr.State((0.5, 0.5))
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
                gr.Markdown("### The kernel of one pixel")
                kernel = gr.HTML(elem_id="kernel")
                text = gr.Markdown(elem_id="pixel")

        choice = [stage_slider, block_slider, group_slider]
        updated = [*choice, heat, heat_legend, kernel, text]
        of_picture = ([picture, *choice, point], [state, classes, *updated])
        # By default every one of the outputs would show the progress, and an error.
        picture.change(analyze, *of_picture, show_progress_on=heat)
        demo.load(analyze, *of_picture, show_progress_on=heat)
        for slider in choice:
            slider.input(update, [state, *choice, point], updated, show_progress="hidden", trigger_mode="always_last")
        heat.select(click, [state, *choice, heat], [point, *updated], show_progress="hidden")
    return demo


def slider_to(maximum: int, value: int) -> gr.Slider:
    """Hides the slider if there is no choice. Gradio requires that its maximum exceeds its minimum."""
    return gr.Slider(value=value, maximum=max(maximum, 2), visible=maximum > 1)


def pixel_text(
    analysis: views.Analysis, at: views.PixelKernel, where: str, group: int, point: tuple[float, float]
) -> str:
    (height, width), taps = analysis.picture.shape[:2], len(at.kernel)
    x, y = int(point[0] * width), int(point[1] * height)
    return (
        f"Pixel ({x}, {y}) of the {width} x {height} picture that the model sees; row {at.row}, column {at.column} "
        f"of {at.size[0]} x {at.size[1]} in {where}. In every channel of group {group}, the {taps} x {taps} window "
        f"around this pixel (outlined in the map) is summed with these weights. The outlined weight is that of the pixel "
        f"itself. Sum of the kernel: {views.number(at.kernel.sum().item(), '.4g')}."
    )


if __name__ == "__main__":
    main()
