"""Where patched activations come from, and which program is patched."""

SOURCES = ("counterfactual", "stored", "zero", "mean", "resample")
"""Where patched activations can come from: the counterfactual's forward pass; the same, as a logged run stored it;
zeros; the mean over other programs of the same length; another pair's original. The last three are ablations."""
PAIR_SOURCES = ("counterfactual", "stored")
"""The sources that are the pair's other program: only from these a patch can succeed."""
DIRECTIONS = ("into_original", "into_counterfactual")
