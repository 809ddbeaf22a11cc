"""What a configuration accepts makes a model that runs; what does not is refused by the configuration."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rednet import RedNetBackbone, RedNetConfig, RedNetForImageClassification, RedNetForSemanticSegmentation
from transformers.activations import ACT2FN

from small_models import small_config


SMALL = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "group_channels": 4, "num_labels": 2}
SMALL |= {"neck_hidden_size": 8, "decoder_hidden_size": 4}
WIDTHS = st.sampled_from([-16, -4, 0, 1, 2, 4, 8, 12, 16, 18])
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "num_channels": st.integers(-1, 4),
        "embedding_size": WIDTHS,
        "hidden_sizes": st.lists(WIDTHS, max_size=3) | st.tuples(WIDTHS, WIDTHS),
        "depths": st.lists(st.integers(-1, 2), max_size=3) | st.tuples(st.integers(-1, 2), st.integers(-1, 2)),
        "hidden_act": st.sampled_from([*ACT2FN, "", "ReLU", "softmax"]),
        "kernel_size": st.integers(-1, 7),
        "stem_kernel_size": st.integers(-1, 7),
        "group_channels": st.none() | WIDTHS,
        "reduction_ratio": st.integers(-1, 5),
        "kernel_generation": st.sampled_from(["bottleneck", "linear", "neighborhood", "attention"]),
        "operator_type": st.sampled_from(["involution", "convolution"]),
        "stem_stride": st.integers(0, 5),
        "drop_path_rate": st.sampled_from([-0.1, 0, 0.5, 1, float("nan"), None, "0.1"]),
        "neck_type": st.sampled_from(["involution", "convolution"]),
        "neck_hidden_size": WIDTHS,
        "decoder_hidden_size": WIDTHS,
        "classifier_dropout_prob": st.sampled_from([-1, -0.5, 0, 0.5, 1, 1.5, float("nan"), None, "0.1", True]),
        "semantic_loss_ignore_index": st.integers(-200, 300),
        "num_labels": st.integers(1, 3),
        "out_indices": st.lists(st.integers(-2, 3), min_size=1, max_size=3),
    },
)


@settings(max_examples=60)
@given(VALUES)
@example({"operator_type": "convolution", "neck_type": "involution", "neck_hidden_size": 10})
@example({"operator_type": "convolution", "embedding_size": -8})
def test_what_is_accepted_runs(values):
    try:
        config = RedNetConfig(**{**SMALL, **values})
    except (StrictDataclassError, ValueError):
        assume(False)
    images = torch.randn(2, config.num_channels, 17, 20)
    with torch.no_grad():
        classifier = RedNetForImageClassification(config).eval()
        assert classifier(images).logits.shape == (2, config.num_labels)
        assert len(RedNetBackbone(config).eval()(images).feature_maps) == len(config.out_features)
        segmenter = RedNetForSemanticSegmentation(config).eval()
        labels = torch.zeros(2, 17, 20, dtype=torch.long) if config.num_labels > 1 else None
        output = segmenter(images, labels=labels)
        assert output.logits.shape[1] == config.num_labels
    again = RedNetConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_channels": 0}, "num_channels=0 must be positive"),
        ({"embedding_size": 0}, "embedding_size=0 must be positive"),
        ({"embedding_size": -8, "operator_type": "convolution"}, "embedding_size=-8 must be positive"),
        ({"neck_hidden_size": 0}, "neck_hidden_size=0 must be positive"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size=0 must be positive"),
        ({"hidden_sizes": [0, 32]}, "hidden_sizes=[0, 32] must be positive multiples of 4"),
        ({"hidden_sizes": [16, 30]}, "hidden_sizes=[16, 30] must be positive multiples of 4"),
        ({"hidden_act": "ReLU"}, "hidden_act='ReLU' is unknown, expected one of gelu,"),
        ({"classifier_dropout_prob": 1.5}, "classifier_dropout_prob=1.5 must be from 0 to 1"),
        ({"classifier_dropout_prob": float("nan")}, "classifier_dropout_prob=nan must be from 0 to 1"),
        ({"reduction_ratio": 0}, "reduction_ratio=0 must be positive and divide"),
        ({"group_channels": 8}, "group_channels=8 must be positive and divide"),
        (
            {"operator_type": "convolution", "neck_type": "involution", "neck_hidden_size": 10},
            "group_channels=4 must be positive and divide the channels of every involution, which are [10]",
        ),
        ({"depths": [1]}, "depths=[1] and hidden_sizes=[16, 32] must have one entry"),
        ({"depths": [1, True]}, "depths"),
        ({"num_channels": True}, "num_channels"),
        ({"num_labels": -1}, "num_labels=-1"),
        ({"out_indices": [3]}, "out_indices=[3] must be from -3 to 2"),
    ],
)
def test_what_is_refused_is_named(values, message):
    with pytest.raises((StrictDataclassError, ValueError), match=re.escape(message)):
        RedNetConfig(**{**SMALL, **values})


def test_whole_numbers_are_numbers():
    """In JSON, 0 is what a person or another language writes for 0.0."""
    for value in (0, 1, 0.0, 0.5):
        text = RedNetConfig(classifier_dropout_prob=value).to_json_string()
        assert RedNetConfig.from_dict(json.loads(text)).classifier_dropout_prob == value


def test_defaults_are_rednet_50(root):
    saved = json.loads((root / "configs/models/rednet-50.json").read_text())
    config = RedNetConfig(num_labels=1000).to_dict()
    assert {name: config[name] for name in saved if name not in ("architectures", "num_labels")} == {
        name: value for name, value in saved.items() if name not in ("architectures", "num_labels")
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kernel_size": 4}, ["kernel_size=4", "odd"]),
        ({"stem_kernel_size": 0}, ["stem_kernel_size=0", "odd"]),
        ({"group_channels": 24}, ["group_channels=24", "[16, 16, 32]"]),
        ({"reduction_ratio": 0}, ["reduction_ratio=0"]),
        ({"kernel_generation": "quadratic"}, ["kernel_generation", "bottleneck"]),
        ({"hidden_sizes": [64, 130]}, ["hidden_sizes=[64, 130]", "multiples of 4"]),
        ({"embedding_size": 33}, ["embedding_size=33", "even"]),
        ({"depths": [1, 2, 3]}, ["depths=[1, 2, 3]", "hidden_sizes=[64, 128]"]),
        ({"depths": [1, 0]}, ["depths=[1, 0]", "positive"]),
        ({"stem_stride": 3}, ["stem_stride=3"]),
        ({"kernel_size": "seven"}, ["kernel_size"]),
        ({"out_features": ["stage7"]}, ["stage7"]),
    ],
)
def test_impossible_configurations_are_refused(changes, words):
    with pytest.raises(Exception) as raised:
        small_config(**changes)
    for word in words:
        assert word in str(raised.value)
