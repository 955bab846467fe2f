"""Pictures: arrays in, `Figure` out. Nothing here loads a model, and pyplot keeps no reference to anything.

All arguments may be torch tensors or numpy arrays, on any device. One style for all pictures: at most 11 inches at 80
dpi on the page, and twice as fine in the file; pink for attention, over the clip in its colours; cividis for other
amounts; PuOr around zero for differences; Okabe and Ito's colours (https://jfly.uni-koeln.de/color/) for categories,
each with a mark, dash or hatch of its own, so that a print in grey still tells them apart; maps as sharp cells; numbers
where they matter. `title` states what the picture shows, and is the alternative text for readers who cannot see it.

Letters: B clips, F frames, O objects, C channels, H x W pixels, h x w cells of a map, T words, L layers (in
[L, H, h, w], H heads), Q and S tokens that attend and that are attended to. n is any number, explained beside it.

`style` is the base of all plots, and shows how a new one begins.
"""

from gitdistill.viz.plots.attention import flow, frame_word_map, gaze, heads, overview
from gitdistill.viz.plots.clips import film
from gitdistill.viz.plots.explanation import effects, explanations, lens, pointing_examples, pointing_game
from gitdistill.viz.plots.features import components, feature_maps, similarity, word_map
from gitdistill.viz.plots.model import budget, token_mask
from gitdistill.viz.plots.networks import architecture
from gitdistill.viz.plots.search import beam_tree, drafts, ribbon, temperatures
from gitdistill.viz.plots.story import story
from gitdistill.viz.plots.style import Picture, animation, png
from gitdistill.viz.plots.training import board, curves, dots, pareto, scores
