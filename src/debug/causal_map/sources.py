"""Where patched activations come from, and which program is patched."""

SOURCES = ("counterfactual", "stored", "zero", "mean", "resample")
"""Where patched activations can come from: the counterfactual's forward pass; the same, as a logged run stored it;
zeros; the mean over other programs of the same length; another pair's original. The last three are ablations."""
PAIR_SOURCES = ("counterfactual", "stored")
"""The sources that are the pair's other program: only from these a patch can succeed."""
FIRST_TOKEN, WHOLE, GREEDY = SCORED_BY = ("first_token", "whole_answer", "greedy")
"""What says which answer a patched run gives: its top token, which begins one; of the candidates the one that is most
probable as a whole; or the text that it writes."""
DIRECTIONS = ("into_original", "into_counterfactual")
