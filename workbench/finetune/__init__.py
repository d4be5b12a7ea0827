"""Fine-tuning: the recipe, the training files, the mask view, the one LoRA recipe."""

from workbench.finetune.data import TrainingData, read_data
from workbench.finetune.mask import MaskView, supervised
from workbench.finetune.recipe import Recipe
from workbench.finetune.result import Training
from workbench.finetune.train import finetune

__all__ = ["MaskView", "Recipe", "Training", "TrainingData", "finetune", "read_data", "supervised"]
