"""The paper's experiments (arXiv 2508.10180) at their full scale, as pipelines of this plugin."""
