"""What the notebooks measure inside a captioner: attention, explanations, grounding, and similarity of layers.

Tensors in, tensors out; `gitdistill.viz.plots` draws them. Where a function takes a `model`, a teacher (any GIT) and
a student will do.

Letters beside those of the package: L layers, h x w cells of the image grid, S all tokens of a network (the image's,
then the text's). A caption of T tokens has T - 1 maps: the map of a word comes from the position that predicts it.
"""

from gitdistill.inspection.attention import AttentionMaps, attention_maps, rollout, told
from gitdistill.inspection.calibration import (
    calibration_error,
    mean_risk,
    reliability,
    risk_coverage,
    word_confidence,
)
from gitdistill.inspection.explanation import explain, gradient_attention, occlusion, shuffled
from gitdistill.inspection.grounding import bootstrap, mask_on_grid, pointing_game, referents, scores_by_kind
from gitdistill.inspection.intervention import Cut, cell_effects, head_effects, logit_lens, patched, with_cuts
from gitdistill.inspection.similarity import (
    cka,
    cka_map,
    features,
    joint_pca,
    linear_probe,
    procrustes,
    rank_correlation,
    ridge,
    scaling,
)
