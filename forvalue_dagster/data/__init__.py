"""Readers, canonical rows, chat templates, response masks, token batches and noise recipes."""
