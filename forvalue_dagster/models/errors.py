"""What goes wrong when a model is loaded."""


class ModelLoadError(RuntimeError):
    """A model, tokenizer or adapter cannot be loaded; the message says what is missing."""
