"""Mask R-CNN with an implicit mask head for handwritten digits, small enough to train on a laptop's CPU."""

from ifr.hosts import RCNNFPNConfig
from ifr.hosts.recipes import from_scratch_on_cpu, implicit_that_converges

_config_dict = {
    "MODEL": {
        "ROI_HEADS": {"NUM_CLASSES": 10},
        "ROI_MASK_HEAD": {
            **implicit_that_converges(),
            "PRETRAINED_STEPS": 300,  # iterations of weight sharing before the first implicit one
        },
    },
    "DATASETS": {"TRAIN": ("digits_train",), "TEST": ("digits_val",)},
    "SOLVER": {
        "LR_SCHEDULER": {"STEPS": (500, 620, 740, 840, 920), "GAMMA": 0.5, "MAX_ITER": 1000, "WARMUP_ITERS": 40},
        "OPTIMIZER": {"BASE_LR": 0.02, "MASK_HEAD_LR_FACTOR": 4.0},  # no weights are pretrained
        "CLIP_GRADIENTS": {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 5.0},
        "EMA": {"ENABLED": True, "DECAY": 0.995},
        "IMS_PER_BATCH": 4,  # for a small set; any number of workers that divides it
        "RESCALE": False,
    },
    "DATALOADER": {"NUM_WORKERS": 1},
    "SEED": 1,
    "TEST": {"DETECTIONS_PER_IMAGE": 20},
}


class DigitsConfig(RCNNFPNConfig):
    """The settings of this experiment."""

    def __init__(self):
        super().__init__()
        self._register_configuration(from_scratch_on_cpu(short_edge=192))  # no flip: mirrored digits are not digits
        self._register_configuration(_config_dict)


config = DigitsConfig()
