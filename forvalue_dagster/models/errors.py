"""Errors of loading or warming up a model."""


class ModelLoadError(RuntimeError):
    """A model, tokenizer or adapter cannot be loaded; the message says what is missing."""


class WarmUpError(RuntimeError):
    """The adapter cannot be trained; the message says why."""
