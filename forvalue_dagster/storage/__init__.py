"""Storage of tables and tensors: atomic I/O managers on a local folder or object storage."""
