"""LViT (arXiv 2206.14718): text-guided medical image segmentation on the Hugging Face stack."""

from importlib.util import find_spec

from .io.checkpoints import DEFAULT_CHECKPOINT


__all__ = ["DEFAULT_CHECKPOINT"]

# Where PyTorch is not installed, captions can still be read and written.
if find_spec("torch") is not None:
    from .model.configuration_lvit import LViTConfig
    from .model.image_processing_lvit import LViTImageProcessor
    from .model.image_processing_volumes_lvit import LViTVolumeProcessor
    from .model.modeling_lvit import LViTForImageSegmentation, LViTModel, LViTPreTrainedModel
    from .model.pipeline_lvit import LViTPipeline
    from .model.processing_lvit import LViTProcessor
    from .registration import register

    register()
    __all__ += [
        "LViTConfig",
        "LViTForImageSegmentation",
        "LViTImageProcessor",
        "LViTModel",
        "LViTPipeline",
        "LViTPreTrainedModel",
        "LViTProcessor",
        "LViTVolumeProcessor",
    ]
