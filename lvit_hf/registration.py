"""Makes LViT known to the Auto classes and to `pipeline`."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageSegmentation, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_lvit import TASK, LViTConfig
from .model.image_processing_lvit import LViTImageProcessor
from .model.image_processing_volumes_lvit import LViTVolumeProcessor
from .model.modeling_lvit import LViTForImageSegmentation, LViTModel
from .model.pipeline_lvit import LViTPipeline
from .model.processing_lvit import LViTProcessor


def register():
    """Registers the classes for loading, and the code that every saved checkpoint carries."""
    # With the package installed, a checkpoint loads through the Auto classes without trusting its own code.
    AutoConfig.register(LViTConfig.model_type, LViTConfig)
    AutoModel.register(LViTConfig, LViTModel)
    AutoModelForImageSegmentation.register(LViTConfig, LViTForImageSegmentation)
    AutoImageProcessor.register(LViTConfig, image_processor_classes={"pil": LViTImageProcessor})
    # Found by its name, which a checkpoint of volumes states; the configuration's own place is taken.
    AutoImageProcessor.register(LViTVolumeProcessor, image_processor_classes={"pil": LViTVolumeProcessor})
    AutoProcessor.register(LViTConfig, LViTProcessor)
    PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=LViTPipeline, pt_model=AutoModelForImageSegmentation)
    LViTConfig.register_for_auto_class()
    LViTModel.register_for_auto_class("AutoModel")
    LViTForImageSegmentation.register_for_auto_class("AutoModelForImageSegmentation")
    LViTImageProcessor.register_for_auto_class()
    LViTVolumeProcessor.register_for_auto_class()
    LViTProcessor.register_for_auto_class()
