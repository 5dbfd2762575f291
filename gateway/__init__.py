"""HTTP: the data plane in plain ASGI, its errors, metrics and server."""
