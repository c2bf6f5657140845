"""The digits experiment as the protocol of the study declares it: the paper's method, with Broyden and 7 + 7 steps."""

from ifr.experiment import load_experiment

config = load_experiment("mask_rcnn.ifr.res18.fpn.digits").config
config.merge_from_list(
    [
        *("MODEL.ROI_MASK_HEAD.SOLVER", "broyden"),
        *("MODEL.ROI_MASK_HEAD.F_THRES", 7),
        *("MODEL.ROI_MASK_HEAD.B_THRES", 7),
        *("MODEL.ROI_MASK_HEAD.GAIN", 1.0),
        *("MODEL.ROI_MASK_HEAD.CONTRACTION_PENALTY", 0.0),
        *("SOLVER.OPTIMIZER.MASK_HEAD_LR_FACTOR", 1.0),
    ]
)
