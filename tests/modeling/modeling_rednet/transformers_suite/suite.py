"""Transformers' common model tests on RedNet, and on Transformers' own ResNet to compare with.

`test_transformers_suite.py` copies this file into a folder with the tests of the installed release, and runs it there.
"""

import unittest

import rednet
import transformers

from . import test_modeling_common as common
from .test_backbone_common import BackboneTesterMixin
from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from .test_pipeline_mixin import PipelineTesterMixin


# The common tests choose labels and tasks by these tables of class names.
for table, name in (
    ("MODEL_MAPPING_NAMES", "RedNetModel"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "RedNetForImageClassification"),
    ("MODEL_FOR_BACKBONE_MAPPING_NAMES", "RedNetBackbone"),
):
    setattr(common, table, {**getattr(common, table), "rednet": name})


class Inputs:
    """Small models and images, in the form that the common tests ask for."""

    batch_size, image_size, num_channels, num_labels = 3, 32, 3, 3
    hidden_sizes, depths, embedding_size, num_stages, is_training = [64, 128, 192, 256], [1, 1, 2, 1], 32, 4, True

    def __init__(self, config_class: type):
        self.config_class = config_class

    def get_config(self):
        return self.config_class(
            num_channels=self.num_channels,
            embedding_size=self.embedding_size,
            hidden_sizes=list(self.hidden_sizes),
            depths=list(self.depths),
            num_labels=self.num_labels,
            out_features=["stage2", "stage3", "stage4"],
            out_indices=[2, 3, 4],
        )

    def prepare_config_and_inputs(self):
        images = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        return self.get_config(), images, ids_tensor([self.batch_size], self.num_labels)

    def prepare_config_and_inputs_for_common(self):
        config, images, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": images}


class ModelTests(ModelTesterMixin, PipelineTesterMixin):
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self):
        self.model_tester = Inputs(self.config_class)
        common_properties = ["num_channels", "hidden_sizes"]
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=common_properties
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_hidden_states_output(self):
        """Five feature maps, from the stem's on; the common test expects the states of a sequence."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for kind in self.all_model_classes:
            model = kind(config).eval()
            states = model(**inputs, output_hidden_states=True).hidden_states
            self.assertEqual([state.shape[-1] for state in states], [8, 8, 4, 2, 1])
            model.config.output_hidden_states = True
            self.assertEqual(len(model(**inputs).hidden_states), 5)

    # Tests of text models, which Transformers' tests of ResNet skip as well.

    @unittest.skip("images have no embeddings")
    def test_inputs_embeds(self): ...

    @unittest.skip("images have no embeddings")
    def test_model_get_set_embeddings(self): ...

    @unittest.skip("there is no feed-forward layer to divide")
    def test_feed_forward_chunking(self): ...


class BackboneTests(BackboneTesterMixin):
    has_attentions = False

    def setUp(self):
        self.model_tester = Inputs(self.config_class)


class RedNetModelTest(ModelTests, unittest.TestCase):
    config_class = rednet.RedNetConfig
    all_model_classes = (rednet.RedNetModel, rednet.RedNetForImageClassification, rednet.RedNetBackbone)
    pipeline_model_mapping = {
        "image-feature-extraction": rednet.RedNetModel,
        "image-classification": rednet.RedNetForImageClassification,
    }


class RedNetBackboneTest(BackboneTests, unittest.TestCase):
    config_class = rednet.RedNetConfig
    all_model_classes = (rednet.RedNetBackbone,)


class ResNetModelTest(ModelTests, unittest.TestCase):
    config_class = transformers.ResNetConfig
    all_model_classes = (
        transformers.ResNetModel,
        transformers.ResNetForImageClassification,
        transformers.ResNetBackbone,
    )
    pipeline_model_mapping = {
        "image-feature-extraction": transformers.ResNetModel,
        "image-classification": transformers.ResNetForImageClassification,
    }


class ResNetBackboneTest(BackboneTests, unittest.TestCase):
    config_class = transformers.ResNetConfig
    all_model_classes = (transformers.ResNetBackbone,)
