"""A small vision-language model that reads handwritten digits, made here for demo and tests."""
