"""The policy inside a worker: the model's layers get the backend, exact angles and batch rows."""
