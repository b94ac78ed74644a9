"""Where tables and tensors lie: atomic I/O managers over a local folder or object storage."""
