"""Models: which one, where from, and how it is loaded."""
