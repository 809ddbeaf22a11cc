"""RedNet for Transformers. Importing this registers the model type `rednet` with the Auto classes."""

from importlib.metadata import version

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

from .configuration_rednet import RedNetConfig
from .modeling_rednet import (
    RedNetBackbone,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
    RedNetPreTrainedModel,
)
from .profile import count_macs, count_parameters


__version__ = version("rednet")

AutoConfig.register("rednet", RedNetConfig)
AutoModel.register(RedNetConfig, RedNetModel)
AutoModelForImageClassification.register(RedNetConfig, RedNetForImageClassification)
AutoModelForSemanticSegmentation.register(RedNetConfig, RedNetForSemanticSegmentation)
AutoBackbone.register(RedNetConfig, RedNetBackbone)
# The pipeline for image segmentation reads this table, and says of all that was registered otherwise that it does not
# support it (then it works all the same).
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["rednet"] = "RedNetForSemanticSegmentation"

# RedNet has the preprocessing of ConvNeXt at 224: resize to 256, centre crop. Without torchvision, PIL does it.
try:
    from transformers import ConvNextImageProcessorPil

    _image_processors = {"pil": ConvNextImageProcessorPil}
    if is_torchvision_available():
        from transformers import ConvNextImageProcessor

        _image_processors["torchvision"] = ConvNextImageProcessor
    AutoImageProcessor.register(RedNetConfig, image_processor_classes=_image_processors)
except ImportError:  # no PIL, or (in older releases of Transformers) no torchvision: the models work on tensors alone
    pass


__all__ = [
    "RedNetBackbone",
    "RedNetConfig",
    "RedNetForImageClassification",
    "RedNetForSemanticSegmentation",
    "RedNetModel",
    "RedNetPreTrainedModel",
    "count_macs",
    "count_parameters",
]
