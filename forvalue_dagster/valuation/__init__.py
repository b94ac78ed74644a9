"""The mathematics: pure tensor functions and frozen dataclasses; knows no file and no model class."""
