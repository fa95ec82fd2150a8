"""Token merging as a rewrite of a graph: fewer tokens behind the attentions of chosen blocks."""
