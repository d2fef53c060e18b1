"""A recipe, the loop that follows it, and what moves the weights."""
