"""RedNet for Transformers. The import registers the model type `rednet` with the Auto classes."""

from importlib.metadata import version

from rednet.configuration_rednet import RedNetConfig
from rednet.loading import load_model
from rednet.modeling_rednet import (
    RedNetBackbone,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    RedNetPreTrainedModel,
)
from rednet.profile import count_activations, count_macs, count_parameters
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available


__version__ = version("rednet")

AutoConfig.register("rednet", RedNetConfig)
AutoModel.register(RedNetConfig, RedNetModel)
AutoModelForImageClassification.register(RedNetConfig, RedNetForImageClassification)
AutoModelForSemanticSegmentation.register(RedNetConfig, RedNetForSemanticSegmentation)
AutoBackbone.register(RedNetConfig, RedNetBackbone)
# Without this entry, the pipeline for image segmentation works, but logs an error, that the model is not supported.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["rednet"] = "RedNetForSemanticSegmentation"

# RedNet uses the preprocessing of ConvNeXt at 224: resize to 256, center crop. Without torchvision, PIL does it.
try:
    from transformers import ConvNextImageProcessorPil

    _image_processors: dict[str, type] = {"pil": ConvNextImageProcessorPil}
    if is_torchvision_available():
        from transformers import ConvNextImageProcessor

        _image_processors["torchvision"] = ConvNextImageProcessor
    AutoImageProcessor.register(RedNetConfig, image_processor_classes=_image_processors)
except ImportError:  # no PIL, or no torchvision (in older releases of Transformers): the models still take tensors
    pass


__all__ = [
    "RedNetBackbone",
    "RedNetConfig",
    "RedNetForImageClassification",
    "RedNetForSemanticSegmentation",
    "RedNetModel",
    "RedNetPreTrainedModel",
    "count_activations",
    "count_macs",
    "count_parameters",
    "load_model",
]
