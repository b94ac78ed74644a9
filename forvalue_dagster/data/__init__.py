"""From files to token batches: readers, canonical rows, chat templates, response masks, recipes."""
