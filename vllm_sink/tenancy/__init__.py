"""The tenant of a request, its limits, and its label on /metrics.

::

    keys.py             the file of keys: name, keys and limits of each tenant, read again on change
    identity.py         the tenant of a request: by its key, a header or a field
    authentication.py   who may call which route (ASGI)
    limits.py           what each tenant has, and 429
    labels.py           its name on /metrics

The operator's settings are in ``vllm_sink/config/tenancy.py``.
"""
