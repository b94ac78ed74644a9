"""The mathematics: pure tensor functions and frozen dataclasses, without files or models."""
