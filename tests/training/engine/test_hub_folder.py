"""What the card of a trained model says follows from the options and the results."""

from huggingface_hub import ModelCard
from rednet import RedNetForSemanticSegmentation
from rednet.training.engine.hub_folder import save_classifier_folder, save_segmentation_folder
from rednet.training.options.scripts import SegmentationConfig, TrainingConfig
from rednet.training.train import make_processor
from rednet.training.train_segmentation import make_processor as make_segmentation_processor

from small_models import small_config, small_model


RESULTS = {"eval_accuracy": 0.5, "eval_top_5_accuracy": 1.0, "eval_samples": 40}
RESULTS |= {"seconds_by_hardware": {"8 x NVIDIA H100": 12600.0, "2 threads of AMD EPYC": 90.0}}
RESULTS |= {"eval_mean_iou": 0.5, "eval_overall_accuracy": 0.6}


def classifier_card(folder, **options) -> str:
    config = TrainingConfig(dataset_name="user/birds", **options)
    save_classifier_folder(folder, small_model(), make_processor(config), config, RESULTS)
    return sentences(folder)


def segmenter_card(folder, **options) -> str:
    config = SegmentationConfig(dataset_name="user/birds", crop_size=[64, 96], **options)
    model = RedNetForSemanticSegmentation(small_config(neck_type="convolution"))
    save_segmentation_folder(folder, model, make_segmentation_processor(config), config, RESULTS)
    return sentences(folder)


def sentences(folder) -> str:
    """The card without the list of all options."""
    return ModelCard.load(folder / "README.md").text.partition("random_flip:")[0]


def test_of_a_classifier(tmp_path):
    card = classifier_card(tmp_path / "a", random_flip=0.25, momentum=0, ema_decay=0.9, max_eval_samples=40)
    assert "flips with a probability of 0.25" in card and "random crops of at least 0.08 of the area" in card
    assert "SGD, 130 epochs, cosine schedule, averaged weights (decay 0.9)" in card and "momentum" not in card
    assert "measured on 40 images" in card and "MixUp" not in card
    card = classifier_card(
        tmp_path / "b",
        random_flip=0,
        random_crop_min_scale=None,
        mixup_alpha=0.2,
        auto_augment="rand-m9",
        max_train_steps=7,
        max_train_samples=50,
    )
    assert "flips" not in card and "random crops" not in card
    assert "RandAugment (rand-m9), MixUp with alpha 0.2" in card and "Nesterov momentum, 7 steps" in card
    assert "on at most 50 images of birds" in card and "measured on the 40 images" in card
    assert "| Trained at | 224 x 224 |" in card
    assert "| Evaluated at | 224 x 224, the center crop of images resized to 256 |" in card
    assert "| Training time | 3.5 hours on 8 x NVIDIA H100, 1.5 minutes on 2 threads of AMD EPYC |" in card
    card = classifier_card(tmp_path / "c", random_flip=0, random_crop_min_scale=None, image_size=28, crop_pct=1)
    assert "| Trained at | 28 x 28 |" in card and "| Evaluated at | 28 x 28 |" in card
    assert "no random changes of the images" in card


def test_of_a_segmenter(tmp_path):
    card = segmenter_card(tmp_path / "a", random_flip=0.0, photometric_distortion=False)
    assert "random scales from 0.5 to 2, random crops of 64 x 96." in card and "flips" not in card
    assert "distortion" not in card and "SGD with momentum" in card
    assert "| Trained at | 64 x 96 |" in card and "| Evaluated at | the size of each image |" in card
    assert "2 crops per process and step" in card
    card = segmenter_card(tmp_path / "b", random_scale=[1.0, 1.0], gradient_accumulation_steps=4)
    assert "8 crops per process and step" in card
    assert "random scales" not in card and "flips with a probability of 0.5, photometric distortion." in card
